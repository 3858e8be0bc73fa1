"""Group-relative policy optimization (GRPO) from an SFT checkpoint, with trl's GRPOTrainer (PROTOCOL: GRPO)."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chexreason import answers, config, models, prompts, records, rewards, runtime
from chexreason.data import curate, sampling
from chexreason.evaluation import metrics
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.training import common, model_card

LOGGED = {
    "step": "step",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "cut_off",
    "format_failures": "format_failures",
    "commonest_label": "commonest_label",
    "frac_reward_zero_std": "groups_without_contrast",
    "clip_ratio/low_mean": "clipped_low",
    "clip_ratio/high_mean": "clipped_high",
    "loss": "loss",
}
"""trl's names and ours.  Lengths are in tokens, KL and entropy in nats per token, the rest are shares or rewards.
`cut_off` replies reached the token limit; `format_failures` ended before it and are malformed."""

METRICS = "metrics/"
"""The prefix of a reward's own metrics in the trainer's log history."""

TAKEN = {*LOGGED.values(), "collapse", "validation_f1", "run"}
"""Columns of the log whose names a reward's own metric cannot have."""


def films(study: config.Study, run: str) -> pd.DataFrame:
    """The films that a GRPO run trains on (see `curate.dataset`), with the labels of its reward."""
    asked = study.grpo.runs[run]
    tables = [
        curate.dataset(study, study.rl_split(source), asked.labels.get(source))
        for source in asked.films or [study.curate.train]
    ]
    return pd.concat(tables, ignore_index=True)


def work_folder(study: config.Study, checkpoint: config.Checkpoint) -> Path:
    """The folder with the checkpoints of a GRPO run; its name also depends on the code of an own reward."""
    run, settings = study.grpo.runs[checkpoint.run], study.grpo.of(checkpoint.run)
    own = [records.sha256(file) for file in rewards.code_files(run.reward, study.file.parent)]
    watched = curate.dataset(study, study.validation).head(settings.validation_films)
    read = common.content_digest(films(study, checkpoint.run), "labels"), common.content_digest(watched, "labels")
    start = records.sha256(study.paths.adapter(study.start(checkpoint)) / models.ADAPTER[1])
    protocol = Protocol.of(study, study.prompt(checkpoint), study.validation).hash
    made_of = settings.model_dump(exclude={"collapse"}), protocol, own, run.reward_args
    return common.work_folder(
        study.paths.run(checkpoint), "grpo", study.models[checkpoint.model], read, start, *made_of
    )


def _inputs(study: config.Study, checkpoint: config.Checkpoint) -> list[Path]:
    return [study.folder / curate.MANIFEST, study.paths.adapter(study.start(checkpoint)) / models.ADAPTER[1]]


def reward_function(reward: Callable, name: str, opening: str = "", ends: Collection[int] = ()) -> Callable:
    """`reward` as trl calls it: given whole replies, and with its metrics, ours and the films logged.

    Errors name it `name`.  `opening` is the part of each reply that the chat template writes, and `ends` are the tokens
    that end a reply.
    """
    metrics: dict[str, str] = {}

    def score(completions, completion_ids, log_metric, log_extra=None, **given) -> list[float]:
        def log_own(metric: str, value: float) -> None:
            column = metric.replace("/", "_")
            if column in TAKEN or metrics.setdefault(column, metric) != metric:
                raise rewards.RewardError(f"{name}: log_metric: the log has a column {column!r}; name {metric!r} anew")
            log_metric(f"{METRICS}{metric}", float(value))

        def log_own_extra(column: str, values: list) -> None:
            if log_extra is not None and column != "film":
                log_extra(column, values)

        texts = [opening + text for text in rewards.texts(completions)]
        values = rewards.scores(
            reward,
            name,
            completions=[[{"role": "assistant", "content": text}] for text in texts],
            completion_ids=[[token for token in ids if token not in ends] for ids in completion_ids],
            cut_off=[bool(ends) and ids[-1] not in ends for ids in completion_ids],
            log_metric=log_own,
            log_extra=log_own_extra,
            **given,
        )
        log_metric("format_failures", rewards.failures(texts, completion_ids, ends))
        log_metric("commonest_label", commonest(texts))
        if log_extra is not None and "film" in given:
            log_extra("film", list(given["film"]))
        return values

    score.__name__ = "reward"  # of a run there is one; trl names a column of its completions after it
    return score


