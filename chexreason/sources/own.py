"""Your own films: a CSV and what its columns mean, or a function of yours that makes the film table.

Documentation: the book's page "Your own films".  Licence and citation: those of your films.
"""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from chexreason import sources
from chexreason.sources import COLUMNS, LABELS, Films, SourceError

ABOUT = COLUMNS[: -len(LABELS)]
VIEWS = {view.lower(): view for view in sources.VIEWS} | {"ll": "lateral"}
BEFORE_AND_AFTER = r"^.*/|\.[^./]*$"


def read(root: Path, section, beside: Path) -> Films:
    """The films of `root` as `section` (`params.Own`) says: by its `table`, or by its function in a file `beside`.

    Of film, path, patient, study, view and split, path and patient are needed; film is the file's name without its
    ending where not given, study the film, view unknown, split "".  Labels not given are unknown.
    Raises SourceError for a file, column or function that is not there, a column, label or view it does not know, a
    label other than 1, 0, -1, a blank path or patient, a film with two rows, and a patient in two splits.
    """
    root = Path(root)
    if section.read:
        table, file = _called(section.read, root, beside), section.read
        labels = {label: label for label in LABELS if label in table}
    else:
        file, labels = root / section.table, section.labels
        table = _table(file, section.columns, labels)
    for column in ("path", "patient"):
        blank = table[column].isna()
        if blank.any():
            raise SourceError(f"{file}, row {blank.idxmax() + sources.HEADING}: {column!r} is blank")
    given = table.assign(view=_view(table, file), split=table.get("split", pd.Series("", table.index)).fillna(""))
    given["film"] = table.get("film", table["path"].str.replace(BEFORE_AND_AFTER, "", regex=True))
    given["study"] = table.get("study", given["film"]).fillna(given["film"])
    about = given[[*ABOUT, *(["native"] if "native" in given else [])]]
    films = about.join(sources.states(table, labels, file))
    return sources.checked(films, file, unknown=[label for label in LABELS if label not in labels])


def _table(file: Path, columns: Mapping[str, str], labels: Mapping[str, str]) -> pd.DataFrame:
    """The CSV with our names for the columns that tell about films, and its own for the labels."""
    _refuse_others(columns, ABOUT, f"columns, for {file}")
    _refuse_others(labels, LABELS, f"labels, for {file}")
    missing = {"path", "patient"} - columns.keys()
    if missing:
        raise SourceError(f"columns, for {file}: does not say which column is {' and '.join(sorted(missing))}")
    if not file.is_file():
        raise SourceError(f"{file}: no such table")
    rows = sources.read_csv(file, list(columns.values()), list(labels.values()))
    return pd.DataFrame({name: rows[column] for name, column in columns.items()}).join(
        rows[[column for column in dict.fromkeys(labels.values()) if column not in columns]]
    )


def _called(name: str, root: Path, beside: Path) -> pd.DataFrame:
    """What the function `name`, as `my_hospital.py:read`, makes of `root`."""
    file, _, function = name.partition(":")
    path = Path(beside) / file
    if not function or not path.is_file():
        raise SourceError(f"read: {name}: give file.py:function, the file beside the params file, in {beside}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not inspect.isroutine(getattr(module, function, None)):
        raise SourceError(f"read: {name}: {path} holds no function {function!r}")
    table = getattr(module, function)(root)
    if not isinstance(table, pd.DataFrame):
        raise SourceError(f"read: {name}: gave a {type(table).__name__}, not a film table (a pandas DataFrame)")
    _refuse_others(table.columns, [*COLUMNS, "native"], f"read: {name}")
    for column in ("path", "patient"):
        if column not in table:
            raise SourceError(f"read: {name}: the table it gave has no column {column!r}")
    text = [column for column in ABOUT if column in table]
    return table.reset_index(drop=True).astype(dict.fromkeys(text, "str"))


def _refuse_others(names, known: list[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise SourceError(f"{where}: {name!r} is none of {', '.join(known)}")


def _view(table: pd.DataFrame, file: Path | str) -> pd.Series:
    said = table.get("view", pd.Series(None, table.index, dtype=str)).fillna("unknown")
    view = said.str.strip().str.lower().map(VIEWS)
    if view.isna().any():
        row = view.isna().idxmax()
        raise SourceError(
            f"{file}, row {row + sources.HEADING}: view {said[row]!r} is none of {', '.join(sources.VIEWS)}, or blank"
        )
    return view
