"""With little memory, a full disk, one core, no network, a read-only tree, in odd places: the same results."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import killing
import numpy as np
import pytest
import soak
import torch
from conftest import ROOT, command, study_folder
from PIL import Image
from test_execute import write

from chexreason import config, records
from chexreason.training import common
from chexreason.workflow.notebook import NotebookError, execute

SCARCE = """
import io, re, resource, sys
from contextlib import redirect_stderr
from pathlib import Path
from chexreason import config
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol

def limit(room):
    size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + room if room else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

study = config.load("params/smoke.yaml")
films = sorted(Path(sys.argv[1]).glob("*.png"))
reader = predict.load(study.models["medgemma"], None, len(films))
protocol = Protocol.of(study, "free_reasoning", "b-test")
predict.answer_films(reader, films[:1], protocol, Path(sys.argv[1]) / "one")  # its memory is taken from now on
limit(int(sys.argv[2]) * 2**20)
with redirect_stderr(io.StringIO()) as said:
    scarce = predict.answer_films(reader, films, protocol, Path(sys.argv[1]) / "scarce")
limit(None)
assert scarce == predict.answer_films(reader, films, protocol, Path(sys.argv[1]) / "plenty")
print(said.getvalue())
"""


@pytest.mark.soak
def test_a_batch_that_does_not_fit_in_memory_is_asked_in_halves_with_the_same_replies(tmp_path):
    """The address space of the process is limited; the allocator that then fails is torch's own."""
    noise = np.random.default_rng(0)
    for number in range(256):
        Image.fromarray(noise.integers(0, 256, (128, 104), np.uint8)).save(tmp_path / f"{number:03}.png")
    call = [sys.executable, "-c", SCARCE, str(tmp_path), "48"]
    one_arena = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # others reserve address space that the limit does not see
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False, env=one_arena)
    assert said.returncode == 0, said.stderr[-2000:]
    assert "out of memory with a batch of 256 films; trying 128" in said.stdout


def too_much_of_a_gpu():
    """What torch raises there; no test has a GPU to fill."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    "asked_for", [lambda: torch.empty(10**16, dtype=torch.uint8), lambda: bytearray(10**16), too_much_of_a_gpu]
)
def test_training_that_runs_out_of_memory_names_the_param_to_lower(asked_for):
    told = r"lower grpo\.films_per_step in the params file"
    with pytest.raises(MemoryError, match=told), common.memory_errors("grpo.films_per_step"):
        asked_for()


def test_another_error_than_a_lack_of_memory_stays_what_it_is():
    with (
        pytest.raises(RuntimeError, match="inconsistent tensor size"),
        common.memory_errors("sft.per_device_train_batch_size"),
    ):
        torch.zeros(2) @ torch.zeros(3)


def test_a_notebook_killed_for_its_memory_says_which_params_to_lower(tmp_path):
    notebook = write(
        tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )  # as the kernel's own killer does
    with pytest.raises(NotebookError, match=r"lower predict\.batch, sft\.per_device_train_batch_size"):
        execute(notebook, tmp_path / "out.ipynb", {})


@pytest.fixture
def disk(tmp_path):
    """A disk of 512 kB of its own, and a function that changes its size; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options, place], capture_output=True, check=False).returncode

    if not shutil.which("mount") or mount("-t", "tmpfs", "-o", "size=512k", "tmpfs"):
        pytest.skip("only root may mount a disk, and not everywhere")
    yield place, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "--lazy", place], check=True)


PROVENANCE = {"study": "smoke"}


def test_a_full_disk_is_reported_damages_nothing_and_when_there_is_room_the_same_call_succeeds(disk):
    import pandas as pd

    place, resize = disk
    small = pd.DataFrame({"a": [1, 2]})
    large = pd.DataFrame({"a": np.random.default_rng(0).random(200_000)})
    records.save(small, place / "a.parquet", PROVENANCE)
    with pytest.raises(records.DiskFullError, match=r"a\.parquet cannot be written: the disk is full"):
        records.save(large, place / "a.parquet", PROVENANCE)
    pd.testing.assert_frame_equal(records.load(place / "a.parquet"), small)
    assert [path.name for path in place.iterdir()] == ["a.parquet"]
    resize("8m")
    records.save(large, place / "a.parquet", PROVENANCE)
    pd.testing.assert_frame_equal(records.load(place / "a.parquet"), large)


