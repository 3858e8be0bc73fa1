"""The paper's printed tables as data, the claims of its text, and macro means over other labels.

Source: Berger et al., "Benchmark Success, Clinical Failure", arXiv 2512.23090v2 (CC BY 4.0). The CSV files in this
folder have the values as printed, and the prevalence of each label in the paper's test sets (from other sources, named
there).
"""

from collections.abc import Collection
from importlib.resources import files

import pandas as pd

SOURCE = "Berger et al., arXiv 2512.23090v2"
TABLES = {"CheXpert": "table5_chexpert_f1.csv", "NIH": "table6_nih_f1.csv"}
"""The data set of each table; the models are its columns."""

VALIDATION = {
    1: "table1_prompts_medgemma.csv",
    2: "table2_sft_medgemma.csv",
    3: "table3_sft_qwen.csv",
    4: "table4_grpo.csv",
}
"""The tables of scores on validation films."""

FILMS = {"CheXpert": 518, "NIH": 488, "validation": 500}
"""How many films the paper scored: on its two test sets, and in its text's account of validation."""

_PRINTED_MACRO = "Macro F1 as printed"


def claims() -> pd.DataFrame:
    """The relative changes in the paper's text: claim, first and second model and data set, printed (share)."""
    return _read("claims.csv")


def prevalence() -> pd.DataFrame:
    """The share of films with each label: fourteen labels x CheXpert, NIH, NIH official test, MIMIC.

    NaN if the data set does not have the label. The head of the CSV file has the source and the number of films of
    each.
    """
    return _read("prevalence.csv").set_index("label")


def validation(number: int) -> pd.DataFrame:
    """Table 1 (prompts), 2 or 3 (SFT formats of MedGemma and Qwen) or 4 (rewards), as printed."""
    return _read(VALIDATION[number])


def _table(dataset: str) -> pd.DataFrame:
    return _read(TABLES[dataset]).set_index("label")


def _read(name: str) -> pd.DataFrame:
    with files(__package__).joinpath(name).open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#")


def f1(dataset: str) -> pd.DataFrame:
    """The printed F1 per label on `dataset` ("CheXpert" or "NIH"): labels x models, shares with three decimals."""
    return _table(dataset).drop(index=_PRINTED_MACRO)


def printed_macro(dataset: str) -> pd.Series:
    """The printed macro-F1 of each model on `dataset`, over fourteen labels on CheXpert and nine on NIH."""
    return _table(dataset).loc[_PRINTED_MACRO].rename("macro_f1")


def macro(dataset: str, labels: Collection[str]) -> pd.Series:
    """The mean of the printed F1 over `labels` for each model. Raises KeyError if the table does not have a label."""
    return f1(dataset).loc[list(labels)].mean().rename("macro_f1")
