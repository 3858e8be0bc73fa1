"""Run a notebook with parameters from a terminal."""

import ast
import difflib
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from chexreason import fingerprint
from chexreason.workflow import gpus

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two runs side by side on one thread each beat one run on two
    # glibc keeps the memory of a tensor for the next one, instead of a page fault for each page of each tensor
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # What libraries tell each other of names to come, and peft of a base model that it cannot look up by its path.
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore:Could not find a config file:UserWarning",
}
"""The environment of every kernel, unless the caller's environment has other values."""


SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose name matches may have a secret, which no notebook may show."""

NOBODY = {"", "root", "user", "localhost"}
"""Names of users and hosts that are also common words."""


LESS_MEMORY = (
    "lower predict.batch, sft.per_device_train_batch_size (and raise sft.gradient_accumulation_steps as much) or "
    "grpo.films_per_step, or run --cores 1"
)
"""The params to lower if a kernel was killed for lack of memory."""


class NotebookError(RuntimeError):
    """A notebook cannot be run as asked, or a cell of it failed."""


class Relay:
    """A stream that prints a notebook's progress with its name, at most one update every `every` seconds.

    Progress bars use carriage returns. Two notebooks at once would overwrite each other, so each update becomes a line.
    """

    def __init__(self, name: str, to: TextIO, every: float = 5.0):
        self._name, self._to, self._every = name, to, every
        self._rest, self._shown = "", float("-inf")

    def write(self, text: str) -> None:
        """Take `text` and print the lines that it completes."""
        *pieces, self._rest = re.split(r"(?<=[\r\n])", self._rest + text)
        for piece in filter(str.strip, pieces):
            if piece.endswith("\n") or time.monotonic() - self._shown >= self._every:
                self._shown = time.monotonic()
                print(f"{self._name}: {piece.strip()}", file=self._to, flush=True)

    def flush(self) -> None:
        """Nothing to do; streams need it."""


def execute(
    notebook: str | Path, output: str | Path, parameters: dict, expected: Collection[str] = (), gpu: bool = True
) -> None:
    """Run `notebook` with `parameters` and write the executed copy to `output`.

    With `gpu`, its kernel uses one of the machine's GPUs (`gpus.one_gpu`), otherwise none.

    `output` is written only if every cell ran. It contains results only: no times, no progress bars, and no path, user,
    host name or key of this machine (the variable's name replaces it). Raises NotebookError before anything runs for an
    unknown parameter, and after a failed cell; the partly run notebook is then `<output>.failed.ipynb`. The traceback
    of the cell is printed, unless the error's class is in `expected`.
    """
    from chexreason import records

    notebook, output = Path(notebook), Path(output)
    defaults(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    part, failed = output.with_name(f".{output.stem}.part.ipynb"), output.with_suffix(".failed.ipynb")
    a_gpu: AbstractContextManager[tuple[str, list[int]]] = gpus.one_gpu() if gpu else nullcontext(("", []))
    with _output_lock(output) as lock, a_gpu as (device, reserved):
        try:
            with records.disk_full_errors(part):
                _run_cells(
                    notebook,
                    part,
                    parameters,
                    kernel_manager_class=_kernel_manager(device, [lock.fileno(), *reserved]),
                    stderr_file=Relay(output.stem, sys.stderr),
                )
        except BaseException as error:
            if part.exists():
                os.replace(part, failed)
            if not isinstance(error, Exception):
                raise
            if getattr(error, "ename", "") not in expected:
                print("\n".join(getattr(error, "traceback", [])), file=sys.stderr)
            raise NotebookError(f"{notebook}: {_error_text(error)}\nthe partly run notebook is {failed}") from error
        with records.replacing(output) as unfinished:
            _scrub(part, unfinished, _hide_private(parameters))
        failed.unlink(missing_ok=True)
        part.unlink()


def defaults(notebook: str | Path, names: Iterable[str] = ()) -> dict:
    """The parameters of a notebook with their defaults, None for a value that is not a literal.

    Raises NotebookError for a file that is not a notebook, and if one of `names` is not a parameter.
    """
    import papermill

    if not Path(notebook).is_file():
        raise NotebookError(f"{notebook}: no such notebook")
    try:
        known = {name: about["default"] for name, about in papermill.inspect_notebook(str(notebook)).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # whatever comes of another file
        raise NotebookError(f"{notebook}: cannot be read as a notebook: {error}") from None
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
            raise NotebookError(f"{notebook}: no parameter {name!r}; {hint}")
    return {name: _literal(code) for name, code in known.items()}


def _run_cells(notebook: Path, part: Path, parameters: dict, **options) -> None:
    """Run the cells with papermill; a kernel that dies while it starts is started once more.

    (Its ports are chosen before it opens them, so another program may take one in between.)
    """
    import papermill

    # seconds; a kernel starts slowly from a busy network file system
    options |= {"kernel_name": "python3", "progress_bar": False, "start_timeout": 600}
    try:
        papermill.execute_notebook(notebook, part, parameters, **options)
    except RuntimeError as error:
        if "died before replying" not in str(error):  # jupyter_client's words; no cell has run yet
            raise
        print(f"{notebook.stem}: its kernel did not start and is started once more", file=sys.stderr, flush=True)
        papermill.execute_notebook(notebook, part, parameters, **options)


def _literal(code: str):
    try:
        return ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return None


@contextmanager
def _output_lock(output: Path):
    """Wait for any other run of the same notebook, which may be left over from a killed study; yields the lock.

    The lock is an open file; a process that inherits it has the lock, too.
    """
    from chexreason import records

    path = output.with_name(f".{output.stem}.lock")
    with open(path, "w") as lock:
        try:
            records.lock(path, lock.fileno())
        except BlockingIOError:
            print(f"{output.stem}: waiting for an earlier run of it to end", file=sys.stderr, flush=True)
            records.lock(path, lock.fileno(), wait=True)
        yield lock


def _kernel_manager(device: str, locks: list[int]) -> type:
    """Kernels of this Python interpreter, with an encrypted connection.

    They see only the GPU `device`, because trl refuses to train with two. They inherit the files `locks`: if this
    process is killed, its kernel may continue for a second.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    environment = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    environment["CUDA_VISIBLE_DEVICES"] = device

    class Kernels(AsyncKernelManager):
        silent = get_kernel_dict(["--log-level=50"])  # when told to shut down
        kernel_spec = KernelSpec(**silent, env=environment)
        transport_encryption = "auto"  # otherwise ipykernel 7 warns at each start about plain TCP

        async def start_kernel(self, **options):
            return await super().start_kernel(**options, pass_fds=locks)

    return Kernels


def _error_text(error: Any) -> str:
    if hasattr(error, "evalue"):
        return f"cell {error.exec_count} stopped with {error.ename}: {error.evalue}"
    if type(error).__name__ == "DeadKernelError":
        return f"the process that ran it was killed, as the system does when memory runs out: {LESS_MEMORY}"
    return f"{type(error).__name__}: {error}"


def _hide_private(parameters: dict) -> Callable[[str], str]:
    """A function that replaces this machine's paths, user, host and keys in a text by names."""
    variables = dict(os.environ)
    private = {value: f"${name}" for name, value in variables.items() if value.startswith("/")}
    private |= {value: f"${name}" for name, value in variables.items() if SECRET.search(name) and len(value) >= 8}
    private |= {variables[name]: f"${name}" for name in ("LOGNAME", "USER") if name in variables}
    study = Path(parameters.get("params", "params/")).resolve().parent.parent  # holds params/ and runs/
    private |= {socket.gethostname(): "$HOSTNAME", tempfile.gettempdir(): "$TMPDIR", sys.prefix: "$VIRTUAL_ENV"}
    private |= {str(Path.home()): "~", str(fingerprint.PACKAGE.parent): ".", str(Path.cwd()): ".", str(study): "."}
    found = sorted((value for value in private if value not in NOBODY | {"/"}), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, found))})(?!\w)")
    return lambda text: pattern.sub(lambda match: private[match[0]], text)


