"""Fuzz what a user hands over, for as long as one likes: `python tests/fuzz.py 600` shares ten minutes out.

Each target is given inputs until its share of the time is spent.  An input survives when it is read, or refused with
the error that its reader promises.  Hypothesis makes the inputs; where atheris is installed, it drives the answer
reader and the params file too, by the branches they take.  What breaks a reader is kept in the folder FUZZ_KEPT
(`fuzz/`).
"""

import hashlib
import inspect
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import soak
import yaml
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from test_answers import FULL, partly_denied
from test_dicom import changed, table
from test_films import COLOR, TWELVE_BIT, dicom, encoded, packed, png16, written

from chexreason import answers, config, records
from chexreason.data import convert, film_table, images, own
from chexreason.data.film_table import SourceError
from chexreason.labels import CHEXPERT14

ROOT = Path(__file__).resolve().parent.parent
MINI = (ROOT / "params" / "mini.yaml").read_text(encoding="utf-8")
KEPT = Path(os.environ.get("FUZZ_KEPT", "fuzz"))
SYNTAXES = (JPEG2000Lossless, JPEGLSLossless, RLELossless)


class Target(NamedTuple):
    """A reader, the only errors it may raise, and inputs for it."""

    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    inputs: st.SearchStrategy[bytes]


def from_file(read: Callable[[Path], object], folder: Path) -> Callable[[bytes], object]:
    """`read`, of a file, as a reader of bytes."""
    path = folder / "input"

    def read_bytes(data: bytes):
        path.write_bytes(data)
        return read(path)

    return read_bytes


