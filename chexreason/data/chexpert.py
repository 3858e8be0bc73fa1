"""CheXpert v1.0 and v1.0-small: 224,316 films of 65,240 patients of Stanford Health Care, under its own agreement.

Documentation: https://stanfordmlgroup.github.io/competitions/chexpert/ and, for the test set,
https://github.com/rajpurkarlab/cheXpert-test-set-labels and https://github.com/rajpurkarlab/cheXlocalize
License: Stanford University Dataset Research Use Agreement; no redistribution.
Citation: Irvin J, Rajpurkar P, Ko M, et al. CheXpert: a large chest radiograph dataset with uncertainty labels and
expert comparison. AAAI (2019), arXiv:1901.07031; the test films: Saporta A, Gui X, Agrawal A, et al. Benchmarking
saliency methods for chest X-ray interpretation. Nature Machine Intelligence 4 (2022).

Test labels have their parent labels (`labels.add_parent_labels`), training labels do not.  The tables of the test set
do not say whether a frontal film is AP or PA: its view is "unknown", and its laterals are known by name, so that "PA",
"AP" and "unknown" together are the frontals.
"""

from pathlib import Path

import pandas as pd

from chexreason.data import film_table
from chexreason.data.film_table import IMAGES, LABELS, Films, SourceError

STUDY = r"(?P<patient>patient\d+)/(?P<study>study\d+)"
FILM = rf"(?:^|/)(?P<split>train|valid|val|test)/(?P<path>{STUDY}/(?P<name>view\d+_(?P<side>frontal|lateral))\.\w+)$"
"""Where a film lies; what comes before it in a table, such as CheXpert-v1.0-small/, is not used."""
FOLDERS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
BATCHES = "CheXpert-v1.0*batch*"
"""Since 2021 the set comes in four batches: the first has the tables and valid/, the others patients of train.csv."""
PLUS = "df_chexpert_plus*.csv*"
OWN_NAMES = {label: label for label in LABELS}


def read(root: Path) -> Films:
    """The films of train.csv, valid.csv and the test set, if they exist.

    `root` is the folder with train.csv, or the folder above it (with CheXpert-v1.0/, CheXpert-v1.0-small/ or the four
    batches). The test set is test_labels.csv or, per study, groundtruth.csv, in one of these folders, in a folder
    CheXpert/ or in test/. With groundtruth.csv, the films are those in test/. CheXlocalize's val_labels.csv is read if
    there is no valid.csv. Images may be in another of these folders than their table, and have another suffix. Raises
    SourceError for a folder without any of these, two copies, a missing column, a path that does not belong to the
    split, a film with two rows, a label other than 1, 0, -1, and a patient in two splits.
    """
    root = Path(root)
    home = _table_folder(root)
    files = {split: film_table.find_file(home, f"{split}.csv") for split in ("train", "valid")}
    test, excluded = _test_films(root, home)
    parts = [_table_films(file, split, home, root) for split, file in files.items() if file]
    validated = [film_table.find_file(place, "val_labels.csv") for place in (home, root, root / "CheXpert")]
    if not files["valid"] and (file := next(filter(None, validated), None)):
        parts.append(_table_films(file, "valid", file.parent, root))
    parts += test
    if not parts:
        plus = "; CheXpert Plus has no table of labels: give the folder of CheXpert itself" * any(root.glob(PLUS))
        raise SourceError(
            f"{root}: has no train.csv, valid.csv, test_labels.csv or groundtruth.csv, nor have its CheXpert folders"
            + plus
        )
    return film_table.checked_films(pd.concat(parts, ignore_index=True), root, excluded)


def _table_folder(root: Path) -> Path:
    """The folder with train.csv or valid.csv: `root`, or a folder in it; `root` if there is none."""
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    if film_table.find_file(root, "train.csv", "valid.csv"):
        if root.resolve().match(BATCHES):
            raise SourceError(f"{root}: is one of the batches; give the folder above it, which has the films of all")
        return root
    below = [
        folder for folder in sorted(root.glob("CheXpert*")) if film_table.find_file(folder, "train.csv", "valid.csv")
    ]
    if len(below) > 1:
        raise SourceError(f"{root}: holds {' and '.join(each.name for each in below)}; name the one that is meant")
    return below[0] if below else root


