"""MIMIC-CXR-JPG 2.0.0 and 2.1.0: 377,110 films of 65,379 patients of an emergency department, credentialed.

Documentation: https://physionet.org/content/mimic-cxr-jpg/2.1.0/
License: PhysioNet Credentialed Health Data License 1.5.0, with its data use agreement; films stay where you keep them.
Citation: Johnson AEW, Pollard TJ, Greenbaum NR, et al. MIMIC-CXR-JPG, a large publicly available database of labeled
chest radiographs. arXiv:1901.07042 (2019); the data set: Johnson A, Lungren M, Peng Y, et al. PhysioNet (2024),
doi:10.13026/jsn5-t979 (2.1.0), doi:10.13026/8360-t248 (2.0.0); PhysioNet: Goldberger AL, et al. Circulation 101 (2000).

Labels belong to studies, not to films, and 2.1.0 keeps "2.0.0" in the names of the tables it took over.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason.data import film_table
from chexreason.data.film_table import LABELS, Films, SourceError

SPLIT, METADATA = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
TABLES = {
    "chexpert": "mimic-cxr-2.0.0-chexpert.csv",
    "negbio": "mimic-cxr-2.0.0-negbio.csv",
    "radiologists": "mimic-cxr-2.1.0-test-set-labeled.csv",
}
IDS = {"dicom_id": r"[0-9a-f-]{44}", "study_id": r"\d{8}", "subject_id": r"\d{8}"}
VIEWS = {"AP": "AP", "PA": "PA", "LATERAL": "lateral", "LL": "lateral"}
"""ViewPosition in the DICOM header; LL is the left lateral. Oblique, decubitus and blank are unknown."""


def read(root: Path, labels: str = "chexpert") -> Films:
    """The films of the folder with the tables, with the labels of `chexpert`, `negbio` or `radiologists`.

    If a study is not in its label table, or has no label, its films have only NaN. The radiologists labeled a part of
    the test split only; other studies are left out. Converted images keep their place and have the suffix of the first
    image in files/. Raises SourceError for a missing table or column, an invalid identifier, a film without a row in
    both tables, a film or study with two rows, a label other than 1, 0, -1, and a patient in two splits.
    """
    root = Path(root)
    film_file = film_table.require_file(root, SPLIT)
    films = _table(film_file, ["dicom_id", "study_id", "subject_id", "split"])
    film_table.refuse_twice(films, "dicom_id", film_file)
    patient, study = "p" + films["subject_id"], "s" + films["study_id"]
    path = "files/" + patient.str[:3] + "/" + patient + "/" + study + "/" + films["dicom_id"]
    path += film_table.image_suffix(root / "files", ".jpg")
    view = _view(root, films["dicom_id"], film_file)
    table = films.rename(columns={"dicom_id": "film"}).assign(path=path, patient=patient, study=study, view=view)
    label_file = film_table.require_file(root, TABLES[labels])
    stated = _labels(label_file, labels)
    if labels == "radiologists":
        table = table[film_table.is_among(table["study"], stated.index)]
    strays = stated.index[~film_table.is_among(stated.index, table["study"])]
    excluded = film_table.exclusions(strays, "", f"study of {label_file.name} without a film in {film_file.name}")
    return film_table.checked_films(table.join(stated, on="study"), film_file, [excluded])


def _table(file: Path, text: list[str], labels: Collection[str] = ()) -> pd.DataFrame:
    """The columns of a table; raises SourceError with row, column and value for an invalid identifier."""
    rows = film_table.read_csv(file, text, labels)
    for column in IDS.keys() & rows:
        wrong = ~rows[column].str.fullmatch(IDS[column], na=True)
        if wrong.any():
            rows[column] = film_table.names(rows[column], file)
            wrong = ~rows[column].str.fullmatch(IDS[column], na=True)
        if wrong.any():
            row = wrong.idxmax()
            raise SourceError(
                f"{file}, row {row + film_table.HEADING}, column {column!r}: {rows[column][row][:60]!r} is not an "
                "identifier of MIMIC-CXR; take the table as PhysioNet distributes it"
            )
    return rows


def _view(root: Path, names: pd.Series, film_file: Path) -> np.ndarray:
    """The view of each film; raises SourceError unless both tables have the same films."""
    file = film_table.require_file(root, METADATA)
    rows = _table(file, ["dicom_id", "ViewPosition"])
    film_table.refuse_twice(rows, "dicom_id", file)
    place = pd.Index(rows["dicom_id"]).get_indexer(names)
    without, beyond = names[place < 0], rows["dicom_id"].drop(place[place >= 0])
    for has, lacks, alone in ((film_file, file, without), (file, film_file, beyond)):
        if len(alone):
            raise SourceError(
                f"{lacks}: film {alone.iloc[0]} of {has.name} has no row here ({len(alone):,} such films); "
                "both tables must be of one release"
            )
    return rows["ViewPosition"].str.upper().map(VIEWS).fillna("unknown").to_numpy()[place]


def _labels(file: Path, labels: str) -> pd.DataFrame:
    """The labels of each study, studies ("s50414267") x 14."""
    columns = {label: label for label in LABELS}
    if labels == "radiologists":
        columns["Lung Opacity"] = "Airspace Opacity"
    rows = _table(file, ["study_id"], columns.values())
    film_table.refuse_twice(rows, "study_id", file)
    return film_table.label_values(rows, columns, file).set_index("s" + rows["study_id"])