def _scrub(path: Path, to: Path, hide: Callable[[str], str]) -> None:
    """Write an executed notebook without anything that belongs to one run or one machine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    tags: list[str] = []
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            kept = _join_streams(output for output in cell.outputs if not _is_progress(output))
            cell.outputs = [_stable_output(output, hide) for output in kept]
        if "parameters" in cell.metadata.get("tags", []):
            tags = [tag for tag in cell.metadata.tags if tag != "parameters"]
        if "injected-parameters" in cell.metadata.get("tags", []):  # shown or hidden like the cell it overrides
            cell.metadata.tags, cell.id = ["injected-parameters", *tags], "injected-parameters"
            cell.source = hide(cell.source)
    nbformat.write(notebook, to)


def _is_progress(output) -> bool:
    """Whether an output is progress: standard error, or a widget, which needs a live kernel."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _join_streams(outputs: Iterable) -> list:
    """The outputs, with consecutive texts of standard output joined; how often a kernel flushes varies."""
    joined: list = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _stable_output(output, hide: Callable[[str], str]):
    """An output without private texts and without memory addresses."""
    if "text" in output:
        output.text = hide(output.text)
    data = output.get("data", {})
    for kind in [kind for kind in data if kind.startswith("text/") or kind == "image/svg+xml"]:
        data[kind] = hide(data[kind])
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+>", ">", data["text/plain"])
    return output
