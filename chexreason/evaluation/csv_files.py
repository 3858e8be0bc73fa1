"""Scores of anyone's truth and predictions in two CSV files.

Each file has one row per film, a column `id`, and one column per label. The truth is 1, 0 or blank; predictions are the
same, or probabilities from 0 to 1. The separator is a comma, a semicolon or a tab; TRUE and FALSE are 1 and 0. Blanks
around a cell do not count; otherwise ids and patients are compared letter by letter. Blank means unknown, in both
files: the film is left out of the scores of that label only. The result counts these films, because a model that leaves
difficult films blank would look better than it is.
"""

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason.data.film_table import MISSING, SHORTENED, spelling_key
from chexreason.evaluation import metrics
from chexreason.labels import CHEXPERT14, LABEL_SETS

ID = "id"
WORDS = {"true": "1", "false": "0"}
ABOUT = "film|image|path|patient|subject|study|series|dicom|view|frontal|ap|split|fold|follow|sex|gender|age|unnamed"
"""A column whose name begins with one of these words describes a film, and is scored only on request."""
FEW = 20
"""With fewer patients, the percentile interval is too narrow, and a note says so."""


class ScoreError(ValueError):
    """Two files cannot be scored; the message names the file, the row, the column and the value."""


def score_files(
    truth: str | Path,
    predictions: str | Path,
    label_set: str | None = None,
    patient: str | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    threshold: float | None = None,
) -> dict:
    """Score the CSV file `predictions` against the CSV file `truth`; the result can be written as JSON.

    The labels are those of `label_set` (a name in `labels.LABEL_SETS`), or `labels`, or else the columns that both
    files have, without those that describe a film (`ABOUT`) and those without a number. `patient` is a column of
    `truth` with the patient of each film; patients are then resampled, otherwise films.

    Predictions of 1, 0 and blank give the scores of `metrics.score`, probabilities those of
    `metrics.score_probabilities`. With a `threshold` (the same for every label), probabilities give both: a probability
    of at least `threshold` counts as 1.

    `labels` has one object per label (see `metrics.Scores.labels`). `overall` has n (films) and the scores over all
    labels with 95 % intervals; undefined values are None, and so are the bounds without an interval. `left_out` counts
    blank cells, `not_scored` lists the other columns of each file, and `notes` has remarks on the intervals. Raises
    ScoreError for unknown labels, too few resamples, a missing column or film, a name that occurs twice or in two
    spellings, other values, or a mix of labels and probabilities.
    """
    _refuse_options(label_set, labels, patient, n_resamples, seed, threshold)
    files = Path(truth), Path(predictions)
    stated, given = _films(files[0], [] if patient is None else [patient]), _films(files[1])
    _refuse_missing(files[1], stated[ID], given[ID])
    _refuse_missing(files[0], given[ID], stated[ID])
    names = list(LABEL_SETS[label_set]) if label_set else labels or _common_labels(files, (stated, given), patient)
    for file, rows in zip(files, (stated, given), strict=True):
        _refuse_columns(file, rows, names)
    if patient in names:
        raise ScoreError(f"column {patient!r} cannot be both the patient and a label; leave it out of the labels")
    known = _truth(files[0], stated[names])
    answered, soft = _predictions(files[1], given[names])
    answered = answered.set_index(given[ID]).loc[stated[ID]].set_axis(stated.index)
    if threshold is not None and not soft:
        raise ScoreError(f"{files[1]}: holds labels, not probabilities; leave out the threshold {threshold}")
    owner, known_to_both = stated[patient or ID], known.mask(answered.isna())
    parts = []
    if soft:
        parts.append(
            metrics.score_probabilities(known_to_both, answered, owner, n_resamples, np.random.default_rng(seed))
        )
    if not soft or threshold is not None:
        hard = answered >= (threshold if soft else 1)
        parts.append(metrics.score(known_to_both, hard, owner, n_resamples, np.random.default_rng(seed)))
    rows = [
        {name: value for row in each for name, value in _nullable(row).items()}
        for each in zip(*(part.labels.to_dict("records") for part in parts), strict=True)
    ]
    result = {
        "label_set": label_set,
        "labels": rows,
        "overall": {name: value for part in parts for name, value in _nullable(part.overall).items()},
        "left_out": {"truth": int(known.isna().sum().sum()), "predictions": int(answered.isna().sum().sum())},
        "n_resamples": n_resamples,
        "seed": seed,
        "threshold": threshold,
        "clustered_by": patient or ID,
        "patients": int(owner.nunique()),
        "not_scored": {
            kind: [name for name in table if name and name not in (ID, patient, *names)]
            for kind, table in (("truth", stated), ("predictions", given))
        },
    }
    return result | {"notes": _notes(result, [] if patient else _patient_columns(stated))}


