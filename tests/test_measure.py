"""A few real steps of each kind are run and kept, and a plan is made of them."""

import shutil

import pandas as pd
import pytest
import soak
import torch
from conftest import ROOT, changed_study
from small import SMALL

from chexreason import config, models
from chexreason.cli import main
from chexreason.workflow import measure, measured, model_size, plan

KINDS = ["sft", "watch", "rollout", "update", *["see", "read", "answer"] * 4]
QUICK = SMALL | {
    "sft.per_device_train_batch_size": 1,
    "sft.gradient_accumulation_steps": 2,
    "grpo.steps_per_generation": 2,
    "grpo.max_steps": 4,
    "grpo.save_steps": 2,
    "predict.batch": 2,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    """The small study with steps of its own, measured by the command."""
    folder = tmp_path_factory.mktemp("measure")
    study = changed_study(folder, "smoke", QUICK)
    assert main(["plan", "--measure", str(study.file)]) == 0
    return study


@pytest.fixture(scope="module")
def steps(study) -> list[measured.Step]:
    return measured.read(study.folder / measured.FILE, 0)


def test_each_kind_of_step_of_each_architecture_is_there_once(steps):
    for path in ("stand-in:medgemma", "stand-in:qwen"):
        assert [step.step for step in steps if step.model == path] == KINDS
    assert len(steps) == 2 * len(KINDS)
    assert all(step.weights == "its own" and step.device.startswith("CPU") for step in steps)
    assert all(step.seconds > 0 and 0.1 < step.memory < 8 for step in steps)


def test_a_step_has_the_films_and_tokens_of_the_params_file(steps):
    films = {step.step: step.films for step in steps if step.model == "stand-in:medgemma" and step.attention == "sdpa"}
    assert films | {"watch": 1} == {"sft": 2, "watch": 1, "rollout": 8, "update": 4, "see": 8, "read": 8, "answer": 8}
    assert all(step.new_tokens == 1 for step in steps if step.step == "read")
    assert all(1 < step.new_tokens <= 24 for step in steps if step.step in ("rollout", "answer"))
    processor = models.load_processor(config.Model(name="x", path="stand-in:medgemma", dtype="float32"))
    film = torch.zeros(128, 128, 3, dtype=torch.uint8).numpy()
    asked = processor(images=[[film]], text=[models.question(processor, PROMPT)], add_special_tokens=False)
    assert {step.prompt_tokens for step in steps if step.model == "stand-in:medgemma"} == {len(asked["input_ids"][0])}


PROMPT = (ROOT / "chexreason" / "prompts" / "free_reasoning.txt").read_text().strip()


def test_the_encoder_alone_takes_less_than_the_answer_it_is_part_of(steps):
    see, read = ({step[:5]: step for step in steps if step.step == kind} for kind in ("see", "read"))
    assert all(step.seconds < read[(*key[:2], "read", *key[3:])].seconds for key, step in see.items())


def test_a_plan_is_made_of_what_was_measured_in_its_study(study, steps):
    found = plan.plan(study)
    assert {step["seconds"] for step in found["steps"]} == {step.seconds for step in steps}
    assert "stand-in:medgemma: measured on" in "\n".join(found["assumptions"])


def test_nothing_but_the_record_is_left(study):
    assert {path.name for path in study.folder.iterdir()} - {"scratch"} == {measured.FILE, config.OWNER}
    assert not any((study.folder / "scratch").iterdir())


def test_a_model_without_weights_gets_random_ones_of_its_own_shape(tmp_path):
    """A folder with a processor and a configuration, as of a model that is not on this machine."""
    source, place = tmp_path / "source", tmp_path / "place"
    shutil.copytree(models.folder("stand-in:medgemma"), source, ignore=shutil.ignore_patterns("*.safetensors"))
    model = config.Model(name="x", path=str(source), dtype="bfloat16")
    measure._random(model, "medgemma", place)
    built = models.load_base(model.model_copy(update={"path": str(place)}))
    assert {weight.dtype for weight in built.parameters()} == {torch.bfloat16}
    assert sum(weight.numel() for weight in built.parameters()) == model_size.weights("stand-in:medgemma")
    assert models.load_processor(model.model_copy(update={"path": str(place)})).image_seq_length == 16


def test_without_a_gpu_a_stand_in_is_measured_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for path, stand_in in (("google/medgemma-4b-it", "medgemma"), ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen")):
        model = config.Model(name="x", path=path, dtype="bfloat16")
        assert measure._measured_stand_in(model, tmp_path) == (f"stand-in:{stand_in}", "a stand-in's", "float32")


def test_a_trace_is_lengthened_by_its_own_words():
    text = "<think>Clear lungs.</think>\n<solution>No Finding</solution>"
    assert measure.lengthen_trace(text, 5) == text.replace("Clear lungs.", "Clear lungs. Clear lungs. Clear")
    assert measure.lengthen_trace("No Finding", 5) == "No Finding"


def test_the_records_that_came_with_the_package_are_whole():
    steps = measured.read(ROOT / "chexreason" / "workflow" / measured.FILE, 0)
    for path in ("google/medgemma-4b-it", "Qwen/Qwen2.5-VL-3B-Instruct", "stand-in:medgemma", "stand-in:qwen"):
        assert {step.step for step in steps if step.model == path} == set(KINDS)
    assert all(step.date and step.device and step.torch and step.commit for step in steps)


@pytest.mark.soak
def test_the_steps_of_the_published_study_are_measured_with_stand_ins(tmp_path):
    """What `make gpu` does on a machine without a GPU."""
    study = changed_study(tmp_path, "paper", {})
    table = measure.measure(study)
    assert set(table["weights"]) == {"a stand-in's"} and list(table["step"]) == KINDS * 2
    rollout = table[table["step"] == "rollout"]
    assert list(rollout["films"]) == [32, 32]
    assert plan.plan(study)["steps"] == plan.plan(config.load(ROOT / "params" / "paper.yaml"))["steps"]
    assert isinstance(table, pd.DataFrame)
    soak.row("steps of paper.yaml measured with stand-ins", len(table), 2 * len(KINDS))
