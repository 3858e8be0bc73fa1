"""Supervised fine-tuning (SFT) on reasoning traces, with trl's SFTTrainer and LoRA (PROTOCOL: SFT)."""

from pathlib import Path

import pandas as pd

from chexreason import answers, config, models, prompts, records, rewards, runtime
from chexreason.data import curate
from chexreason.teacher import check
from chexreason.training import common, model_card


def traces(study: config.Study, format: str) -> pd.Series:
    """The teacher's traces of `format` by film; raises RecordError if there are none."""
    written = records.load(study.folder / check.TRACES)
    texts = written[written["format"] == format].set_index("film")["text"]
    if texts.empty:
        there = ", ".join(written["format"].unique()) or "none"
        raise records.RecordError(
            f"{check.TRACES} has no trace of {format}, only of {there}; a new format needs a run under "
            "sft.runs in the params file, and then 1_curate again"
        )
    return texts


def data(study: config.Study, split: str, format: str, opening: str = ""):
    """The films of `split` with a trace of `format`, as a trl data set of prompt, image and completion.

    `opening` is the part of each reply that the chat template writes (`models.template_opening`).  Raises RecordError
    if there is no trace of that format.
    """
    texts, films = traces(study, format), curate.dataset(study, split)
    films = films[films["film"].isin(texts.index)]
    completions = [
        [{"role": "assistant", "content": models.assistant_message(texts[film], opening)}] for film in films["film"]
    ]
    return common.examples(films, format, completion=completions)


def example(study: config.Study, run: str) -> pd.DataFrame:
    """The first film of a run and its trace, for `figures.film_beside_text`; no row if the film is credentialed."""
    texts, films = traces(study, study.sft.runs[run].format), curate.dataset(study, "sft")
    first = films[films["film"].isin(texts.index)].head(1).query("not credentialed")
    return first.assign(text=first["film"].map(texts))


def work_folder(study: config.Study, checkpoint: config.Checkpoint) -> Path:
    """The folder with the checkpoints of an SFT run."""
    format = study.prompt(checkpoint)
    films = pd.concat([curate.dataset(study, split) for split in ("sft", "sft-holdout")])
    read = common.content_digest(films.assign(trace=films["film"].map(traces(study, format))), "split", "trace")
    settings = study.lora.model_dump(), study.sft.of(checkpoint.run).model_dump(), prompts.load(format)
    return common.work_folder(study.paths.run(checkpoint), "sft", study.models[checkpoint.model], read, settings)


def _inputs(study: config.Study) -> list[Path]:
    return [study.folder / curate.MANIFEST, study.folder / check.TRACES]


