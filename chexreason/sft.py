"""Supervised fine-tuning on reasoning traces: trl's SFTTrainer with LoRA as published (PROTOCOL: SFT)."""

from pathlib import Path

import pandas as pd

from chexreason import card, curate, models, params, records, teacher, training


def folder(study: params.Study, model: str, format: str, seed: int) -> Path:
    """Where the adapter and the log of one SFT run lie."""
    return study.folder / "sft" / model / format / f"seed{seed}"


def data(study: params.Study, split: str, format: str):
    """The films of `split` that have a trace of `format`, as a trl data set of prompt, image and completion.

    Raises RecordError where the teacher wrote no trace of that format.
    """
    written = records.load(study.folder / teacher.TRACES)
    traces = written[written["format"] == format].set_index("film")["text"]
    if traces.empty:
        there = ", ".join(written["format"].unique()) or "none"
        raise records.RecordError(
            f"{teacher.TRACES} holds no trace of {format}; it has {there}; a new one needs a run under "
            "sft.runs in the params file, and then 1_curate again"
        )
    films = curate.dataset(study, split)
    films = films[films["film"].isin(traces.index)]
    completions = [[{"role": "assistant", "content": traces[film]}] for film in films["film"]]
    return training.examples(films, format, completion=completions)


def example(study: params.Study, format: str) -> str:
    """The first film's prompt and completion, as text; of a credentialed source the prompt alone."""
    first, film = data(study, "sft", format)[0], curate.dataset(study, "sft").iloc[0]
    completion = (
        "(the traces of this source are not shown)" if film["credentialed"] else first["completion"][0]["content"]
    )
    return f"{first['prompt'][0]['content']}\n\n{completion}"


def work(study: params.Study, model: str, format: str, seed: int) -> Path:
    """Where one SFT run keeps what it goes on from."""
    return training.work(folder(study, model, format, seed), study, model, _inputs(study), __name__)


def _inputs(study: params.Study) -> list[Path]:
    return [study.folder / curate.MANIFEST, study.folder / teacher.TRACES]


