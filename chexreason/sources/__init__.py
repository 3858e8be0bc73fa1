"""Where films come from: each module here reads one layout, as it lies on disk, into the one film table.

`mimic`, `chexpert`, `nih` and `own` have a function `read(root, ...) -> Films`; `phantom` draws its films.  This module
holds what they share: the table's shape, its checks, and what `chexreason films` prints of it.
"""

import os
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason.labels import CHEXPERT14, UNCERTAIN

LABELS = list(CHEXPERT14)
COLUMNS = ["film", "path", "patient", "study", "view", "split", *LABELS]
VIEWS = ("PA", "AP", "lateral", "unknown")
IMAGES = (".png", ".jpg", ".jpeg", ".dcm")
FILE_NAME = r"[^\x00-\x1f\x7f]{1,70}"  # a DICOM UID has up to 64; a file system takes 255 bytes
HEADING = 2
"""Row number of the first row of a table: people and spreadsheets count from 1, and the heading is row 1."""


class SourceError(ValueError):
    """A folder or a table is not what its source should be; the message names the file and what would be right."""


class Films(NamedTuple):
    """What a source holds.

    `table`, one row a film: `film` (str, unique), `path` (str, relative to the root; "" where the image is not there
    and the layout does not say where it would be), `patient`, `study` (str), `view` ("PA", "AP", "lateral",
    "unknown"), `split` (str, the source's own; "" where it has none), the 14 labels (float: 1 present, 0 absent,
    -1 uncertain, NaN not mentioned), and `native` (str) where the source labels in words of its own.
    `aside`, one row an entry of the tables or the folder that cannot be used: `film`, `path`, `reason` (str).
    `unknown`: the labels this source has no word for; they are NaN throughout, and never 0.
    """

    table: pd.DataFrame
    aside: pd.DataFrame
    unknown: tuple[str, ...]


def look(folder: Path, *names: str) -> Path | None:
    """The first of `names` that lies in `folder`, as it is or with .gz; None when there is none."""
    files = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((file for file in files if file.is_file()), None)


def need(folder: Path, *names: str) -> Path:
    """As `look`; raises SourceError, naming folder and files, when there is none."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    file = look(folder, *names)
    if file is None:
        raise SourceError(f"{folder}: holds no {' or '.join(names)} (nor with .gz); is it the folder of the tables?")
    return file


def read_csv(file: Path, text: Collection[str], other: Collection[str] = ()) -> pd.DataFrame:
    """The named columns of a CSV file, those of `text` as str, wherever they stand; the index counts rows from 0.

    Rows may end in one comma more, or less, than the heading does.
    Raises SourceError when the file cannot be read, or a column is not in it or stands there twice.
    """
    wanted = {*text, *other}
    try:
        table = pd.read_csv(file, usecols=lambda name: name in wanted, dtype=dict.fromkeys(text, str), index_col=False)
        heading = pd.read_csv(file, header=None, nrows=1, dtype=str, index_col=False).iloc[0].fillna("").tolist()
    except (ValueError, OSError, EOFError, OverflowError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read as a table: {error}") from None
    for name in (*text, *other):
        if name not in table:
            raise SourceError(f"{file}: has no column {name!r}; its columns are {_listed(heading)}")
        if heading.count(name) > 1:
            raise SourceError(f"{file}: column {name!r} stands in the heading twice; rename or remove one")
    return table


def _listed(names: list[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def states(table: pd.DataFrame, columns: Mapping[str, str], file: Path | str) -> pd.DataFrame:
    """The 14 labels (films x 14, float: 1, 0, -1, NaN) of a table; `columns` says which column holds which label.

    A label without a column is NaN.  Raises SourceError, naming row, column and value, for any other value.
    """
    stated = {}
    for label, column in columns.items():
        values = table[column]
        if values.dtype == object:  # integers beyond the reach of a float, which pandas cannot make numbers of
            values = values.astype("str").where(values.notna())
        stated[label] = pd.to_numeric(values, errors="coerce").astype(float)
        wrong = values.notna() & ~stated[label].isin((1.0, 0.0, UNCERTAIN))
        if wrong.any():
            row = wrong.idxmax()
            raise SourceError(
                f"{file}, row {row + HEADING}, column {column!r}: {str(values[row])[:60]} is no label; "
                "a label is 1 (present), 0 (absent), -1 (uncertain) or blank (not mentioned)"
            )
    return pd.DataFrame(stated, index=table.index).reindex(columns=LABELS).astype(float)


def refuse_twice(table: pd.DataFrame, column: str, file: Path | str) -> None:
    """Raise SourceError when a name in `column` is missing or stands in two rows, naming the rows."""
    blank = table[column].isna()
    if blank.any():
        raise SourceError(f"{file}, row {blank.idxmax() + HEADING}: {column!r} is blank")
    again = table.duplicated(column)
    if again.any():
        name = table.at[again.idxmax(), column]
        first = (table[column] == name).idxmax()
        raise SourceError(
            f"{file}: {column} {name} stands in row {first + HEADING} and again in row {again.idxmax() + HEADING}"
        )


def among(names: pd.Series | pd.Index, others: pd.Series | pd.Index) -> np.ndarray:
    """Whether each of `names` is one of `others` (bool).  For text, pandas' own `isin` takes ten times as long."""
    others = pd.Index(others)
    return (others if others.is_unique else others.unique()).get_indexer(names) >= 0


