"""Scores: counts, precision, recall and F1 per label and overall, with patient bootstrap intervals.

Conventions, the same in every table:

- A film whose truth for a label is unknown (NaN) is left out of that label's counts, and of no other's.
- A failed reply counts as an empty answer.
- A label without a positive in the truth has no recall and no F1 (NaN), whatever was answered: no model could score
  there.  It has no part in a macro mean; its false alarms count in the micro scores.
- A label that was never answered has no precision, and no part in the macro precision.  Where every label has a
  positive, this is scikit-learn's `zero_division=nan`.
- An interval is the 2.5th to 97.5th percentile over samples of *patients* drawn with replacement, so that films of one
  patient stay together; a sample follows the same rules, so a rare label may be missing from some samples' means.
  The estimate itself is the plain one, not a mean of samples.
- McNemar's test counts films as independent, which films of one patient are not; the bootstrap does not.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

COUNTS = ("tp", "fp", "fn", "tn")
RATES = ("precision", "recall", "f1")
PAIRED = ("macro_f1", "micro_f1", "reward")
"""The metrics whose differences between two models are reported."""

_CELLS = 2_000_000  # weights held at once, draws x patients: 16 MB as float64, small enough to stay near the processor


class Scores(NamedTuple):
    """What one model scored on one data set.

    `labels` has a row a label: label, support, tp, fp, fn, tn, precision, recall, f1, f1_low, f1_high.  `overall` holds
    n (films), micro and macro precision, recall and F1 and the means asked for, each with `_low` and `_high`.
    `samples` has a row a bootstrap sample and a column a metric of `overall`.
    """

    labels: pd.DataFrame
    overall: dict[str, float]
    samples: pd.DataFrame


class Travel(NamedTuple):
    """How one metric of a model changes from one data set to another.

    `overall` holds the two scores as `near_<metric>` and `far_<metric>`, `change` (far less near) and `relative` (that
    as a share of near: the paper's ratio), each with `_low` and `_high`; `samples` has a row a bootstrap sample and the
    columns `change` and `relative`.
    """

    overall: dict[str, float]
    samples: pd.DataFrame


def tally(truth: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What each film adds to TP, FP, FN and TN of each label.

    `truth` (films, labels) holds 1, 0 or NaN (unknown: adds to none), `given` (films, labels) true or false.  Returns
    bool (films, labels, 4).  Raises ValueError for any other truth: uncertain labels are settled first.
    """
    truth, given = np.asarray(truth, dtype=float), np.asarray(given, dtype=bool)
    strange = truth[~np.isin(truth, (0.0, 1.0)) & ~np.isnan(truth)]
    if strange.size:
        raise ValueError(f"truth holds {strange[0]:g}; a settled label is 1, 0 or NaN (see chexreason.labels.settle)")
    present, absent = truth == 1, truth == 0
    return np.stack([present & given, absent & given, present & ~given, absent & ~given], axis=-1)


def rates(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 (..., 3) from TP, FP, FN, the first of `counts` (..., 3 or 4); NaN where undefined."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=float)[..., :3], -1, 0)
    with np.errstate(invalid="ignore"):
        f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
        return np.stack([tp / (tp + fp), tp / (tp + fn), f1], axis=-1)


def micro(counts: np.ndarray) -> np.ndarray:
    """Rates (..., 3) of the counts (..., labels, 3 or 4) pooled over labels."""
    return rates(np.asarray(counts).sum(axis=-2))


def macro(counts: np.ndarray) -> np.ndarray:
    """Mean rates (..., 3) over the labels of `counts` (..., labels, 3 or 4) that have a positive and a defined rate."""
    by_label = rates(counts)
    defined = ~np.isnan(by_label) & ~np.isnan(by_label[..., [1]])  # recall is undefined just where no film is positive
    with np.errstate(invalid="ignore"):
        return np.where(defined, by_label, 0.0).sum(axis=-2) / defined.sum(axis=-2)


def resample(sums: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Totals over patients drawn with replacement: (patients, columns) -> (draws, columns), float64.

    Each draw takes as many patients as there are; the same `rng` state gives the same draws for any columns.
    """
    patients = len(sums)
    return np.concatenate([times @ sums for times in _weights(patients, draws, rng)])


def _weights(patients: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each patient is drawn, float64 (some of the draws, patients), a block at a time to bound memory."""
    block = max(1, _CELLS // patients)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = rng.integers(patients, size=(rows, patients))
        drawn += patients * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(float)


def interval(samples: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval (2, ...) of bootstrap samples (draws, ...); NaN where no sample is defined."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        return np.nanpercentile(samples, (2.5, 97.5), axis=0)


def with_interval(name: str, value: float, samples: np.ndarray) -> dict[str, float]:
    """`value` under `name`, with the 95 % interval of its bootstrap `samples` (draws,) under `_low` and `_high`."""
    low, high = interval(samples)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def score(
    truth: pd.DataFrame,
    given: pd.DataFrame,
    patients: pd.Series,
    draws: int,
    rng: np.random.Generator,
    means: pd.DataFrame | None = None,
) -> Scores:
    """Score `given` (films x labels, true or false) against `truth` (1, 0, NaN), with patient bootstrap intervals.

    `patients` says whose film each row is; `means` (films x quantities, NaN left out) are averaged over films beside
    the rates, as the reward is.  All four share one index.  Two models scored with equally seeded `rng` see the same
    draws.  Raises ValueError where the tables do not line up or no film is given.
    """
    means = pd.DataFrame(index=truth.index) if means is None else means
    _aligned(truth, answers=given, patients=patients, means=means)
    counts = tally(truth.to_numpy(), given.to_numpy())
    by_film = np.concatenate([counts.reshape(len(truth), -1), means.fillna(0.0), means.notna()], axis=1, dtype=float)
    by_patient = pd.DataFrame(by_film).groupby(patients.to_numpy(), sort=True).sum().to_numpy()
    plain = _metrics(by_patient.sum(axis=0, keepdims=True), truth.shape[1], list(means))
    samples = _metrics(resample(by_patient, draws, rng), truth.shape[1], list(means))
    overall = {"n": len(truth)} | {
        name: value
        for metric in plain
        if metric != "f1"
        for name, value in with_interval(metric, plain[metric][0], samples[metric]).items()
    }
    return Scores(
        _label_table(truth.columns, counts.sum(axis=0), interval(samples["f1"])),
        overall,
        pd.DataFrame({metric: values for metric, values in samples.items() if metric != "f1"}),
    )


def _aligned(truth: pd.DataFrame, **tables: pd.DataFrame | pd.Series) -> None:
    """Raises ValueError where the truth is empty, or a table is about other films, or answers about other labels."""
    if truth.empty:
        raise ValueError("nothing to score: the truth holds no film or no label")
    for name, table in tables.items():
        if "answers" in name and list(table.columns) != list(truth.columns):
            raise ValueError(f"the {name} are about {list(table.columns)}, the truth about {list(truth.columns)}")
        if not table.index.equals(truth.index):
            raise ValueError(f"the {name} and the truth are not about the same films in the same order")


def _metrics(totals: np.ndarray, labels: int, means: list[str]) -> dict[str, np.ndarray]:
    """Every metric of each row of `totals` (rows, labels * 4 counts, sums of means, films of means)."""
    counts = totals[:, : labels * 4].reshape(-1, labels, 4)
    sums, films = np.split(totals[:, labels * 4 :], 2, axis=1)
    metrics = {"f1": rates(counts)[..., 2]}
    for name, function in {"micro": micro, "macro": macro}.items():
        metrics |= {f"{name}_{rate}": column for rate, column in zip(RATES, function(counts).T, strict=True)}
    with np.errstate(invalid="ignore"):
        return metrics | dict(zip(means, (sums / films).T, strict=True))


def _label_table(names: pd.Index, counts: np.ndarray, f1_interval: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"label": list(names), "support": counts[:, 0] + counts[:, 2]})
    table[list(COUNTS)] = counts
    table[list(RATES)] = rates(counts)
    table[["f1_low", "f1_high"]] = f1_interval.T
    return table


def difference(first: Scores | Travel, second: Scores | Travel, metrics: tuple[str, ...] = PAIRED) -> pd.DataFrame:
    """What `second` scores above `first` on the same films: metric, difference, low and high.

    Both must have been scored with the same draws, so that what the films share cancels.  A metric that either lacks,
    or that is undefined, has no row.
    """
    rows = []
    for metric in metrics:
        value = second.overall.get(metric, np.nan) - first.overall.get(metric, np.nan)
        if not np.isnan(value):
            low, high = interval(second.samples[metric].to_numpy() - first.samples[metric].to_numpy())
            rows.append({"metric": metric, "difference": value, "low": low, "high": high})
    types = {"metric": "str", "difference": float, "low": float, "high": float}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def paired(
    truth: pd.DataFrame,
    first: pd.DataFrame,
    second: pd.DataFrame,
    patients: pd.Series,
    draws: int,
    seed: int,
    metrics: tuple[str, ...] = PAIRED,
) -> pd.DataFrame:
    """What the answers `second` score above `first` on the same films, as `difference` tells it; see `score`."""
    scores = (score(truth, given, patients, draws, np.random.default_rng(seed)) for given in (first, second))
    return difference(*scores, metrics)


def travel(near: Scores, far: Scores, metric: str = "macro_f1") -> Travel:
    """How `metric` changes from the data set of `near` to that of `far`, for one model on one set of labels.

    The two must have been drawn independently.  A sample in which `near` scores nothing has no relative change.
    """
    ends = {"near": near, "far": far}
    overall = {
        f"{name}_{metric}{end}": scored.overall[f"{metric}{end}"]
        for name, scored in ends.items()
        for end in ("", "_low", "_high")
    }
    plain = _changes(*(np.float64(scored.overall[metric]) for scored in ends.values()))
    samples = _changes(*(scored.samples[metric].to_numpy() for scored in ends.values()))
    for name, value in plain.items():
        overall |= with_interval(name, value, samples[name])
    return Travel(overall, pd.DataFrame(samples))


def _changes(near: np.ndarray, far: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"change": far - near, "relative": np.where(near > 0, far / near - 1, np.nan)}


def mcnemar(truth: pd.DataFrame, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """McNemar's exact test, label by label: is one of two models right on more of the same films than the other?

    `truth` (films x labels) holds 1, 0 or NaN, the answers true or false.  Returns a row a label: label, n (films whose
    label is known), first_only and second_only (films that only this model has right), p (two-sided), and p_holm,
    adjusted for the number of labels.  Films count as independent.
    """
    from scipy.stats import binomtest

    _aligned(truth, **{"first answers": first, "second answers": second})
    known, present = truth.notna().to_numpy(), truth.eq(1).to_numpy()
    right, other = ((given.to_numpy(dtype=bool) == present) & known for given in (first, second))
    table = pd.DataFrame({"label": list(truth.columns), "n": known.sum(axis=0)})
    table["first_only"], table["second_only"] = (right & ~other).sum(axis=0), (other & ~right).sum(axis=0)
    pairs = zip(table["first_only"], table["second_only"], strict=True)
    table["p"] = [binomtest(a, a + b).pvalue if a + b else 1.0 for a, b in pairs]
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (tests,) adjusted for the number of tests by Holm's step-down method (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def verdict(low: float, high: float) -> str:
    """What a 95 % interval of a difference allows one to say: gained, lost or cannot be told apart."""
    if low > 0:
        return "gained"
    return "lost" if high < 0 else "cannot be told apart"
