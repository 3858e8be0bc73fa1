"""The reanalysis of the paper: its printed tables recomputed, and simulated 95 % intervals.

Nothing here reads a record of a study; all values are the paper's (`chexreason.paper.published`).

The paper prints no intervals, so they are simulated: films and answers are drawn again and again as if the printed F1
were true. All functions make the same assumptions:

- A film has a label with the published prevalence. Films are independent, and so are the labels of a film.
- F1 does not determine precision and recall. `answered` does: the number of films that get a label, divided by the
  number that have it. At 1, precision equals recall; at 2, recall is twice precision. An impossible value is replaced
  by the nearest possible one.
- Two models answer the same films. `shared` is the degree to which they are right and wrong on the same films, given
  the truth: 0 is chance, 1 is the maximum that their rates allow. The paper does not print it.
- Tables 2 to 4 print no labels, so each label is given the printed macro-F1. Labels that differ as much as in Table 5
  would give narrower intervals.
- A label printed as 0.000 is zero in every sample. This makes an interval too narrow, not too wide.
"""

from itertools import product

import numpy as np
import pandas as pd

from chexreason.evaluation.metrics import interval, macro, rates
from chexreason.labels import CHEXPERT14, COMPETITION5, NIH9
from chexreason.paper import published

ROUNDING = 0.0005
"""Half of the last printed digit."""

ANSWERED = (0.5, 1.0, 2.0)
NIH_PREVALENCE = ("NIH", "NIH official test")
"""The prevalences that `sensitivity` tries for NIH; the paper does not say how its NIH films were sampled."""

ERRORS = {"independent errors": 0.0, "strongly shared errors": 0.8}
"""The values of `shared`. At 1, the better of two models would miss nothing that the other finds, and any difference
would be clear.
"""

CONTRASTS = {
    1: ("MedGemma-4B SFT", "ChexReason"),
    2: ("MedGemma-4B", "MedGemma-4B SFT"),
    3: ("Free Reasoning", "Reasoning A"),
    4: ("Nuanced", "Hard"),
}
"""The two scores that each of the paper's findings compares, as second minus first."""


# --- arithmetic ------------------------------------------------------------------------------------------------------


def macro_means() -> pd.DataFrame:
    """The printed macro-F1 of Tables 5 and 6, and the mean of the printed labels.

    Columns: dataset, model, printed, recomputed, agrees.
    """
    tables = [
        pd.DataFrame({"printed": published.printed_macro(name), "recomputed": published.f1(name).mean()})
        .rename_axis("model")
        .reset_index()
        .assign(dataset=name)
        for name in published.TABLES
    ]
    table = pd.concat(tables, ignore_index=True)[["dataset", "model", "printed", "recomputed"]]
    return table.assign(agrees=(table["recomputed"] - table["printed"]).abs() <= 2 * ROUNDING)


def micro_f1() -> pd.DataFrame:
    """The printed micro-F1 of Tables 2 to 4, and that of the printed precision and recall.

    Columns: table, row, printed, recomputed, answered (recall / precision: answers per positive label), agrees.
    """
    return pd.concat([_micro(number) for number in (2, 3, 4)], ignore_index=True)


def _micro(number: int) -> pd.DataFrame:
    table = published.validation(number)
    precision, recall, printed = table["micro_precision"], table["micro_recall"], table["micro_f1"]
    low, high = _f1(precision - ROUNDING, recall - ROUNDING), _f1(precision + ROUNDING, recall + ROUNDING)
    columns = {
        "table": number,
        "row": table.iloc[:, :2].agg(", ".join, axis=1) if number == 4 else table["variant"],
        "printed": printed,
        "recomputed": _f1(precision, recall),
        "answered": recall / precision,
        "agrees": (low - ROUNDING <= printed) & (printed <= high + ROUNDING),
    }
    return pd.DataFrame(columns)


def _f1(precision, recall):
    return 2 * precision * recall / (precision + recall)


def claims(stated: pd.DataFrame) -> pd.DataFrame:
    """The relative changes of `published.claims`, recomputed: claim, printed, recomputed, agrees.

    A change agrees if rounding of the printed scores and percentage explains the difference.
    """
    printed = {dataset: published.printed_macro(dataset) for dataset in published.TABLES}
    first, second = _side(stated, "first", printed), _side(stated, "second", printed)
    low = (second - ROUNDING) / (first + ROUNDING) - 1
    high = (second + ROUNDING) / (first - ROUNDING) - 1
    agrees = (low <= stated["printed"] + 0.005) & (high >= stated["printed"] - 0.005)
    return stated[["claim", "printed"]].assign(recomputed=second / first - 1, agrees=agrees)