def report_text(scored: dict) -> str:
    """The result of `score_files` as text."""
    overall, left_out, one = scored["overall"], scored["left_out"], len(scored["labels"]) == 1
    of = f" of {_count(scored['patients'], 'patient')}" if scored["clustered_by"] != ID else ""
    chosen = f" ({scored['label_set']})" if scored["label_set"] else ""
    lines = [
        f"{_count(overall['n'], 'film')}{of}, {_count(len(scored['labels']), 'label')}{chosen}; 95 % intervals from "
        f"{scored['n_resamples']:,} resamples, clustered by {scored['clustered_by']}"
    ]
    labels = scored["labels"]
    if "auroc" in labels[0]:
        lines += ["", _table(labels, ["label", "support", "films", *metrics.AREAS])]
    if scored["threshold"] is not None:
        lines += ["", f"With a probability of at least {scored['threshold']:g} as present:"]
    if "f1" in labels[0]:
        lines += ["", _table(labels, ["label", "support", *metrics.COUNTS, *metrics.RATES, "specificity"])]
    reported = [name for name in overall if f"{name}_low" in overall and not (one and name[:6] in ("micro_", "macro_"))]
    lines += ["", *(f"{name.replace('_', ' ')}: {_cell_text(overall, name, 'undefined')}" for name in reported)]
    if "n_normal" in overall:
        lines[-1] += f", of {_count(overall['n_normal'], 'normal film')}"
    lines += [
        "",
        f"Blank, and left out of their label's scores: {left_out['truth']} in the truth, "
        f"{left_out['predictions']} in the predictions.",
    ]
    for kind, names in scored["not_scored"].items():
        lines += [f"Not scored, in the {kind}: {', '.join(names)}."] if names else []
    if not one:
        lines.append(
            "A macro mean is over the labels for which the score is defined, F1 over those with a positive film."
        )
    return "\n".join([*lines, *scored["notes"]])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _table(rows: list[dict], columns: Sequence[str]) -> str:
    return pd.DataFrame([{name: _cell_text(row, name) for name in columns} for row in rows]).to_string(index=False)


def _cell_text(row: dict, name: str, undefined: str = "-") -> str:
    """`row[name]` as text, with its interval if it has one."""
    value, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
    if value is None or not isinstance(value, float):
        return undefined if value is None else str(value)
    if f"{name}_low" not in row:
        return f"{value:.3f}"
    return f"{value:.3f} ({'no interval' if low is None else f'{low:.3f} to {high:.3f}'})"


def _notes(result: dict, patient_columns: list[str]) -> list[str]:
    """Remarks on the intervals: missing, without width, rough or too narrow."""
    places = {"": result["overall"]} | {f"{row['label']} ": row for row in result["labels"]}
    bounds = {
        place + metric.replace("_", " "): (row[f"{metric}_low"], row[f"{metric}_high"])
        for place, row in places.items()
        for metric, value in row.items()
        if f"{metric}_low" in row and value is not None
    }
    none = [name for name, (low, _) in bounds.items() if low is None]
    flat = [name for name, (low, high) in bounds.items() if low is not None and low == high]
    owners, n_resamples = (
        _count(result["patients"], "film" if result["clustered_by"] == ID else "patient"),
        result["n_resamples"],
    )
    notes = {
        f"No interval, since it has too few patients (see chexreason.evaluation.metrics): {_first_names(none)}.": none,
        "Every resample gives the same value, so the interval has no width, and other patients may give another value: "
        f"{_first_names(flat)}.": flat,
        f"The intervals rest on {owners}: with fewer than {FEW}, they are too narrow.": 1 < result["patients"] < FEW,
        "No label is called No Finding, so a normal film is one without any of these labels (which may have others).": (
            "n_normal" in result["overall"]
            and not any(map(metrics.is_normal, (row["label"] for row in result["labels"])))
        ),
        f"{n_resamples} resamples make a rough interval: use 1,000 or more.": n_resamples < 1000,
        f"Films were resampled one by one, but names repeat in {_first_names(patient_columns)} of the truth: "
        "name it with --patient to resample patients, or the intervals are too narrow.": patient_columns,
    }
    return [note for note, applies in notes.items() if applies]


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _patient_columns(rows: pd.DataFrame) -> list[str]:
    """Columns that seem to have patients, with several films for some."""
    there = [name for name in rows.columns.unique() if name.casefold().startswith(("patient", "subject"))]
    return [name for name in there if "age" not in name.casefold() and rows[name].duplicated().any()]


