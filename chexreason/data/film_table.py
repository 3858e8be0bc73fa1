"""Where films come from: each module here reads one layout, as it lies on disk, into the one film table.

`mimic`, `chexpert`, `nih` and `own` have a function `read(root, ...) -> Films`; `phantom` draws its films.  This module
holds what they share: the table's shape, its checks, and what `chexreason films` prints of it.
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
"""What a cell without a value holds, in upper or lower case."""
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
    """A folder or a table is not what its source should be; the message names the file and what would be right."""


class Films(NamedTuple):
    """What a source holds.

    `table`, one row a film: `film` (str, unique), `path` (str, relative to the root; "" where the image is not there
    and the layout does not say where it would be), `patient`, `study` (str), `view` ("PA", "AP", "lateral",
    "unknown"), `split` (str, the source's own; "" where it has none), the 14 labels (float: 1 present, 0 absent,
    -1 uncertain, NaN not mentioned), and `native` (str) where the source labels in words of its own.
    `excluded`, one row an entry of the tables or the folder that cannot be used: `film`, `path`, `reason` (str).
    `unknown`: the labels this source has no word for; they are NaN throughout, and never 0.
    """

    table: pd.DataFrame
    excluded: pd.DataFrame
    unknown: tuple[str, ...]


def find_file(folder: Path, *names: str) -> Path | None:
    """The first of `names` that lies in `folder`, as it is or with .gz; None when there is none."""
    files = [folder / (name + suffix) for name in names for suffix in ("", ".gz")]
    return next((file for file in files if file.is_file()), None)


def require_file(folder: Path, *names: str) -> Path:
    """As `find_file`; raises SourceError, naming folder and files, when there is none."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    file = find_file(folder, *names)
    if file is None:
        raise SourceError(f"{folder}: holds no {' or '.join(names)} (nor with .gz); is it the folder of the tables?")
    return file


def read_csv(file: Path, text: Collection[str], labels: Collection[str] = ()) -> pd.DataFrame:
    """The named columns of a CSV file, those of `text` as `trim` str, `labels` as categories of str.

    The index counts rows from 0.  Columns may be in any order.  Blank cells may follow the last column.
    Raises SourceError when the file cannot be read, when a column is missing or named twice, and for a row that has
    more or fewer cells than the others, as when R's write.table leaves out the name of the first column.
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
    """A text file in UTF-8, packed or not, with its line ends as they are."""
    return (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig", newline="")


def _heading(file: Path) -> tuple[list[str], int, int]:
    """The names of the columns, how many lines they take, and how many cells the first row has."""
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
            raise SourceError(f"{file}: column {name!r} stands in the heading twice; rename or remove one")


def trim(values: pd.Series) -> pd.Series:
    """Text without blanks and invisible characters at its ends, of any alphabet; NaN where it is one of MISSING."""
    values = _replace_where(values, PLAIN, lambda text: EDGES.sub("", text))
    short = values[values.str.len() <= max(map(len, MISSING))]
    missing = short.index[short.str.lower().isin(MISSING)]
    return values.mask(values.index.isin(missing)) if len(missing) else values


def names(values: pd.Series, file: Path | str) -> pd.Series:
    """Identifiers, each in one spelling: composed letters (Unicode NFC), and a whole number without its ".0".

    Raises SourceError, naming the row, for a name that is too long or has characters that cannot be printed.
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
    """What different spellings of each name have in common.

    Case, width, leading zeros, and blanks and punctuation that are not between two digits do not count.

    >>> alike(pd.Series(["P-007", "p\u20137 ", "1-10", "11.0"])).tolist()
    ['p7', 'p7', '1-10', '11-0']
    """
    folded = _replace_where(names, r"[^ -~]", _fold).str.lower()
    for pattern, kept in ((r"[ -/:-@\[-`{-~]+", "-"), (r"(^|[^0-9])-", r"\1"), (r"-([^0-9]|$)", r"\1")):
        folded = folded.str.replace(pattern, kept, regex=True)
    return folded.str.replace(r"(^|[^0-9])0+([0-9])", r"\1\2", regex=True)


def _fold(name: str) -> str:
    """A name in Unicode's plain form (NFKC), its digits 0 to 9, without invisible characters."""
    letters = [each for each in normalize("NFKC", name).casefold() if category(each) != "Cf"]
    return re.sub(r"[\W_]", "-", "".join(str(decimal(each, each)) for each in letters))


def _replace_where(values: pd.Series, where: str, change: Callable[[str], str]) -> pd.Series:
    """`values` with those that match `where` changed; most tables have none, so that is looked at first."""
    found = values.str.contains(where, na=False)
    if not found.any():
        return values
    return values.where(~found, values[found].map({text: change(text) for text in values[found].unique()}))


