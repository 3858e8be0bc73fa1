"""The scratch folder of a study with changes: `runs/<study>/scratch/<hash>`.

It starts with copies of records that the changes do not affect: another `grpo.runs.hard.beta` needs no new SFT. Nothing
is written outside of it, and it may be deleted at any time.
"""

import os
import shutil
from pathlib import Path

from chexreason.config.checkpoint import Checkpoint
from chexreason.config.study import Study

CURATION = ("sources", "curate", "tests", "teacher", "formats", "rl_sources", "relabelings")
"""The values that curation depends on."""


def copy_finished(study: Study, changed: Study) -> None:
    """Copy the finished records of `study` that `changed` shares into the folder of `changed`.

    Films are linked, not copied, because a film is only replaced as a whole. A copy that is older than the study's
    record is replaced.
    """
    if _differ(study, changed, *CURATION):
        return
    _copy_folder(study, changed, study.folder / "curate")
    asked_alike = not _differ(study, changed, "predict") and study.grpo.reward == changed.grpo.reward
    for checkpoint in changed.checkpoints():
        if _same_run(study, changed, checkpoint):
            _copy_folder(study, changed, study.paths.run(checkpoint))
            if asked_alike and study.datasets(checkpoint) == changed.datasets(checkpoint):
                _copy_folder(study, changed, study.paths.asked(checkpoint))


def _differ(study: Study, changed: Study, *names: str) -> bool:
    return any(getattr(study, name) != getattr(changed, name) for name in names)


def _same_run(study: Study, changed: Study, checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint, and everything that it starts from, is trained in the same way in both studies."""
    stage, name = checkpoint.stage, checkpoint.run
    if study.models.get(checkpoint.model) != changed.models[checkpoint.model]:
        return False
    if stage == "untuned":
        return True
    sections = [getattr(each, stage) for each in (study, changed)]
    if name not in sections[0].runs or _differ(study, changed, "lora" if stage == "sft" else "predict"):
        return False
    runs = [section.runs[name].model_dump(exclude={"set", "seeds", "full"}) for section in sections]
    alike = runs[0] == runs[1] and sections[0].of(name) == sections[1].of(name)
    return alike and _same_run(study, changed, changed.start(checkpoint))


def _copy_folder(study: Study, changed: Study, folder: Path) -> None:
    if folder.is_dir():
        shutil.copytree(
            folder,
            changed.folder / folder.relative_to(study.folder),
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
