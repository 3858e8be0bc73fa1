"""A plan names every run and everything that is missing, and its estimates are measured steps, counted by hand."""

import json
import math
import re

import pytest
from conftest import ROOT, changed_study, study_folder

from chexreason import config
from chexreason.cli import main
from chexreason.workflow import measured, model_size, plan

PAPER, SMOKE = ROOT / "params" / "paper.yaml", ROOT / "params" / "smoke.yaml"
MEDGEMMA, QWEN, _ = model_size.PUBLISHED


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without data folders, hub models, GPU or network."""
    import socket

    for name in ("MIMIC_CXR_JPG", "CHEXPERT", "NIH_CXR14"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was touched"))


@pytest.fixture
def paper(bare) -> dict:
    return plan.plan(config.load(PAPER))


def changed(study: config.Study, section: str, **values) -> config.Study:
    return study.model_copy(update={section: getattr(study, section).model_copy(update=values)})


# The grid.


@pytest.mark.parametrize("file", [PAPER, SMOKE, ROOT / "params" / "mini.yaml"], ids=lambda file: file.stem)
def test_every_run_of_the_grid_is_there_once_for_each_seed(file):
    study = config.load(file).model_copy(update={"seeds": [3, 4]})
    runs = plan.runs(study)
    asked = [(each.model, each.name, each.seed) for each in study.checkpoints()]
    assert [(run.model, run.run, run.seed) for run in runs if run.stage == "predict"] == asked
    assert [run.run for run in runs if run.stage == "prompts"] == study.prompts.variants
    for stage in ("sft", "grpo"):
        found = [(run.run, run.seed) for run in runs if run.stage == stage]
        seeds = [3, 4, *study.more_seeds]
        named = getattr(study, stage).runs.items()
        assert found == [(name, seed) for name, run in named for seed in (seeds[:2] if run.full else seeds)]
    assert all(run.hours > 0 and run.memory > 0 and run.how for run in runs)


def test_the_papers_plan_fits_one_80_gb_gpu(paper):
    assert 0 < paper["peak_memory"] < 80
    assert paper["total_hours"] == pytest.approx(sum(run["hours"] for run in paper["runs"]), abs=0.01)


def test_a_model_of_unknown_shape_has_no_estimate_and_the_others_do():
    study = config.load(PAPER)
    study.models["qwen"] = config.Model(name="x", path="someone/else-4b", dtype="bfloat16")
    found = plan.plan(study)
    unknown = [run for run in found["runs"] if run["model"] == "qwen"]
    assert all(run["hours"] is None and "someone/else-4b: its shape is not known" in run["how"] for run in unknown)
    assert all(run["hours"] for run in found["runs"] if run["model"] == "medgemma")


def test_a_stand_in_that_is_not_forged_has_no_estimate(tmp_path):
    study = config.load(study_folder(tmp_path) / "params" / "smoke.yaml")
    study.models["qwen"] = config.Model(name="x", path="stand-in:gemini", dtype="float32")
    found = plan.plan(study)
    assert [run["hours"] for run in found["runs"] if run["model"] == "qwen"] == [None]
    assert any("models.qwen: stand-in:gemini: no such stand-in" in told for told in found["missing"])


# What is missing.


def test_everything_missing_is_reported_with_what_to_do(paper):
    told = "\n".join(paper["missing"])
    assert "sources.mimic.root: $MIMIC_CXR_JPG: set this environment variable" in told
    assert "sources.nih.root: $NIH_CXR14: set this environment variable" in told
    assert "models.medgemma: google/medgemma-4b-it is not in this machine's hub cache" in told
    assert "GPU: none on this machine; the largest run needs about" in told


def test_what_is_there_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMIC_CXR_JPG", str(tmp_path))
    hub_model(tmp_path / "hub", QWEN, ["model-1.safetensors"])
    told = "\n".join(plan.missing(config.load(PAPER)))
    assert "sources.mimic" not in told
    assert "models.qwen" not in told
    assert "models.medgemma" in told


def hub_model(cache, path, shards):
    """A hub cache as the hub's client lays it out, with an index of two shards and those of them that are there."""
    repository = cache / f"models--{path.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    for name, text in {"config.json": "{}", "model.safetensors.index.json": json.dumps(index)}.items():
        (snapshot / name).write_text(text)
    for shard in shards:
        (snapshot / shard).write_bytes(b"")


def test_a_model_with_a_shard_missing_is_missing(tmp_path):
    hub_model(tmp_path / "hub", MEDGEMMA, [])
    assert "is not in this machine's hub cache" in plan.access(MEDGEMMA)


def test_a_folder_that_is_not_there_is_no_hub_model(tmp_path):
    assert plan.access(str(tmp_path)) == f"{tmp_path}: no such folder with a config.json"
    (tmp_path / "config.json").write_text("{}")
    assert plan.access(str(tmp_path)) == ""
    assert "no such stand-in" in plan.access("stand-in:gemini")


