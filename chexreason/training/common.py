"""What SFT and GRPO share: trl data sets, callbacks, and checkpoints from which an interrupted run resumes."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pandas as pd

from chexreason import config, fingerprint, models, prompts, records, runtime

LOG = "log.parquet"

WHOLE = "whole"
"""The file that marks a complete checkpoint: it is written when all other files are on the disk."""

HISTORY = "history.json"
"""The trainer's log history."""

FINISHED = "finished"
"""The folder with the results of a finished run, from which its records are made, also after an interruption."""


def examples(films: pd.DataFrame, prompt: str, **columns: Sequence):
    """A trl data set of films with the prompt named `prompt`.

    `films` has a column `image` with paths; an image is opened when it is used.  `columns` are added, one value per
    film.
    """
    from datasets import Dataset, Image

    question = [[{"role": "user", "content": prompts.load(prompt)}]] * len(films)
    table = {"prompt": question, "image": [str(path) for path in films["image"]], **columns}
    return Dataset.from_dict(table).cast_column("image", Image())


def early_stopping(patience: int):
    """A trainer callback that stops after `patience` evaluations without a lower loss, also in a resumed run.

    The callback of transformers counts from zero again when a run resumes.  This one reads the count from the
    checkpoint's `trainer_state.json`.
    """
    from transformers import EarlyStoppingCallback

    class Patience(EarlyStoppingCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            kept = state.stateful_callbacks[type(self).__name__]["attributes"]
            self.early_stopping_patience_counter = kept["early_stopping_patience_counter"]

    return Patience(patience)


def arguments(config_class: type, settings: config.Sft | config.Grpo, **owned):
    """The trainer's config: `owned` arguments, keys of the section that trl also has, and `settings.trl`."""
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
    """A trainer callback that shows a text progress bar, in a terminal and in a notebook."""
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

    These logs contain times and are not records: nothing reads them.  (`report_to` would write them to the checkpoints'
    folder, which is deleted.)
    """
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(folder / "tensorboard")
    return callback


def resume(trainer, folder: Path):
    """Train to the end, from the newest complete checkpoint in `folder` if there is one; returns the trainer's state.

    A finished run is not trained further.  (The trainer forgets that it was stopped early, and would continue.)
    Raises DiskFullError if a checkpoint cannot be written because the disk is full.
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
    """Whether the run with this trainer state reached its last step or was stopped early."""
    return state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]


def without_printing(trainer):
    """The same trainer without the callback that prints every log entry."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def memory_errors(lower: str):
    """Turn any out-of-memory error in the block into a MemoryError that names the params to `lower`."""
    try:
        yield
    except Exception as error:
        if runtime.out_of_memory(error):
            raise MemoryError(f"out of memory; lower {lower} in the params file") from error
        raise


def work_folder(place: Path, stage: str, model: config.Model, *made_of) -> Path:
    """The folder with the checkpoints of a run of `stage` that writes its results to `place`.

    The folder name is a hash of the code and libraries of the stage (`fingerprint.room`), the base model, and
    `made_of`: params and content.  If any of them changes, training starts again.
    """
    base = model.model_dump(exclude={"name", "prompt", "note", "full"}), models.version(model)
    return place / "checkpoints" / fingerprint.digest(fingerprint.room(stage), base, *made_of)[:12]


def content_digest(films: pd.DataFrame, *columns: str) -> str:
    """The digest of the pixels of `films`, in this order, and of these columns."""
    return fingerprint.rows(films[list(columns)].assign(image=films["image"].map(fingerprint.pixels)))


def log_steps(save_steps: int) -> int:
    """Steps between log entries: about ten per checkpoint, the last one at the checkpoint.

    (A resumed trainer has lost the values that it collected for the next entry.)
    """
    return max(steps for steps in range(1, max(1, save_steps // 10) + 1) if save_steps % steps == 0)


def kept_steps(settings: config.Sft | config.Grpo, checkpoints: Iterable[Path]) -> dict[str, Path]:
    """The checkpoints whose adapters a run keeps beside the chosen ones, by the name of their folder in its results."""
    return {f"steps/{step(each)}": each for each in checkpoints} if settings.keep_checkpoints else {}


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return sorted(found, key=step)


def step(checkpoint: Path) -> int:
    """The training step of a checkpoint."""
    return int(checkpoint.name.split("-")[1])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = whole_checkpoints(folder)
    return found[-1] if found else None


def mark_whole():
    """A trainer callback that marks each checkpoint as complete when all its bytes are on the disk."""
    from transformers import TrainerCallback

    class Marking(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            records.to_disk(checkpoint)
            with records.replacing(checkpoint / WHOLE) as unfinished:
                unfinished.touch()

    return Marking()


def finish(folder: Path, model: config.Model, chosen: dict[str, Path], history: dict) -> None:
    """Keep the results of a run in `folder`: the adapters of the `chosen` checkpoints and the log history.

    The adapters name their base model as the params file does, and its commit.  Everything appears at once.  Then the
    checkpoints are deleted, and the folders of runs with other params, inputs or code.
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
    """Whether the run in `folder` is finished."""
    return (folder / FINISHED).is_dir()


def publish(
    folder: Path, place: Path, describe: Callable[[dict], tuple[pd.DataFrame, dict[str, str]]], provenance: dict
):
    """Copy the adapters of the finished run in `folder` to `place`, then write the log and the cards; returns the log.

    `describe` makes the log and the text of each adapter's card from the log history.  The finished run stays in
    `folder`, so nothing has to be trained again if a log or a card cannot be made.
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
