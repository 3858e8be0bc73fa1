"""Kill a study with all its processes, run it again, and see whether what it leaves is what it would have left."""

import hashlib
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

LOGS = {"tensorboard", "benchmarks", "checkpoints", "asked", ".doctrees", "jupyter_execute"}
"""Folders of logs with times in them, and of what a run goes on from: no results."""


class Stage(NamedTuple):
    """A stage of the smoke study: what to ask Snakemake for, and what to remove to have it run again."""

    target: str
    removed: tuple[str, ...]


STAGES = {
    "curate": Stage("curate/manifest.parquet", ("curate", "notebooks/1_curate.ipynb")),
    "sft": Stage("sft/medgemma/free_reasoning/seed0/log.parquet", ("sft", "notebooks/3_sft-*")),
    "grpo": Stage("grpo/medgemma/hard/seed0/log.parquet", ("grpo", "notebooks/4_grpo-*")),
    "predict": Stage(
        "predict/medgemma/grpo/hard/seed0/answers.parquet",
        ("predict/medgemma/grpo/hard", "notebooks/5_predict-medgemma-grpo-hard-seed0.ipynb"),
    ),
    "compare": Stage("compare/overall.parquet", ("compare/*.parquet", "notebooks/6_compare.ipynb")),
    "book": Stage("book/_build/html/index.html", ("book",)),
}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start `chexreason run` on the study in `folder`."""
    call = [Path(sys.executable).with_name("chexreason"), "run", "params/smoke.yaml", *arguments]
    return subprocess.Popen(call, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def target(stage: str) -> str:
    """What to ask Snakemake for to have a stage of the smoke study."""
    return f"runs/smoke/{STAGES[stage].target}"


def without(study: Path, stage: str, to: Path) -> Path:
    """A copy of the folder `study` at `to`, beside it (paths to code are relative), that lacks what a stage made."""
    assert to.parent == study.parent
    shutil.copytree(study, to, dirs_exist_ok=True)
    for pattern in STAGES[stage].removed:
        for path in (to / "runs" / "smoke").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return to


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that descend from it, whatever session they are in.

    All are stopped first, the parents before their children, so that none can start another or notice that its parent
    is gone.  Then SIGKILL, which none can handle.
    """
    stopped: list[psutil.Process] = []
    waiting = [psutil.Process(process.pid)]
    while waiting:
        for each in waiting:
            with suppress(psutil.NoSuchProcess):  # it has ended by itself
                each.suspend()
        stopped += waiting
        waiting = [each for each in stopped[0].children(recursive=True) if each not in stopped]
    for each in stopped:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()


def results(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that a study in `folder` leaves to be read, by its name; logs are none."""
    study = folder / "runs" / "smoke"
    named = {path: path.relative_to(study).parts for path in study.rglob("*") if path.is_file()}
    hidden = {path for path, parts in named.items() if any(part.startswith(".") for part in parts) or LOGS & {*parts}}
    return {
        "/".join(parts): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, parts in named.items()
        if path not in hidden and path.suffix != ".log"
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The names of the files that two studies do not have alike."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def done(folder: Path) -> dict[Path, int]:
    """What a run that is cut off need not do again, and when it was written (ns): films, replies, finished adapters."""
    study = folder / "runs" / "smoke"
    found = [*study.glob("curate/films/*.png"), *study.glob("**/asked/*.json"), *study.glob("**/finished/*/adapter_*")]
    return {path: path.stat().st_mtime_ns for path in found if not path.name.startswith(".")}


def trained(folder: Path, stage: str) -> float:
    """The step up to which a stage need not train again: of its newest whole checkpoint, or all when it has ended."""
    study = folder / "runs" / "smoke" / stage
    if any(study.glob("**/finished")):
        return float("inf")
    return max((int(mark.parent.name.split("-")[1]) for mark in study.glob("**/checkpoint-*/whole")), default=0)


def logged(folder: Path) -> dict[Path, list[int]]:
    """The steps that each of TensorBoard's files holds a loss of; a run that goes on begins a file of its own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {}
    for file in (folder / "runs" / "smoke").glob("**/tensorboard/events.*"):
        events = EventAccumulator(str(file)).Reload()
        steps[file] = (
            [event.step for event in events.Scalars("train/loss")] if "train/loss" in events.Tags()["scalars"] else []
        )
    return steps