def test_a_teachers_key_that_is_not_set_is_missing(monkeypatch):
    study = changed(config.load(PAPER), "teacher", key="CHEXREASON_TEST_KEY")
    assert "teacher.key: set the environment variable CHEXREASON_TEST_KEY" in plan.missing(study)
    monkeypatch.setenv("CHEXREASON_TEST_KEY", "x")
    assert not [told for told in plan.missing(study) if "teacher" in told]


def test_a_small_gpu_is_reported_with_what_is_needed(monkeypatch):
    from types import SimpleNamespace

    small = SimpleNamespace(name="Small 8", total_memory=8e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: small)
    study = config.load(PAPER)
    assert "GPU: Small 8 has 8 GB; the largest run needs about 39 GB" in plan.missing(study, 39.2)
    assert not [told for told in plan.missing(study, 7.0) if "GPU" in told]


def test_a_full_disk_is_reported_with_what_is_needed(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e9))
    (told,) = [told for told in plan.missing(config.load(PAPER)) if told.startswith("disk")]
    assert "1.0 GB are free" in told
    weights = 2 * (4_300_079_472 + 3_754_622_976)
    assert weights < plan.disk_needed(config.load(PAPER)) < 3 * weights


# The estimates, by hand from measured steps.


STEPS = {
    "sft": (8, 4.0, 10.0),
    "watch": (3, 0.3, 10.0),
    "rollout": (32, 60.0, 24.0),
    "update": (16, 2.0, 24.0),
    "read": (64, 1.0, 15.0),
    "answer": (64, 13.7, 15.0),
}
"""Films or completions, seconds and memory of the steps of a made-up machine."""


@pytest.fixture
def measured_here(tmp_path):
    """The published study in a folder of its own with measured steps: completions of 384 tokens, answers of 128."""

    def make(weights: str = "random", path: str = MEDGEMMA) -> config.Study:
        study = changed_study(tmp_path, "paper", {})
        study.claim()
        tokens = {"rollout": 384, "update": 384, "answer": 128}
        rows = [",".join(measured.Step._fields)]
        for name, (films, seconds, memory) in STEPS.items():
            numbers = f"{films},300,{tokens.get(name, 1)},{seconds},{memory}"
            rows.append(f"{path},{weights},{name},sdpa,{numbers},bfloat16,GPU,1,2,3,4,abc,2026-01-01")
        (study.folder / measured.FILE).write_text("\n".join(rows) + "\n")
        return study

    return make


def run(study: config.Study, stage: str, name: str) -> plan.Run:
    """A run of the study's plan with MedGemma."""
    return next(run for run in plan.runs(study) if (run.stage, run.model, run.run) == (stage, "medgemma", name))


def test_sft_by_hand(measured_here):
    """Six epochs of 1,800 films to learn from and 200 to watch."""
    found = run(measured_here(), "sft", "free_reasoning")
    assert found.hours * 3600 == pytest.approx(10_800 * 4 / 8 + 1200 * 0.3 / 3 + 12_000 * 0.04)
    assert found.memory == pytest.approx(1.2 * 10)


def test_grpo_by_hand(measured_here):
    """125 rollouts of twice the measured length, 250 updates, and five times 500 films in batches of 64."""
    found = run(measured_here(), "grpo", "hard")
    answers = 40 * (1 + 2047 * 0.1) + 2500 * 0.04
    assert found.hours * 3600 == pytest.approx(2 * (125 * 60 + 250 * 2) + answers)
    rest = 24 - 2 * 4.300079472  # of 24 GB, what grows with the length
    assert found.memory == pytest.approx(1.2 * (24 - rest + 2 * rest), rel=1e-6)


def test_prediction_by_hand(measured_here):
    """1,506 films are 24 batches; a token of Gemma 3 keeps 69,632 numbers of two bytes."""
    found = run(measured_here(), "predict", "untuned")
    assert found.hours * 3600 == pytest.approx(24 * (1 + 2047 * 0.1) + 1506 * 0.04)
    assert found.memory == pytest.approx(1.2 * (15 + 2 * 69_632 * 64 * (2048 - 128) / 1e9))


def test_answers_of_a_models_own_weights_are_as_long_as_they_were(measured_here):
    study = measured_here("its own")
    assert run(study, "predict", "untuned").hours * 3600 == pytest.approx(24 * 13.7 + 1506 * 0.04)
    assert run(study, "grpo", "hard").hours * 3600 == pytest.approx(125 * 60 + 250 * 2 + 40 * 13.7 + 2500 * 0.04)