def reward_state(reward: Any) -> list:
    """Trainer callbacks that save the state of a reward in every checkpoint and restore it in a resumed run.

    The state is in `trainer_state.json`.  A separate file, written in `on_save`, would be missing after a kill between
    the two.
    """
    from transformers.trainer_callback import ExportableState, TrainerCallback

    class RewardState(TrainerCallback, ExportableState):
        def state(self) -> dict:
            return {"args": {}, "attributes": {"reward": json.dumps(reward.state())}}

        def on_train_begin(self, args, state, control, **_):
            reward.restore(json.loads(state.stateful_callbacks["RewardState"]["attributes"]["reward"]))

    return [RewardState()] if hasattr(reward, "restore") else []


def commonest(texts: Sequence[str]) -> float:
    """The share of replies with the most frequent label; 0 if no reply has a label."""
    counts = Counter(label for text in texts for label in answers.read(text).labels)
    return max(counts.values(), default=0) / len(texts)


def policy(study: config.Study, start: config.Checkpoint, processor):
    """The base model with the trainable adapter of the checkpoint `start`.

    trl gets it without a `peft_config` and keeps a frozen copy of the adapter as the reference.  KL is therefore
    measured from the SFT checkpoint, and is 0 at the first step.
    """
    settings = study.models[start.model]
    base = models.plain_generation(models.load_base(settings), processor)
    models.refuse_unreached(base, settings)
    models.freeze_vision(base)
    if (encoder := models.image_encoder(base)) is not None:
        models.look_once(encoder)
    return models.attach(base, study.paths.adapter(start), trainable=True)


