"""The command line answers at once, and tells a mistake in one message without a traceback."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, command, study_folder
from nbformat.v4 import new_code_cell, new_notebook

from chexreason import config, records
from chexreason.cli import main

ROW = {"model": "stand-in-medgemma/untuned", "seed": 0, "dataset": "b-test", "label_set": "nih9", "n": 12}
ROW |= {"micro_f1": 0.5, "macro_f1": 0.25, "macro_f1_low": 0.1, "macro_f1_high": float("nan"), "fail_rate": 0.0}
ASKED = {"refusal_rate": 0.0, "protocol": "0123456789ab"}


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """A study that has been compared: `overall.parquet` holds one row."""
    monkeypatch.chdir(study_folder(tmp_path))
    study = config.load("params/smoke.yaml")
    overall = pd.DataFrame([ROW | {"params_hash": study.hash, "phantom": True} | ASKED])
    records.save(overall, study.folder / "compare" / "overall.parquet", records.provenance(study))
    return study


def with_parameters(folder: Path, **defaults: str) -> Path:
    """A notebook whose parameters have these defaults, written as code."""
    code = "\n".join(f"{name} = {default}" for name, default in defaults.items())
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = new_code_cell(code, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell], metadata=about), folder / "notebook.ipynb")
    return folder / "notebook.ipynb"


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
    scores = {"macro_f1_high": None, "params_hash": scored.hash, "phantom": True, "ruler": "labels"}
    assert row == ROW | scores | ASKED


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
def test_wrong_params_are_reported_without_a_traceback(tmp_path, name):
    said = command(study_folder(tmp_path, **{"num_train_epocs:": "num_train_epochs:"}), name, "params/smoke.yaml")
    assert said.returncode == 2
    assert "params/smoke.yaml: unknown key 'sft.num_train_epocs'; did you mean 'num_train_epochs'?" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_misspelt_notebook_parameter_is_reported(tmp_path, capsys):
    notebook = str(ROOT / "notebooks" / "3_sft.ipynb")
    assert main(["notebook", notebook, str(tmp_path / "out.ipynb"), "-p", "sead", "1"]) == 2
    said = capsys.readouterr().err
    assert "no parameter 'sead'; did you mean 'seed'?" in said and "running" not in said


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
    assert arguments[2] == "chexreason.workflow.terminal"
    assert arguments[arguments.index("--directory") + 1] == str(tmp_path)
    assert arguments[arguments.index("--config") + 1] == "params=params/smoke.yaml"
    assert arguments[-4:] == ["--cores", "4", "grpo", "--dry-run"]


@pytest.mark.parametrize(
    ("words", "handed", "full"),
    [
        (["--full", "FILE", "--cores", "4"], ["--cores", "4"], True),
        (["FILE", "--full", "grpo", "--cores", "4"], ["grpo", "--cores", "4"], True),
        (["FILE", "grpo", "-c4", "--full"], ["grpo", "-c4"], True),
        (["--cores", "4", "FILE", "sft"], ["--cores", "4", "sft"], False),
        (["-n", "FILE"], ["--dry-run"], False),
        (["FILE", "-np"], ["-np"], False),
        (["FILE", "--", "--forcerun", "compare"], ["--forcerun", "compare"], False),
        (["FILE", "--forcerun", "sft", "grpo", "-k"], ["--forcerun", "sft", "grpo", "-k"], False),
        (["FILE", "runs/smoke/curate/manifest.parquet"], ["runs/smoke/curate/manifest.parquet"], False),
    ],
)
def test_options_of_run_count_before_and_after_the_file(tmp_path, monkeypatch, words, handed, full):
    monkeypatch.chdir(study_folder(tmp_path))
    called = []
    monkeypatch.setattr("os.execv", lambda path, arguments: called.append(arguments))
    assert main(["run", *("params/smoke.yaml" if word == "FILE" else word for word in words)]) == 0
    (arguments,) = called
    assert arguments[arguments.index("--cores") + 2 :] == handed
    assert ("full=1" in arguments) == full
    dry = bool({"--dry-run", "-np"} & {*handed})
    targets = {"grpo", "sft", "runs/smoke/curate/manifest.parquet"} & {*handed}
    forced = "--forcerun" in handed  # what follows it is no target
    assert arguments[5] == ("plan" if dry else "findings" if forced or not targets else "progress")
    assert (tmp_path / "runs").exists() != dry


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["grpoo"], "no target 'grpoo'; did you mean 'grpo'? The targets are book, curate, prompts, "),
        (["sft", "predcit"], "did you mean 'predict'?"),
        (["--ful"], "unrecognized arguments: --ful; `chexreason run --help` lists the options"),
        (["--config", "full=1"], "run: --config cannot be given: the study is what its params file says"),
        (["-C", "params=params/other.yaml"], "run: --config cannot be given"),
        (["-s", "Snakefile"], "run: --snakefile cannot be given"),
        (["--", "-d", "elsewhere"], "run: --directory cannot be given"),
        (["--cores", "many"], "`chexreason run --help` lists the options"),
    ],
)
def test_a_wrong_target_or_option_of_run_is_reported_in_a_line(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(study_folder(tmp_path))
    assert main(["run", "params/smoke.yaml", *words]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["--help"], ["params/smoke.yaml", "--help"], ["params/gone.yaml", "grpo", "-h"]])
def test_the_help_of_run_tells_targets_and_how_to_reach_snakemake(capsys, words):
    with contextlib.suppress(SystemExit):  # argparse leaves by itself
        main(["run", *words])
    said = capsys.readouterr().out
    assert "Targets are the stages curate" in said and "-- --forcerun compare" in said


def test_run_alone_asks_for_the_params_file_only(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--full"])
    assert capsys.readouterr().err.endswith("the following arguments are required: params\n")


@pytest.mark.soak
def test_a_dry_run_writes_nothing(tmp_path):
    study_folder(tmp_path)
    said = command(tmp_path, "run", "params/smoke.yaml", "-n")
    assert said.returncode == 0 and "This was a dry-run" in said.stdout + said.stderr
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["mini.yaml", "params", "smoke.yaml"]


def test_an_option_of_snakemake_before_the_file_is_reported_where_it_goes(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--forceall", "params/smoke.yaml"])
    assert "unknown arguments: --forceall; put Snakemake's options after the params file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["smoke test.yaml", "a #1 {x}.yaml", "my: file.yaml", "[Über] 'it'.yaml", "資料🫁.yaml"]
)
def test_snakemake_gets_the_name_of_the_params_file_whatever_it_is(tmp_path, monkeypatch, name):
    from snakemake.cli import parse_config

    file = study_folder(tmp_path) / "params" / "smoke.yaml"
    file = file.rename(file.with_name(name))
    called = []
    monkeypatch.setattr("os.execv", lambda path, arguments: called.append(arguments))
    assert main(["run", str(file), "-n"]) == 0
    assert parse_config([called[0][called[0].index("--config") + 1]]) == {"params": f"params/{name}"}


def test_a_copied_params_file_is_refused_by_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study_folder(tmp_path))
    monkeypatch.setattr("os.execv", lambda path, arguments: None)
    assert main(["run", "params/smoke.yaml"]) == 0
    shutil.copy("params/smoke.yaml", "params/mine.yaml")
    for words in (["run", "-n"], ["run"], ["results"], ["plan"], ["predict", "film.png", "--params"]):
        assert main([*words, "params/mine.yaml"]) == 2
        assert "the folder runs/smoke belongs to params/smoke.yaml" in capsys.readouterr().err
    assert main(["run", "-n", "params/smoke.yaml"]) == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_reported_and_the_run_continues(tmp_path, monkeypatch, capsys, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(study_folder(tmp_path))
    monkeypatch.setattr("fcntl.flock", flock)
    called = []
    monkeypatch.setattr("os.execv", lambda path, arguments: called.append(arguments))
    assert main(["run", "params/smoke.yaml"]) == 0
    told = f"runs/smoke/.lock: this file system has no locks ({os.strerror(number)}); do not run the same study twice"
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and len(called) == 1


def test_a_command_alone_prints_help_and_the_version_is_the_packages(capsys):
    assert main([]) == 0
    assert "predict" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"chexreason {version('chexreason')}\n"


def test_the_shell_completes_commands_and_options(tmp_path):
    """As argcomplete's script for bash asks: in the environment, with the answer on descriptor 8."""
    line = "chexreason pre"
    asked = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": "said",
    }
    call = [sys.executable, "-m", "chexreason.cli"]
    subprocess.run(call, cwd=tmp_path, env=os.environ | asked | {"PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "said").read_text().split() == ["predict"]


def test_the_help_of_films_lists_the_files_of_each_data_set(capsys):
    for kind, file in (
        ("nih", "Data_Entry_2017_v2020.csv"),
        ("mimic", "mimic-cxr-2.0.0-split.csv"),
        ("chexpert", "valid.csv"),
    ):
        with pytest.raises(SystemExit):
            main(["films", kind, "--help"])
        assert file in capsys.readouterr().out


NOTEBOOK = {"name": "'a'", "count": "1", "rate": "0.5", "full": "False"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("name", text, text) for text in ("001", "true", "1e3", "no", "12:30", "null", "params/my file.yaml")),
        *(("count", text, number) for text, number in (("3", 3), ("1e3", 1000), ("1_000", 1000), ("-1", -1))),
        *(("rate", text, number) for text, number in (("1e-3", 0.001), (".5", 0.5), ("2", 2))),
        *(("full", text, value) for text, value in (("True", True), ("true", True), ("False", False))),
    ],
)
def test_a_notebook_parameter_has_the_type_of_its_default(tmp_path, monkeypatch, name, text, value):
    given = []
    monkeypatch.setattr("chexreason.workflow.notebook.execute", lambda *arguments: given.append(arguments[2]))
    assert main(["notebook", str(with_parameters(tmp_path, **NOTEBOOK)), "out.ipynb", "-p", name, text]) == 0
    assert given == [{name: value}] and type(given[0][name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "010"),
        ("count", "two"),
        ("count", "1.5"),
        ("count", "true"),
        ("rate", "yes"),
        ("full", "no"),
        ("full", "1"),
    ],
)
def test_a_notebook_parameter_of_another_type_is_refused_before_anything_runs(tmp_path, capsys, name, text):
    assert main(["notebook", str(with_parameters(tmp_path, **NOTEBOOK)), "out.ipynb", "-p", name, text]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"chexreason: -p {name}: '{text}' is not a value like its default, ")
    assert "running" not in said


def test_what_is_a_fault_of_ours_keeps_its_traceback(scored, monkeypatch):
    monkeypatch.setattr("chexreason.evaluation.compare.results", lambda study: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["results", "params/smoke.yaml"])


def test_a_reader_that_leaves_early_ends_a_command_quietly():
    call = [Path(sys.executable).with_name("chexreason"), "plan", "params/smoke.yaml"]
    run = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    assert run.wait() == 1