def _name_list(names: list[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def label_values(table: pd.DataFrame, columns: Mapping[str, str], file: Path | str) -> pd.DataFrame:
    """The 14 labels (films x 14, float: 1, 0, -1, NaN) of a table; `columns` says which column holds which label.

    A label without a column is NaN, and so is a blank; True and False are 1 and 0.
    Raises SourceError, naming row, column and value, for any other value.
    """
    stated = {}
    for label, column in columns.items():
        codes, values = pd.factorize(table[column])
        numbers = np.array([*map(_label_value, values), np.nan])[codes]
        if (wrong := np.isinf(numbers)).any():
            row = table.index[wrong.argmax()]
            raise SourceError(
                f"{file}, row {row + HEADING}, column {column!r}: {str(table[column][row])[:60]} is no label; "
                "a label is 1 (present), 0 (absent), -1 (uncertain) or blank (not mentioned)"
            )
        stated[label] = numbers
    return pd.DataFrame(stated, index=table.index).reindex(columns=LABELS).astype(float)


def _label_value(value) -> float:
    """A label as 1, 0, -1 or NaN; infinity where it is none."""
    text = EDGES.sub("", str(value)).lower()
    if text in MISSING:
        return np.nan
    number = {"true": 1.0, "false": 0.0}.get(text) if not LABEL.fullmatch(text) else float(text)
    return number if number in (1.0, 0.0, UNCERTAIN) else np.inf


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


def is_among(names: pd.Series | pd.Index, others: pd.Series | pd.Index) -> np.ndarray:
    """Whether each of `names` is one of `others` (bool).  For text, pandas' own `isin` takes ten times as long."""
    others = pd.Index(others)
    return (others if others.is_unique else others.unique()).get_indexer(names) >= 0


def checked_films(
    table: pd.DataFrame, file: Path | str, excluded: Collection[pd.DataFrame] = (), unknown: Collection[str] = ()
) -> Films:
    """A film table in its final shape, its `names` each in one spelling.  `excluded`: parts as `exclusions` makes them.

    Raises SourceError for a film named twice, a name that is too long or has characters that cannot be printed, a film
    without a patient, a patient in two of the source's splits, and patients or splits whose names are `spelling_key`.
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
    """Raise SourceError where one name seems to be written in two ways: they would count as two."""
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
    """A row (film, path, reason) for each of `films`, all for one reason."""
    return pd.DataFrame({"film": list(films), "path": paths, "reason": reason}, dtype=str)


def present(films: Films | pd.DataFrame, root: Path) -> pd.Series:
    """Whether the image of each film lies at its path below `root` (bool, one a row of the film table)."""
    table = films.table if isinstance(films, Films) else films
    folder = os.path.join(root, "")
    there = [bool(path) and os.path.isfile(folder + path) for path in table["path"].tolist()]
    return pd.Series(there, index=table.index, dtype=bool)


def image_suffix(folder: Path, usual: str) -> str:
    """The ending of the first image below `folder`, such as ".png" where films were converted; else `usual`."""
    return next((os.path.splitext(path)[1] for path in image_paths(folder)), usual)


def image_paths(root: Path) -> Iterator[str]:
    """The images below `root`, relative to it; through links to folders, but not in circles."""
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
    """How many films and images each split and view has: split, view, films, images; "" is the split of no split."""
    groups = table.assign(there=present(table, root)).groupby(["split", "view"], sort=False)["there"]
    return [
        {"split": split, "view": view, "films": len(there), "images": int(there.sum())}
        for (split, view), there in groups
    ]


def overview(films: Films, root: Path) -> dict:
    """What was found, ready for JSON: counts of films, patients, studies, views, splits, labels and images.

    A label is None where this source has no word for it; `unlabelled` films have none stated.  `native` counts the
    source's own labels, if it has any.  `excluded` has for each reason how many films are excluded, and the first of
    them.  `images_on_disk` counts the films and the images of each split and view.
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
        "unlabelled": int(table[LABELS].isna().all(axis=1).sum()),
        "images": images,
        "on_disk": there,
        "note": "" if images else "no image of these films is in this folder: this is read from the tables alone",
        "positives": _counts(films, 1.0),
        "uncertain": _counts(films, UNCERTAIN),
        "native": table["native"].str.split("|").explode().value_counts().to_dict() if "native" in table else {},
        "excluded": {reason: {"films": len(names), "first": list(names[:3])} for reason, names in excluded},
    }


def overview_text(found: dict) -> str:
    """An `overview` as tables for a person."""
    lines = [f"{name:11} {found[name]:>9,}" for name in ("films", "patients", "studies", "unlabelled", "images")]
    for name in ("views", "splits"):
        lines += ["", name, *(f"  {key:20} {count:>9,}" for key, count in found[name].items())]
    lines += ["", *disk_lines(found["on_disk"])]
    lines += ["", f"{'labels':28} {'present':>9} {'uncertain':>9}"]
    lines += [
        f"  {label:26} {_count(found['positives'][label])} {_count(found['uncertain'][label])}" for label in LABELS
    ]
    if found["native"]:
        lines += ["", "labels in the source's words", *(f"  {key:20} {n:>9,}" for key, n in found["native"].items())]
    for reason, rows in found["excluded"].items():
        lines += [
            "",
            f"excluded, {reason}: {rows['films']:,} ({', '.join(rows['first'])}{', ...' * (rows['films'] > 3)})",
        ]
    if found["note"]:
        lines += ["", found["note"]]
    return "\n".join(lines)


def disk_lines(groups: list[dict]) -> list[str]:
    """The counts of `images_on_disk` as lines of a table, under a heading."""
    rows = [(f"{row['split'] or 'no split'}, {row['view']}", row["films"], row["images"]) for row in groups]
    return [f"{'split, view':28} {'films':>9} {'images':>9}", *(f"  {name:26} {n:>9,} {m:>9,}" for name, n, m in rows)]


def _counts(films: Films, state: float) -> dict[str, int | None]:
    """How many films are in `state` under each label."""
    seen = (films.table[LABELS] == state).sum()
    return {label: None if label in films.unknown else int(seen[label]) for label in LABELS}


def _count(count: int | None) -> str:
    return f"{'unknown' if count is None else format(count, ','):>9}"
