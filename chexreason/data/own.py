"""Your own films: a CSV with a mapping of its columns, or a function that returns the film table.

Documentation: the book's page "Your own films". License and citation: those of your films.
"""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from chexreason import runtime
from chexreason.config import Own
from chexreason.data import film_table
from chexreason.data.film_table import COLUMNS, HEADING, LABELS, Films, SourceError

ABOUT = COLUMNS[: -len(LABELS)]
VIEWS = {view.lower(): view for view in film_table.VIEWS} | {"ll": "lateral"}
ENDING = r"(?i)\.(png|jpe?g|dcm|dicom)$"


def read(root: Path, section: Own, beside: Path) -> Films:
    """The films of `root` by `section` (`config.Own`): from its `table`, or its function in a file in `beside`.

    Only path and patient are required. By default, film is the file's name without its suffix, or the whole path if two
    files have the same name; study is the film, view is unknown and split "". Missing labels are unknown. Equal rows
    count once. Raises SourceError for a missing file, column or function, an unknown column, label or view, a label
    other than 1, 0, -1, a blank path or patient, a path outside `root`, a film or path with two different rows, and a
    patient in two splits.
    """
    file: Path | str
    if section.read:
        file, rows = section.read, _call_function(section.read, Path(root), Path(beside))
        columns, labels = ({name: name for name in names if name in rows} for names in (ABOUT, LABELS))
    else:
        name, columns, labels = str(section.table), section.columns, section.labels
        file = Path(root) / name
        _refuse_others(columns, ABOUT, f"columns of {name}")
        _refuse_others(labels, LABELS, f"labels of {name}")
        rows = film_table.read_csv(
            film_table.require_file(Path(root), name), list(columns.values()), list(labels.values())
        )
    table = pd.DataFrame({name: rows[column] for name, column in columns.items()})
    for name in ("path", "patient"):
        _refuse_without(table, name, file)
    table["path"] = _paths(table["path"], Path(root), file)
    table = table.join(film_table.label_values(rows, labels, file)).drop_duplicates()
    table = _fill_columns(table, file)
    films = film_table.checked_films(table, file, unknown=[label for label in LABELS if label not in labels])
    film_table.names(table["path"], file)
    film_table.refuse_twice(table, "path", file)
    return films


def _call_function(name: str, root: Path, beside: Path) -> pd.DataFrame:
    """The result of the function `name`, such as `my_hospital.py:read`, for `root`."""
    file, _, function = name.partition(":")
    if not function or not (beside / file).is_file():
        raise SourceError(f"read: {name}: give file.py:function, the file beside the params file, in {beside}")
    module = runtime.module(beside / file)
    if not hasattr(module, function):
        raise SourceError(f"read: {name}: {file} has no function {function!r}")
    table = getattr(module, function)(root)
    if not isinstance(table, pd.DataFrame):
        raise SourceError(f"read: {name}: gave a {type(table).__name__}, not a film table (a pandas DataFrame)")
    _refuse_others(table.columns, COLUMNS, f"read: {name}: the film table")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise SourceError(f"read: {name}: the film table has column {twice!r} twice")
    table = table.reset_index(drop=True)
    try:
        return table.assign(**{each: film_table.trim(table[each].astype("str")) for each in ABOUT if each in table})
    except ValueError as error:
        raise SourceError(f"read: {name}: the film table has text that cannot be written in UTF-8: {error}") from None


def _paths(paths: pd.Series, root: Path, file: Path | str) -> pd.Series:
    """Paths relative to `root` in one spelling: with / for \\, and without ./ and ../."""
    parents = [os.path.join(each, "") for each in (os.path.abspath(root), os.path.realpath(root))]
    known = {}
    for path in paths.unique():
        tidy = posixpath.normpath(path.replace("\\", "/"))
        parent = next(filter(tidy.startswith, parents), "")
        known[path] = tidy.removeprefix(parent)
        if known[path].startswith(("/", "../")) or known[path] in (".", "..") or known[path][1:3] == ":/":
            row = (paths == path).idxmax()
            raise SourceError(
                f"{file}, row {row + HEADING}: path {path[:200]!r} is not in the folder {root}; give it relative to "
                "that folder, or give the folder above as root"
            )
    return paths.map(known)


def _fill_columns(table: pd.DataFrame, file: Path | str) -> pd.DataFrame:
    """The columns about films; missing ones are derived from the others."""
    blank = pd.Series("", table.index)
    whole = table["path"].str.replace(ENDING, "", regex=True)
    short = whole.str.rpartition("/")[2] if len(table) else whole
    film = table.get("film", whole if short.duplicated().any() else short)
    study = table.get("study", film).fillna(film)
    said = table.get("view", blank).fillna("")
    view = said.str.lower().replace("", "unknown").map(VIEWS)
    if view.isna().any():
        row = view.isna().idxmax()
        raise SourceError(
            f"{file}, row {row + HEADING}: view {said[row]!r} is none of {', '.join(film_table.VIEWS)}, or blank"
        )
    return table.assign(film=film, study=study, view=view, split=table.get("split", blank).fillna(""))


def _refuse_others(names: Iterable[str], known: list[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise SourceError(f"{where}: {name!r} is none of {', '.join(known)}")


def _refuse_without(table: pd.DataFrame, name: str, file: Path | str) -> None:
    if name not in table:
        raise SourceError(f"{file}: nothing says which column is the {name} of a film")
    blank = table[name].isna()
    if blank.any():
        raise SourceError(
            f"{file}, row {blank.idxmax() + HEADING}: the {name} is blank, or a word such as NA that means the same"
        )