def _table_films(file: Path, split: str, home: Path, root: Path) -> pd.DataFrame:
    """The films of a table with one row per film; only train.csv and valid.csv have views."""
    about = ["Frontal/Lateral", "AP/PA"] if file.name.startswith(("train.", "valid.")) else []
    rows = film_table.read_csv(file, ["Path", *about], LABELS)
    films = _films(rows["Path"], file, split, home, root)
    if about:
        frontal = rows["AP/PA"].str.upper().where(rows["AP/PA"].str.upper().isin(["AP", "PA"]), "unknown")
        lateral = (films["view"] == "lateral") | (rows["Frontal/Lateral"].str.lower() == "lateral")
        films["view"] = frontal.mask(lateral, "lateral")
    return films.join(film_table.label_values(rows, OWN_NAMES, file))


def _films(paths: pd.Series, file: Path, split: str, home: Path, root: Path) -> pd.DataFrame:
    """The film table from the paths in a table; the films are below `home`, or in the batches."""
    parts = paths.str.extract(FILM)
    strange = ~parts["split"].isin(FOLDERS[split])
    if strange.any():
        row = strange.idxmax()
        raise SourceError(
            f"{file}, row {row + film_table.HEADING}, column 'Path': {paths[row]} is no path of a CheXpert film; "
            f"one ends in {split}/patient00001/study1/view1_frontal.jpg"
        )
    study = parts["patient"] + "_" + parts["study"]
    films = pd.DataFrame({"film": study + "_" + parts["name"], "patient": parts["patient"], "study": study})
    film_table.refuse_twice(films, "film", file)
    view = parts["side"].where(parts["side"] == "lateral", "unknown")
    return films.assign(path=_paths(parts, split, home, root), view=view, split=split)


def _paths(parts: pd.DataFrame, split: str, home: Path, root: Path) -> pd.Series:
    """The paths of the images relative to `root`: in a folder of the split or, for train.csv, in the batches."""
    places = [place / name for place in dict.fromkeys([home, root]) for name in FOLDERS[split]]
    folder = next(filter(Path.is_dir, places), places[0])
    batches = sorted(root.glob(BATCHES)) if split == "train" and not folder.is_dir() else []
    image = next((path for place in [*batches, folder] if (path := next(film_table.image_paths(place), ""))), "")
    names = parts["path"].str.replace(r"\.\w+$", Path(image).suffix, regex=True) if image else parts["path"]
    if not batches:
        return (folder.relative_to(root).as_posix() + "/" + names).where(names.notna())
    found = [path for batch in batches for inner in (batch, batch / "train") for path in sorted(inner.glob("patient*"))]
    below = pd.Series([path.relative_to(root).as_posix() for path in found], [path.name for path in found], dtype=str)
    if below.index.has_duplicates:
        both = below[below.index.duplicated(keep=False)]
        raise SourceError(f"{root}: patient {both.index[0]} has two folders, {' and '.join(both[both.index[0]])}")
    there = parts["patient"].map(below).astype("str")
    return (there + names.str.replace(r"^patient\d+", "", regex=True)).fillna("")


def _test_films(root: Path, home: Path) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """The films of the test set and the excluded ones; two empty lists if there is no test set."""
    places = list(dict.fromkeys([home, root, *sorted(root.glob("CheXpert*/"))]))
    found = [
        (place, file, name)
        for name in ("test_labels.csv", "groundtruth.csv")
        for place in places
        for folder in (place, place / "test")
        if (file := film_table.find_file(folder, name))
    ]
    if not found:
        return [], []
    place, file, name = found[0]
    place = next((each for each in [place, *places] if (each / "test").is_dir()), place)
    if name == "test_labels.csv":
        return [_table_films(file, "test", place, root)], []
    return _by_study(file, place, root)


def _by_study(file: Path, place: Path, root: Path) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """The films in test/, with the labels of their study."""
    rows = film_table.read_csv(file, ["Study"], LABELS)
    parts = rows["Study"].str.extract(STUDY)
    rows["study"] = parts["patient"] + "_" + parts["study"]
    film_table.refuse_twice(rows, "study", file)
    labels = film_table.label_values(rows, OWN_NAMES, file).set_index(rows["study"])
    there = sorted(path for path in place.glob("test/patient*/study*/view*") if path.suffix.lower() in IMAGES)
    paths = pd.Series([path.relative_to(place).as_posix() for path in there], dtype=str)
    films = _films(paths, place / "test", "test", place, root)
    films["path"] = [path.relative_to(root).as_posix() for path in there]
    strays = films[~film_table.is_among(films["study"], labels.index)]
    empty = rows[~film_table.is_among(rows["study"], films["study"])]
    excluded = [
        film_table.exclusions(strays["film"], strays["path"], f"film of a study without a row in {file.name}"),
        film_table.exclusions(empty["study"], "", f"study of {file.name} without a film in test/"),
    ]
    return [films.drop(strays.index).join(labels, on="study")], excluded