def forget_films(model, every: int):
    """A trainer callback that forgets the films of a rollout (`models.look_once`) before the next, `every` steps.

    So a resumed run computes the same as one that was not interrupted.
    """
    from transformers import TrainerCallback

    forward = getattr(models.image_encoder(model.get_base_model()), "forward", None)

    class Forget(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % every == 0 and hasattr(forward, "cache_clear"):
                forward.cache_clear()

    return Forget()


def score_replies_only() -> None:
    """Let trl compute log-probabilities for the tokens of replies only, as it does on a GPU.

    On a CPU it computes them for prompts and padding, too, and throws them away: about three quarters of the work. It
    asks a private function whether to leave them out (trl 1.16, `trainer/utils.py`). The vocabulary is taken in parts
    that fit a processor's cache; trl's default has 32,768 tokens.
    """
    import torch
    from trl.trainer import utils

    if not torch.cuda.is_available():
        utils._use_triton = lambda device: True
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = 4096


def arguments(study: config.Study, run: str, seed: int):
    """The GRPOConfig of a run.

    trl writes every completion to a file, unless params name a service to report to: it would receive them, too.
    """
    from trl import GRPOConfig

    settings = study.grpo.of(run)
    return common.arguments(
        GRPOConfig,
        settings,
        output_dir=str(work_folder(study, study.checkpoint("grpo", run, seed))),
        per_device_train_batch_size=settings.films_per_step * settings.num_generations,
        top_k=0,
        lr_scheduler_type="cosine",
        loss_type="dr_grpo",
        importance_sampling_level="token",
        disable_dropout=True,
        log_completions="report_to" not in settings.trl,
        num_completions_to_print=0,
        save_total_limit=None,  # the best is chosen among them
        logging_steps=1,
        seed=seed,
        disable_tqdm=True,
        report_to="none",
        **runtime.on_cpu(),
    )


def trainer(study: config.Study, run: str, seed: int):
    """A GRPOTrainer ready to run on the RL films."""
    from transformers import set_seed
    from trl import GRPOTrainer

    runtime.steady_threads()
    score_replies_only()
    set_seed(seed)
    checkpoint, settings, asked = study.checkpoint("grpo", run, seed), study.grpo.of(run), study.grpo.runs[run]
    table, loaded = films(study, run), study.models[checkpoint.model]
    if (rollout := settings.films_per_step * settings.steps_per_generation) > len(table):
        raise config.ParamsError(
            f"grpo.runs.{run}: a rollout takes {rollout} films (films_per_step x steps_per_generation), and curation "
            f"left {len(table)} for rl; lower one of the two, or raise curate.rl"
        )
    processor = models.load_processor(loaded)
    starting = policy(study, study.start(checkpoint), processor)
    reward = rewards.make_reward(asked.reward, study.file.parent, asked.reward_args, settings.reward)
    scoring = reward_function(reward, run, models.template_opening(processor), models.end_tokens(starting, processor))
    columns = {"truth": list(table["labels"]), "film": list(table["film"])}
    with models.one_line_errors(loaded.path):
        runner = GRPOTrainer(
            model=starting,
            processing_class=processor,
            args=arguments(study, run, seed),
            reward_funcs=scoring,
            train_dataset=common.examples(table, study.prompt(checkpoint), **columns),
            callbacks=[
                common.progress(f"GRPO {run}"),
                common.tensorboard(study.paths.run(checkpoint)),
                collapse_warning(settings.collapse),
                common.mark_whole(),
                forget_films(starting, settings.steps_per_generation * settings.num_iterations),
                *reward_state(reward),
            ],
        )
    runner.generation_config.suppress_tokens = models.image_tokens(starting)
    return common.without_printing(runner)


def train(study: config.Study, run: str, seed: int) -> pd.DataFrame:
    """Run GRPO, or resume from its last checkpoint; returns the log with one row per step.

    The log has the columns of `LOGGED`, the reward's own metrics (`a/b` as `a_b`), `validation_f1` (macro-F1 of each
    checkpoint on some validation films) and `collapse` (signs of a collapse, in words; "" if there are none).
    Writes `adapter/` (of the last step) and `best/` (of the best checkpoint), both peft, safetensors and a model card,
    `log.parquet` and `completions.parquet` (see `logged_completions`).
    """
    checkpoint = study.checkpoint("grpo", run, seed)
    base, going = study.models[checkpoint.model], work_folder(study, checkpoint)
    if not common.finished(going):
        with common.memory_errors("grpo.films_per_step"):
            state = common.resume(trainer(study, run, seed), going)
        saved = {common.step(each): each for each in common.whole_checkpoints(going)}
        f1 = {step: validate(study, checkpoint, each) for step, each in saved.items()}
        steps = {"adapter": max(f1), "best": best(f1)}
        history = {"log": state.log_history, "f1": list(f1.items()), "steps": steps}
        kept = common.kept_steps(study.grpo.of(run), saved.values())
        common.finish(going, base, {**{name: saved[step] for name, step in steps.items()}, **kept}, history)

    def log_and_cards(history: dict) -> tuple[pd.DataFrame, dict[str, str]]:
        table = log(history["log"], study.grpo.of(run).collapse)
        table["validation_f1"] = table["step"].map(dict(history["f1"]))
        records.save(logged_completions(going), study.paths.completions(checkpoint), provenance)
        return table, {name: describe(study, checkpoint, step, table) for name, step in history["steps"].items()}

    provenance = records.provenance(study, seed, _inputs(study, checkpoint)) | models.provenance(base)
    return common.publish(going, study.paths.run(checkpoint), log_and_cards, provenance)


def logged_completions(folder: Path) -> pd.DataFrame:
    """The sampled replies that trl wrote to the output folder of a run, in order.

    Columns: step (the first that trains on the reply), film, text, reward, advantage.  No rows where params turn trl's
    `log_completions` off.
    """
    columns = {"step": int, "film": str, "text": str, "reward": float, "advantage": float}
    tables = [pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})]
    for file in sorted((folder / "completions").glob("*.parquet")):
        table = pd.read_parquet(file)
        table["text"] = [reply[0]["content"] for reply in table["completion"]]
        if not table[["text", "advantage"]].equals(tables[-1][["text", "advantage"]]):  # else the same rollout again
            tables.append(table[list(columns)])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def example(study: config.Study, run: str) -> pd.DataFrame:
    """The first film of a run as `figures.film_beside_text` takes it, beside its prompt; none if it is credentialed."""
    prompt = prompts.load(study.prompt(study.checkpoint("grpo", run, study.seeds[0])))
    return films(study, run).head(1).query("not credentialed").assign(text=prompt)


