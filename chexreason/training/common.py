"""What SFT and GRPO share: films as trl data sets, progress, checkpoints that a killed run goes on from."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pandas as pd

from chexreason import config, fingerprint, models, prompts, records, runtime

LOG = "log.parquet"

WHOLE = "whole"
"""The file that marks a checkpoint as whole; the trainer itself leaves none that a power cut could not outrun."""

HISTORY = "history.json"
"""What the trainer logged, as it left it."""

FINISHED = "finished"
"""The folder of what a run leaves, from which its records are made again if the notebook around it is cut off."""


def examples(films: pd.DataFrame, prompt: str, **columns: Sequence):
    """A trl data set of films, each asked with the text of `prompt`.

    `films` has an `image` column with a path a film; it is opened when the film is used.  `columns` are added as
    they are, one value a film.
    """
    from datasets import Dataset, Image

    question = [[{"role": "user", "content": prompts.load(prompt)}]] * len(films)
    table = {"prompt": question, "image": [str(path) for path in films["image"]], **columns}
    return Dataset.from_dict(table).cast_column("image", Image())


def early_stopping(patience: int):
    """A trainer callback that stops after `patience` evaluations without a lower loss, those before a kill included.

    transformers' own counts from zero in a resumed run; the count is in each checkpoint's `trainer_state.json`.
    """
    from transformers import EarlyStoppingCallback

    class Patience(EarlyStoppingCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            kept = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.early_stopping_patience_counter = kept["early_stopping_patience_counter"]

    return Patience(patience)


def arguments(config_class: type, settings: config.Sft | config.Grpo, **owned):
    """The trainer's arguments: those that the study owns, the section's keys that trl shares, then `settings.trl`."""
    known = {field.name for field in fields(config_class)}
    shared = {key: getattr(settings, key) for key in type(settings).model_fields if key in known}
    return config_class(**{**owned, **shared, **settings.trl})


def changed_arguments(config) -> pd.DataFrame:
    """The trainer's arguments that differ from the defaults of trl: argument, value, default (all text)."""
    plain = type(config)(output_dir=config.output_dir, **runtime.on_cpu())
    names = [field.name for field in fields(config) if getattr(config, field.name) != getattr(plain, field.name)]
    values = [[str(getattr(each, name)) for each in (config, plain)] for name in names]
    return pd.DataFrame(values, index=names, columns=["value", "default"]).rename_axis("argument").reset_index()


def progress(what: str):
    """A trainer callback that shows a text bar with the time left, in a terminal as in a notebook."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=what, mininterval=5, file=sys.stderr)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return Progress()


def tensorboard(folder: Path):
    """A trainer callback that logs for TensorBoard under `folder/tensorboard`; a resumed run appends.

    These are logs for whoever watches, with times in them, and no records: nothing reads them.  `report_to` would put
    them among the checkpoints, which are dropped.
    """
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(folder / "tensorboard")
    return callback


def resume(trainer, folder: Path):
    """Train to the end, from the newest whole checkpoint in `folder` if there is one; returns the trainer's state.

    A run that had ended is left at its end: the trainer forgets that it was stopped early, and would train on.
    Raises DiskFullError where a checkpoint cannot be written for want of room.
    """
    from transformers import TrainerState

    checkpoint = newest_checkpoint(folder)
    if checkpoint and is_finished(state := TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))):
        return state
    if checkpoint is None:
        shutil.rmtree(folder.parent.parent / "tensorboard", ignore_errors=True)  # of a run that was another
    with records.disk_full_errors(folder):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return trainer.state


def is_finished(state) -> bool:
    """Whether a trainer's state is that of a run that had reached its last step, or was stopped early."""
    return state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]


