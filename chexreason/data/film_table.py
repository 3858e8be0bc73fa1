"""The film table: its columns, its checks, and its summary for `chexreason films`.

The modules `mimic`, `chexpert`, `nih` and `own` each read one data set as it is distributed, with a function
`read(root, ...) -> Films`.  This module has what they share.
"""

import csv
import gzip
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple, TextIO
from unicodedata import category, decimal, normalize

import numpy as np
import pandas as pd

from chexreason.labels import CHEXPERT14, UNCERTAIN

LABELS = list(CHEXPERT14)
COLUMNS = ["film", "path", "patient", "study", "view", "split", *LABELS]
VIEWS = ("PA", "AP", "lateral", "unknown")
IMAGES = (".png", ".jpg", ".jpeg", ".dcm")
MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none")
"""The texts of a cell without a value, in upper or lower case."""
LONGEST = 500  # characters of a name; three DICOM UIDs and what joins them have 194
INVISIBLE = r"\x00\xad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
EDGES = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")
UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]"
SHORTENED = r"^\d(?:[.,]\d+)?[Ee]\+\d+$"  # 1.23E+12: a spreadsheet has dropped digits of a long number
PLAIN = r"[^!-~]"  # finds what is not plain ASCII without blanks
LABEL = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII)
UNEVEN = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)  # as pyarrow reports a row
HEADING = 2
"""Row number of the first row of a table: people and spreadsheets count from 1, and the heading is row 1."""


class SourceError(ValueError):
    """A folder or a table is not as the source requires; the message names the file and what would be right."""


class Films(NamedTuple):
    """The films of a source.

    `table` has one row per film: `film` (str, unique), `path` (str, relative to the root; "" if the image is missing
    and its place is not known), `patient`, `study` (str), `view` ("PA", "AP", "lateral", "unknown"), `split` (str, that
    of the source; "" if it has none), the 14 labels (float: 1 present, 0 absent, -1 uncertain, NaN not mentioned), and
    `native` (str) if the source has labels with other names.
    `excluded` has one row per entry that cannot be used: `film`, `path`, `reason` (str).
    `unknown`: the labels that this source does not have; they are always NaN, never 0.
    """

    table: pd.DataFrame
    excluded: pd.DataFrame
    unknown: tuple[str, ...]


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of `names` that is a file in `folder`, with or without .gz; None if there is none."""
    files = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((file for file in files if file.is_file()), None)


def require_file(folder: Path, *names: str) -> Path:
    """Like `find_file`; raises SourceError with folder and names if there is none."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    file = find_file(folder, *names)
    if file is None:
        raise SourceError(f"{folder}: has no {' or '.join(names)} (nor with .gz); is it the folder of the tables?")
    return file


