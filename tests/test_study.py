"""The smoke study, run through the DAG: its records agree with each other, and nothing runs that need not."""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from conftest import at, command, study_folder

from chexreason import answers, fingerprint, labels, records
from chexreason.evaluation import compare
from chexreason.fingerprint import PACKAGE

SFT = "sft/medgemma/free_reasoning/seed0"
GRPO = "grpo/medgemma/hard/seed0"


def record(study, name: str):
    return records.load(study.folder / f"{name}.parquet")


def jobs(said: subprocess.CompletedProcess) -> dict[str, int]:
    """How often a dry run would run each rule."""
    assert said.returncode == 0, said.stderr[-3000:]
    return dict(Counter(re.findall(r"^(\w+) .* mem_mb ", said.stderr, re.MULTILINE)))


def written(folder: Path) -> dict[Path, int]:
    """When each record and executed notebook was written, in nanoseconds."""
    files = [path for end in ("*.parquet", "*.safetensors", "*.ipynb") for path in folder.rglob(end)]
    return {path: path.stat().st_mtime_ns for path in files}


def test_every_split_has_its_films_and_no_patient_is_in_two(smoke):
    manifest = record(smoke, "curate/manifest")
    sizes = manifest["split"].replace("sft-holdout", "sft").value_counts().to_dict()
    tests = {name: test.films for name, test in smoke.tests.items()}
    tests |= dict.fromkeys(smoke.crossed, smoke.layers.films)
    assert sizes == {"sft": smoke.curate.sft, "rl": smoke.curate.rl, "a-validation": smoke.curate.validation} | tests
    training = manifest[manifest["source"] == smoke.curate.train].replace({"split": {"sft-holdout": "sft"}})
    assert training.groupby("patient")["split"].nunique().max() == 1
    assert all(fingerprint.pixels(smoke.folder / film.path) == film.sha256 for film in manifest.itertuples())


def test_every_label_reaches_the_floor_in_both_training_splits(smoke):
    prevalence = record(smoke, "curate/prevalence")
    trained = prevalence[prevalence["stage"].isin(["sft", "rl"])]
    assert len(trained) == 2 * len(labels.CHEXPERT14)
    assert trained["share"].min() >= smoke.curate.floor


def test_every_sft_film_has_a_trace_that_ends_in_its_labels(smoke):
    manifest, traces = record(smoke, "curate/manifest"), record(smoke, "curate/traces")
    assert set(traces["film"]) == set(manifest.loc[manifest["split"].isin(["sft", "sft-holdout"]), "film"])
    assert (traces["check"] == "").all()
    read = [answers.read_strict(trace.text, trace.format) for trace in traces.itertuples()]
    assert [list(answer.labels) for answer in read] == [list(names) for names in traces["labels"]]


def test_sft_and_grpo_log_what_they_did(smoke):
    sft, grpo = record(smoke, f"{SFT}/log"), record(smoke, f"{GRPO}/log")
    assert set(sft["split"]) == {"train", "eval"}
    assert sft["loss"].gt(0).all()
    assert sft["token_accuracy"].dropna().between(0, 1).all()
    assert list(grpo["step"]) == list(range(1, smoke.grpo.max_steps + 1))
    assert grpo["kl"].iloc[0] == pytest.approx(0, abs=1e-3)  # the reference is the SFT checkpoint it starts from


def test_training_changed_the_adapter(smoke):
    from safetensors.numpy import load_file

    sft, grpo = (load_file(smoke.folder / where / "adapter" / "adapter_model.safetensors") for where in (SFT, GRPO))
    assert any(weights.any() for name, weights in sft.items() if "lora_B" in name)  # zero before training
    assert any((grpo[name] != weights).any() for name, weights in sft.items())