def arguments(study: config.Study, run: str, seed: int):
    """The SFTConfig of a run."""
    from trl import SFTConfig

    checkpoint, settings = study.checkpoint("sft", run, seed), study.sft.of(run)
    films = curate.dataset(study, "sft")["film"].isin(traces(study, study.prompt(checkpoint)).index).sum()
    per_epoch = -(-int(films) // (settings.per_device_train_batch_size * settings.gradient_accumulation_steps))
    every = -(-per_epoch // settings.evaluations_per_epoch)
    return common.arguments(
        SFTConfig,
        settings,
        output_dir=str(work_folder(study, checkpoint)),
        per_device_eval_batch_size=settings.per_device_train_batch_size * 4,
        lr_scheduler_type="cosine",
        max_length=None,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=None if settings.keep_checkpoints else 2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=common.log_steps(every),
        seed=seed,
        disable_tqdm=True,
        report_to="none",
        **runtime.on_cpu(),
    )


def trainer(study: config.Study, run: str, seed: int):
    """An SFTTrainer ready to run.

    The loss is on the tokens of the answer only (trl does so for the columns `prompt` and `completion`).  Early
    stopping uses the loss on held-out films.  The vision encoder is frozen, because LoRA adapts the language model
    only.
    """
    from transformers import set_seed
    from trl import SFTTrainer

    runtime.steady_threads()
    set_seed(seed)  # LoRA's first weights are drawn when the trainer attaches it
    checkpoint = study.checkpoint("sft", run, seed)
    settings, loaded, format = study.sft.of(run), study.models[checkpoint.model], study.prompt(checkpoint)
    processor = models.load_processor(loaded)
    opening = models.template_opening(processor)
    train, held_out = (data(study, split, format, opening) for split in ("sft", "sft-holdout"))
    for split, films in (("sft", train), ("sft-holdout", held_out)):
        if not len(films):
            raise config.ParamsError(f"curate: no film is left for {split}; change curate.sft or curate.holdout")
    base = models.plain_generation(models.load_base(loaded), processor)
    models.refuse_unreached(base, loaded)
    with models.one_line_errors(loaded.path):
        runner = SFTTrainer(
            model=models.freeze_vision(base),
            processing_class=processor,
            args=arguments(study, run, seed),
            train_dataset=train,
            eval_dataset=held_out,
            peft_config=models.lora_config(study.lora, loaded),
            callbacks=[
                common.early_stopping(settings.early_stopping_patience),
                common.progress(f"SFT {run}"),
                common.tensorboard(study.paths.run(checkpoint)),
                common.mark_whole(),
            ],
        )
        refuse_other_tokens(runner, format, loaded.path)
    return common.without_printing(runner)


def refuse_other_tokens(runner, format: str, path: str) -> None:
    """Raise ModelError unless training and prediction give the model the same tokens.

    The trainer's first example is compared with the input of prediction, token by token.  The answer must be readable
    in its format, and a token that ends a reply must follow it.
    """
    processor, first = runner.processing_class, runner.train_dataset[0]
    film, prompt, answer = first["image"], first["prompt"][0]["content"], first["completion"][0]["content"]
    batch = runner.data_collator([first])  # which rewrites the messages
    learned, asked = batch["labels"][0] != -100, models.inputs(processor, [film], prompt)
    before, after = batch["input_ids"][0][~learned], batch["input_ids"][0][learned]
    if before.tolist() != asked["input_ids"][0].tolist() or not batch["pixel_values"].equal(asked["pixel_values"]):
        ends = (repr(processor.tokenizer.decode(ids)[-60:]) for ids in (before, asked["input_ids"][0]))
        raise models.ModelError(
            f"{path}: its chat template or processor gives another input in training ({next(ends)}) than in prediction "
            f"({next(ends)}); change chat_template.jinja so that both are the same"
        )
    text = models.template_opening(processor) + processor.tokenizer.decode(after, skip_special_tokens=True)
    readings = [
        answers.read(each)._replace(reasoning=" ".join(answers.read(each).reasoning.split())) for each in (text, answer)
    ]
    if readings[0] != readings[1] or (format != answers.ONLY_LABEL and rewards.malformed(text)):
        raise models.ModelError(
            f"{path}: its chat template changes the answer that SFT trains ({text[:60]!r} ...); change "
            "chat_template.jinja so that it writes the assistant's message as it is"
        )
    if not set(after.tolist()) & set(runner.model.generation_config.eos_token_id):
        raise models.ModelError(f"{path}: its chat template does not end a reply, so the model would not learn to stop")


def train(study: config.Study, run: str, seed: int) -> pd.DataFrame:
    """Train one SFT run, or resume from its last checkpoint; returns its log.

    Writes `adapter/` (peft, safetensors, model card) and `log.parquet`: step, epoch, split (train or eval), loss (nats
    per token of the answer), token_accuracy (share of the answer's tokens that are predicted correctly).
    """
    checkpoint = study.checkpoint("sft", run, seed)
    base, going = study.models[checkpoint.model], work_folder(study, checkpoint)
    if not common.finished(going):
        with common.memory_errors(
            "sft.per_device_train_batch_size (and raise sft.gradient_accumulation_steps as much)"
        ):
            state = common.resume(trainer(study, run, seed), going)
        best = going / Path(state.best_model_checkpoint).name
        kept = common.kept_steps(study.sft.of(run), common.whole_checkpoints(going))
        common.finish(going, base, {"adapter": best, **kept}, {"log": state.log_history})

    def log_and_card(history: dict) -> tuple[pd.DataFrame, dict[str, str]]:
        table = log(history["log"])
        return table, {"adapter": describe(study, checkpoint, table)}

    provenance = records.provenance(study, seed, _inputs(study)) | models.provenance(base)
    return common.publish(going, study.paths.run(checkpoint), log_and_card, provenance)


def log(history: list[dict]) -> pd.DataFrame:
    """The trainer's log history as a tidy table: step, epoch, split, loss, token_accuracy."""
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


def describe(study: config.Study, checkpoint: config.Checkpoint, table: pd.DataFrame) -> str:
    """The model card of one SFT run."""
    held = table[table["split"] == "eval"]
    best = held.loc[held["loss"].idxmin()]
    films, source, format = study.curate, study.sources[study.curate.train], study.prompt(checkpoint)
    settings = study.sft.of(checkpoint.run).model_dump(exclude={"runs"})
    return model_card.text(
        study,
        checkpoint.model,
        f"{checkpoint.name}, seed {checkpoint.seed}",
        data=f"Up to {films.sft:,} films of the source `{films.train}` ({source.kind}), with a trace of the format "
        f"{format} written by the teacher ({study.teacher.kind}) from each film's labels.",
        settings={"seed": checkpoint.seed, "lora": study.lora.model_dump(), "sft": settings},
        scores=model_card.Scores(
            "sft-holdout",
            f"On the {films.holdout:.0%} of these films that are held out for early stopping, at step {best.step:.0f}, "
            "whose weights these are: loss in nats per token of the answer, and the share of right tokens.",
            {"loss": float(best.loss), "token_accuracy": float(best.token_accuracy)},
        ),
    )


def trainable(study: config.Study, model: str) -> pd.DataFrame:
    """The trained weights: one row per kind of projection, with the matrices and weights that LoRA adds."""
    from peft import get_peft_model

    base = study.models[model]
    adapted = get_peft_model(models.load_base(base), models.lora_config(study.lora, base))
    names = [(name, weight.numel()) for name, weight in adapted.named_parameters() if weight.requires_grad]
    table = pd.DataFrame(names, columns=["name", "weights"])
    part = table["name"].str.extract(r"\.(?P<part>language_model|vision_tower|visual)\..*\.(?P<projection>\w+)\.lora")
    table = table.join(part)
    return table.groupby(["part", "projection"]).agg(matrices=("name", "size"), weights=("weights", "sum"))


def logs(study: config.Study) -> pd.DataFrame:
    """The logs of all SFT runs of the study, with model, run, format and seed."""
    return pd.concat(
        [
            records.load(study.paths.log(each)).assign(
                model=study.models[each.model].name, run=each.run, format=study.prompt(each), seed=each.seed
            )
            for each in study.runs("sft")
        ],
        ignore_index=True,
    )


def summary(table: pd.DataFrame) -> str:
    """A summary of a log: the lowest held-out loss, and the last one."""
    held = table[table["split"] == "eval"]
    best, last = held.loc[held["loss"].idxmin()], held.iloc[-1]
    return (
        f"The loss on held-out films was lowest at step {best.step:.0f} (epoch {best.epoch:.1f}): {best.loss:.3f} nats "
        f"per token, with {best.token_accuracy:.1%} of the answer's tokens predicted correctly. At the last evaluation "
        f"(step {last.step:.0f}) it was {last.loss:.3f}. The weights with the lowest loss were kept."
    )
