"""Truth and predictions of anyone's, in two CSV files, scored as a study's answers are.

A row a film, a column `id`, and for each label of the set a column of 1, 0 or blank; other columns are passed over.
Blank is unknown, in either file: such a film is left out of that label's counts and of no other's, and how many were
left out is told, since a model that leaves its hard films blank would otherwise seem better than it is.
"""

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason import score
from chexreason.labels import LABEL_SETS

ID = "id"
STATES = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}


class ScoreError(ValueError):
    """Two files cannot be scored; the message names the file, the row, the column and the value."""


def score_files(
    truth: str | Path, predictions: str | Path, label_set: str, patient: str | None, draws: int, seed: int
) -> dict:
    """Score the CSV file `predictions` against the CSV file `truth`; the result can be written as JSON.

    `patient` is a column of `truth` that says whose film a row is: the bootstrap then draws patients, else films.
    `labels` is a list with an object a label (the columns of `score.Scores.labels`), `overall` holds n (films), micro
    and macro precision, recall and F1 with their 95 % intervals; what is undefined is None.
    Raises ScoreError for an unknown label set, too few draws, and files that lack a column or a film, name one twice,
    or hold anything but 1, 0 and blank.
    """
    if label_set not in LABEL_SETS:
        raise ScoreError(f"unknown label set {label_set!r}; choose one of {', '.join(LABEL_SETS)}")
    for name, value, least in (("draws", draws, 1), ("seed", seed, 0)):
        if value < least:
            raise ScoreError(f"{name} must be at least {least}, not {value}")
    names = list(LABEL_SETS[label_set])
    stated = _films(Path(truth), names, [patient] if patient else [])
    given = _films(Path(predictions), names)
    _refuse_missing(Path(predictions), stated.index.difference(given.index))
    _refuse_missing(Path(truth), given.index.difference(stated.index))
    known, answered = stated[names].astype(float), given.loc[stated.index, names].astype(float)
    owner = stated[patient] if patient else stated.index.to_series()
    scored = score.score(known.mask(answered.isna()), answered.eq(1.0), owner, draws, np.random.default_rng(seed))
    return {
        "label_set": label_set,
        "labels": [_nullable(row) for row in scored.labels.to_dict("records")],
        "overall": _nullable(scored.overall),
        "left_out": {"truth": int(known.isna().sum().sum()), "predictions": int(answered.isna().sum().sum())},
        "draws": draws,
        "seed": seed,
        "clustered_by": patient or ID,
    }


def told(scored: dict) -> str:
    """What `score_files` returned, as a person reads it."""
    overall, left_out = scored["overall"], scored["left_out"]
    lines = [
        f"{overall['n']} films, {scored['label_set']}; 95 % intervals from {scored['draws']:,} samples, "
        f"clustered by {scored['clustered_by']}",
        "",
        pd.DataFrame(scored["labels"], dtype=object).fillna("-").to_string(index=False, float_format="{:.3f}".format),
        "",
        *(f"{mean} {rate}: {_told(overall, f'{mean}_{rate}')}" for mean in ("micro", "macro") for rate in score.RATES),
        "",
        f"Blank, and left out of their label's counts: {left_out['truth']} in the truth, "
        f"{left_out['predictions']} in the predictions.",
        "A label without a positive film has no part in a macro mean, nor one never answered in macro precision.",
    ]
    return "\n".join(lines)


def _told(overall: dict, metric: str) -> str:
    value, low, high = (overall[metric + end] for end in ("", "_low", "_high"))
    return "undefined" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _films(file: Path, labels: list[str], others: Collection[str] = ()) -> pd.DataFrame:
    """The films of a CSV file, by id: `labels` as 1.0, 0.0 or NaN, and `others` as text without a gap."""
    rows = _rows(file)
    for name in (ID, *labels, *others):
        if list(rows).count(name) != 1:
            fault = "two columns" if name in rows else "no column"
            raise ScoreError(f"{file}: {fault} {name!r}; there are {', '.join(rows)}")
    for name in (ID, *others):
        _refuse(file, name, rows.loc[rows[name] == "", name], "every film needs one")
    _refuse(file, ID, rows.loc[rows[ID].duplicated(), ID], "this film stands in a row above")
    for name in labels:
        _refuse(file, name, rows.loc[~rows[name].isin(list(STATES)), name], "write 1 or 0, or nothing where unknown")
    return rows.assign(**{name: rows[name].map(STATES) for name in labels}).set_index(ID, drop=False)


def _rows(file: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, without blank rows, by row number; the heading is row 1."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = {number: [cell.strip() for cell in row] for number, row in enumerate(csv.reader(lines), 1)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"{file}: cannot be read as CSV in UTF-8: {error}") from None
    heading = rows.pop(1, [])
    rows = {number: row for number, row in rows.items() if any(row)}
    if not rows:
        raise ScoreError(f"{file}: holds no film; it needs a heading ({ID}, then the labels) and a row a film")
    for number, row in rows.items():
        if len(row) != len(heading):
            raise ScoreError(f"{file}, row {number}: {len(row)} cells, and the heading has {len(heading)}")
    return pd.DataFrame(rows.values(), index=list(rows), columns=heading)


def _refuse(file: Path, column: str, wrong: pd.Series, right: str) -> None:
    """Raises ScoreError about the first of the cells that are `wrong`, saying what would be `right`."""
    if len(wrong):
        raise ScoreError(f"{file}, row {wrong.index[0]}, column {column}: {wrong.iloc[0]!r}; {right}")


def _refuse_missing(file: Path, films: pd.Index) -> None:
    """Raises ScoreError where `file` lacks `films` that the other file has."""
    if len(films):
        more = f" and {len(films) - 3} more" if len(films) > 3 else ""
        raise ScoreError(f"{file}: no row for {', '.join(map(repr, films[:3]))}{more}, which the other file has")


def _nullable(row: dict) -> dict:
    """JSON has no NaN: None stands for what is undefined."""
    return {name: None if pd.isna(value) else value for name, value in row.items()}
