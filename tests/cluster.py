"""The smoke study through a one-node Slurm and on this machine: `make cluster` shows that the records are the same.

Slurm comes from Debian's packages (slurmctld, slurmd, slurm-client, munge), and needs root.  It is stopped at the end.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("Snakefile", "environment.yml", "book", "chexreason", "notebooks", "params", "profiles")
SMALLER = "extends: smoke.yaml\nstudy: cluster\nwithout: [tests.b-large, tests.c-large, prompts]\n"
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
SelectType=select/cons_tres
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path):
    """A one-node Slurm whose files lie in `folder`, but for a link to its configuration where its commands look."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 1000
    written = CONFIGURATION.format(host=socket.gethostname(), folder=folder, cores=os.cpu_count(), memory=memory)
    (folder / "slurm.conf").write_text(written)
    link = Path("/etc/slurm/slurm.conf")  # SLURM_CONF is not handed on to the steps of a job
    if link.exists():
        sys.exit(f"{link} is there already: this machine has a Slurm of its own, which is left alone")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder / "slurm.conf")
    if not Path("/etc/munge/munge.key").exists():
        subprocess.run(["mungekey", "--create"], check=True)
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    running = subprocess.run(["munge", "-n"], capture_output=True).returncode == 0
    started = [] if running else [_start("runuser", "-u", "munge", "--", "munged", "--foreground")]
    try:
        time.sleep(1)
        started += [_start(name, "-D") for name in ("slurmctld", "slurmd")]
        for _ in range(60):
            state = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout
            if state.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            sys.exit(f"Slurm did not start within 30 seconds; its logs are in {folder}")
        yield
    finally:
        link.unlink()
        for process in reversed(started):
            process.terminate()
            process.wait()


def _start(*command: str) -> subprocess.Popen:
    """A daemon whose lines, which are in its log, are not shown."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(place: Path, *options: str) -> None:
    """Run the study in a copy of the checkout at `place`, as far as its comparison."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, place / name)
    (place / "params" / "cluster.yaml").write_text(SMALLER)
    call = [sys.executable, "-m", "chexreason.cli", "run", "params/cluster.yaml", "compare", *options]
    subprocess.run(call, cwd=place, env=os.environ | {"PYTHONPATH": str(place)}, check=True)


def differences(one: Path, other: Path) -> list[str]:
    """The records and adapters that differ between two studies, by value; prints a line for each."""
    names = {
        file.relative_to(place)
        for place in (one, other)
        for end in ("*.parquet", "adapter_model.safetensors")
        for file in place.rglob(end)
        if "checkpoints" not in file.parts
    }
    found = []
    for name in sorted(names):
        same = (one / name).is_file() and (other / name).is_file() and _same(one / name, other / name)
        print(f"{'same' if same else 'DIFFERS':8} {name}")
        found += [] if same else [str(name)]
    return found


def _same(one: Path, other: Path) -> bool:
    if one.suffix != ".parquet":
        return one.read_bytes() == other.read_bytes()
    return pd.read_parquet(one).equals(pd.read_parquet(other))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="chexreason-cluster-") as temporary:
        folders = {name: Path(temporary) / name for name in ("slurm", "cluster", "local")}
        for folder in folders.values():
            folder.mkdir()
        start = time.monotonic()
        with slurm(folders["slurm"]):
            options = ["--profile", "profiles/slurm", "--slurm-status-command", "squeue", "--latency-wait", "10"]
            run(folders["cluster"], *options)
        through_slurm = time.monotonic() - start
        start = time.monotonic()
        run(folders["local"])
        print(f"through Slurm {through_slurm:.0f} s, locally {time.monotonic() - start:.0f} s")
        if found := differences(folders["cluster"] / "runs/cluster", folders["local"] / "runs/cluster"):
            sys.exit(f"{len(found)} records differ")


if __name__ == "__main__":
    main()
