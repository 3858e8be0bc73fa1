"""Tables laid out like those of MIMIC-CXR-JPG, of any size: for the tests, and at full size for `make bench`.

Names, columns and their order are the real ones; identifiers and values are random.  Label rates are those that
`chexreason/data/phantom/hospitals.json` gives for MIMIC-CXR-JPG; findings are independent of each other.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from chexreason.data.phantom.hospitals import HOSPITALS
from chexreason.labels import CHEXPERT14

FILMS, STUDIES, PATIENTS = 377_110, 227_827, 65_379
SILENT = 2_414 / STUDIES  # studies without any label
VIEWS = {"AP": 0.39, "PA": 0.255, "LATERAL": 0.22, "LL": 0.092, "LAO": 0.001, "": 0.042}
SPLITS = {"train": 0.982, "validate": 0.008, "test": 0.01}  # shares of patients


def write(folder: Path, films: int = FILMS, studies: int = STUDIES, patients: int = PATIENTS, seed: int = 0) -> None:
    """Write the split, metadata and chexpert tables into `folder`; the same arguments give the same tables."""
    rng = np.random.default_rng(seed)
    subject = 10_000_000 + np.sort(rng.choice(10_000_000, patients, replace=False))
    study = 50_000_000 + rng.choice(10_000_000, studies, replace=False)
    owner = np.sort(_owners(patients, studies, rng))  # of each study
    of = np.sort(_owners(studies, films, rng))  # the study of each film
    split = rng.choice(list(SPLITS), patients, p=list(SPLITS.values()))
    names = pd.DataFrame({"dicom_id": _dicom_ids(films, rng), "study_id": study[of], "subject_id": subject[owner[of]]})
    _save(names.assign(split=split[owner[of]]), folder, "split")
    _save(_metadata(names, rng), folder, "metadata")
    _save(_labels(study, subject[owner], rng), folder, "chexpert")


def _owners(owners: int, things: int, rng: np.random.Generator) -> np.ndarray:
    """An owner for each thing; every owner has one at least."""
    return np.r_[np.arange(owners), rng.integers(owners, size=things - owners)]


def _dicom_ids(films: int, rng: np.random.Generator) -> list[str]:
    """Five groups of eight hexadecimal digits."""
    text = rng.bytes(20 * films).hex()
    return ["-".join(text[at + 8 * part : at + 8 * part + 8] for part in range(5)) for at in range(0, 40 * films, 40)]


def _metadata(names: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    return names[["dicom_id", "subject_id", "study_id"]].assign(
        PerformedProcedureStepDescription="CHEST (PA AND LAT)",
        ViewPosition=rng.choice(list(VIEWS), len(names), p=list(VIEWS.values())),
        Rows=3056,
        Columns=2544,
        StudyDate=rng.integers(21_000_101, 22_001_231, len(names)),
        StudyTime=rng.integers(235_959, size=len(names)),
        ProcedureCodeSequence_CodeMeaning="CHEST (PA AND LAT)",
        ViewCodeSequence_CodeMeaning="postero-anterior",
        PatientOrientationCodeSequence_CodeMeaning="Erect",
    )


def _labels(study: np.ndarray, subject: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """One row a study, the labels in alphabetical order as in the real table."""
    cases, channel = HOSPITALS["hospitals"]["A"]["cases"], HOSPITALS["channels"]["attentive"]
    normal = rng.random(len(study)) < cases["no_finding"]
    columns = {}
    for label in CHEXPERT14[1:]:
        spared = normal & (label != "Support Devices")
        rates = [group.get(label, 0.0) for group in (cases["positive"], channel["uncertain"], channel["negative"])]
        chance = np.where(spared, 1.0, rng.random(len(study)) * (1 - spared.mean()))
        columns[label] = np.select(list(chance < np.cumsum(rates)[:, None]), [1.0, -1.0, 0.0], np.nan)
    spoken = [np.isin(columns[label], (1.0, -1.0)) for label in CHEXPERT14[1:-1]]
    columns["No Finding"] = np.where(np.any(spoken, axis=0), np.nan, 1.0)
    labels = pd.DataFrame(columns)[sorted(columns)]
    labels[rng.random(len(study)) < SILENT] = np.nan
    labels.insert(0, "study_id", study)
    labels.insert(0, "subject_id", subject)
    return labels


def _save(table: pd.DataFrame, folder: Path, name: str) -> None:
    fast = {"method": "gzip", "compresslevel": 1, "mtime": 0}
    table.to_csv(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False, compression=fast)
