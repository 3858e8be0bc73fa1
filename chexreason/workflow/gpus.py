"""One GPU per kernel: which GPUs this process may use, and a lock so that two processes never share one."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chexreason import records, runtime


@contextmanager
def one_gpu(wait: float = 1.0) -> Iterator[tuple[str, list[int]]]:
    """Reserve one of the visible GPUs; yields its name for CUDA_VISIBLE_DEVICES, and the open lock files.

    The name is "" on a machine without a GPU. A process that inherits the open files keeps the GPU until it ends. If
    all GPUs are in use, it tries again every `wait` seconds. In a job of Slurm, nothing is reserved, because Slurm has
    chosen the GPU.
    """
    names = runtime.gpus()
    if not names or "SLURM_JOB_ID" in os.environ:
        yield ",".join(names[:1]), []
        return
    waiting = False
    while True:
        for name in names:
            path = Path(tempfile.gettempdir()) / f"chexreason-{os.getuid()}-gpu-{name.replace('/', '_')}.lock"
            with open(path, "w") as file:
                try:
                    records.lock(path, file.fileno())
                except BlockingIOError:
                    continue
                yield name, [file.fileno()]
                return
        if not waiting:
            print(f"waiting for a GPU: {', '.join(names)} in use", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(wait)