def _refuse_options(label_set, labels, patient, n_resamples, seed, threshold) -> None:
    if label_set is not None and label_set not in LABEL_SETS:
        raise ScoreError(f"unknown label set {label_set!r}; choose one of {', '.join(LABEL_SETS)}")
    if label_set is not None and labels is not None:
        raise ScoreError("give a label set or labels, not both")
    if labels is not None and (not labels or "" in labels or ID in labels or len(set(labels)) < len(labels)):
        raise ScoreError(f"labels {', '.join(labels)!r}: give the names of columns, each of them once, and not {ID!r}")
    if patient == "":
        raise ScoreError("patient '': give the name of a column, or leave it out to resample films")
    if threshold is not None and not 0 < threshold <= 1:
        raise ScoreError(f"threshold must be above 0 and at most 1, not {threshold}")
    if not 40 <= n_resamples <= 1_000_000:  # the 2.5th percentile of fewer is beyond them all
        raise ScoreError(f"resamples must be from 40 to 1,000,000, not {n_resamples}")
    if seed < 0:
        raise ScoreError(f"seed must be at least 0, not {seed}")


def _common_labels(
    files: tuple[Path, Path], tables: tuple[pd.DataFrame, pd.DataFrame], patient: str | None
) -> list[str]:
    """The label columns that both files have, in the order of the truth."""
    stated, given = tables
    about = re.compile(rf"({ABOUT})(id|name|path)?(?![a-z])")
    names = [name for name in stated if name not in ("", ID, patient) and not about.match(name.casefold())]
    spellings = {_plain(name): name for name in given if name not in stated}
    for name in names:
        if name not in given and (other := spellings.get(_plain(name))):
            raise ScoreError(f"{files[1]}: column {other!r} is {name!r} in {files[0]}; write one name in both files")
    names = [name for name in names if name in given]
    both = [name for name in names if name in CHEXPERT14 or any(_has_number(table[[name]]) for table in tables)]
    if not both:
        there = "; ".join(f"{file} has {', '.join(table)}" for file, table in zip(files, tables, strict=True))
        raise ScoreError(f"no label is a column of both files: {there}")
    return both


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _has_number(cells: pd.DataFrame) -> bool:
    return _numbers(cells).notna().any(axis=None)


def _numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells as numbers, NaN for other text."""
    return cells.apply(lambda column: pd.to_numeric(column.str.lower().replace(WORDS), errors="coerce").astype(float))


def _truth(file: Path, cells: pd.DataFrame) -> pd.DataFrame:
    """Labels (films x labels) as 1.0, 0.0 or NaN."""
    values = _numbers(cells)
    for name, column in values.items():
        wrong = (cells[name] != "") & ~column.isin((0.0, 1.0))
        right = "write 1 or 0, or nothing where unknown"
        if (wrong & column.eq(-1)).any():
            right += "; -1 (uncertain) has no score: your uncertainty policy says which of the three it becomes"
        elif (wrong & column.between(0, 1)).any():
            right += "; the truth cannot be a probability: are the two files swapped?"
        _refuse(file, name, cells.loc[wrong, name], right + _no_label(name))
    return values


def _no_label(name: str) -> str:
    return "" if name in CHEXPERT14 else "; if this column is not a label, choose the labels with --labels"


def _predictions(file: Path, cells: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Predictions (films x labels; NaN if blank), and whether they are probabilities."""
    values = _numbers(cells)
    inner = values.gt(0) & values.lt(1)
    soft = inner.any()
    for name, column in values.items():
        word = soft[name] & cells[name].str.lower().isin(WORDS)  # TRUE is not a probability
        outside = cells.loc[(cells[name] != "") & ~column.between(0, 1) | word, name]
        right = "write 1 or 0, or a probability from 0 to 1 (70 % is 0.7), or nothing where unknown"
        _refuse(file, name, outside, right + _no_label(name))
    hard = [name for name in cells if not soft[name] and values[name].nunique() > 1]  # all 0 may be either
    if soft.any() and hard:
        right = "write 1 or 0 in all columns or probabilities in all, or choose with --labels; only 1 and 0 are in "
        _refuse(file, soft.idxmax(), cells.loc[inner[soft.idxmax()], soft.idxmax()], right + ", ".join(hard))
    return values, bool(soft.any())