def without_printing(trainer):
    """The same trainer without the callback that prints every log entry; the log is a record anyway."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def memory_errors(lower: str):
    """Raise MemoryError that names what to `lower`, for whatever fails in the block because memory has run out."""
    try:
        yield
    except Exception as error:
        if runtime.out_of_memory(error):
            raise MemoryError(f"no memory is left; lower {lower} in the params file") from error
        raise


def work_folder(place: Path, stage: str, model: config.Model, *made_of) -> Path:
    """The folder where a run of `stage` that writes to `place` keeps what it resumes from.

    Its name is a digest of the code and libraries of the stage (`fingerprint.room`), of the base model and of
    `made_of`: params and content.  If any of them changes, training starts again.
    """
    base = model.model_dump(exclude={"name", "prompt", "note", "full"}), models.version(model)
    return place / "checkpoints" / fingerprint.digest(fingerprint.room(stage), base, *made_of)[:12]


def content_digest(films: pd.DataFrame, *columns: str) -> str:
    """The digest of what training reads of `films`: the pixels, in this order, and these columns."""
    return fingerprint.rows(films[list(columns)].assign(image=films["image"].map(fingerprint.pixels)))


def log_steps(save_steps: int) -> int:
    """Steps between log entries: about ten entries a checkpoint, the last of them at it.

    A trainer that goes on has forgotten what it had gathered for the next entry.
    """
    return max(steps for steps in range(1, max(1, save_steps // 10) + 1) if save_steps % steps == 0)


def whole_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return sorted(found, key=step)


def step(checkpoint: Path) -> int:
    """After how many steps a checkpoint was taken."""
    return int(checkpoint.name.split("-")[1])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    found = whole_checkpoints(folder)
    return found[-1] if found else None


def mark_whole():
    """A trainer callback that marks each checkpoint as whole when all its bytes are on the disk."""
    from transformers import TrainerCallback

    class Marking(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            records.to_disk(checkpoint)
            with records.replacing(checkpoint / WHOLE) as unfinished:
                unfinished.touch()

    return Marking()


def finish(folder: Path, model: config.Model, chosen: dict[str, Path], history: dict) -> None:
    """Keep in `folder` what a run leaves: the adapter of each chosen checkpoint, and what log and cards are made from.

    The adapters name the model they belong to as the params file does, and its commit.  All of it appears at once;
    then the checkpoints go, and what runs of other params, records or code left.
    """
    base = {"base_model_name_or_path": model.path, "revision": models.commit(model) or None}
    with records.replacing(folder / FINISHED) as unfinished:
        for name, checkpoint in chosen.items():
            (unfinished / name).mkdir(parents=True)
            config, weights = (checkpoint / file for file in models.ADAPTER)
            settings = json.loads(config.read_text(encoding="utf-8")) | base
            (unfinished / name / config.name).write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
            shutil.copy(weights, unfinished / name)
        (unfinished / HISTORY).write_text(json.dumps(history), encoding="utf-8")
    for each in (*folder.glob("checkpoint-*"), *(other for other in folder.parent.iterdir() if other != folder)):
        shutil.rmtree(each)


def finished(folder: Path) -> bool:
    """Whether a run in `folder` has come to its end, so that nothing is left to train."""
    return (folder / FINISHED).is_dir()


def publish(
    folder: Path, place: Path, describe: Callable[[dict], tuple[pd.DataFrame, dict[str, str]]], provenance: dict
):
    """Copy the adapters of the finished run in `folder` to `place`, then write the log and the cards; returns the log.

    `describe` makes the log and the text of each adapter's card from the history that `finish` kept.  The adapters
    come first, and the finished run stays: a log or a card that cannot be made costs no training.
    """
    kept = folder / FINISHED
    for adapter in sorted(path for path in kept.iterdir() if path.is_dir()):
        with records.replacing(place / adapter.name) as unfinished:
            shutil.copytree(adapter, unfinished)
    try:
        log, cards = describe(json.loads((kept / HISTORY).read_text(encoding="utf-8")))
        for name, card in cards.items():
            with records.replacing(place / name / "README.md") as unfinished:
                unfinished.write_text(card, encoding="utf-8")
        records.save(log, place / LOG, provenance)
    except Exception as error:
        error.add_note(f"Training is finished and its adapters are kept in {kept}; only the log or a card failed.")
        raise
    return records.load(place / LOG)