def like_with_like() -> pd.DataFrame:
    """The same changes over labels that both scores have: claim, printed, nine_shared, five_competition.

    NIH does not have all five labels of the CheXpert competition; the value is NaN if a score lacks one.
    """
    table = published.claims()
    sets = {"nine_shared": NIH9, "five_competition": COMPETITION5}
    changes = {}
    for name, labels in sets.items():
        means = {dataset: published.f1(dataset).reindex(labels).mean(skipna=False) for dataset in published.TABLES}
        changes[name] = _side(table, "second", means) / _side(table, "first", means) - 1
    return table[["claim", "printed"]].assign(**changes)


def _side(table: pd.DataFrame, side: str, scores: dict[str, pd.Series]) -> pd.Series:
    """The score of the first or second model of each row."""
    names = zip(table[f"{side}_model"], table[f"{side}_dataset"], strict=True)
    return pd.Series([scores[dataset][model] for model, dataset in names], index=table.index)


def chexpert_means() -> pd.DataFrame:
    """Macro-F1 on CheXpert by model: fourteen labels as printed, the nine of NIH, the five of the competition."""
    columns = {
        "fourteen_printed": published.printed_macro("CheXpert"),
        "nine_shared": published.macro("CheXpert", NIH9),
        "five_competition": published.macro("CheXpert", COMPETITION5),
    }
    return pd.DataFrame(columns).rename_axis("model").reset_index()


def contributions(dataset: str, first: str, second: str) -> pd.DataFrame:
    """The contribution of each label to the change of macro-F1 between two models, the largest first.

    Columns: label, first, second, share (of the change of the mean; they sum to 1) and without (the change of the mean
    over the other labels).
    """
    f1 = published.f1(dataset)
    change = f1[second] - f1[first]
    columns = {
        "label": f1.index,
        "first": f1[first],
        "second": f1[second],
        "share": change / change.sum(),
        "without": (change.sum() - change) / (len(change) - 1),
    }
    return pd.DataFrame(columns).sort_values("share", ascending=False, ignore_index=True)


# --- simulation ------------------------------------------------------------------------------------------------------


