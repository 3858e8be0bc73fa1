"""Your own films: a CSV and what its columns mean, or a function of yours that makes the film table.

Documentation: the book's page "Your own films".  Licence and citation: those of your films.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from chexreason import sources
from chexreason.sources import COLUMNS, HEADING, LABELS, Films, SourceError

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
    if section.read:
        file, rows = section.read, _called(section.read, Path(root), Path(beside))
        columns, labels = ({name: name for name in names if name in rows} for names in (ABOUT, LABELS))
    else:
        file, columns, labels = Path(root) / section.table, section.columns, section.labels
        _refuse_others(columns, ABOUT, f"columns of {section.table}")
        _refuse_others(labels, LABELS, f"labels of {section.table}")
        rows = sources.read_csv(sources.need(Path(root), section.table), list(columns.values()), list(labels.values()))
    table = pd.DataFrame({name: rows[column] for name, column in columns.items()})
    for name in ("path", "patient"):
        _refuse_without(table, name, file)
    table = _filled(table, file).join(sources.states(rows, labels, file))
    return sources.checked(table, file, unknown=[label for label in LABELS if label not in labels])


def _called(name: str, root: Path, beside: Path) -> pd.DataFrame:
    """What the function `name`, as `my_hospital.py:read`, makes of `root`."""
    file, _, function = name.partition(":")
    if not function or not (beside / file).is_file():
        raise SourceError(f"read: {name}: give file.py:function, the file beside the params file, in {beside}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, beside / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise SourceError(f"read: {name}: {file} has no function {function!r}")
    table = getattr(module, function)(root)
    if not isinstance(table, pd.DataFrame):
        raise SourceError(f"read: {name}: gave a {type(table).__name__}, not a film table (a pandas DataFrame)")
    _refuse_others(table.columns, COLUMNS, f"read: {name}: the film table")
    return table.reset_index(drop=True).astype({name: "str" for name in ABOUT if name in table})


def _filled(table: pd.DataFrame, file: Path | str) -> pd.DataFrame:
    """The columns that tell about films, those not given made from the others."""
    blank = pd.Series("", table.index)
    film = table.get("film", table["path"].str.replace(BEFORE_AND_AFTER, "", regex=True))
    study = table.get("study", film).fillna(film)
    said = table.get("view", blank).fillna("")
    view = said.str.strip().str.lower().replace("", "unknown").map(VIEWS)
    if view.isna().any():
        row = view.isna().idxmax()
        raise SourceError(
            f"{file}, row {row + HEADING}: view {said[row]!r} is none of {', '.join(sources.VIEWS)}, or blank"
        )
    return table.assign(film=film, study=study, view=view, split=table.get("split", blank).fillna(""))


def _refuse_others(names: Iterable[str], known: list[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise SourceError(f"{where}: {name!r} is none of {', '.join(known)}")


def _refuse_without(table: pd.DataFrame, name: str, file: Path | str) -> None:
    if name not in table:
        raise SourceError(f"{file}: nothing says which column is the {name} of a film")
    blank = table[name].fillna("").str.strip() == ""
    if blank.any():
        raise SourceError(f"{file}, row {blank.idxmax() + HEADING}: the {name} is blank")
