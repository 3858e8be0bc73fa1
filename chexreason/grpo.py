"""Group-relative policy optimisation from the SFT checkpoint: trl's GRPOTrainer as published (PROTOCOL: GRPO)."""

from pathlib import Path

import pandas as pd

from chexreason import curate, models, params, records, rewards, sft, training

LOGGED = {
    "step": "step",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "cut_off",
    "format_failures": "format_failures",
    "frac_reward_zero_std": "groups_without_contrast",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "loss": "loss",
}
"""trl's names and ours: lengths in tokens, KL and entropy in nats a token, the rest shares or rewards."""


def folder(study: params.Study, model: str, reward: str, seed: int) -> Path:
    """Where the adapter and the log of one GRPO run lie."""
    return study.folder / "grpo" / model / reward / f"seed{seed}"


def reward(settings: params.Reward):
    """trl's reward function for the hard reward: completions, truths and token ids in, one reward a completion out."""

    def hard(completions, truth, completion_ids, log_metric, **_):
        texts = [completion[0]["content"] for completion in completions]
        scores = [
            rewards.hard(text, labels, rewards.length(text, settings.length_unit, ids), settings)
            for text, labels, ids in zip(texts, truth, completion_ids, strict=True)
        ]
        log_metric("format_failures", sum(rewards.malformed(text) for text in texts) / len(texts))
        return scores

    return hard


def policy(study: params.Study, model: str, format: str, seed: int):
    """The base model with the SFT adapter, trainable.

    Handed to trl without a `peft_config`, so that trl keeps a frozen copy of the adapter as the reference: KL is
    measured against the SFT checkpoint, and is 0 at the first step.
    """
    from peft import PeftModel

    adapter = sft.folder(study, model, format, seed) / "adapter"
    return PeftModel.from_pretrained(models.load_base(study.models[model]), str(adapter), is_trainable=True)


def trainer(study: params.Study, model: str, format: str, reward_name: str, seed: int):
    """A GRPOTrainer ready to run on the RL films."""
    from transformers import set_seed
    from trl import GRPOConfig, GRPOTrainer

    training.steady_threads()
    set_seed(seed)
    settings, films = study.grpo, curate.dataset(study, "rl")
    arguments = GRPOConfig(
        output_dir=str(training.checkpoints(folder(study, model, reward_name, seed), study)),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.films_per_step * settings.completions,
        steps_per_generation=settings.updates_per_rollout,
        num_generations=settings.completions,
        max_completion_length=settings.max_completion_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        loss_type="dr_grpo",
        scale_rewards=settings.scale_rewards,
        beta=settings.beta,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        importance_sampling_level="token",
        disable_dropout=True,
        gradient_checkpointing=settings.checkpointing,
        save_steps=settings.save_every,
        save_total_limit=1,
        logging_steps=1,
        seed=seed,
        disable_tqdm=True,
        report_to="none",
        **training.on_cpu(),
    )
    runner = GRPOTrainer(
        model=policy(study, model, format, seed),
        processing_class=models.load_processor(study.models[model].path),
        args=arguments,
        reward_funcs=reward(settings.reward),
        train_dataset=training.examples(films, format, truth=list(films["labels"])),
        callbacks=[training.progress(f"GRPO {model} {reward_name}")],
    )
    return training.quietly(runner)


def train(study: params.Study, model: str, format: str, reward_name: str, seed: int) -> pd.DataFrame:
    """Run GRPO, or go on from its newest checkpoint; return its log (columns of `LOGGED`), one row a step.

    Writes `adapter/` (peft, safetensors) and `log.parquet`.
    """
    place = folder(study, model, reward_name, seed)
    runner = trainer(study, model, format, reward_name, seed)
    runner.train(resume_from_checkpoint=training.newest(training.checkpoints(place, study)))
    table = log(runner.state.log_history)
    started = sft.folder(study, model, format, seed) / "adapter" / "adapter_model.safetensors"
    training.keep(runner, place)
    made_of = [study.folder / curate.MANIFEST, started]
    records.save(table, place / "log.parquet", records.origin(study, seed, made_of))
    return table


def log(history: list[dict]) -> pd.DataFrame:
    """The trainer's history under our names, one row a step.

    What is measured on fresh completions (reward, length, failures) is NaN at steps that use a rollout again.
    """
    steps = [entry for entry in history if "kl" in entry]
    return pd.DataFrame(steps).reindex(columns=list(LOGGED)).rename(columns=LOGGED)


def summary(table: pd.DataFrame) -> str:
    """What a log shows, in a sentence: first tenth of the steps against the last."""
    tenth = max(1, len(table) // 10)
    first, last = table.head(tenth).mean(), table.tail(tenth).mean()
    return (
        f"From the first {tenth} steps to the last {tenth} of {len(table)}, the sampled answers' mean reward went from "
        f"{first.reward:.3f} to {last.reward:.3f}, malformed answers from {first.format_failures:.1%} to "
        f"{last.format_failures:.1%}, length from "
        f"{first.completion_length:.0f} to {last.completion_length:.0f} tokens, "
        f"entropy from {first.entropy:.3f} to {last.entropy:.3f} nats; "
        f"KL to the SFT checkpoint ended at {last.kl:.4f}.  "
        f"Whether greedy answers on unseen films gained too is measured in the comparison."
    )