def read_csv(file: Path, text: Collection[str], labels: Collection[str] = ()) -> pd.DataFrame:
    """The columns `text` (trimmed str) and `labels` (categories of str) of a CSV file.

    The index counts rows from 0.  Columns may be in any order.  Blank cells may follow the last column.
    Raises SourceError if the file cannot be read, a column is missing or occurs twice, or a row has more or fewer cells
    than the others (R's write.table leaves out the name of the first column).
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    try:
        heading, lines, width = _heading(file)
        _refuse_columns(heading, [*text, *labels], file)
        if width < len(heading):
            raise SourceError(f"{file}, row {HEADING}: has {width} cells, and the heading has {len(heading)}")
        place = {name: str(heading.index(name)) for name in (*text, *labels)}
        beyond = [str(number) for number in range(len(heading), width)]
        types = {place[name]: pa.dictionary(pa.int32(), pa.string()) for name in labels}
        read = arrow.read_csv(
            file,
            arrow.ReadOptions(
                column_names=[str(number) for number in range(width)], skip_rows=lines, use_threads=False
            ),
            arrow.ParseOptions(newlines_in_values=True),
            arrow.ConvertOptions(
                column_types=dict.fromkeys([*place.values(), *beyond], pa.string()) | types,
                include_columns=[*dict.fromkeys(place.values()), *beyond],
                strings_can_be_null=False,
            ),
        )
    except (ValueError, OSError, EOFError, OverflowError, csv.Error, zlib.error) as error:
        if isinstance(error, SourceError):
            raise
        if uneven := UNEVEN.search(str(error)):
            row, expected, actual, text = uneven.groups()
            raise SourceError(
                f"{file}, row {int(row) - lines + 1}: has {actual} cells, and the rows before it have {expected}: "
                f"{shorten(text, 80)!r}"
            ) from None
        hint = "; save it as CSV in UTF-8" if "UTF" in str(error).upper() else ""
        raise SourceError(f"{file}: cannot be read as a table: {shorten(str(error), 200)}{hint}") from None
    table = read.to_pandas()
    for number in beyond:
        filled = table[number].str.strip() != ""
        if filled.any():
            raise SourceError(
                f"{file}, row {filled.idxmax() + HEADING}: has {width} cells, and the heading has {len(heading)}; name "
                "every column (in R, write.table needs row.names = FALSE)"
            )
    columns = {name: trim(table[place[name]]) for name in text}
    return pd.DataFrame(columns | {name: table[place[name]] for name in labels}, index=table.index)


def open_text(file: Path) -> TextIO:
    """Open a text file in UTF-8, compressed or not; line ends are not changed."""
    return (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig", newline="")


def _heading(file: Path) -> tuple[list[str], int, int]:
    """The names of the columns, the number of lines of the heading, and the number of cells of the first row."""
    with open_text(file) as stream:
        rows = csv.reader(stream, strict=True)
        heading = [EDGES.sub("", name) for name in next((row for row in rows if any(row)), [])]
        lines = rows.line_num
        while heading and not heading[-1]:
            heading.pop()
        if not heading:
            raise ValueError("No columns: the file is empty")
        return heading, lines, len(next((row for row in rows if row), heading))


def _refuse_columns(heading: list[str], names: Collection[str], file: Path) -> None:
    for name in names:
        if name not in heading:
            other = next((mark for mark in (";", "\t") if len(heading) == 1 and mark in heading[0]), None)
            hint = f"; its cells are separated by {other!r}: save it with commas" if other else ""
            raise SourceError(f"{file}: has no column {name!r}; its columns are {_name_list(heading)}{hint}")
        if heading.count(name) > 1:
            raise SourceError(f"{file}: column {name!r} occurs twice in the heading; rename or remove one")


def trim(values: pd.Series) -> pd.Series:
    """Text without blanks and invisible characters at both ends; NaN if it is one of MISSING."""
    values = _replace_where(values, PLAIN, lambda text: EDGES.sub("", text))
    short = values[values.str.len() <= max(map(len, MISSING))]
    missing = short.index[short.str.lower().isin(MISSING)]
    return values.mask(values.index.isin(missing)) if len(missing) else values


def names(values: pd.Series, file: Path | str) -> pd.Series:
    """Identifiers in one spelling: composed letters (Unicode NFC), and whole numbers without ".0".

    Raises SourceError with the row for a name that is too long or has characters that cannot be printed.
    """
    unfit = (values.str.len() > LONGEST) | (values == "")
    odd = values[values.str.contains(rf"[^ -~]|^\d+\.0+$|{SHORTENED}", na=False)]
    if len(odd):
        values = values.where(~values.index.isin(odd.index), odd.map(_one_spelling))
        unfit |= values.index.isin(odd.index[odd.map(lambda name: bool(re.search(f"{UNPRINTABLE}|{SHORTENED}", name)))])
    if unfit.any():
        row = unfit.idxmax()
        raise SourceError(
            f"{file}, row {row + HEADING}: {values.name} {values[row][:60]!r} cannot name a file; a name has up to "
            f"{LONGEST} characters, none of them unprintable, and is not a number such as 1.2E+12"
        )
    return values


def _one_spelling(name: str) -> str:
    return re.sub(r"^(\d+)\.0+$", r"\1", normalize("NFC", name))


def spelling_key(names: pd.Series) -> pd.Series:
    """A key that is equal for different spellings of a name.

    It ignores case, width, leading zeros, and blanks and punctuation that are not between two digits.

    >>> alike(pd.Series(["P-007", "p\u20137 ", "1-10", "11.0"])).tolist()
    ['p7', 'p7', '1-10', '11-0']
    """
    folded = _replace_where(names, r"[^ -~]", _fold).str.lower()
    for pattern, kept in ((r"[ -/:-@\[-`{-~]+", "-"), (r"(^|[^0-9])-", r"\1"), (r"-([^0-9]|$)", r"\1")):
        folded = folded.str.replace(pattern, kept, regex=True)
    return folded.str.replace(r"(^|[^0-9])0+([0-9])", r"\1\2", regex=True)


def _fold(name: str) -> str:
    """A name in Unicode form NFKC, in lower case, with digits 0 to 9, without invisible characters."""
    letters = [each for each in normalize("NFKC", name).casefold() if category(each) != "Cf"]
    return re.sub(r"[\W_]", "-", "".join(str(decimal(each, each)) for each in letters))


def _replace_where(values: pd.Series, where: str, change: Callable[[str], str]) -> pd.Series:
    """`values`, with `change` applied to those that match `where`; most tables have none, which is tested first."""
    found = values.str.contains(where, na=False)
    if not found.any():
        return values
    return values.where(~found, values[found].map({text: change(text) for text in values[found].unique()}))


def _name_list(names: list[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def label_values(table: pd.DataFrame, columns: Mapping[str, str], file: Path | str) -> pd.DataFrame:
    """The 14 labels (films x 14, float: 1, 0, -1, NaN) of a table; `columns` maps labels to columns.

    A label without a column is NaN, and so is a blank cell; True and False are 1 and 0.
    Raises SourceError with row, column and value for any other value.
    """
    stated = {}
    for label, column in columns.items():
        codes, values = pd.factorize(table[column])
        numbers = np.array([*map(_label_value, values), np.nan])[codes]
        if (wrong := np.isinf(numbers)).any():
            row = table.index[wrong.argmax()]
            raise SourceError(
                f"{file}, row {row + HEADING}, column {column!r}: {str(table[column][row])[:60]} is not a label; "
                "a label is 1 (present), 0 (absent), -1 (uncertain) or blank (not mentioned)"
            )
        stated[label] = numbers
    return pd.DataFrame(stated, index=table.index).reindex(columns=LABELS).astype(float)


def _label_value(value) -> float:
    """A label as 1, 0, -1 or NaN; infinity for any other value."""
    text = EDGES.sub("", str(value)).lower()
    if text in MISSING:
        return np.nan
    number = {"true": 1.0, "false": 0.0}.get(text) if not LABEL.fullmatch(text) else float(text)
    return number if number in (1.0, 0.0, UNCERTAIN) else np.inf


def refuse_twice(table: pd.DataFrame, column: str, file: Path | str) -> None:
    """Raise SourceError if a name in `column` is missing or occurs twice, with the rows."""
    blank = table[column].isna()
    if blank.any():
        raise SourceError(f"{file}, row {blank.idxmax() + HEADING}: {column!r} is blank")
    again = table.duplicated(column)
    if again.any():
        name = table.at[again.idxmax(), column]
        first = (table[column] == name).idxmax()
        raise SourceError(
            f"{file}: {column} {name} is in row {first + HEADING} and again in row {again.idxmax() + HEADING}"
        )


def is_among(names: pd.Series | pd.Index, others: pd.Series | pd.Index) -> np.ndarray:
    """Whether each of `names` is one of `others` (bool); ten times as fast as pandas' `isin` for text."""
    others = pd.Index(others)
    return (others if others.is_unique else others.unique()).get_indexer(names) >= 0