def _films(file: Path, others: Collection[str] = ()) -> pd.DataFrame:
    """The cells of a CSV file as text, by id; ids and `others` must have one spelling each."""
    rows = _rows(file)
    _refuse_columns(file, rows, [ID, *others])
    for name in (ID, *others):
        cells = rows[name]
        missing, shortened = cells.str.lower().isin(MISSING), cells.str.contains(SHORTENED)
        _refuse(
            file, name, cells[missing], "every film needs one, and words for a missing value, such as NA, name none"
        )
        _refuse(file, name, cells[shortened], "a spreadsheet has dropped digits of a long number; export it as text")
        _refuse(file, name, cells[~cells.map(str.isprintable)], "an invisible character is in this name; remove it")
    _refuse(file, ID, rows.loc[rows[ID].duplicated(), ID], "an earlier row has this film; keep one of the two")
    for name in (ID, *others):
        names = rows[name].drop_duplicates()
        again = names[_spelling_key(names).duplicated()]
        _refuse(
            file, name, again, "an earlier row has it otherwise (as P1 and p-1, or 007, 7 and 7.0); write it one way"
        )
    return rows


def _spelling_key(names: pd.Series) -> pd.Series:
    """A key that is equal for different spellings of a name, see `film_table.spelling_key`; 7.0 equals 7."""
    return spelling_key(names.str.replace(r"^(\d+)\.0*$", r"\1", regex=True))


def _rows(file: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, without blank rows, by row number; the heading is row 1."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
        cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = {number: [cell.strip() for cell in row] for number, row in enumerate(cells, 1)}
    except UnicodeDecodeError:
        raise ScoreError(f"{file}: not a text file in UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ScoreError(f"{file}: cannot be read as CSV: {error}") from None
    rows = {number: row for number, row in rows.items() if any(row)}
    if len(rows) < 2:
        raise ScoreError(f"{file}: holds no film; it needs a heading ({ID}, then the labels) and one row per film")
    heading = rows.pop(min(rows))
    for number, row in rows.items():
        if len(row) != len(heading):
            raise ScoreError(
                f"{file}, row {number}: {len(row)} cells, and the heading has {len(heading)}; write as many cells as "
                "the heading has (in R, write.csv needs row.names = FALSE)"
            )
    return pd.DataFrame(rows.values(), index=list(rows), columns=heading)


def _refuse_columns(file: Path, rows: pd.DataFrame, names: Collection[str]) -> None:
    """Raise ScoreError if a column of `names` is missing or occurs twice."""
    for name in names:
        if list(rows).count(name) != 1:
            fault = "two columns" if name in rows else "no column"
            raise ScoreError(f"{file}: {fault} {name!r}; there are {', '.join(rows)}")


def _refuse(file: Path, column: str, wrong: pd.Series, right: str) -> None:
    """Raise ScoreError for the first of the `wrong` cells, with what would be `right`."""
    if len(wrong):
        raise ScoreError(f"{file}, row {wrong.index[0]}, column {column}: {wrong.iloc[0]!r}; {right}")


def _refuse_missing(file: Path, films: pd.Series, there: pd.Series) -> None:
    """Raise ScoreError if `file`, with the films `there`, lacks some of `films`."""
    films = sorted(set(films) - set(there))
    if films:
        more = f" and {len(films) - 3} more" if len(films) > 3 else ""
        alike = _spelling_key(pd.Series(films)).isin(_spelling_key(there)).any()
        hint = "; ids are compared as text, so 007, 7 and 7.0 differ, and P1 and p1: write them alike" if alike else ""
        raise ScoreError(
            f"{file}: no row for {', '.join(map(repr, films[:3]))}{more}, which the other file has"
            + (hint or "; both files must have the same films: add or remove rows")
        )


def _nullable(row: dict) -> dict:
    """The value with None instead of NaN, for JSON."""
    return {name: None if pd.isna(value) else value for name, value in row.items()}
