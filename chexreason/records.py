"""Records: parquet and JSON files with provenance, which notebooks exchange. They are written atomically."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pandas as pd

from chexreason import __version__

PROVENANCE = b"chexreason"


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of the system if nothing more can be written: the disk, the quota or the file size limit is reached."""

LAST_BYTES = 64 * 1024
"""With less free space than this, a disk is full; some libraries do not give the reason of a failed write."""


class RecordError(ValueError):
    """A record is missing, or was not written by ChexReason."""


class DiskFullError(OSError):
    """Nothing more can be written. Existing files are complete."""


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def commit() -> str:
    """The commit of the package's source tree, or "" without a repository or git."""
    here = Path(__file__).resolve().parent
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    return git.stdout.decode("ascii").strip()


def provenance(study, seed: int | None = None, inputs: Iterable[Path] = ()) -> dict:
    """The provenance of a record: study, params, package, seed, and the hash of every input record.

    `study` is a `chexreason.config.Study`. It has no time and no path of the machine, so the same study gives the same
    bytes; inputs are named relative to the study's folder.
    """
    return {
        "study": study.study,
        "params_hash": study.hash,
        "phantom": study.phantom,
        "version": __version__,
        "commit": commit(),
        "seed": seed,
        "inputs": {str(path.relative_to(study.folder)): sha256(path) for path in sorted(inputs)},
    }


@contextmanager
def replacing(path: Path, sync: bool = True):
    """Yield a temporary path for a file or folder; it replaces `path` only if the block ends without an error.

    With `sync`, its bytes are on the disk before the replacement, so that a power cut leaves the old or the new file.
    Raises DiskFullError if the block fails because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{word}{os.getpid()}") for word in ("", "old."))
    try:
        with disk_full_errors(path):
            yield temporary
            if sync:
                to_disk(temporary)
        if path.is_dir():  # which a folder cannot replace
            os.replace(path, old)
        os.replace(temporary, path)
        if sync:
            _sync_names(path.parent)
    finally:
        _remove(temporary)
        _remove(old)


@contextmanager
def disk_full_errors(path: Path):
    """Turn any error in the block that comes from a full disk into a DiskFullError that names `path`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in FULL or shutil.disk_usage(path.parent).free < LAST_BYTES:
            raise DiskFullError(
                f"{path} cannot be written: the disk is full.  Nothing is damaged; make room, and the same command "
                "goes on"
            ) from error
        raise


def lock(path: Path, file: int, wait: bool = False) -> bool:
    """Lock the open file descriptor `file` of `path`; a process that inherits it has the lock, too.

    Returns False on a file system without locks (some Lustre, NFS and FUSE mounts), after a warning on standard error.
    Raises BlockingIOError if another process has the lock, unless `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        print(
            f"{path}: this file system has no locks ({error.strerror}); do not run the same study twice at once",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in `folder`, at any depth (see `replacing`)."""
    for left in list(folder.rglob(".*.*")):
        writer = left.name.rpartition(".")[2]
        if writer.isdecimal() and not _alive(int(writer)):
            _remove(left)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Write the bytes of a file, or of all files of a folder, to the disk."""
    if path.is_dir():
        os.sync()  # one for all of them: one for each takes longer than writing them
    else:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """Write the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def save(table: pd.DataFrame, path: Path, provenance: dict) -> None:
    """Write `table` as parquet with its provenance in the file's metadata; the index is not saved."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), PROVENANCE: json.dumps(provenance, sort_keys=True).encode()}
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        pq.write_table(arrow.replace_schema_metadata(metadata), file, write_page_checksum=True)


def load(path: Path) -> pd.DataFrame:
    """Read a record; its provenance is in `.attrs["provenance"]`.

    Raises RecordError with the file if it is missing, damaged, or was not written by `save`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_missing(path)
    try:
        with open(path, "rb") as file:  # pyarrow takes every path for UTF-8
            arrow = pq.read_table(file, page_checksum_verification=True)
        table = arrow.to_pandas()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:  # damage raises any of these
        raise RecordError(f"{path}: not a parquet file, or a damaged one: {error}") from None
    try:
        table.attrs["provenance"] = json.loads(arrow.schema.metadata[PROVENANCE])
    except (TypeError, KeyError, ValueError):
        raise RecordError(f"{path}: this parquet file names no provenance, so it is not a record of a study") from None
    return table


def save_json(data, path: Path, provenance: dict) -> None:
    """Write `data` and its provenance as JSON."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps({"provenance": provenance, "data": data}, indent=1, sort_keys=True) + "\n")


def load_json(path: Path):
    """The data that `save_json` wrote; raises RecordError if the file is missing or was not written by `save_json`."""
    _refuse_missing(path)
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(record, dict) or set(record) != {"provenance", "data"}:
        raise RecordError(f"{path}: this JSON file names no provenance, so it is not a record of a study")
    return record["data"]


def _refuse_missing(path: str | Path) -> None:
    if not Path(path).is_file():
        raise RecordError(f"{path}: no such record; run the notebook that writes it, or `make book`")
