"""What SFT and GRPO share: films as trl data sets, progress, checkpoints that a killed run goes on from."""

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from chexreason import params, prompts


def examples(films: pd.DataFrame, prompt: str, **columns: Sequence):
    """A trl data set of films, each asked with the text of `prompt`.

    `films` has an `image` column with a path a film; it is opened when the film is used.  `columns` are added as
    they are, one value a film.
    """
    from datasets import Dataset, Image

    question = [[{"role": "user", "content": prompts.load(prompt)}]] * len(films)
    table = {"prompt": question, "image": [str(path) for path in films["image"]], **columns}
    return Dataset.from_dict(table).cast_column("image", Image())


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


def resume(trainer, folder: Path, study: params.Study) -> None:
    """Train to the end, from the newest whole checkpoint of these params in `folder` if there is one."""
    checkpoint = newest(checkpoints(folder, study))
    if checkpoint is None:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # of other params, or of a run begun anew
    trainer.train(resume_from_checkpoint=checkpoint)


def quietly(trainer):
    """The same trainer without the callback that prints every log entry; the log is a record anyway."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def threads() -> int:
    """How many threads torch may use: what OMP_NUM_THREADS says, or one."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def steady_threads() -> None:
    """Hold torch to `threads()`, so that the same sums are taken in the same order."""
    import torch

    torch.set_num_threads(threads())


def checkpoints(folder: Path, study: params.Study) -> Path:
    """Where a run keeps its checkpoints: of this params file only, so that changed params never resume old weights."""
    return folder / "checkpoints" / study.hash


def whole(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first.  A trainer writes `trainer_state.json` last."""
    found = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def newest(folder: Path) -> str | None:
    """The newest whole checkpoint in `folder`, or None."""
    found = whole(folder)
    return str(found[-1]) if found else None


def keep(trainer, folder: Path, card: str) -> None:
    """Save the trained adapter with its model card as `folder/adapter`, whole or not at all; drop the checkpoints."""
    with _replacing(folder / "adapter") as unfinished:
        trainer.model.save_pretrained(str(unfinished), selected_adapters=["default"])
        (unfinished / "README.md").write_text(card, encoding="utf-8")  # in place of peft's, which is blank
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def keep_checkpoints(folder: Path, chosen: dict[str, tuple[Path, str]]) -> None:
    """Save the adapter of each chosen checkpoint with its model card under its name in `folder`; drop the others.

    Each is saved whole or not at all.
    """
    for name, (checkpoint, card) in chosen.items():
        with _replacing(folder / name) as unfinished:
            unfinished.mkdir()
            for file in checkpoint.glob("adapter_*"):
                shutil.copy(file, unfinished)
            (unfinished / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@contextmanager
def _replacing(folder: Path):
    """Yield a path that takes the place of `folder` when the block ends well."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


def on_cpu() -> dict:
    """Trainer arguments that depend on the machine: bf16 on a GPU that has it, plain float32 on a CPU."""
    import torch

    gpu = torch.cuda.is_available()
    return {"use_cpu": not gpu, "bf16": gpu and torch.cuda.is_bf16_supported()}