def checked_films(
    table: pd.DataFrame, file: Path | str, excluded: Collection[pd.DataFrame] = (), unknown: Collection[str] = ()
) -> Films:
    """The film table with all checks passed; `excluded` has tables made by `exclusions`.

    Raises SourceError for a film that occurs twice, a name that is too long or has characters that cannot be printed, a
    film without a patient, a patient in two splits, and names of patients or splits with the same `spelling_key`.
    """
    table = table.assign(**{name: names(table[name], file) for name in ("film", "patient", "study")})
    table["split"] = names(table["split"].mask(table["split"] == ""), file).fillna("")
    nobody = table["patient"].isna()
    if nobody.any():
        raise SourceError(f"{file}: film {table['film'][nobody].iloc[0]} has no patient")
    for column in ("patient", "split"):
        _refuse_alike(table[column], file)
    places = table[["patient", "split"]].drop_duplicates()
    both = places["patient"][places["patient"].duplicated()]
    if len(both):
        splits = places["split"][places["patient"] == both.iloc[0]].replace("", "no split")
        raise SourceError(f"{file}: patient {both.iloc[0]} is in two splits, {' and '.join(splits)}")
    refuse_twice(table, "film", file)
    columns = [*COLUMNS, *(["native"] if "native" in table else [])]
    parts = [exclusions([], "", ""), *excluded]
    return Films(table[columns].reset_index(drop=True), pd.concat(parts, ignore_index=True), tuple(unknown))


def _refuse_alike(values: pd.Series, file: Path | str) -> None:
    """Raise SourceError if one name seems to be written in two ways: they would count as two."""
    known = values.drop_duplicates().reset_index(drop=True)
    keys = spelling_key(known)
    again = keys.duplicated()
    if again.any():
        first, other = known[keys == keys[again.idxmax()]].iloc[:2]
        raise SourceError(
            f"{file}: {values.name} {first!r} and {values.name} {other!r} differ only in case, width, blanks, "
            "punctuation or leading zeros; write one name in one way, or give two names that differ more"
        )


