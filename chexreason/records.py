"""Records: the parquet and JSON files through which notebooks meet, each with its origin, written atomically."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pandas as pd

from chexreason import __version__

ORIGIN = b"chexreason"


class RecordError(ValueError):
    """A record is missing, or is not one of ours."""


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def commit() -> str:
    """The commit of the source tree the package lies in, or "" outside a repository or without git."""
    here = Path(__file__).resolve().parent
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return git.stdout.strip()


def origin(study, seed: int | None = None, inputs: Iterable[Path] = ()) -> dict:
    """What a record was made from: the study's params, the package, the seed and the hash of every input record.

    `study` is a `chexreason.params.Study`.  No time and no path of this machine is in it, so that the same study gives
    the same bytes; inputs are named relative to the study's folder.
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
def replacing(path: Path):
    """Yield a temporary path beside `path` that becomes `path` only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(table: pd.DataFrame, path: Path, origin: dict) -> None:
    """Write `table` as parquet with its origin in the file's metadata; the index is not kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), ORIGIN: json.dumps(origin, sort_keys=True).encode()}
    with replacing(Path(path)) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary, write_page_checksum=True)


def load(path: Path) -> pd.DataFrame:
    """Read a record; its origin is in `.attrs["origin"]`.

    Raises RecordError, naming the file, when it is not there, is damaged, or was not written by `save`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_missing(path)
    try:
        arrow = pq.read_table(path, page_checksum_verification=True)
        table = arrow.to_pandas()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:  # damage raises any of these
        raise RecordError(f"{path}: not a parquet file, or a damaged one: {error}") from None
    try:
        table.attrs["origin"] = json.loads(arrow.schema.metadata[ORIGIN])
    except (TypeError, KeyError, ValueError):
        raise RecordError(f"{path}: this parquet file names no origin, so it is not a record of a study") from None
    return table


def save_json(data, path: Path, origin: dict) -> None:
    """Write JSON-able `data` beside its origin."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps({"origin": origin, "data": data}, indent=1, sort_keys=True) + "\n")


def load_json(path: Path):
    """Read what `save_json` wrote; raises RecordError when it is not there or was not written by `save_json`."""
    _refuse_missing(path)
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(record, dict) or set(record) != {"origin", "data"}:
        raise RecordError(f"{path}: this JSON file names no origin, so it is not a record of a study")
    return record["data"]


def _refuse_missing(path: str | Path) -> None:
    if not Path(path).is_file():
        raise RecordError(f"{path}: no such record; run the notebook that writes it, or `make book`")
