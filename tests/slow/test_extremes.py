"""Both trainers under every legal extreme of the params file: two steps, then log, cards and adapters."""

import math
import shutil

import pytest
import soak
from conftest import at
from small import changed, curated, untrained_adapter

from chexreason import config, records
from chexreason.training import common, grpo, model_card, sft

pytestmark = pytest.mark.soak

GRPO = {
    "no KL": {"beta": 0.0},
    "a KL term of k3 alone": {"use_bias_correction_kl": False},
    "one update a rollout": {"steps_per_generation": 1, "save_steps": 1},
    "four updates a rollout": {"steps_per_generation": 4, "save_steps": 4, "films_per_step": 1},
    "as many films a rollout as there are": {"films_per_step": 4},
    "one film a step": {"films_per_step": 1},
    "rewards scaled by group": {"scale_rewards": "group"},
    "rewards scaled by batch": {"scale_rewards": "batch"},
    "no warm-up": {"warmup_steps": 0.0},
    "warm-up alone": {"warmup_steps": 1000},
    "any token": {"top_p": 1.0},
    "one token": {"top_p": 1e-9},
    "a cold policy": {"temperature": 0.01},
    "a hot policy": {"temperature": 100.0},
    "one checkpoint": {"save_steps": 2},
    "fewer steps than a checkpoint takes": {"save_steps": 100},
    "an odd last rollout": {"max_steps": 3},
    "one step": {"max_steps": 1},
    "a completion of one token": {"max_completion_length": 1},
    "no clip of the ratio": {"epsilon": 5.0, "epsilon_high": 5.0},
    "a ratio of one": {"epsilon": 0.0, "epsilon_high": 0.0},
    "checkpointing": {"gradient_checkpointing": True},
    "more films to validate than there are": {"validation_films": 1000},
}
LENGTHS = ("characters", "words", "tokens")
SFT = {
    "no warm-up": {"warmup_steps": 0.0},
    "warm-up alone": {"warmup_steps": 1000},
    "no weight decay": {"weight_decay": 0.0},
    "one film a step": {"per_device_train_batch_size": 1},
    "a batch of more films than there are": {"per_device_train_batch_size": 64},
    "more batches a step than there are": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 64},
    "more evaluations than steps": {"evaluations_per_epoch": 1000, "num_train_epochs": 2},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    """The small study with an adapter that GRPO can start from; every test changes its params, and so its work."""
    small = curated(tmp_path_factory.mktemp("extremes"))
    untrained_adapter(small)
    return small


def whole(folder, names) -> bool:
    """Whether log, adapters and cards are there, and are those of a finished run."""
    log = records.load(folder / common.LOG)
    return len(log) > 0 and all(
        (folder / name / file).is_file() for name in names for file in ("adapter_model.safetensors", "README.md")
    )


def trained(study: config.Study, reward: str = "hard") -> None:
    """Train, and look at what is left."""
    log = grpo.train(study, reward, 0)
    settings = study.grpo
    assert list(log["step"]) == list(range(1, settings.max_steps + 1))
    assert log["kl"].isna().all() if settings.beta == 0 else log["kl"].notna().all()
    assert log[["loss", "entropy"]].notna().all().all() and log["reward"].notna().any()
    assert log["validation_f1"].notna().sum() <= max(1, settings.max_steps // settings.save_steps + 1)
    assert grpo.summary(log)
    assert whole(study.paths.run(at(f"grpo/{reward}")), ("adapter", "best"))
    soak.row("GRPO under a legal extreme", 1, 1)


@pytest.mark.parametrize("values", GRPO.values(), ids=GRPO)
def test_grpo_under_a_legal_extreme(study, values):
    trained(changed(study, grpo=values))


@pytest.mark.parametrize("reward", ["hard", "nuanced"])
@pytest.mark.parametrize("unit", LENGTHS)
def test_grpo_under_each_unit_of_length_and_each_reward(study, unit, reward):
    trained(changed(study, grpo={"reward": study.grpo.reward.model_copy(update={"length_unit": unit})}), reward)


@pytest.mark.parametrize("values", SFT.values(), ids=SFT)
def test_sft_under_a_legal_extreme(study, values):
    other = changed(study, sft=values)
    log = sft.train(other, "only_label", 0)
    assert log["loss"].map(math.isfinite).all() and (log["split"] == "eval").any()
    assert sft.summary(log)
    assert whole(other.paths.run(at("sft/only_label")), ("adapter",))
    soak.row("SFT under a legal extreme", 1, 1)


def test_no_dropout_and_a_rank_of_one(study):
    other = changed(study, lora={"r": 1, "lora_alpha": 1, "lora_dropout": 0.0})
    assert len(sft.train(other, "only_label", 0))


def test_grpo_keeps_its_adapters_when_a_card_cannot_be_made(study, monkeypatch):
    other = changed(study, grpo={"beta": 0.0, "learning_rate": 1e-9})
    monkeypatch.setattr(model_card, "text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grpo.train(other, "hard", 0)
    place = other.paths.run(at("grpo/hard"))
    assert all((place / name / "adapter_model.safetensors").is_file() for name in ("adapter", "best"))
    monkeypatch.undo()
    monkeypatch.setattr(grpo, "trainer", lambda *_: pytest.fail("trained again"))
    assert len(grpo.train(other, "hard", 0)) == other.grpo.max_steps


def test_early_stopping_counts_across_a_kill(study):
    """Nothing is learned; cut off after the first evaluation that is no better, it stops at the second all the same."""
    from transformers import TrainerCallback

    values = {"num_train_epochs": 8, "early_stopping_patience": 2, "learning_rate": 1e-30, "warmup_steps": 0.0}
    other = changed(study, sft=values)
    straight = sft.train(other, "free_reasoning", 0)
    evaluations = straight[straight["split"] == "eval"].reset_index(drop=True)
    best = int(evaluations["loss"].idxmin())
    assert len(evaluations) == best + 3 < values["num_train_epochs"]  # stopped early, after two that are no better
    cut = int(evaluations.loc[best + 1, "step"])

    shutil.rmtree(other.paths.run(at("sft/free_reasoning")))

    class CutOff(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == cut:
                raise KeyboardInterrupt

    runner = sft.trainer(other, "free_reasoning", 0)
    runner.add_callback(CutOff())
    with pytest.raises(KeyboardInterrupt):
        common.resume(runner, sft.work_folder(other, at("sft/free_reasoning")))
    resumed = sft.train(other, "free_reasoning", 0)
    assert resumed.equals(straight)