def example_group(study: config.Study, run: str, seed: int) -> pd.DataFrame:
    """The replies to one film in the first rollout of a run: film, text, reward, advantage.

    It is the film whose rewards differ most.  Credentialed films are left out.
    """
    table = records.load(study.paths.completions(study.checkpoint("grpo", run, seed)))
    shown = films(study, run).query("not credentialed")["film"]
    table = table[(table["step"] == table["step"].min()) & table["film"].isin(shown)]
    spread = table.groupby("film", sort=False)["reward"].std()
    return table[table["film"] == spread.idxmax()].drop(columns="step") if len(table) else table.drop(columns="step")


def describe(study: config.Study, checkpoint: config.Checkpoint, step: int, table: pd.DataFrame) -> str:
    """The model card of one checkpoint of a GRPO run."""
    settings, run = study.grpo.of(checkpoint.run), study.grpo.runs[checkpoint.run]
    row, asked = table.set_index("step").loc[step], min(settings.validation_films, study.curate.validation)
    fallen = f"  The run had collapsed ({row.collapse})." if row.collapse else ""
    return model_card.text(
        study,
        checkpoint.model,
        f"{checkpoint.name}, step {step} of {settings.max_steps}, seed {checkpoint.seed}",
        data=f"{_films_sentence(study, run)}, starting from the adapter {study.start(checkpoint).name}, seed "
        f"{checkpoint.seed}, of the same study.",
        settings={
            "seed": checkpoint.seed,
            "grpo": settings.model_dump(exclude={"runs"}),
            "run": run.model_dump(include={"reward", "reward_args"}),
        },
        scores=model_card.Scores(
            study.validation,
            f"Greedy answers on {asked:,} films of validation, fourteen labels.{fallen}",
            {"macro_f1": float(row.validation_f1)},
        ),
    )


def _films_sentence(study: config.Study, run: config.GrpoRun) -> str:
    """A phrase about the films and labels that a run was trained on."""
    told = []
    for name in run.films or [study.curate.train]:
        labels = f"the labels of `{run.labels[name]}`" if name in run.labels else "their labels"
        source = f"the source `{name}` ({study.sources[name].kind})"
        told.append(f"up to {study.curate.rl:,} films of {source} with {labels}")
    text = " and ".join(told)
    return text[0].upper() + text[1:]


def validate(study: config.Study, checkpoint: config.Checkpoint, weights: Path) -> float:
    """Macro-F1 of a checkpoint's greedy answers on the first `validation_films` of the validation set.

    Validation films are in random order, so the first ones are a sample.  The value is saved next to the weights.
    """
    kept = weights / "validation.json"
    if kept.exists():
        return records.load_json(kept)
    watched = curate.dataset(study, study.validation).head(study.grpo.of(checkpoint.run).validation_films)
    journal, protocol = weights / predict.JOURNAL, Protocol.of(study, study.prompt(checkpoint), study.validation)
    reader = predict.load(study.models[checkpoint.model], weights, study.predict.batch)
    texts = predict.answer_films(reader, watched["image"], protocol, journal, f"validation of {weights.name}")
    given = [[label in answers.read(text).labels for label in sampling.LABELS] for text in texts]
    value = float(metrics.macro(metrics.tally(watched[sampling.LABELS].to_numpy(), given).sum(axis=0))[2])
    records.save_json(value, kept, records.provenance(study))
    shutil.rmtree(journal, ignore_errors=True)
    return value


def best(f1: dict[int, float]) -> int:
    """The earliest step with the highest macro-F1; an undefined value is never the best."""
    return max(f1, key=lambda step: (f1[step] if f1[step] == f1[step] else -1.0, -step))


def log(history: list[dict], settings: config.Collapse) -> pd.DataFrame:
    """The trainer's log history with our names, one row per step, with the reward's own metrics and `collapse`.

    Values of new completions (reward, length, failures) are NaN at steps that use a rollout again.  KL is NaN if `beta`
    is 0, because trl does not compute it then.
    """
    steps = [entry for entry in history if "entropy" in entry]
    own = dict.fromkeys(name for entry in steps for name in entry if name.startswith(METRICS))
    columns = LOGGED | {name: name.removeprefix(METRICS).replace("/", "_") for name in own}
    table = pd.DataFrame(steps).reindex(columns=list(columns)).rename(columns=columns)
    return table.assign(collapse=collapsed(table, settings))


