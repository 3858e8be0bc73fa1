"""A plan names every run and everything that is missing, and its estimates agree with what torch counts."""

import json
import math
import re

import pytest
from conftest import ROOT, study_folder

from chexreason import config
from chexreason.cli import main
from chexreason.config import Lora
from chexreason.workflow import model_size, plan

PAPER, SMOKE = ROOT / "params" / "paper.yaml", ROOT / "params" / "smoke.yaml"
MEDGEMMA, QWEN, _ = model_size.PUBLISHED
FILM = (734, 896)
LORA = Lora(r=16, lora_alpha=32, lora_dropout=0.1)
MODELS = {model.path: model for model in config.load(PAPER).models.values()}


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


def test_everything_missing_is_told_with_what_to_do(paper):
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


def test_a_small_gpu_is_told_with_what_is_needed(monkeypatch):
    from types import SimpleNamespace

    small = SimpleNamespace(name="Small 8", total_memory=8e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: small)
    study = config.load(PAPER)
    assert "GPU: Small 8 has 8 GB; the largest run needs about 39 GB" in plan.missing(study, 39.2)
    assert not [told for told in plan.missing(study, 7.0) if "GPU" in told]


def test_a_full_disk_is_told_with_what_is_needed(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e9))
    (told,) = [told for told in plan.missing(config.load(PAPER)) if told.startswith("disk")]
    assert "1.0 GB are free" in told
    weights = 2 * (4_300_079_472 + 3_754_622_976)
    assert weights < plan.needed(config.load(PAPER)) < 3 * weights


# The estimates, against torch's own counts on the true shape.


def test_reading_is_what_torch_counts_for_the_language_model():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = model_size.empty(MEDGEMMA), 1000
    with FlopCounterMode(display=False) as counted:
        hidden = model.model.language_model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
        model.lm_head(hidden.last_hidden_state[:, -700:])
    estimate = plan.language_flops(model_size.shape(MODELS[MEDGEMMA], LORA, *FILM), tokens, 700)
    assert counted.get_total_flops() == pytest.approx(estimate, rel=0.06)  # attention, which is left out


def test_seeing_is_what_torch_counts_for_the_vision_encoder():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.empty(1, 3, 896, 896, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counted:
        model_size.empty(MEDGEMMA).get_image_features(pixels, return_dict=True)
    assert counted.get_total_flops() == pytest.approx(
        plan.vision_flops(model_size.shape(MODELS[MEDGEMMA], LORA, *FILM)), rel=0.02
    )


@pytest.mark.parametrize("path", [MEDGEMMA, QWEN])
def test_activations_are_what_autograd_keeps(path):
    """Attention's square matrices are left out: only the kernels that stand in on the meta device keep them."""
    import torch
    from peft import get_peft_model

    from chexreason import models

    model, tokens = model_size.empty(path), 300
    adapted = get_peft_model(model, models.lora_config(LORA)).train()
    own, kept = {weight.untyped_storage()._cdata for weight in adapted.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own and tensor.shape[-2:] != (tokens, tokens):
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids, places = (torch.zeros(1, tokens, dtype=torch.long, device="meta") for _ in range(2))
        held = model.model.language_model(input_ids=ids, position_ids=places)
    assert held.last_hidden_state.requires_grad
    shape = model_size.shape(MODELS[path], LORA, *FILM)._replace(patches=0)
    estimate = plan.activations(shape, 1, tokens, checkpointing=False) * shape.layers / (shape.layers + 1)
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(estimate, rel=0.12)


def test_keys_and_values_by_hand():
    """Gemma 3 4B: 34 layers, 4 heads of 256 numbers, keys and values, two bytes each."""
    assert plan.cached(model_size.shape(MODELS[MEDGEMMA], LORA, *FILM), batch=3, tokens=10) == 34 * 4 * 256 * 2 * 2 * 30


def test_a_short_study_costs_less_than_a_full_one():
    found = plan.plan(config.load(ROOT / "params" / "mini.yaml"))
    assert 0 < found["short_hours"] < found["total_hours"]
    assert "Without those that the params file marks full: about 0:" in plan.table(found)


def test_the_books_page_has_every_run_and_every_assumption(paper):
    page = plan.page(paper).replace("\\", "")
    assert page.count("\n| ") == len(paper["runs"]) + 2  # and the head, and the line under it
    for run in paper["runs"]:
        assert f"| {run['stage']} | {run['model']} | {run['run']} | {run['seed']} |" in page
        assert run["how"] in page
    assert all(told in page for told in paper["assumptions"])
    hours = {stage: sum(run["hours"] for run in paper["runs"] if run["stage"] == stage) for stage in ("sft", "grpo")}
    for stage, spent in hours.items():
        assert f"{stage} {int(spent + 1 / 120)}:" in page


def test_sft_by_hand():
    study = config.load(PAPER)
    (run,) = [
        run for run in plan.runs(study) if (run.stage, run.model, run.run) == ("sft", "medgemma", "free_reasoning")
    ]
    tokens = 256 + round(len((ROOT / "chexreason/prompts/free_reasoning.txt").read_text().strip()) / 4) + 80 + 525
    body, head, vision = 3_880_263_168 - 262_208 * 2560, 262_208 * 2560, 419_816_304
    forward = 2 * body * tokens + 2 * head * 605
    film = 2 * vision * 4096 + 4 * 4096**2 * 1152 * 27
    flop = 6 * 1800 * (3 * forward + film) + 6 * 200 * (forward + film)
    assert run.hours == pytest.approx((flop / (312e12 * 0.35) + 6 * 2000 * 0.04) / 3600, rel=1e-6)


def test_more_work_costs_more():
    study = config.load(PAPER)
    cost = {(run.stage, run.model, run.run): run for run in plan.runs(study)}
    more = changed(study, "sft", num_train_epochs=12, per_device_train_batch_size=4)
    more = changed(more, "grpo", max_steps=500, num_generations=8)
    for run in plan.runs(more):
        before = cost[run.stage, run.model, run.run]
        if run.stage not in ("sft", "grpo"):
            assert run == before
        else:
            assert run.hours > 1.9 * before.hours
            assert run.memory > before.memory


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
    assert any("Assumed, not measured" in told for told in found["assumptions"])


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(study_folder(tmp_path))
    main(["plan", "params/smoke.yaml"])
    assert not (tmp_path / "runs").exists()


def test_the_peak_memory_of_every_stage_with_stand_ins_is_told():
    (told,) = [line for line in plan.assumptions(config.load("params/mini.yaml")) if line.startswith("Peak memory")]
    assert re.findall(r"(\w+) \d\.\d", told) == ["curate", "prompts", "sft", "grpo", "predict", "compare", "book"]


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
