"""NIH ChestX-ray14: 112,120 frontal films of 30,805 patients of the NIH Clinical Center, free of credentials.

Documentation: https://nihcc.app.box.com/v/ChestXray-NIHCC
License: no restriction on use; link to the address above, cite the paper, name the NIH Clinical Center as the source.
Citation: Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: hospital-scale chest X-ray database and
benchmarks on weakly-supervised classification and localization of common thorax diseases. CVPR (2017),
arXiv:1705.02315.

Its fourteen findings are words of its own.  Those with a counterpart among CheXpert's labels become 1 or 0; CheXpert's
other labels are unknown here.  A film with nothing but Infiltration, Emphysema or Hernia has none of CheXpert's labels
and is not No Finding either.
"""

import re
import zlib
from pathlib import Path

import pandas as pd

from chexreason.data import film_table
from chexreason.data.film_table import LABELS, Films, SourceError

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
SAMPLE = "sample_labels.csv"  # Kaggle's random sample of 5,606 films
LISTS = {
    "train_val": ("train_val_list.txt", "train_val_list_NIH.txt"),
    "test": ("test_list.txt", "test_list_NIH.txt"),
}
COUNTERPARTS = {
    "No Finding": "No Finding",
    "Cardiomegaly": "Cardiomegaly",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Edema": "Edema",
    "Consolidation": "Consolidation",
    "Pneumonia": "Pneumonia",
    "Atelectasis": "Atelectasis",
    "Pneumothorax": "Pneumothorax",
    "Effusion": "Pleural Effusion",
    "Pleural_Thickening": "Pleural Other",
}
WITHOUT = ("Infiltration", "Emphysema", "Hernia", "Fibrosis")
"""Findings without a counterpart. Fibrosis has one if the study says so, which is a matter of judgment."""
VIEWS = {"PA": "PA", "AP": "AP"}
BEFORE_AND_AFTER = r"^.*[/\\]|\.\w+$"
DISTRIBUTED = re.compile(r"((images(_\d+)?|sample)/)+[^/]+", re.IGNORECASE)
"""Where films lie as they are distributed: images_001/images/ to images_012/images/, images/ or sample/images/."""


def read(root: Path, fibrosis: bool = False) -> Films:
    """The films of the folder with the table; `fibrosis` counts Fibrosis as Pleural Other.

    Images are found by name in any folder below `root`, with any suffix. If some are in the distributed folders, only
    those count, because masks may have the names of films. The splits are those of the two official lists, or none
    without the lists. Excluded are films in neither list, and images or entries of a list without a row in the table.
    Raises SourceError for a missing table, list or column, an unknown finding, a film with two rows or two images or in
    both lists, and a patient in two splits.
    """
    root = Path(root)
    file = film_table.find_file(root, *TABLES, SAMPLE) or film_table.require_file(root, *TABLES)
    rows = film_table.read_csv(file, ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position"])
    films = _stem(rows["Image Index"])
    patient = film_table.names(rows["Patient ID"], file).str.zfill(8)
    split, strays = _splits(root, films, file)
    paths, unlisted = _images(root, films, file)
    table = pd.DataFrame(
        {
            "film": films,
            "path": paths,
            "patient": patient,
            "study": patient + "_" + film_table.names(rows["Follow-up #"], file).str.zfill(3),
            "view": rows["View Position"].str.upper().map(VIEWS).fillna("unknown"),
            "split": split,
            "native": rows["Finding Labels"],
        }
    ).join(_labels(rows["Finding Labels"], fibrosis, file))
    unsplit = table[split.isna()]
    neither = film_table.exclusions(unsplit["film"], unsplit["path"], "film in neither of the two lists")
    unknown = [label for label in LABELS if label not in COUNTERPARTS.values()]
    return film_table.checked_films(table[split.notna()], file, [neither, strays, unlisted], unknown)


def _stem(names: pd.Series) -> pd.Series:
    """`00000001_000` of `00000001_000.png` or `images/00000001_000.png`."""
    return names.str.replace(BEFORE_AND_AFTER, "", regex=True)


def _labels(native: pd.Series, fibrosis: bool, file: Path) -> pd.DataFrame:
    """The 14 labels (films x 14; 1, 0, or NaN if NIH does not have the label) of findings joined by `|`."""
    codes, texts = pd.factorize(native.fillna(""))
    said = pd.Series(texts).str.get_dummies("|")
    known = [*COUNTERPARTS, *WITHOUT]
    strange = [text for text in texts if not set(text.split("|")) <= set(known)]
    if strange:
        row = (native.fillna("") == strange[0]).idxmax()
        raise SourceError(
            f"{file}, row {row + film_table.HEADING}, column 'Finding Labels': {strange[0]!r} holds what is none of "
            f"{', '.join(known)}"
        )
    words = COUNTERPARTS | ({"Fibrosis": "Pleural Other"} if fibrosis else {})
    mapped = said.reindex(columns=list(words), fill_value=0).T.groupby(words).max().T
    return mapped.astype(float).reindex(columns=LABELS).iloc[codes].set_axis(native.index)


def _splits(root: Path, films: pd.Series, file: Path) -> tuple[pd.Series, pd.DataFrame]:
    """The split of each film (missing if neither list has it), and the list entries without a row."""
    looked = {split: film_table.find_file(root, *names) for split, names in LISTS.items()}
    files = {split: found for split, found in looked.items() if found}
    if not files:
        return pd.Series("", index=films.index), film_table.exclusions([], "", "")
    for split, names in LISTS.items():
        if split not in files:
            raise SourceError(f"{root}: holds one of the two lists, but no {' or '.join(names)}; splits need both")
    lists = [pd.Series(split, index=_list_films(list_file)) for split, list_file in files.items()]
    listed = pd.concat(lists)
    both = listed.index[listed.index.duplicated()]
    if len(both):
        raise SourceError(f"{root}: film {both[0]} is in both {' and '.join(each.name for each in files.values())}")
    strays = listed.index[~film_table.is_among(listed.index, films)]
    return films.map(listed), film_table.exclusions(strays, "", f"film of the lists without a row in {file.name}")


def _list_films(file: Path) -> pd.Index:
    """The films of a list, one name per line."""
    try:
        with film_table.open_text(file) as stream:
            lines = film_table.trim(pd.Series(stream.read().splitlines(), dtype=str))
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read as a list of films: {error}") from None
    return pd.Index(_stem(lines.dropna()).unique())


def _images(root: Path, films: pd.Series, file: Path) -> tuple[pd.Series, pd.DataFrame]:
    """The path of each film's image, relative to `root`, and the images with the name of a film but without a row."""
    found = sorted(film_table.image_paths(root))
    paths = pd.Series(list(filter(DISTRIBUTED.fullmatch, found)) or found, dtype=str)
    paths = paths.set_axis(_stem(paths))
    named = film_table.is_among(paths.index, films)
    own = paths[named]
    twice = own.index[own.index.duplicated()]
    if len(twice):
        raise SourceError(f"{root}: film {twice[0]} has two images, {' and '.join(own[twice[0]][:2])}; leave one")
    strays = paths[paths.index.str.fullmatch(r"\d{8}_\d{3}") & ~named]
    return own.reindex(films, fill_value="").set_axis(films.index), film_table.exclusions(
        strays.index, strays.to_list(), f"image without a row in {file.name}"
    )
