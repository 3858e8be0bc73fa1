"""The fourteen CheXpert labels, the named label sets, the uncertainty policies, and the label hierarchy."""

from collections.abc import Iterable
from types import MappingProxyType

import pandas as pd

CHEXPERT14 = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""In the order of CheXpert's `train.csv` (Irvin et al. 2019)."""

NIH9 = (
    "No Finding",
    "Cardiomegaly",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Other",
)
"""The labels that the paper scores on NIH (Table 6)."""

NIH10 = (*NIH9[:-1], "Pleural Effusion", NIH9[-1])
"""All labels with a counterpart in NIH: the nine of the paper, and Effusion."""

COMPETITION5 = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
"""The labels of CheXpert's competition (Irvin et al. 2019)."""

LABEL_SETS = MappingProxyType(
    {"chexpert14": CHEXPERT14, "nih9": NIH9, "nih10": NIH10, "shared9": NIH9, "competition5": COMPETITION5}
)
"""A score names its set.  `shared9` is a fourteen-label data set scored on NIH's nine, so that B and C compare."""

CLOSURES = MappingProxyType(
    {
        "Enlarged Cardiomediastinum": ("Cardiomegaly",),
        "Lung Opacity": ("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion"),
    }
)
"""Under upward closure the key is present wherever one of its children is (CheXpert's hierarchy, Irvin et al. 2019)."""

UNCERTAIN = -1.0
POLICIES = ("u_zeros", "u_ones", "u_ignore")


def apply_policy(labels: pd.DataFrame, policy: str = "u_zeros") -> pd.DataFrame:
    """Apply an uncertainty policy to label states.

    `labels` (films x labels) has 1 (present), 0 (absent), -1 (uncertain) or NaN (not mentioned). The result has 1.0,
    0.0 or NaN (unknown, not scored). `u_zeros` is the paper's policy: only 1 is positive; -1 and NaN are negative. With
    `u_ones`, -1 is positive; with `u_ignore`, it is unknown; in both, NaN is negative. A column with only NaN belongs
    to a label that the source does not have; it stays unknown under every policy. Raises ValueError for an unknown
    policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown label policy {policy!r}; choose one of {', '.join(POLICIES)}")
    value = {"u_zeros": 0.0, "u_ones": 1.0, "u_ignore": float("nan")}[policy]
    uncertain = labels == UNCERTAIN
    settled = labels.astype(float).fillna(0.0).mask(uncertain, value)
    settled.loc[:, labels.isna().all()] = float("nan")
    return settled


def positives(row: pd.Series) -> tuple[str, ...]:
    """The labels that are present in one row, in CheXpert's order."""
    return tuple(name for name in CHEXPERT14 if row[name] == 1.0)


def add_parent_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels (films x 14) with Enlarged Cardiomediastinum and Lung Opacity present if a label below them is.

    CheXpert's test labels follow this hierarchy; its training labels do not. Any dtype with 1 is accepted and kept
    (float states, bool predictions). Only a child that is 1 changes its parent.
    """
    closed = labels.copy()
    for parent, children in CLOSURES.items():
        above = labels[list(children)].eq(1).any(axis="columns")
        closed[parent] = labels[parent].mask(above, labels[parent].dtype.type(1))
    return closed


def bits(labels: Iterable[str]) -> int:
    """A set of labels as one number: the sum of 2 to the power of each label's place among the fourteen."""
    return sum(1 << CHEXPERT14.index(label) for label in set(labels))
