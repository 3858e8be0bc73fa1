"""SFT and GRPO are configured as published, start where they should, and go on after a kill."""

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import at, with_run

from chexreason import config, records, rewards
from chexreason.config import load
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.training import common, grpo, sft


@pytest.fixture
def copy(smoke, tmp_path) -> config.Study:
    """The smoke study with its curated films and SFT adapter, in a folder where it may be trained again."""
    shutil.copytree(smoke.file.parent, tmp_path / "params")
    for stage in ("curate", "sft"):
        shutil.copytree(smoke.folder / stage, tmp_path / "runs" / smoke.study / stage)
    study = load(tmp_path / "params" / smoke.file.name)
    return with_run(study, "grpo", "nuanced", start="free_reasoning", reward="nuanced")


def test_sft_leaves_every_weight_outside_the_adapter_alone(smoke):
    saved = smoke.paths.run(at("sft/free_reasoning")) / "adapter" / "adapter_model.safetensors"
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        assert all("language_model" in name and "lora_" in name for name in set(file.keys()))


def test_every_adapter_has_a_card_with_the_score_of_its_log(smoke):
    from huggingface_hub import ModelCard

    log = records.load(smoke.paths.run(at("sft/free_reasoning")) / "log.parquet")
    card = ModelCard.load(smoke.paths.run(at("sft/free_reasoning")) / "adapter" / "README.md")
    assert card.data.eval_results[0].metric_value == log.loc[log["split"] == "eval", "loss"].min()
    place = smoke.paths.run(at("grpo/hard"))
    f1 = records.load(place / "log.parquet").set_index("step")["validation_f1"].dropna()
    for name, step in (("adapter", f1.index.max()), ("best", grpo.best(f1.to_dict()))):
        text = ModelCard.load(place / name / "README.md").text
        assert f"step {step} of {smoke.grpo.max_steps}" in text and smoke.hash in text and "**Phantom**" in text
        assert f"macro_f1: {f1[step]:.4f}" in text or f1[step] != f1[step]


def test_tensorboard_shows_the_losses_of_the_log(smoke):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = smoke.paths.run(at("sft/free_reasoning"))
    log = records.load(place / "log.parquet").query("split == 'eval'")
    events = EventAccumulator(str(place / "tensorboard")).Reload().Scalars("eval/loss")
    assert [event.step for event in events] == list(log["step"])
    assert np.allclose([event.value for event in events], log["loss"])


def test_grpo_starts_at_the_sft_checkpoint_with_no_divergence_from_it(smoke):
    log = records.load(smoke.paths.run(at("grpo/hard")) / "log.parquet")
    assert log["kl"].iloc[0] == 0.0
    assert len(log) == smoke.grpo.max_steps