def collapsed(table: pd.DataFrame, settings: config.Collapse) -> list[str]:
    """For each step of a log, the limits of `settings` that the means of the last rollouts cross, in words; or ""."""
    columns = ["entropy", "kl", "completion_length", "commonest_label", "groups_without_contrast", "cut_off"]
    means = table[columns].rolling(settings.rollouts, min_periods=settings.rollouts).mean()
    sampled = ["completion_length", "commonest_label", "groups_without_contrast", "cut_off"]
    fresh = table[sampled].dropna().rolling(settings.rollouts).mean().reindex(table.index).ffill()
    first = table["completion_length"].dropna().head(settings.rollouts).mean()
    crossed = {
        "entropy": means["entropy"] < settings.entropy,
        "KL": means["kl"] > settings.kl,
        "length": fresh["completion_length"] < settings.length * first,
        "commonest label": fresh["commonest_label"] > settings.commonest_label,
        "groups without contrast": fresh["groups_without_contrast"] > settings.groups_without_contrast,
        "cut off": fresh["cut_off"] > settings.cut_off,
    }
    return [", ".join(name for name in crossed if crossed[name].iloc[row]) for row in range(len(table))]


def collapse_warning(settings: config.Collapse):
    """A trainer callback that prints a warning when a run begins to collapse."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        told = ""

        def on_log(self, args, state, control, **kwargs):
            table = log(state.log_history, settings)
            now = table["collapse"].iloc[-1] if len(table) else ""
            if now and now != self.told:
                print(f"\nCOLLAPSE at step {state.global_step}: {now}", file=sys.stderr, flush=True)
            self.told = now

    return Watch()


def logs(study: config.Study) -> pd.DataFrame:
    """The logs of all GRPO runs of the study, with a column `run` (name and seed)."""
    empty = pd.DataFrame(columns=["step", "reward", "kl", "validation_f1", "run"])
    tables = [
        records.load(study.paths.log(each)).assign(run=f"{each.run}, seed {each.seed}") for each in study.runs("grpo")
    ]
    return pd.concat(tables, ignore_index=True) if tables else empty


def summary(table: pd.DataFrame) -> str:
    """A summary of a log: first and last tenth of the steps, KL, best checkpoint, collapse; one sentence per line."""
    rollouts = table.dropna(subset=["reward"])
    tenth = max(1, len(rollouts) // 10)
    first, last = (part.mean(numeric_only=True) for part in (rollouts.head(tenth), rollouts.tail(tenth)))
    f1 = table.set_index("step")["validation_f1"].dropna()
    fallen = table[table["collapse"] != ""]
    lines = [
        f"From the first {tenth} to the last {tenth} of {len(rollouts)} rollouts, the mean reward of answers went "
        f"from {first.reward:.3f} to {last.reward:.3f}, malformed answers from {first.format_failures:.1%} to "
        f"{last.format_failures:.1%}, answers cut off at the token limit from {first.cut_off:.1%} to "
        f"{last.cut_off:.1%}, length from {first.completion_length:.0f} to "
        f"{last.completion_length:.0f} tokens, entropy from {first.entropy:.3f} to {last.entropy:.3f} nats.",
        f"KL to the SFT checkpoint ended at {last.kl:.4f} nats a token."
        if last.kl == last.kl
        else "KL to the SFT checkpoint is not measured, because beta is 0.",
        f"The best checkpoint is at step {best(f1.to_dict())}: macro-F1 {f1.max():.3f} on validation films, "
        f"compared with {f1.iloc[-1]:.3f} for the last one.",
        f"COLLAPSED from step {fallen['step'].iloc[0]}: {fallen['collapse'].iloc[-1]}."
        if len(fallen)
        else "No sign of collapse.",
        "The comparison measures whether greedy answers on new films improved, too.",
    ]
    return "\n".join(lines)
