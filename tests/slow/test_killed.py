"""Killed at any moment, a study goes on with the same command and ends as if nothing had happened."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import killing
import numpy as np
import psutil
import pytest
import soak
from test_execute import write

from chexreason import records

SEED = 20251223
MOMENTS = 10


def cut_off(folder: Path, stage: str, moment: float) -> bool:
    """Run a stage in `folder` and kill it after `moment` seconds; whether it had not ended by then."""
    run = killing.start(folder, killing.target(stage))
    try:
        run.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        killing.kill(run)
        return True
    return False


def faults(folder: Path, stage: str, expected: dict[str, str]) -> list[str]:
    """Run a stage that was cut off again; what is then done twice or not as `expected`, a line each."""
    done, step, logs = killing.done(folder), killing.trained(folder, stage), killing.logged(folder)
    run = killing.start(folder, killing.target(stage))
    _, said = run.communicate()
    if run.returncode:
        return [f"exit {run.returncode}: {said[-2000:]}"]
    now, new = killing.done(folder), {file: steps for file, steps in killing.logged(folder).items() if file not in logs}
    twice = [path for path, written in done.items() if path in now and now[path] != written]
    twice += [file for file, steps in new.items() if min(steps, default=step + 1) <= step]
    differing = killing.differing(expected, killing.results(folder))
    return [*(f"done twice: {each}" for each in twice), *(f"not the same: {each}" for each in differing)]


def test_a_run_waits_for_what_a_killed_one_left_running_and_a_second_says_who_holds_the_study(smoke, tmp_path_factory):
    """Only Snakemake is killed: its notebook and the notebook's kernel live on, and write."""
    whole = smoke.folder.parents[1]
    folder = killing.without(whole, "compare", tmp_path_factory.mktemp("orphaned"))
    run, part = killing.start(folder, killing.target("compare")), folder / "runs/smoke/notebooks/.6_compare.part.ipynb"
    while run.poll() is None and not part.exists():
        time.sleep(0.05)
    left = psutil.Process(run.pid).children(recursive=True)
    for each in left:
        each.suspend()  # so that it cannot end before it is waited for
    second = killing.start(folder)
    _, said = second.communicate()
    assert second.returncode == 2
    assert f"this study is being run by process {run.pid} on {os.uname().nodename} since 20" in said
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    third = killing.start(folder, killing.target("compare"))
    for line in third.stderr:
        if "6_compare: waiting for an earlier run of it to end" in line:
            break
    for each in left:
        each.resume()
    _, said = third.communicate()
    assert third.returncode == 0, said[-4000:]
    assert all(not each.is_running() for each in left)
    assert killing.differing(killing.results(whole), killing.results(folder)) == []


def test_a_kernel_whose_notebook_was_killed_is_waited_for(tmp_path):
    """It notices within a second that nobody is there, and could write until then."""
    told = tmp_path / "kernel"
    notebook = write(
        tmp_path, f"import os, time\nopen({str(told)!r}, 'w').write(f'{{os.getpid()}} ')", "time.sleep(600)"
    )
    call = [Path(sys.executable).with_name("chexreason"), "notebook", notebook, tmp_path / "out.ipynb"]
    run = subprocess.Popen(call, stderr=subprocess.DEVNULL)
    while run.poll() is None and not (told.exists() and told.read_text()):
        time.sleep(0.05)
    kernel = psutil.Process(int(told.read_text()))
    run.kill()
    run.wait()
    kernel.suspend()  # so that it cannot notice yet
    with open(tmp_path / ".out.lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kernel.resume()
        fcntl.flock(lock, fcntl.LOCK_EX)
    # The kernel gives the lock back in its very last moments, when it can write no more.
    deadline = time.monotonic() + 10
    while kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_killed_process_left_half_written_is_swept_away_and_a_living_ones_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half = [tmp_path / "films" / f".a.png.{dead.pid}", tmp_path / f".adapter.{dead.pid}" / "adapter_config.json"]
    kept = [tmp_path / f".a.parquet.{os.getpid()}", tmp_path / ".index.part.ipynb", tmp_path / "answers.12.parquet"]
    for path in [*half, *kept]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    records.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(path.name for path in kept)


def test_a_folder_takes_another_ones_place_whole_or_not_at_all(tmp_path):
    for text in ("old", "new"):
        with records.replacing(tmp_path / "adapter") as unfinished:
            unfinished.mkdir()
            (unfinished / text).write_text(text)
    with pytest.raises(ZeroDivisionError), records.replacing(tmp_path / "adapter") as unfinished:
        unfinished.mkdir()
        _ = 1 / 0
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["adapter", "adapter/new"]


@pytest.mark.soak
@pytest.mark.parametrize("stage", killing.STAGES)
def test_a_study_killed_at_random_moments_of_a_stage_ends_the_same(smoke, stage, tmp_path_factory):
    whole = smoke.folder.parents[1]
    expected = killing.results(whole)
    folder = killing.without(whole, stage, tmp_path_factory.mktemp(stage))
    began = time.monotonic()
    assert not cut_off(folder, stage, 1200)
    took, moments, found = time.monotonic() - began, np.random.default_rng(SEED), {}
    assert killing.differing(expected, killing.results(folder)) == []
    while len(found) < MOMENTS:
        moment = moments.uniform(0, took)
        shutil.rmtree(folder)
        killing.without(whole, stage, folder)
        if cut_off(folder, stage, moment):  # or else it was quicker than the first time
            found[f"killed after {moment:.2f} s"] = faults(folder, stage, expected)
    soak.row(f"kill -9 during {stage}, then the same command", len(found), sum(not each for each in found.values()))
    assert not any(found.values()), found