def test_the_reward_function_logs_malformed_answers_and_scores_the_rest(smoke):
    logged = {}
    settings = config.Reward(min_length=10, length_unit="characters", length_penalty=0.1)
    texts = ["<think>a long enough thought</think><solution>Edema, Fracture</solution>", "no tags at all"]
    scores = grpo.reward_function(partial(rewards.hard_reward, settings=settings), "hard")(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        truth=[["Edema"], ["Edema"]],
        completion_ids=[[1], [2]],
        log_metric=logged.__setitem__,
    )
    assert scores == [0.5, 0.0]
    assert logged == {"format_failures": 0.5, "commonest_label": 0.5}


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_that_was_cut_off_ends_in_the_same_adapter(copy, stage, monkeypatch):
    stages = {
        "sft": (
            lambda: sft.train(copy, "free_reasoning", 0),
            copy.paths.run(at("sft/free_reasoning")),
        ),
        "grpo": (
            lambda: grpo.train(copy, "nuanced", 0),  # its window must go on, too
            copy.paths.run(at("grpo/nuanced")),
        ),
    }
    train, place = stages[stage]
    train()
    before = {name: (place / name).read_bytes() for name in ("adapter/adapter_model.safetensors", "log.parquet")}
    shutil.rmtree(place)
    with monkeypatch.context() as patched:
        patched.setattr(common, "finish", lambda *_: pytest.fail("reached the end"))
        patched.setattr(common, "progress", cut_off_after_a_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train()
    (kept,) = (place / "checkpoints").iterdir()
    assert common.newest_checkpoint(kept)
    logged = train()
    if stage == "grpo":
        parts = logged[[f"nuanced_{name}" for name in ("match", "partial", "false_positives", "collapse", "format")]]
        total = parts.iloc[:, :2].sum(axis=1) - parts.iloc[:, 2:].sum(axis=1)
        fresh = logged["reward"].notna()
        assert np.allclose(total[fresh] / copy.grpo.reward.nuanced.scale, logged["reward"][fresh])
    assert {name: (place / name).read_bytes() for name in before} == before
    assert len(list((place / "tensorboard").iterdir())) == 2  # of the run that was cut off, and of the one that went on


def cut_off_after_a_checkpoint(_):
    """A callback in the progress bar's place that stops training like a kill, one step after the first checkpoint."""
    from transformers import TrainerCallback

    class CutOff(TrainerCallback):
        saved = False

        def on_save(self, *_, **__):
            self.saved = True

        def on_step_begin(self, *_, **__):
            if self.saved:
                raise KeyboardInterrupt

    return CutOff()


def test_a_finished_run_is_not_trained_again_when_its_notebook_was_cut_off(copy, monkeypatch):
    log = sft.train(copy, "free_reasoning", 0)
    place = copy.paths.run(at("sft/free_reasoning"))
    adapter = place / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    shutil.rmtree(place / "adapter")  # as Snakemake does before it runs an incomplete job again
    monkeypatch.setattr(sft, "trainer", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(sft.train(copy, "free_reasoning", 0), log)
    assert adapter.read_bytes() == before


def test_a_run_begins_anew_when_an_input_record_has_changed(copy):
    before = sft.work_folder(copy, at("sft/free_reasoning"))
    manifest = copy.folder / curate.MANIFEST
    records.save(records.load(manifest).iloc[1:], manifest, records.provenance(copy))
    assert sft.work_folder(copy, at("sft/free_reasoning")) != before


def test_a_run_that_was_stopped_early_is_not_trained_on(copy):
    """Killed after its last checkpoint: the trainer itself would forget that it had been stopped."""
    copy = copy.model_copy(update={"sft": copy.sft.model_copy(update={"learning_rate": 1e-30, "num_train_epochs": 9})})
    copy._file = config.find(str(copy.folder.parents[1] / "params" / "smoke.yaml"))
    going = sft.work_folder(copy, at("sft/free_reasoning"))
    ended = common.resume(sft.trainer(copy, "free_reasoning", 0), going)
    assert ended.global_step < ended.max_steps
    assert common.resume(sft.trainer(copy, "free_reasoning", 0), going).global_step == ended.global_step


def test_an_unfinished_checkpoint_is_not_resumed(tmp_path):
    for step in (8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-8" / common.WHOLE).touch()  # the other was cut off before its bytes were on the disk
    assert common.newest_checkpoint(tmp_path).name == "checkpoint-8"
    assert common.newest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(("save_steps", "log_steps"), [(5, 1), (112, 8), (113, 1), (200, 20)])
def test_a_log_entry_falls_on_every_checkpoint(save_steps, log_steps):
    assert common.log_steps(save_steps) == log_steps


def test_logs_are_tidy():
    history = [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "mean_token_accuracy": 0.5},
        {"step": 1, "epoch": 0.5, "eval_loss": 1.5, "eval_mean_token_accuracy": 0.6},
        {"step": 2, "epoch": 1.0, "train_runtime": 3.0},
    ]
    table = sft.log(history)
    assert list(table["split"]) == ["train", "eval"]
    assert np.allclose(table["loss"], [2.0, 1.5])


def test_the_stand_in_qwen_is_trained_and_asked_like_the_other(copy):
    qwen = config.Model(name="stand-in-qwen", path="stand-in:qwen", dtype="float32")
    study = copy.model_copy(update={"models": {"qwen": qwen}})
    study._file = copy.file
    study = with_run(study, "sft", "free_reasoning", model="qwen", format="free_reasoning")
    log = sft.train(study, "free_reasoning", 0)
    adapter = study.paths.adapter(at("sft/free_reasoning", "qwen"))
    films = curate.dataset(study, "a-validation").head(2)
    asked = Protocol.of(study, "free_reasoning", study.validation)
    assert len(predict.answer_films(predict.load(qwen, adapter, 2), films["image"], asked, study.folder / "asked")) == 2
    held = log[log["split"] == "eval"]["loss"]
    assert held.iloc[-1] < held.iloc[0]


CALM = {"entropy": 0.5, "kl": 0.01, "completion_length": 40.0, "commonest_label": 0.4}
CALM |= {"groups_without_contrast": 0.2, "cut_off": 0.0}


@pytest.mark.parametrize(
    ("falls", "told"),
    [
        ({}, ""),
        ({"entropy": 0.001}, "entropy"),
        ({"kl": 3.0}, "KL"),
        ({"completion_length": 10.0}, "length"),
        ({"commonest_label": 1.0, "groups_without_contrast": 1.0}, "commonest label, groups without contrast"),
        ({"cut_off": 0.9}, "cut off"),
    ],
)
def test_a_collapse_is_named_after_what_has_collapsed(falls, told):
    settings = load("params/mini.yaml").grpo.collapse
    calm, fallen = [CALM] * settings.rollouts, [CALM | falls] * settings.rollouts
    said = grpo.collapsed(pd.DataFrame(calm + fallen), settings)
    assert said[: settings.rollouts] == [""] * settings.rollouts and said[-1] == told


def test_a_collapse_is_seen_where_half_the_steps_bring_no_fresh_answers():
    settings = load("params/mini.yaml").grpo.collapse
    reused = dict.fromkeys(("completion_length", "commonest_label", "groups_without_contrast", "cut_off"), np.nan)
    steps = [CALM | {"commonest_label": 1.0}, CALM | reused] * settings.rollouts
    assert grpo.collapsed(pd.DataFrame(steps), settings)[-1] == "commonest label"


def test_the_best_checkpoint_is_the_earliest_of_the_highest_f1():
    assert grpo.best({2: 0.3, 4: 0.5, 6: 0.5, 8: float("nan")}) == 4
    assert grpo.best({2: float("nan"), 4: float("nan")}) == 2


def test_the_last_and_the_best_checkpoint_are_both_kept_and_the_f1_of_each_is_in_the_log(smoke):
    place = smoke.paths.run(at("grpo/hard"))
    f1 = records.load(place / "log.parquet").set_index("step")["validation_f1"].dropna()
    assert list(f1.index) == list(range(smoke.grpo.save_steps, smoke.grpo.max_steps + 1, smoke.grpo.save_steps))
    files = [place / name / "adapter_model.safetensors" for name in ("adapter", "best")]
    same = files[0].read_bytes() == files[1].read_bytes()
    assert same == (grpo.best(f1.to_dict()) == smoke.grpo.max_steps)