def trainer(study: params.Study, model: str, format: str, seed: int):
    """An SFTTrainer ready to run.

    Loss on the answer's tokens only, which is what trl does with `prompt` and `completion` columns; early stopping on
    the loss of the held-out films; the vision encoder stays frozen, since LoRA reaches the language model only.
    """
    from transformers import EarlyStoppingCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    training.steady_threads()
    set_seed(seed)  # LoRA's first weights are drawn when the trainer attaches it
    settings, train = study.sft, data(study, "sft", format)
    per_epoch = -(-len(train) // (settings.batch * settings.accumulate))
    every = -(-per_epoch // settings.evaluations_per_epoch)
    arguments = SFTConfig(
        output_dir=str(work(study, model, format, seed)),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch * 4,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        max_length=None,
        gradient_checkpointing=settings.checkpointing,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=training.log_steps(every),
        seed=seed,
        disable_tqdm=True,
        report_to="none",
        **training.on_cpu(),
    )
    runner = SFTTrainer(
        model=models.freeze_vision(models.load_base(study.models[model])),
        processing_class=models.load_processor(study.models[model]),
        args=arguments,
        train_dataset=train,
        eval_dataset=data(study, "sft-holdout", format),
        peft_config=models.lora_config(study.lora),
        callbacks=[
            EarlyStoppingCallback(settings.patience),
            training.progress(f"SFT {model} {format}"),
            training.tensorboard(folder(study, model, format, seed)),
            training.marking(),
        ],
    )
    return training.quietly(runner)


def train(study: params.Study, model: str, format: str, seed: int) -> pd.DataFrame:
    """Train one cell of the SFT grid, or go on from its newest checkpoint; return its log.

    Writes `adapter/` (peft, safetensors, model card) and `log.parquet`: step, epoch, split (train or eval), loss (nats
    a token of the answer), token_accuracy (share of the answer's tokens guessed right).
    """
    place, going = folder(study, model, format, seed), work(study, model, format, seed)
    if not training.finished(going):
        with training.naming("sft.batch (and raise sft.accumulate as much, for the same steps)"):
            state = training.resume(trainer(study, model, format, seed), going)
        table = log(state.log_history)
        chosen = going / Path(state.best_model_checkpoint).name, describe(study, model, format, seed, table)
        base, origin = study.models[model].path, records.origin(study, seed, _inputs(study))
        training.finish(going, base, {"adapter": chosen}, table, origin)
    return training.publish(going, place)


def log(history: list[dict]) -> pd.DataFrame:
    """The trainer's history as a tidy table: step, epoch, split, loss, token_accuracy."""
    rows = []
    for entry in history:
        for split, prefix in (("train", ""), ("eval", "eval_")):
            if f"{prefix}loss" in entry:
                rows.append(
                    {
                        "step": entry["step"],
                        "epoch": entry["epoch"],
                        "split": split,
                        "loss": entry[f"{prefix}loss"],
                        "token_accuracy": entry[f"{prefix}mean_token_accuracy"],
                    }
                )
    return pd.DataFrame(rows)


def describe(study: params.Study, model: str, format: str, seed: int, table: pd.DataFrame) -> str:
    """The model card of one SFT run, from its log."""
    held = table[table["split"] == "eval"]
    best = held.loc[held["loss"].idxmin()]
    films, source = study.curate, study.sources[study.curate.train]
    return card.text(
        study,
        model,
        f"sft/{format}, seed {seed}",
        data=f"Up to {films.sft:,} films of the source `{films.train}` ({source.kind}), with a trace of the format "
        f"{format} written by the teacher ({study.teacher.kind}) from each film's labels.",
        settings={"seed": seed, "lora": study.lora.model_dump(), "sft": study.sft.model_dump(exclude={"runs"})},
        scores=card.Scores(
            "sft-holdout",
            f"On the {films.holdout:.0%} of these films that are held out for early stopping, at step {best.step:.0f}, "
            "whose weights these are: loss in nats a token of the answer, and the share of those tokens guessed right.",
            {"loss": float(best.loss), "token_accuracy": float(best.token_accuracy)},
        ),
    )


def trainable(study: params.Study, model: str) -> pd.DataFrame:
    """Where the trained weights are: one row a kind of projection, with matrices and weights LoRA adds to it."""
    from peft import get_peft_model

    adapted = get_peft_model(models.load_base(study.models[model]), models.lora_config(study.lora))
    names = [(name, weight.numel()) for name, weight in adapted.named_parameters() if weight.requires_grad]
    table = pd.DataFrame(names, columns=["name", "weights"])
    part = table["name"].str.extract(r"\.(?P<part>language_model|vision_tower|visual)\..*\.(?P<projection>\w+)\.lora")
    table = table.join(part)
    return table.groupby(["part", "projection"]).agg(matrices=("name", "size"), weights=("weights", "sum"))


def logs(study: params.Study) -> pd.DataFrame:
    """The logs of all SFT runs of the study, one below the other, with model, format and seed."""
    return pd.concat(
        [
            records.load(folder(study, run.model, run.format, seed) / "log.parquet").assign(
                model=study.models[run.model].name, format=run.format, seed=seed
            )
            for run, seed in study.runs("sft")
        ],
        ignore_index=True,
    )


def summary(table: pd.DataFrame) -> str:
    """What a log shows, in a sentence: the best held-out loss and where the run stood at its end."""
    held = table[table["split"] == "eval"]
    best, last = held.loc[held["loss"].idxmin()], held.iloc[-1]
    return (
        f"On the held-out films the loss was lowest at step {best.step:.0f} (epoch {best.epoch:.1f}): {best.loss:.3f} "
        f"nats a token, with {best.token_accuracy:.1%} of the answer's tokens guessed right.  "
        f"The last evaluation, at step {last.step:.0f}, stood at {last.loss:.3f}; the best weights were kept."
    )