def operating_point(f1: np.ndarray, prevalence: np.ndarray, answered: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and false-positive rate that give labels their `f1` (labels,) at their `prevalence` (labels,)."""
    with np.errstate(divide="ignore"):
        most = np.minimum(prevalence * (2 - f1) / f1, (2 - prevalence * (2 - f1)) / (2 - f1))
    given = np.clip(answered * prevalence, prevalence * f1 / (2 - f1), most)  # the share of films answered with it
    hits = f1 * (prevalence + given) / 2
    return hits / prevalence, (given - hits) / (1 - prevalence)


def simulate(
    first: np.ndarray,
    second: np.ndarray,
    prevalence: np.ndarray,
    films: int,
    n_resamples: int,
    rng: np.random.Generator,
    *,
    answered: float = 1.0,
    shared: float = 0.0,
) -> np.ndarray:
    """TP, FP and FN of two models on the same simulated films: int (2 models, n_resamples, labels, 3).

    `first` and `second` are the true F1 of the models (labels,); the other assumptions are at the top of this module.
    """
    first_hit, first_alarm = operating_point(first, prevalence, answered)
    second_hit, second_alarm = operating_point(second, prevalence, answered)
    present = rng.binomial(films, prevalence, size=(n_resamples, len(prevalence)))
    hits = _answers(present, first_hit, second_hit, shared, rng)
    alarms = _answers(films - present, first_alarm, second_alarm, shared, rng)
    return np.stack([hits, alarms, present - hits], axis=-1)


def _answers(films: np.ndarray, first: np.ndarray, second: np.ndarray, shared: float, rng) -> np.ndarray:
    """The number of `films` (n_resamples, labels) that get the label from each model: (2, n_resamples, labels)."""
    both = shared * np.minimum(first, second) + (1 - shared) * first * second
    cells = np.stack([both, first - both, second - both, 1 - first - second + both], axis=-1)
    counts = rng.multinomial(films, np.clip(cells, 0, 1))  # clipped: rounding leaves -1e-17
    return np.stack([counts[..., 0] + counts[..., 1], counts[..., 0] + counts[..., 2]])


# --- the four findings -----------------------------------------------------------------------------------------------


def printed(nih: str = "NIH") -> pd.DataFrame:
    """The scores of the four findings, one row per finding, place, series and label, in the paper's order.

    A place fixes films and labels (a data set and label set; for finding 3, a model); a series is what is compared
    there. Columns: finding, place, series, label, f1 (as printed), prevalence, films. `nih` is the column of
    `published.prevalence` that is used for NIH.
    """
    shares = published.prevalence()
    chexpert, nih, mimic = shares["CheXpert"], shares[nih], shares["MIMIC"]
    formats = {model: published.validation(number) for model, number in {"MedGemma-4B": 2, "Qwen2.5-VL-3B": 3}.items()}
    rewards = published.validation(4).rename(columns={"checkpoint": "place", "reward": "series"})
    parts = [
        _tested(1, "CheXpert, 14 labels", "CheXpert", CHEXPERT14, chexpert),
        _tested(1, "CheXpert, the 9 of NIH", "CheXpert", NIH9, chexpert),
        _tested(1, "NIH, 9 labels", "NIH", NIH9, nih),
        _tested(2, "CheXpert, the 9 of NIH", "CheXpert", NIH9, chexpert),
        _tested(2, "NIH, 9 labels", "NIH", NIH9, nih),
        *(_validated(3, table.assign(place=model, series=table["variant"]), mimic) for model, table in formats.items()),
        _validated(4, rewards, mimic),
    ]
    return pd.concat(parts, ignore_index=True)


def _tested(finding: int, place: str, dataset: str, labels: tuple[str, ...], prevalence: pd.Series) -> pd.DataFrame:
    """Rows of `printed` from Table 5 or 6: the two models of the finding, one row per label."""
    f1 = published.f1(dataset).loc[list(labels), list(CONTRASTS[finding])]
    rows = f1.rename_axis(columns="series").unstack().rename("f1").reset_index()
    return rows.assign(
        finding=finding, place=place, prevalence=rows["label"].map(prevalence), films=published.FILMS[dataset]
    )


def _validated(finding: int, table: pd.DataFrame, prevalence: pd.Series) -> pd.DataFrame:
    """Rows of `printed` from a table of validation scores, in which each label has the printed macro-F1."""
    rows = (
        table[["place", "series", "macro_f1"]]
        .rename(columns={"macro_f1": "f1"})
        .merge(prevalence.rename("prevalence").reset_index(), how="cross")
    )
    return rows.assign(finding=finding, films=published.FILMS["validation"])


def scores(n_resamples: int, seed: int) -> pd.DataFrame:
    """The published macro-F1 of each finding, place and series, with its simulated 95 % interval.

    Columns: finding, place, series, published, low, high.
    """
    rows = []
    for names, labels in printed().groupby(["finding", "place", "series"], sort=False):
        samples, _ = _macros(labels, labels, n_resamples, seed)
        rows.append((*names, labels["f1"].mean(), *interval(samples)))
    return pd.DataFrame(rows, columns=["finding", "place", "series", "published", "low", "high"])


def label_scores(n_resamples: int, seed: int) -> pd.DataFrame:
    """The published F1 of each label on CheXpert with its simulated 95 % interval, for `figures.label_dots`.

    Columns: dataset, model, label, support (expected number of positive films), f1, f1_low, f1_high.
    """
    rows = printed().query("place == 'CheXpert, 14 labels'")
    tables = []
    for model, labels in rows.groupby("series", sort=False):
        low, high = interval(rates(_counts(labels, labels, n_resamples, seed)[0])[..., 2])
        tables.append(labels.assign(model=model, f1_low=low, f1_high=high))
    table = pd.concat(tables, ignore_index=True)
    support = (table["prevalence"] * table["films"]).round().astype(int)
    names = ["dataset", "model", "label", "support", "f1", "f1_low", "f1_high"]
    return table.assign(dataset="CheXpert: published F1, simulated intervals", support=support)[names]


def transfer_gaps(n_resamples: int, seed: int) -> pd.DataFrame:
    """The change of each model from CheXpert to NIH on the nine shared labels: model, change, low, high.

    `change` is relative to the published macro-F1 on CheXpert; the films of the two are sampled independently.
    """
    shares = published.prevalence().loc[list(NIH9)]
    home, away = (published.f1(dataset).loc[list(NIH9)] for dataset in ("CheXpert", "NIH"))
    rows = []
    for number, model in enumerate(home):
        sides = [
            pd.DataFrame({"f1": f1[model], "prevalence": shares[dataset], "films": published.FILMS[dataset]})
            for dataset, f1 in (("CheXpert", home), ("NIH", away))
        ]
        samples = [_macros(side, side, n_resamples, [seed, number, place])[0] for place, side in enumerate(sides)]
        rows.append((model, away[model].mean() / home[model].mean() - 1, *interval(samples[1] / samples[0] - 1)))
    return pd.DataFrame(rows, columns=["model", "change", "low", "high"])


def differences(n_resamples: int, seed: int, *, answered: float = 1.0, nih: str = "NIH") -> pd.DataFrame:
    """The differences of `CONTRASTS` with simulated 95 % intervals, for each of `ERRORS`.

    Columns: finding, place, contrast, errors, published (second minus first, macro-F1), low, high, change, change_low,
    change_high (the same relative to the first) and told (whether the interval excludes zero).
    """
    rows = []
    for (finding, place), labels in printed(nih).groupby(["finding", "place"], sort=False):
        first, second = (labels[labels["series"] == series] for series in CONTRASTS[finding])
        names = {"finding": finding, "place": place, "contrast": " less ".join(reversed(CONTRASTS[finding]))}
        for errors, shared in ERRORS.items():
            samples = _macros(first, second, n_resamples, seed, answered=answered, shared=shared)
            rows.append(names | {"errors": errors} | _difference(first["f1"].mean(), second["f1"].mean(), *samples))
    return pd.DataFrame(rows)


def _difference(first: float, second: float, first_samples: np.ndarray, second_samples: np.ndarray) -> dict:
    low, high = interval(second_samples - first_samples)
    change_low, change_high = interval(second_samples / first_samples - 1)
    absolute = {"published": second - first, "low": low, "high": high}
    relative = {"change": second / first - 1, "change_low": change_low, "change_high": change_high}
    return absolute | relative | {"told": bool(low > 0 or high < 0)}


def _macros(first: pd.DataFrame, second: pd.DataFrame, n_resamples: int, seed, **assumed: float) -> np.ndarray:
    """Simulated macro-F1 of two models on the same films, from rows of `printed`: (2, n_resamples)."""
    return macro(_counts(first, second, n_resamples, seed, **assumed))[..., 2]


def _counts(first: pd.DataFrame, second: pd.DataFrame, n_resamples: int, seed, **assumed: float) -> np.ndarray:
    one, other = first["f1"].to_numpy(), second["f1"].to_numpy()
    prevalence, films = first["prevalence"].to_numpy(), first["films"].iloc[0]
    return simulate(one, other, prevalence, films, n_resamples, np.random.default_rng(seed), **assumed)


def sensitivity(n_resamples: int, seed: int) -> pd.DataFrame:
    """Under how many assumptions the interval of each difference excludes zero, for independent and shared errors.

    Every `ANSWERED` is tried, and for NIH every `NIH_PREVALENCE`. Columns: finding, place, contrast, published, tried,
    and for each of `ERRORS` the number of intervals without zero.
    """
    tables = []
    for answered, nih in product(ANSWERED, NIH_PREVALENCE):
        table = differences(n_resamples, seed, answered=answered, nih=nih)
        again = nih != NIH_PREVALENCE[0]  # only NIH's rows differ then
        tables.append(table[table["place"].str.startswith("NIH")] if again else table)
    keys = ["finding", "place", "contrast", "published"]
    told = pd.concat(tables).groupby([*keys, "errors"], sort=False)["told"]
    counts = told.sum().unstack(sort=False)
    counts.insert(0, "tried", told.count().unstack(sort=False).iloc[:, 0])
    return counts.reset_index().rename_axis(columns=None)


# --- in words --------------------------------------------------------------------------------------------------------


def verdicts(sensitivity: pd.DataFrame) -> list[str]:
    """One line for each row of `sensitivity`: whether such a difference is larger than chance."""
    return [_verdict(row) for row in sensitivity.to_dict("records")]


def _verdict(row: dict) -> str:
    told, all_tried = sum(row[errors] for errors in ERRORS), row["tried"] * len(ERRORS)
    word = {0: "cannot be told from chance", all_tried: "can be told from chance"}.get(
        told, "depends on the assumptions"
    )
    counts = ", ".join(f"{row[errors]} of {row['tried']} with {errors}" for errors in ERRORS)
    what = f"Finding {row['finding']}, {row['contrast']}, {row['place']}"
    return f"{what}: published {row['published']:+.3f} {word} (told under {counts})."


def carried_by(dataset: str, first: str, second: str) -> str:
    """A sentence about the label that adds most to the change of macro-F1 between two models."""
    table = contributions(dataset, first, second)
    top, change = table.iloc[0], (table["second"] - table["first"]).mean()
    return (
        f"{top['label']} ({top['first']:.3f} to {top['second']:.3f}) makes {top['share']:.0%} of the published "
        f"{change:+.3f} from {first} to {second} on {dataset}; the other labels' mean changes by {top['without']:+.3f}."
    )


def agreement() -> str:
    """A sentence about how many recomputed values agree with the printed ones."""
    tables = {"changes": claims(published.claims()), "macro means": macro_means(), "micro-F1": micro_f1()}
    parts = [f"{table['agrees'].sum()} of {len(table)} {name}" for name, table in tables.items()]
    return f"Recomputed from the printed figures, {', '.join(parts)} agree with what is printed, within rounding."