@st.composite
def damaged(draw, wholes: list[bytes]) -> bytes:
    """One of some whole files, cut, or with bytes overwritten, doubled or put in."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 6))):
        at, kind = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 3))
        piece = draw(st.binary(min_size=1, max_size=8))
        match kind:
            case 0:
                data[at : at + len(piece)] = piece
            case 1:
                data[at:at] = piece
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[at : at + 64]
    return bytes(data)


WORDS = [*CHEXPERT14, *(f"<{slash}{word}>" for word in answers.THOUGHTS + answers.LABELS for slash in ("", "/"))]
WORDS += [
    '{"conclusion": [',
    '"]}',
    "conclusion:",
    ", ",
    "\n",
    " and ",
    "```json\n",
    "\u202e",
    "<script>",
    "I cannot help",
]
REPLIES = (
    st.lists(st.sampled_from(WORDS) | st.text(max_size=20), max_size=60)
    .map("".join)
    .map(lambda text: text.encode("utf-8", "surrogatepass"))
)
DENIALS = partly_denied().map(lambda solution: json.dumps(solution).encode())


def read_denials(data: bytes) -> None:
    """Read a solution of which it is known what it affirms: a name that it only denies never comes out."""
    solution, affirmed = json.loads(data)
    labels = answers.read(FULL.format(solution)).labels
    if labels not in ((), tuple(affirmed)):
        raise AssertionError(f"{solution!r} reads as {labels}, and affirms {affirmed}")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates()
VALUES = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(st.text(max_size=8), each), max_leaves=8)


@st.composite
def changed_params(draw) -> bytes:
    """mini.yaml with values put, at random, where others stand."""
    values = yaml.safe_load(MINI)
    for _ in range(draw(st.integers(1, 3))):
        section = values
        while isinstance(section, dict | list) and section:
            places = list(section) if isinstance(section, dict) else range(len(section))
            place = draw(st.sampled_from(places))
            if not isinstance(section[place], dict | list) or draw(st.integers(0, 3)) == 0:
                section[place] = draw(VALUES)
                break
            section = section[place]
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


TEXTS = st.sampled_from(["", "0", "-1", "2047,5", "1e999", "nan", "1\\2", "inverse", "SIGMOID", "YBR_FULL"])
TEXTS |= st.text(max_size=6)
SHORTS = st.lists(st.integers(0, 65535), max_size=3).map(lambda each: struct.pack(f"<{len(each)}H", *each))
STORING = ("SamplesPerPixel", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue")
SHOWING = (
    "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PresentationLUTShape",
)  # fmt: skip


@st.composite
def headers(draw) -> bytes:
    """A DICOM image with elements that say how it is stored and shown replaced, whether that is legal or not."""
    data = dicom(TWELVE_BIT, VOILUTSequence=[table([1, 2, 3], 8, 0, draw(st.binary(max_size=8)))])
    elements = draw(st.dictionaries(st.sampled_from(STORING), SHORTS, max_size=3))
    texts = draw(st.dictionaries(st.sampled_from(SHOWING), TEXTS, max_size=4))
    elements |= {keyword: text.encode("utf-8", "replace") for keyword, text in texts.items()}
    try:
        return written(changed(data, **elements))
    except Exception:  # pydicom cannot write it
        reject()


CELLS = st.sampled_from(["1", "0", "-1", "", "1.0", "nan", "PA", "p1", "a.png", '"', ",", "9" * 400]) | st.text(
    max_size=6
)
PADS = st.sampled_from(["", "", " ", "\u00a0", "\t", "\ufeff", "\u200b", "\0", "\u3000"])
NAMES = st.sampled_from(
    ["P1", "p1", "P01", "P 1", "7", "007", "7.0", "NA", "..", "e\u0301", "\u00e9", "\uff11", "1E+12"]
)
FILES = st.sampled_from(
    ["a.png", "./a.png", "x\\a.png", "../a.png", "/a", "1.2.3", "a.b.dcm", "x/a", "a\0.png", "é" * 300]
)
STATES = st.sampled_from(["1", "0", "-1", "", "1.0", "True", "NA", "Y", "1e0"])
FITTING = st.tuples(FILES, NAMES | CELLS, STATES, st.sampled_from(["PA", "ap", "", "LL", "AP Supine"]))
PADDED = st.tuples(FITTING, st.lists(PADS, min_size=8, max_size=8)).map(
    lambda row: ",".join(row[1][2 * at] + cell + row[1][2 * at + 1] for at, cell in enumerate(row[0]))
)
TABLES = st.lists(PADDED | st.lists(CELLS, min_size=1, max_size=5).map(",".join), max_size=8).map(
    lambda rows: "\n".join(["file,pid,edema,view", *rows]).encode("utf-8", "surrogatepass")
)


def patients_apart(films: film_table.Films, folder: Path) -> None:
    """What must be true of a table that was read: one row and one image per film, one spelling per patient."""
    table = films.table
    assert table["film"].is_unique and table["path"].is_unique
    assert table["film"].map(convert.file_name).str.casefold().is_unique
    assert table["patient"].eq(table["patient"].str.strip()).all()
    assert not film_table.spelling_key(table["patient"].drop_duplicates()).duplicated().any()
    assert not film_table.present(films, folder).isna().any()


def targets(folder: Path) -> dict[str, Target]:
    """Every reader that is fuzzed, by what it reads."""
    section = config.Own(
        kind="own", root=".", table="input", labels={"Edema": "edema"},
        columns={"path": "file", "patient": "pid", "view": "view"},
    )  # fmt: skip
    record = folder / "whole.parquet"
    table = pd.DataFrame({"film": ["a", "b"] * 20, "labels": [["Edema"], []] * 20, "reward": np.linspace(0, 1, 40)})
    records.save(table, record, {"study": "fuzz"})
    films = [encoded("PNG"), encoded("JPEG"), written(dicom(TWELVE_BIT)), *map(packed, SYNTAXES)]
    films += [png16(COLOR, 2), written(dicom(TWELVE_BIT))[132:]]
    rows = b"file,pid,edema,view\na.png,p1,1,PA\nb.png,p2,0,AP\n"
    return {
        "answers": Target(lambda data: answers.read(data.decode("utf-8", "replace")), (), REPLIES | st.binary()),
        "denials": Target(read_denials, (), DENIALS),
        "params files": Target(
            from_file(config.load, folder),
            (config.ParamsError,),
            changed_params() | damaged([MINI.encode()]) | st.binary(),
        ),
        "CSV of own films": Target(
            from_file(lambda _: patients_apart(own.read(folder, section, folder), folder), folder),
            (SourceError,),
            TABLES | damaged([rows]),
        ),
        "images": Target(from_file(images.read, folder), (images.FilmError,), damaged(films) | st.binary()),
        "DICOM headers": Target(from_file(images.read, folder), (images.FilmError,), headers()),
        "parquet records": Target(
            from_file(records.load, folder), (records.RecordError,), damaged([record.read_bytes()])
        ),
        "JSON records": Target(
            from_file(records.load_json, folder),
            (records.RecordError,),
            VALUES.map(lambda value: json.dumps(value, default=str).encode()) | st.binary(),
        ),
    }


def hypothesise(name: str, target: Target, seconds: float) -> tuple[int, int]:
    """How many inputs of hypothesis were tried in `seconds`, and how many the reader survived."""
    end, survived = time.monotonic() + seconds, []

    def once(data: bytes) -> None:
        survived.append(survives(name, target, data))

    every = settings(
        max_examples=200, deadline=None, database=None, phases=[Phase.generate], derandomize=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    while time.monotonic() < end:
        every(given(target.inputs)(once))()
    return len(survived), sum(survived)


def survives(name: str, target: Target, data: bytes) -> bool:
    """Whether an input is read or properly refused; one that is neither is kept."""
    try:
        with suppress(*target.refuses):
            target.read(data)
    except Exception as error:
        keep(name, data, error)
        return False
    return True


def keep(name: str, data: bytes, error: Exception) -> None:
    """Keep the input that broke a reader."""
    KEPT.mkdir(exist_ok=True)
    file = KEPT / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    print(f"{name}: {error!r}; the input is kept as {file}", file=sys.stderr)


def atheris_drives(name: str, seconds: int) -> tuple[int, int] | None:
    """As `hypothesise`, by atheris in a process of its own; None where it is not installed."""
    call = [sys.executable, __file__, "--atheris", name, f"-max_total_time={seconds}", "-print_final_stats=1"]
    call += ["-rss_limit_mb=4096", "-timeout=20", "-max_len=4096", f"-artifact_prefix={KEPT.resolve()}/"]
    KEPT.mkdir(exist_ok=True)
    said = subprocess.run(call, capture_output=True, text=True, check=False, errors="replace").stderr
    tried = [int(line.split()[-1]) for line in said.splitlines() if "number_of_executed_units" in line]
    if not tried:
        print(f"{name}: atheris did not run: {said[-300:]}", file=sys.stderr)
        return None
    return tried[0], tried[0] - int("ERROR: libFuzzer" in said or "Uncaught Python exception" in said)


def run_atheris(name: str, arguments: list[str]) -> None:
    """What the process of `atheris_drives` does; it ends by itself when the time is spent."""
    import atheris

    for function in [each for module in (answers, config) for each in vars(module).values()]:
        if inspect.isfunction(function):
            atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as folder:
        target = targets(Path(folder))[name]

        def once(data: bytes) -> None:
            with suppress(*target.refuses):
                target.read(data)

        atheris.Setup([__file__, *arguments], once)
        atheris.Fuzz()


def main(seconds: float) -> int:
    """Fuzz for about `seconds` in all, with a row for each target; 1 when anything broke."""
    warnings.simplefilter("ignore")  # damaged films make their decoders warn
    driven, broke = ("answers", "params files"), 0
    with tempfile.TemporaryDirectory() as folder:
        every = targets(Path(folder))
        share = seconds / (len(every) + len(driven))
        for name, target in every.items():
            tried, survived = hypothesise(name, target, share)
            soak.row(f"fuzz: {name}, by hypothesis", tried, survived)
            broke += tried - survived
        for name in driven:
            if counts := atheris_drives(name, max(1, int(share))):
                soak.row(f"fuzz: {name}, by atheris", *counts)
                broke += counts[0] - counts[1]
    return int(broke > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--atheris"]:
        run_atheris(sys.argv[2], sys.argv[3:])
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0))
