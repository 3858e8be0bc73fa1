"""The fourteen CheXpert labels, the named label sets, and the policies that settle an unsettled label."""

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
"""The labels the paper scores on NIH (Table 6)."""

NIH10 = (*NIH9[:-1], "Pleural Effusion", NIH9[-1])
"""All that NIH has a word for: the paper's nine and NIH's Effusion."""

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
    """Settle label states by a named policy.

    `labels` holds 1 (present), 0 (absent), -1 (uncertain) or NaN (not mentioned), films by labels.  The result holds
    1.0, 0.0 or NaN (unknown, left out of scores).  `u_zeros` is the paper's reading: only positives count, so -1 and
    silence are both negative.  `u_ones` takes -1 as positive, `u_ignore` as unknown; both keep silence negative.
    A column that is NaN throughout was never asked for by this source, and stays unknown under every policy.
    Raises ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown label policy {policy!r}; choose one of {', '.join(POLICIES)}")
    value = {"u_zeros": 0.0, "u_ones": 1.0, "u_ignore": float("nan")}[policy]
    uncertain = labels == UNCERTAIN
    settled = labels.astype(float).fillna(0.0).mask(uncertain, value)
    settled.loc[:, labels.isna().all()] = float("nan")
    return settled


def positives(row: pd.Series) -> tuple[str, ...]:
    """The labels of one settled row that are present, in CheXpert's order."""
    return tuple(name for name in CHEXPERT14 if row[name] == 1.0)


def add_parent_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels, films x 14, with Enlarged Cardiomediastinum and Lung Opacity present wherever a label below them is.

    CheXpert's test labels are closed so; its training labels, and what a model learnt from them, are not.  Takes and
    keeps any dtype that holds 1 (float states, bool predictions).  Only a child that is 1 says something of its parent.
    """
    closed = labels.copy()
    for parent, children in CLOSURES.items():
        above = labels[list(children)].eq(1).any(axis="columns")
        closed[parent] = labels[parent].mask(above, labels[parent].dtype.type(1))
    return closed
