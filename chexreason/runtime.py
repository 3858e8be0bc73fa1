"""Threads, devices and memory of the machine a stage runs on."""

import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType

NO_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive", "out of memory when reading")
"""Error messages of libraries for a lack of memory: torch (two), oneDNN (convolutions on a CPU), and Pillow."""


def gpus() -> list[str]:
    """The GPUs that this process may use, by CUDA_VISIBLE_DEVICES or NVIDIA's driver, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    nvidia = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(nvidia, key=int) or (["0"] if Path("/dev/kfd").exists() else [])


def threads() -> int:
    """The number of threads that torch may use: OMP_NUM_THREADS, or one."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def module(file: Path) -> ModuleType:
    """The module of a user's file, under a unique name, so that two files with the same name do not conflict."""
    name = f"chexreason_{zlib.crc32(str(file.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: no Python file")
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def steady_threads() -> None:
    """Limit torch to `threads()`, so that sums are always taken in the same order."""
    import torch

    torch.set_num_threads(threads())


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or its cause, means that the machine or its GPU is out of memory."""
    import torch

    if error is None:
        return False
    lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    lacking |= isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in NO_MEMORY)
    return lacking or out_of_memory(error.__cause__ or error.__context__)


def on_cpu() -> dict:
    """Trainer arguments for this machine: bf16 on a GPU that supports it, plain float32 on a CPU."""
    import torch

    gpu = torch.cuda.is_available()
    return {"use_cpu": not gpu, "bf16": gpu and torch.cuda.is_bf16_supported()}