def checked(
    table: pd.DataFrame, file: Path | str, aside: Collection[pd.DataFrame] = (), unknown: Collection[str] = ()
) -> Films:
    """A film table in its final shape.  `aside`: parts as `set_aside` makes them.

    Raises SourceError for a film named twice, a film whose name cannot name a file, a film without a patient, or a
    patient in two of the source's splits.
    """
    unfit = table["film"].notna() & ~table["film"].str.fullmatch(FILE_NAME)
    if unfit.any():
        name = table["film"][unfit].iloc[0]
        raise SourceError(
            f"{file}, row {unfit.idxmax() + HEADING}: film {name[:60]!r} cannot name a file; a name has up to 70 "
            "characters, none of them unprintable"
        )
    nobody = table["patient"].isna()
    if nobody.any():
        raise SourceError(f"{file}: film {table['film'][nobody].iloc[0]} has no patient")
    places = table[["patient", "split"]].drop_duplicates()
    both = places["patient"][places["patient"].duplicated()]
    if len(both):
        splits = places["split"][places["patient"] == both.iloc[0]]
        raise SourceError(f"{file}: patient {both.iloc[0]} is in two splits, {' and '.join(splits)}")
    refuse_twice(table, "film", file)
    columns = [*COLUMNS, *(["native"] if "native" in table else [])]
    parts = [set_aside([], "", ""), *aside]
    return Films(table[columns].reset_index(drop=True), pd.concat(parts, ignore_index=True), tuple(unknown))


def set_aside(films: Collection[str], paths: Collection[str] | str, reason: str) -> pd.DataFrame:
    """A row (film, path, reason) for each of `films`, all for one reason."""
    return pd.DataFrame({"film": list(films), "path": paths, "reason": reason}, dtype=str)


def present(films: Films | pd.DataFrame, root: Path) -> pd.Series:
    """Whether the image of each film lies at its path below `root` (bool, one a row of the film table)."""
    table = films.table if isinstance(films, Films) else films
    folder = os.path.join(root, "")
    there = [bool(path) and os.path.isfile(folder + path) for path in table["path"].tolist()]
    return pd.Series(there, index=table.index, dtype=bool)


def overview(films: Films, root: Path) -> dict:
    """What was found, ready for JSON: counts of films, patients, studies, views, splits, labels and images.

    A label is None where this source has no word for it; `unlabelled` films have none stated.  `native` counts the
    source's own labels, if it has any.  `aside` tells of each reason how many films were set aside, and the first of
    them.
    """
    table, images = films.table, int(present(films, root).sum())
    aside = films.aside.groupby("reason")["film"]
    return {
        "films": len(table),
        "patients": table["patient"].nunique(),
        "studies": table["study"].nunique(),
        "views": table["view"].value_counts().to_dict(),
        "splits": table["split"].replace("", "unknown").value_counts().to_dict(),
        "unlabelled": int(table[LABELS].isna().all(axis=1).sum()),
        "images": images,
        "note": "" if images else "no image of these films is in this folder: this is read from the tables alone",
        "positives": _counts(films, 1.0),
        "uncertain": _counts(films, UNCERTAIN),
        "native": table["native"].str.split("|").explode().value_counts().to_dict() if "native" in table else {},
        "aside": {reason: {"films": len(names), "first": list(names[:3])} for reason, names in aside},
    }


def told(found: dict) -> str:
    """An `overview` as tables for a person."""
    lines = [f"{name:11} {found[name]:>9,}" for name in ("films", "patients", "studies", "unlabelled", "images")]
    for name in ("views", "splits"):
        lines += ["", name, *(f"  {key:20} {count:>9,}" for key, count in found[name].items())]
    lines += ["", f"{'labels':28} {'present':>9} {'uncertain':>9}"]
    lines += [f"  {label:26} {_said(found['positives'][label])} {_said(found['uncertain'][label])}" for label in LABELS]
    if found["native"]:
        lines += ["", "labels in the source's words", *(f"  {key:20} {n:>9,}" for key, n in found["native"].items())]
    for reason, rows in found["aside"].items():
        lines += [
            "",
            f"set aside, {reason}: {rows['films']:,} ({', '.join(rows['first'])}{', ...' * (rows['films'] > 3)})",
        ]
    if found["note"]:
        lines += ["", found["note"]]
    return "\n".join(lines)


def _counts(films: Films, state: float) -> dict[str, int | None]:
    """How many films are in `state` under each label."""
    seen = (films.table[LABELS] == state).sum()
    return {label: None if label in films.unknown else int(seen[label]) for label in LABELS}


def _said(count: int | None) -> str:
    return f"{'unknown' if count is None else format(count, ','):>9}"
