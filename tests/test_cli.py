"""The command line answers at once, and tells a mistake in one message without a traceback."""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, command, study_folder

from chexreason import params, records
from chexreason.cli import main

ROW = {"model": "stand-in-medgemma/untuned", "seed": 0, "dataset": "b-test", "label_set": "nih9", "n": 12}
ROW |= {"micro_f1": 0.5, "macro_f1": 0.25, "macro_f1_low": 0.1, "macro_f1_high": float("nan"), "fail_rate": 0.0}
ASKED = {"refusal_rate": 0.0, "protocol": "0123456789ab"}


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A study that has been compared: `overall.parquet` holds one row."""
    monkeypatch.chdir(study_folder(tmp_path))
    study = params.load("params/smoke.yaml")
    overall = pd.DataFrame([ROW | {"params_hash": study.hash, "phantom": True} | ASKED])
    records.save(overall, study.folder / "compare" / "overall.parquet", records.origin(study))
    return study


def test_help_answers_in_half_a_second(tmp_path):
    start = time.perf_counter()
    said = command(tmp_path, "--help")
    took = time.perf_counter() - start
    assert "results" in said.stdout
    assert took < 0.5


def test_the_command_line_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'trl', 'pandas', 'numpy', 'pydantic', 'papermill', 'snakemake'}"
    code = f"import sys, chexreason.cli; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_results_as_json_are_one_object_a_row_with_null_for_undefined(scored, capsys):
    assert main(["results", "params/smoke.yaml", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == ROW | {"macro_f1_high": None, "params_hash": scored.hash, "phantom": True} | ASKED


def test_results_as_text_say_what_they_are(scored, capsys):
    assert main(["results", "params/smoke.yaml"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["model", "seed", "dataset"]
    assert "0.250" in row


def test_results_before_the_study_ran_say_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study_folder(tmp_path))
    assert main(["results", "params/smoke.yaml"]) == 2
    assert "overall.parquet: no such record; run the notebook that writes it, or `make book`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "results"])
def test_wrong_params_are_told_without_a_traceback(tmp_path, name):
    said = command(study_folder(tmp_path, **{"epocs:": "epochs:"}), name, "params/smoke.yaml")
    assert said.returncode == 2
    assert "params/smoke.yaml: unknown key 'sft.epocs'; did you mean 'epochs'?" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_misspelt_notebook_parameter_is_told(tmp_path, capsys):
    notebook = str(ROOT / "notebooks" / "3_sft.ipynb")
    assert main(["notebook", notebook, str(tmp_path / "out.ipynb"), "-p", "sead", "1"]) == 2
    assert "no parameter 'sead'; did you mean 'seed'?" in capsys.readouterr().err


def test_a_second_run_of_the_same_study_is_refused_while_the_first_lives(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study_folder(tmp_path))
    (tmp_path / "runs" / "smoke").mkdir(parents=True)
    with open(tmp_path / "runs" / "smoke" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", "params/smoke.yaml"]) == 2
    assert "this study is being run by another process; wait for it, or stop it first" in capsys.readouterr().err


def test_a_run_is_handed_to_snakemake_in_the_folder_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(study_folder(tmp_path))
    called = []
    monkeypatch.setattr("os.execv", lambda path, arguments: called.append(arguments))
    main(["run", "params/smoke.yaml", "--cores", "4", "grpo", "--dry-run"])
    (arguments,) = called
    assert arguments[2] == "snakemake"
    assert arguments[arguments.index("--directory") + 1] == str(tmp_path)
    assert arguments[arguments.index("--config") + 1] == "params=params/smoke.yaml"
    assert arguments[-4:] == ["--cores", "4", "grpo", "--dry-run"]


def test_what_is_a_fault_of_ours_keeps_its_traceback(scored, monkeypatch):
    monkeypatch.setattr("chexreason.compare.results", lambda study: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["results", "params/smoke.yaml"])


def test_a_reader_that_leaves_early_ends_a_command_quietly():
    call = [Path(sys.executable).with_name("chexreason"), "plan", "params/smoke.yaml"]
    run = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    assert run.wait() == 1