def test_steps_of_a_stand_in_say_nothing_of_the_model_it_stood_for(measured_here):
    shipped = run(config.load(PAPER), "sft", "free_reasoning")
    assert run(measured_here("a stand-in's"), "sft", "free_reasoning") == shipped


def test_another_model_of_the_same_shape_may_answer_at_any_length(measured_here):
    study = measured_here("its own", path=QWEN)
    by_model = {run.model: run for run in plan.runs(study) if (run.stage, run.run) == ("predict", "untuned")}
    prepared = 1506 * 0.04
    assert by_model["qwen"].hours * 3600 == pytest.approx(24 * 13.7 + prepared)
    assert by_model["nv_reason"].hours * 3600 == pytest.approx(24 * (1 + 2047 * 0.1) + prepared)


def test_steps_in_another_dtype_say_nothing(measured_here):
    study = measured_here()
    study.models["medgemma"] = study.models["medgemma"].model_copy(update={"dtype": "float32"})
    found = run(study, "sft", "free_reasoning")
    assert math.isnan(found.hours) and "no step in float32 was measured" in found.how


def test_a_larger_batch_than_was_measured_takes_longer_in_proportion(measured_here):
    study = changed(measured_here(), "predict", batch=128)
    assert run(study, "predict", "untuned").hours * 3600 == pytest.approx(12 * 2 * (1 + 2047 * 0.1) + 1506 * 0.04)


def test_a_model_that_was_never_measured_says_how_to(tmp_path):
    from transformers import AutoConfig

    text = model_size.GEMMA_3_4B["text_config"] | {"num_hidden_layers": 12}
    AutoConfig.for_model(**model_size.GEMMA_3_4B | {"text_config": text}).save_pretrained(tmp_path)
    study = config.load(PAPER)
    study.models["medgemma"] = config.Model(name="x", path=str(tmp_path), dtype="bfloat16")
    assert (
        "no step in bfloat16 was measured; `chexreason plan --measure paper.yaml`"
        in run(study, "sft", "free_reasoning").how
    )


def test_a_short_study_costs_less_than_a_full_one():
    found = plan.plan(config.load(ROOT / "params" / "mini.yaml"))
    assert 0 < found["short_hours"] < found["total_hours"]
    assert "Without those that the params file marks full: about 0:" in plan.table(found)


def test_the_books_page_has_every_run_and_every_assumption(paper):
    page = plan.page(paper).replace("\\", "")
    assert page.count("\n| ") == len(paper["runs"]) + len(paper["steps"]) + 4  # heads, and the lines under them
    for run in paper["runs"]:
        assert f"| {run['stage']} | {run['model']} | {run['run']} | {run['seed']} |" in page
        assert run["how"] in page
    assert all(told in page for told in paper["assumptions"])
    hours = {stage: sum(run["hours"] for run in paper["runs"] if run["stage"] == stage) for stage in ("sft", "grpo")}
    for stage, spent in hours.items():
        assert f"{stage} {int(spent + 1 / 120)}:" in page


# The command.


def test_a_study_that_lacks_nothing_exits_0(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study_folder(tmp_path))
    assert main(["plan", "params/smoke.yaml"]) == 0
    said = capsys.readouterr().out
    assert "Missing on this machine:\n- nothing" in said
    assert re.search(r"^predict +medgemma +grpo/hard-best +0 +0:00", said, re.MULTILINE)


def test_a_study_that_lacks_something_exits_1_and_its_json_says_what(capsys):
    assert main(["plan", str(PAPER), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"runs", "missing", "total_hours", "assumptions"} <= set(found)
    assert set(found["runs"][0]) == set(plan.Run._fields)
    assert not any(isinstance(value, float) and math.isnan(value) for run in found["runs"] for value in run.values())
    assert any("measured on" in told for told in found["assumptions"])
    assert {step["step"] for step in found["steps"]} == {"sft", "watch", "rollout", "update", "see", "read", "answer"}


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(study_folder(tmp_path))
    main(["plan", "params/smoke.yaml"])
    assert not (tmp_path / "runs").exists()


def test_a_plan_counts_the_images_that_are_there(tmp_path, monkeypatch):
    from test_nih import make

    (make(tmp_path) / "00000001_000.png").touch()
    monkeypatch.setenv("NIH_FOLDER", str(tmp_path))
    study = config.load(ROOT / "params" / "nih_sample.yaml")
    found = plan.plan(study)
    assert found["films"]["home"] == [
        {"split": "train_val", "view": "PA", "films": 3, "images": 1},
        {"split": "train_val", "view": "AP", "films": 1, "images": 0},
    ]
    assert "  train_val, PA                      3         1" in plan.table(found).splitlines()
    assert "sources.away: 3 of 3 images are not in the folder" in found["missing"]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("Image Index\n")
    assert any("has no column 'Finding Labels'" in told for told in plan.plan(study)["missing"])
