"""The command line as a user calls it, and the smoke study, run once for all tests that look at its results."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import settings

from chexreason import config

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side, one process a core

settings.register_profile("steady", deadline=None, derandomize=True)  # the same examples, however busy the machine is
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent


SMOKE = ("test_study.py", "test_models.py", "test_book.py", "test_predict.py", "test_training.py", "test_trainers.py")
SMOKE += ("test_killed.py", "test_starved.py", "test_path.py", "test_experiments.py")
"""Whose tests look at the smoke study, and change it in passing: one worker has them all, and runs it once."""

TOGETHER = ("test_strangers.py", "test_chat_templates.py")
"""Whose tests share something that takes long to make: one worker has each file."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The files of `SMOKE` go to one worker, each of `TOGETHER` to one, and every other test to whichever is free.

    `make soak` runs each test wherever there is room, as another smoke study is little beside what it does, but the
    changes of `test_changes.py`, which come one on top of the other.
    pytest-xdist's own groups do nothing under this version of pytest.
    """
    from xdist.scheduler import LoadScopeScheduling

    class SmokeTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            if config.option.markexpr == "soak":
                return file if file.endswith("test_changes.py") else nodeid
            if file.endswith(SMOKE):
                return "smoke"
            return file if file.endswith(TOGETHER) else nodeid

    return SmokeTogether(config, log)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run `chexreason ...` in `folder` as a process of its own."""
    call = [Path(sys.executable).with_name("chexreason"), *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)


def study_folder(folder: Path, **changes: str) -> Path:
    """A folder with the smoke params and the file that they extend; `changes` are replaced in a text, new for old."""
    texts = {name: (ROOT / "params" / name).read_text(encoding="utf-8") for name in ("smoke.yaml", "mini.yaml")}
    for new, old in changes.items():
        name = next(name for name, text in texts.items() if old in text)
        texts[name] = texts[name].replace(old, new)
    (folder / "params").mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / "params" / name).write_text(text, encoding="utf-8")
    return folder


def at(name: str, model: str = "medgemma", seed: int = 0) -> config.Checkpoint:
    """The checkpoint of a name such as `grpo/hard-best`."""
    return config.Checkpoint.parse(model, name, seed)


def with_run(study: config.Study, stage: str, name: str, **keys) -> config.Study:
    """The study with one more run, or another of this name."""
    section = getattr(study, stage)
    made = {"sft": config.SftRun, "grpo": config.GrpoRun}[stage](**keys)
    other = study.model_copy(update={stage: section.model_copy(update={"runs": section.runs | {name: made}})})
    other._file = study.file
    return other


def changed_study(folder: Path, name: str, changes: dict) -> config.Study:
    """The study of `params/<name>.yaml` with its records under `folder`; `changes` are "section.key": value."""
    values = config.read(ROOT / "params" / f"{name}.yaml")
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[last] = value
    file = folder / "params" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config.load(file)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> config.Study:
    """The smoke study after `chexreason run`, book included, in a folder of its own."""
    folder = study_folder(tmp_path_factory.mktemp("smoke"))
    said = command(folder, "run", "params/smoke.yaml")
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-6000:]
    return config.load(folder / "params" / "smoke.yaml", full=False)