def test_every_checkpoint_answers_every_film_and_the_text_is_what_was_parsed(smoke):
    manifest = record(smoke, "curate/manifest")
    asked = manifest[manifest["split"].isin([*compare.datasets(smoke), *smoke.crossed])]
    for checkpoint in smoke.checkpoints():
        given = records.load(smoke.paths.answers(checkpoint))
        assert set(zip(given["dataset"], given["film"], strict=True)) == set(
            zip(asked["split"], asked["film"], strict=True)
        )
        readings = [answers.read(text) for text in given["text"]]
        assert [list(reading.labels) for reading in readings] == [list(names) for names in given["labels"]]
        assert [reading.failed for reading in readings] == list(given["failed"])


def test_records_say_where_they_come_from(smoke):
    provenance = record(smoke, "compare/overall").attrs["provenance"]
    assert provenance["params_hash"] == smoke.hash
    assert provenance["phantom"] is True
    assert provenance["inputs"]["curate/manifest.parquet"] == records.sha256(
        smoke.folder / "curate" / "manifest.parquet"
    )


def test_the_command_line_prints_one_result_per_model_data_set_and_label_set(smoke):
    said = command(smoke.folder.parents[1], "results", "params/smoke.yaml", "--json")
    rows = json.loads(said.stdout)
    sets = [(dataset, name) for dataset, names in compare.datasets(smoke).items() for name in names]
    models = [compare.model_name(smoke, each) for each in smoke.checkpoints()]
    by_labels = [row for row in rows if row["ruler"] == "labels" and row["model"] in models]
    assert [(row["model"], row["dataset"], row["label_set"]) for row in by_labels] == [
        (model, *where) for model in models for where in sets
    ]
    named = {(row["model"], row["dataset"], row["label_set"], row["ruler"]) for row in rows}
    others = [*models, "stand-in-medgemma/logistic regression"]
    truth = {(model, *where, "truth") for model in others for where in sets}
    perfect = {(name, *where, "labels") for name in ("perfect reader", others[-1]) for where in sets}
    assert len(rows) == len(named) and named == truth | perfect | {
        (m, *where, "labels") for m in models for where in sets
    }
    assert all(row["params_hash"] == smoke.hash and row["phantom"] for row in rows)


def test_executed_notebooks_hold_no_error_and_nothing_of_this_machine(smoke):
    executed = sorted((smoke.folder / "notebooks").glob("*.ipynb"))
    assert len(executed) == 20
    for path in executed:
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"], path.name
        assert str(smoke.folder.parent) not in path.read_text(encoding="utf-8"), path.name
        assert str(PACKAGE) not in path.read_text(encoding="utf-8"), path.name


def test_nothing_runs_again_when_nothing_changed(smoke):
    before = written(smoke.folder)
    said = command(smoke.folder.parents[1], "run", "params/smoke.yaml")
    assert "Nothing to be done" in said.stdout + said.stderr
    assert written(smoke.folder) == before


def test_a_changed_value_runs_again_just_what_depends_on_it(smoke):
    """SFT is not trained again. GRPO is, because it evaluates its checkpoints with this limit."""
    folder = study_folder(smoke.folder.parents[1], **{"max_new_tokens: 60": "max_new_tokens: 64"})
    try:
        would = jobs(command(folder, "run", "params/smoke.yaml", "--dry-run"))
    finally:
        study_folder(folder)
    asked = {"prompts": 1, "predict_untuned": 1, "predict_run": 3}
    found = {"compare": 1, "found_run": 3, "baseline_run": 1, "chapter_run": 5}
    assert would == {"grpo_run": 1, **asked, **found, "book": 1}


@pytest.mark.soak
def test_the_same_params_give_the_same_answers_byte_for_byte(smoke):
    answered = smoke.paths.answers(at("grpo/hard"))
    before = answered.read_bytes()
    shutil.rmtree(answered.parent)  # with the journal, from which it would be made again without a question
    folder = smoke.folder.parents[1]
    said = command(folder, "run", "params/smoke.yaml", str(answered.relative_to(folder)))
    assert said.returncode == 0, said.stderr[-4000:]
    assert answered.read_bytes() == before