def test_a_checkpoint_that_fills_the_disk_is_reported_although_torch_does_not_say_why(disk):
    place, _ = disk
    with (
        pytest.raises(records.DiskFullError, match="the disk is full"),
        records.disk_full_errors(place / "checkpoint-8"),
    ):
        torch.save(torch.rand(300_000), place / "optimizer.pt")


@pytest.mark.soak
def test_a_study_stops_at_a_full_disk_and_goes_on_when_there_is_room(smoke, disk):
    place, resize = disk
    study_folder(place)
    full = command(place, "run", "params/smoke.yaml", killing.target("curate"))
    assert full.returncode != 0
    assert re.search(r"runs/smoke/\S+ cannot be written: the disk is full", full.stderr)
    resize("64m")
    said = command(place, "run", "params/smoke.yaml", killing.target("curate"))
    assert said.returncode == 0, said.stderr[-4000:]
    assert differing(smoke, place, "curate/") == []


MEASURED = ("costs.md", "costs.html", "searchindex.js")
"""The book's page of costs shows the seconds that each job took, and the index of its words has them too."""


def differing(smoke: config.Study, folder: Path, stage: str) -> list[str]:
    """The files of a stage that a study in `folder` and the smoke study do not have alike, measured times aside."""
    whole = {name: each for name, each in killing.results(smoke.folder.parents[1]).items() if name.startswith(stage)}
    whole = {name: each for name, each in whole.items() if not name.endswith(MEASURED)}
    return killing.differing(whole, {name: each for name, each in killing.results(folder).items() if name in whole})


ELSEWHERE = """
set -e
ip link set lo up
mount --bind "$0" "$1"
mount -o remount,bind,ro "$1"
if touch "$1/writable" 2> /dev/null; then exit 9; fi
"$2" -c 'import sys, chexreason; assert chexreason.__file__.startswith(sys.argv[1])' "$1"
exec taskset -c 0 "$2" -m chexreason.cli run "$3" --cores 1 "${@:4}"
"""
"""Run a study from a source tree that is bound to another place, read-only, on one core, with no network but itself."""


def turkish(folder: Path) -> dict[str, str]:
    """An environment in Turkish, with a decimal comma and no Unicode; in the C locale where none can be made."""
    call = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", "--no-archive", folder / "tr_TR"]
    made = shutil.which("localedef") and not subprocess.run(call, capture_output=True, check=False).returncode
    return {"LC_ALL": "tr_TR", "LOCPATH": str(folder)} if made else {"LC_ALL": "C"}


def elsewhere(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the smoke study in `folder` under all that is strange at once; skips where no namespace may be made."""
    apart = ["unshare", "--mount", "--net"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may take the network away, and not everywhere")
    tree = folder.with_name("Quelltext, ½ & 資料")
    tree.mkdir(parents=True)
    study_folder(folder)
    call = [*apart, "bash", "-c", ELSEWHERE, ROOT, tree, sys.executable, folder / "params" / "smoke.yaml", *arguments]
    surroundings = {**os.environ, **turkish(folder), "TZ": "Asia/Kathmandu", "PYTHONPATH": str(tree)}
    return subprocess.run(call, cwd="/", env=surroundings, capture_output=True, text=True, check=False)


@pytest.mark.soak
def test_a_whole_study_is_the_same_on_one_core_without_network_elsewhere_and_from_a_read_only_tree(smoke, tmp_path):
    folder = tmp_path / "Röntgen Bücher, ½ & co"
    folder.mkdir()
    said = elsewhere(folder)
    same = said.returncode == 0 and differing(smoke, folder, "") == []
    soak.row("one core, no network, read-only tree, strange path, locale and time zone", 1, int(same))
    assert said.returncode == 0, said.stdout[-1000:] + said.stderr[-4000:]
    assert differing(smoke, folder, "") == []
