"""The trainers do what the paper states: their arguments, the loss of SFT, and GRPO's reference, ratio and clip."""

import math

import pytest
import torch
from conftest import ROOT, at, with_run

from chexreason import config, models
from chexreason.training import grpo, sft

PAPER = config.load(ROOT / "params" / "paper.yaml")


def configured(smoke: config.Study, **sections: dict) -> config.Study:
    """The smoke study with other values in some sections."""
    changed = {name: getattr(smoke, name).model_copy(update=values) for name, values in sections.items()}
    study = smoke.model_copy(update=changed)
    study._file = smoke.file
    return study


def values(section: config.Section) -> dict:
    """The values of a section as they are, its runs left out: those stay the smoke study's."""
    return {name: getattr(section, name) for name in type(section).model_fields if name != "runs"}


def test_sft_is_trained_as_published(smoke):
    from transformers import EarlyStoppingCallback

    runner = sft.trainer(configured(smoke, sft=values(PAPER.sft)), "free_reasoning", 0)
    arguments = runner.args
    assert (arguments.num_train_epochs, arguments.learning_rate, arguments.weight_decay) == (6, 5e-5, 0.01)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 8
    assert arguments.max_grad_norm == 5.0 and arguments.gradient_checkpointing
    (stopping,) = [each for each in runner.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
    assert stopping.early_stopping_patience == 2
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("eval_loss", False)
    assert arguments.load_best_model_at_end


def test_sfts_learning_rate_warms_up_over_5_percent_and_falls_as_a_cosine(smoke):
    runner = sft.trainer(configured(smoke, sft=values(PAPER.sft)), "free_reasoning", 0)
    runner.create_optimizer_and_scheduler(num_training_steps=200)
    assert isinstance(runner.optimizer, torch.optim.AdamW)
    rates = []
    for _ in range(200):
        rates.append(runner.lr_scheduler.get_last_lr()[0])
        runner.optimizer.step()
        runner.lr_scheduler.step()
    expected = [5e-5 * step / 10 for step in range(10)]
    expected += [5e-5 * (1 + math.cos(math.pi * step / 190)) / 2 for step in range(190)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("model", ["medgemma", "qwen"])
def test_sft_learns_from_every_token_of_the_answer_and_no_other(smoke, model):
    study = smoke.model_copy(update={"models": config.load(smoke.file).models})
    study._file = smoke.file
    study = with_run(study, "sft", "free_reasoning", model=model, format="free_reasoning")
    runner = sft.trainer(study, "free_reasoning", 0)
    examples = [runner.train_dataset[number] for number in range(3)]
    written = [example["completion"][0]["content"] for example in examples]  # the collator rewrites the messages
    batch = runner.data_collator(examples)
    tokenizer = runner.processing_class.tokenizer
    end = {"medgemma": "<end_of_turn>\n", "qwen": "<|im_end|>\n"}[model]
    for answer, ids, labels in zip(written, batch["input_ids"], batch["labels"], strict=True):
        assert tokenizer.decode(ids[labels != -100]) == f"{answer}{end}"
        assert (labels[ids == runner.processing_class.image_token_id] == -100).all()


def test_grpo_is_trained_as_published(smoke):
    study = with_run(smoke, "grpo", "nuanced", start="free_reasoning", reward="nuanced")
    study = configured(study, grpo=values(PAPER.grpo))
    arguments = grpo.trainer(study, "nuanced", 0).args
    assert (arguments.beta, arguments.epsilon, arguments.epsilon_high) == (0.15, 0.15, 0.22)
    assert (arguments.num_generations, arguments.temperature, arguments.top_p) == (4, 0.8, 0.95)
    assert (arguments.loss_type, arguments.importance_sampling_level) == ("dr_grpo", "token")
    assert arguments.num_iterations * arguments.steps_per_generation == 2 and arguments.gradient_checkpointing


@pytest.fixture(scope="module")
def rollout(smoke) -> tuple:
    """A trainer before its first step, and what it samples, scores and takes as reference for its first films."""
    runner = grpo.trainer(smoke, "hard", 0)
    runner.model.train()
    runner.current_gradient_accumulation_steps = 1  # the training loop sets it
    films = [
        runner.train_dataset[number // smoke.grpo.num_generations] for number in range(2 * smoke.grpo.num_generations)
    ]
    return runner, runner._generate_and_score_completions(films)


def log_probabilities(model, inputs: dict, temperature: float):
    """Of every sampled token, by a plain forward pass."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    kinds = {"token_type_ids": inputs["token_type_ids"]} if "token_type_ids" in inputs else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"], **kinds).logits
    sampled = inputs["completion_ids"]
    scores = torch.log_softmax(logits[:, -sampled.shape[1] - 1 : -1] / temperature, dim=-1)
    return scores.gather(2, sampled[..., None])[..., 0]


def test_the_reference_is_the_sft_checkpoint_and_not_the_untuned_model(smoke, rollout):
    runner, inputs = rollout
    adapter = smoke.paths.run(at("sft/free_reasoning")) / "adapter"
    tuned = models.load_trained(smoke.models["medgemma"], adapter)
    untuned = models.load_base(smoke.models["medgemma"])
    asked = inputs["completion_mask"].bool()
    to_tuned, to_untuned = (
        (inputs["ref_per_token_logps"] - log_probabilities(model, inputs, runner.temperature))[asked].abs()
        for model in (tuned, untuned)
    )
    assert to_tuned.max() < 1e-4  # nats: the adapter is merged here and stands beside the weights there
    assert to_untuned.max() > 100 * to_tuned.max()


def test_the_policy_starts_where_the_reference_stands(rollout):
    _, inputs = rollout
    asked = inputs["completion_mask"].bool()
    assert torch.equal(inputs["old_per_token_logps"][asked], inputs["ref_per_token_logps"][asked])


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.10, 1.0, 1.10, None),
        (2.00, 1.0, 1.22, "high"),  # no more than 0.22 above
        (0.50, 1.0, 0.50, None),  # min(0.50, 0.85)
        (0.90, -1.0, -0.90, None),
        (0.50, -1.0, -0.85, "low"),  # no less than 0.15 below
        (2.00, -1.0, -2.00, None),  # min(-2.00, -1.22)
    ],
)
def test_the_ratio_is_clipped_at_015_below_and_022_above_by_hand(smoke, rollout, ratio, advantage, surrogate, clipped):
    """Dr. GRPO divides by completions x the longest a completion may be; KL is 0, as the policy is the reference."""
    runner, inputs = rollout
    tokens = inputs["completion_mask"].sum()
    old = inputs["old_per_token_logps"] - math.log(ratio)
    given = inputs | {"old_per_token_logps": old, "advantages": torch.full_like(inputs["advantages"], advantage)}
    loss = runner.compute_loss(runner.model, given).item()
    most = len(inputs["completion_ids"]) * smoke.grpo.max_completion_length
    assert loss == pytest.approx(-surrogate * tokens.item() / most, rel=1e-4)
    for side in ("low", "high"):
        assert runner._metrics["train"][f"clip_ratio/{side}_mean"][-1] == float(side == clipped)


@pytest.mark.parametrize(("updates", "acts"), [(2, True), (1, False)])
def test_only_a_second_update_on_a_rollout_leaves_the_ratio_of_1(smoke, tmp_path, updates, acts):
    from transformers.integrations import TensorBoardCallback

    changes = {"max_steps": 2, "save_steps": 2, "steps_per_generation": updates, "learning_rate": 0.05}
    changes |= {"warmup_steps": 0.0}
    study = configured(smoke, grpo=changes)
    runner = grpo.trainer(study, "hard", 0)
    runner.args.output_dir = str(tmp_path)  # the smoke study's own folder stays as it is
    (tmp_path / "completions").mkdir()
    runner.remove_callback(TensorBoardCallback)
    runner.train()
    clips = [
        entry["clip_ratio/low_mean"] + entry["clip_ratio/high_mean"]
        for entry in runner.state.log_history
        if "kl" in entry
    ]
    assert clips[0] == 0 and (clips[1] > 0) == acts


def test_a_collapse_is_reported_once_while_the_run_goes_on(capsys):
    from types import SimpleNamespace

    settings = config.load(ROOT / "params" / "mini.yaml").grpo.collapse
    calm = {"kl": 0.01, "entropy": 0.5, "completions/mean_length": 40.0, "completions/clipped_ratio": 0.0}
    calm |= {"commonest_label": 0.4, "frac_reward_zero_std": 0.2}
    steps = [calm | {"step": number} for number in range(1, 31)]
    for entry in steps[10:]:
        entry["kl"] = 5.0
    watch = grpo.collapse_warning(settings)
    for number in range(1, 31):
        watch.on_log(None, SimpleNamespace(log_history=steps[:number], global_step=number), None)
    told = capsys.readouterr().err.split("\n")
    assert [line for line in told if line] == [
        "COLLAPSE at step 12: KL"
    ]  # the mean of ten passes 1: (2 x 5 + 8 x 0.01) / 10
