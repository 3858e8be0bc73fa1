"""The scratch folder of a study with changes: `runs/<study>/scratch/<hash>`.

It starts with copies of the stages that the changes do not concern: trying another `grpo.beta` needs no new SFT.
Nothing is ever written outside of it, and it may be deleted at any time.
"""

import os
import shutil
from pathlib import Path

STAGES = {
    "curate": ("sources", "curate", "tests", "teacher", "formats"),
    "sft": ("models", "lora", "sft"),
    "grpo": ("grpo", "predict"),
    "predict": (),
}
"""Each stage, in order, with the values it depends on besides those of the stages before it."""


def share(study, changed) -> None:
    """Copy the finished stages of `study` that `changed` shares to its folder; what is there already stays.

    Films are linked, not copied: a film is only ever replaced as a whole.  A copy older than the study's record is
    replaced.
    """
    for stage, used in STAGES.items():
        if any(getattr(study, name) != getattr(changed, name) for name in used):
            return
        if (study.folder / stage).is_dir():
            shutil.copytree(
                study.folder / stage,
                changed.folder / stage,
                ignore=shutil.ignore_patterns("checkpoints", "tensorboard", ".*"),
                copy_function=_copy,
                dirs_exist_ok=True,
            )


def _copy(source: str, to: str) -> None:
    if os.path.exists(to) and os.path.getmtime(to) >= os.path.getmtime(source):
        return
    unfinished = Path(to).with_name(f".{Path(to).name}.{os.getpid()}")
    try:
        if not source.endswith(".png"):
            raise OSError
        os.link(source, unfinished)
    except OSError:  # another kind of file, or a file system without links
        shutil.copy2(source, unfinished)
    os.replace(unfinished, to)