def exclusions(films: Collection[str], paths: Collection[str] | str, reason: str) -> pd.DataFrame:
    """One row (film, path, reason) for each of `films`, all with the same reason."""
    return pd.DataFrame({"film": list(films), "path": paths, "reason": reason}, dtype=str)


def present(films: Films | pd.DataFrame, root: Path) -> pd.Series:
    """Whether the image of each film exists at its path below `root` (bool)."""
    table = films.table if isinstance(films, Films) else films
    folder = os.path.join(root, "")
    there = [bool(path) and os.path.isfile(folder + path) for path in table["path"].tolist()]
    return pd.Series(there, index=table.index, dtype=bool)


def image_suffix(folder: Path, usual: str) -> str:
    """The suffix of the first image below `folder`, such as ".png" if films were converted; else `usual`."""
    return next((os.path.splitext(path)[1] for path in image_paths(folder)), usual)


def image_paths(root: Path) -> Iterator[str]:
    """The paths of all images below `root`, relative to it; links to folders are followed, but not in circles."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(folder, root)
        for name in files:
            if name.lower().endswith(IMAGES) and not name.startswith("."):  # macOS leaves ._name beside a file
                yield name if below == "." else f"{below}/{name}"


def images_on_disk(table: pd.DataFrame, root: Path) -> list[dict]:
    """The number of films and images of each split and view: split, view, films, images; "" means no split."""
    groups = table.assign(there=present(table, root)).groupby(["split", "view"], sort=False)["there"]
    return [
        {"split": split, "view": view, "films": len(there), "images": int(there.sum())}
        for (split, view), there in groups
    ]


def overview(films: Films, root: Path) -> dict:
    """A summary for JSON: counts of films, patients, studies, views, splits, labels and images.

    The count of a label is None if the source does not have it; `unlabeled` films have no label.  `native` counts the
    source's labels with other names.  `excluded` has the number of films and the first names for each reason.
    `on_disk` counts the films and images of each split and view.
    """
    table, there = films.table, images_on_disk(films.table, root)
    images = sum(group["images"] for group in there)
    excluded = films.excluded.groupby("reason")["film"]
    return {
        "films": len(table),
        "patients": table["patient"].nunique(),
        "studies": table["study"].nunique(),
        "views": table["view"].value_counts().to_dict(),
        "splits": table["split"].replace("", "unknown").value_counts().to_dict(),
        "unlabeled": int(table[LABELS].isna().all(axis=1).sum()),
        "images": images,
        "on_disk": there,
        "note": "" if images else "no image of these films is in this folder: only the tables were read",
        "positives": _counts(films, 1.0),
        "uncertain": _counts(films, UNCERTAIN),
        "native": table["native"].str.split("|").explode().value_counts().to_dict() if "native" in table else {},
        "excluded": {reason: {"films": len(names), "first": list(names[:3])} for reason, names in excluded},
    }


def overview_text(found: dict) -> str:
    """An `overview` as text tables."""
    lines = [f"{name:11} {found[name]:>9,}" for name in ("films", "patients", "studies", "unlabeled", "images")]
    for name in ("views", "splits"):
        lines += ["", name, *(f"  {key:20} {count:>9,}" for key, count in found[name].items())]
    lines += ["", *disk_lines(found["on_disk"])]
    lines += ["", f"{'labels':28} {'present':>9} {'uncertain':>9}"]
    lines += [
        f"  {label:26} {_count(found['positives'][label])} {_count(found['uncertain'][label])}" for label in LABELS
    ]
    if found["native"]:
        lines += ["", "labels with the source's names", *(f"  {key:20} {n:>9,}" for key, n in found["native"].items())]
    for reason, rows in found["excluded"].items():
        lines += [
            "",
            f"excluded, {reason}: {rows['films']:,} ({', '.join(rows['first'])}{', ...' * (rows['films'] > 3)})",
        ]
    if found["note"]:
        lines += ["", found["note"]]
    return "\n".join(lines)


def disk_lines(groups: list[dict]) -> list[str]:
    """The counts of `images_on_disk` as lines of a table with a heading."""
    rows = [(f"{row['split'] or 'no split'}, {row['view']}", row["films"], row["images"]) for row in groups]
    return [f"{'split, view':28} {'films':>9} {'images':>9}", *(f"  {name:26} {n:>9,} {m:>9,}" for name, n, m in rows)]


def _counts(films: Films, state: float) -> dict[str, int | None]:
    """The number of films with the value `state` for each label."""
    seen = (films.table[LABELS] == state).sum()
    return {label: None if label in films.unknown else int(seen[label]) for label in LABELS}


def _count(count: int | None) -> str:
    return f"{'unknown' if count is None else format(count, ','):>9}"
