"""Scores: precision, recall, F1, specificity, false alarms, AUROC and AUPRC, with patient bootstrap intervals.

Conventions, the same in every table:

- If the truth of a label is unknown (NaN) on a film, the film is left out of the counts of that label only.
- A failed reply counts as an empty answer.
- A label without a positive film has no recall and no F1 (NaN), whatever was answered.  It is left out of the macro
  mean; its false alarms count in the micro scores.
- A label that was never answered has no precision and is left out of the macro precision.  If every label has a
  positive film, this equals scikit-learn's `zero_division=nan`.
- A label without a negative film has no specificity and is left out of the macro specificity.
- A label needs a positive and a negative film for its AUROC, and a positive film for its AUPRC (average precision).
  Both equal scikit-learn's `roc_auc_score` and `average_precision_score`; macro means are over the defined values.
- An interval is the 2.5th to 97.5th percentile over resamples of *patients*, so that films of one patient stay
  together.  Each resample follows the rules above, so a rare label may be missing in some of them.  The estimate is
  that of the data, not a mean of resamples.
- There is no interval (NaN) if fewer than two patients have a film in the denominator: recall, F1 and AUPRC need two
  patients with a positive film, specificity two with a negative film, AUROC both, precision two with an answer.  A
  macro mean has an interval if one of its labels has.  There is also none if the score is undefined in more than half
  of the resamples; otherwise the interval is over the resamples in which it is defined.
- If all resamples give the same value (a model without errors), the interval has no width.  This is not certainty:
  other patients may show errors.
- McNemar's test treats films as independent, but films of one patient are not.  The bootstrap does not assume this.
"""

import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

COUNTS = ("tp", "fp", "fn", "tn")
RATES = ("precision", "recall", "f1")
AREAS = ("auroc", "auprc")
PAIRED = ("macro_f1", "micro_f1", "reward")
"""The metrics whose differences between two models are reported."""

NORMAL = ("nofinding", "nofindings", "normal")
"""The names of the label of a normal film, in lower case without blanks; every other label is a finding."""

_CELLS = 2_000_000  # weights held at once, n_resamples x patients: 16 MB as float64, which fits a processor's cache


class Scores(NamedTuple):
    """The scores of one model on one data set.

    `labels` has one row per label: label, support, tp, fp, fn, tn, precision, recall, f1 and specificity, the last two
    with `_low` and `_high`.  `overall` has n (films), n_normal (normal films), micro and macro precision, recall and
    F1, macro_specificity, false_alarm_rate (see `false_alarms`) and the requested means, each with `_low` and `_high`.
    `samples` has one row per resample and one column per metric of `overall`; NaN if the metric is undefined or has no
    interval.  `score_probabilities` returns auroc and auprc instead, and `labels` then has the number of films.
    """

    labels: pd.DataFrame
    overall: dict[str, float]
    samples: pd.DataFrame


class TransferGap(NamedTuple):
    """The change of one metric of a model from one data set to another.

    `overall` has both scores as `in_domain_<metric>` and `out_of_domain_<metric>`, `change` (the second minus the
    first) and `relative` (the change as a share of the first, the paper's ratio), each with `_low` and `_high`.
    `samples` has one row per bootstrap sample and the columns `change` and `relative`.
    """

    overall: dict[str, float]
    samples: pd.DataFrame


def tally(truth: np.ndarray, given: ArrayLike) -> np.ndarray:
    """The counts TP, FP, FN and TN of each film and label: bool (films, labels, 4).

    `truth` (films, labels) has 1, 0 or NaN (unknown: no count), `given` (films, labels) true or false.  Raises
    ValueError for any other truth, such as uncertain labels: apply an uncertainty policy first.
    """
    truth, said = _known(truth), np.asarray(given, dtype=bool)
    present, absent = truth == 1, truth == 0
    return np.stack([present & said, absent & said, present & ~said, absent & ~said], axis=-1)


def _known(truth: np.ndarray) -> np.ndarray:
    truth = np.asarray(truth, dtype=float)
    strange = truth[~np.isin(truth, (0.0, 1.0)) & ~np.isnan(truth)]
    if strange.size:
        raise ValueError(
            f"the truth contains {strange[0]:g}; it must be 1, 0 or NaN (see chexreason.labels.apply_policy)"
        )
    return truth


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
    return _mean(np.where(np.isnan(by_label[..., [1]]), np.nan, by_label))  # no recall: no film is positive


def specificity(counts: np.ndarray) -> np.ndarray:
    """Specificity (..., 1) from the counts (..., 4): TN / (TN + FP); NaN if no film is negative."""
    fp, tn = (np.asarray(counts, dtype=float)[..., [column]] for column in (1, 3))
    with np.errstate(invalid="ignore"):
        return tn / (tn + fp)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over labels of `values` (..., labels, metrics), without undefined ones."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=-2) / defined.sum(axis=-2)


def is_normal(label: str) -> bool:
    """Whether `label` means a normal film, such as No Finding."""
    return re.sub(r"[\W_]", "", str(label)).casefold() in NORMAL


def false_alarms(truth: pd.DataFrame, given: pd.DataFrame) -> pd.Series:
    """Whether a normal film was answered with a finding (films; 1 or 0, NaN where the film is not normal).

    A film is normal if the truth is known for all labels and is No Finding or, if No Finding is not among the labels,
    if no label is present.  A false alarm is an answer with any absent label except No Finding.  (A correct Support
    Devices is not a false alarm.)  The mean is the false-alarm rate.  It is NaN if no film is normal, and for the label
    No Finding alone.
    """
    states, finding = truth.to_numpy(float), ~np.array([is_normal(name) for name in truth], dtype=bool)
    normal = (states == 0).all(axis=1) if finding.all() else (states[:, ~finding] == 1).all(axis=1)
    normal &= ~np.isnan(states).any(axis=1) & finding.any()
    alarm = (given.to_numpy(bool) & (states == 0))[:, finding].any(axis=1)
    return pd.Series(np.where(normal, alarm, np.nan), index=truth.index)


def resample(sums: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Totals over resamples of patients: (patients, columns) -> (n_resamples, columns), float64.

    Each resample has as many patients as there are.  The same `rng` state gives the same resamples for any columns.
    """
    patients = len(sums)
    return np.concatenate([times @ sums for times in _weights(patients, n_resamples, rng)])


def _weights(patients: int, n_resamples: int, rng: np.random.Generator, films: int = 0) -> Iterator[np.ndarray]:
    """How often each patient is drawn: blocks of float64 (resamples, patients), small enough for memory.

    `films` is the number of rows that the caller makes from each resample, if it is larger than `patients`.
    """
    block = max(1, _CELLS // max(patients, films))
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        drawn = rng.integers(patients, size=(rows, patients))
        drawn += patients * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(float)


def interval(samples: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval (2, ...) of the defined resamples (n_resamples, ...); NaN if fewer than half are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        bounds = np.nanpercentile(samples, (2.5, 97.5), axis=0)
    return np.where(np.isnan(samples).mean(axis=0) > 0.5, np.nan, bounds)


def with_interval(name: str, value: float, samples: np.ndarray) -> dict[str, float]:
    """`value` under `name`, and the 95 % interval of its `samples` (n_resamples,) under `_low` and `_high`."""
    low, high = interval(samples)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def score(
    truth: pd.DataFrame,
    given: pd.DataFrame,
    patients: pd.Series,
    n_resamples: int,
    rng: np.random.Generator,
    means: pd.DataFrame | None = None,
) -> Scores:
    """Score `given` (films x labels, true or false) against `truth` (1, 0, NaN), with patient bootstrap intervals.

    `patients` has the patient of each row.  `means` (films x quantities, without NaN) are averaged over films, such as
    the reward.  All four have the same index.  With the same seed of `rng`, two models get the same resamples.
    Raises ValueError if the tables do not match, a patient is missing, or there is no film.
    """
    means = pd.DataFrame(index=truth.index) if means is None else means
    _aligned(truth, answers=given, patients=patients, means=means)
    means = means.assign(false_alarm_rate=false_alarms(truth, given))
    counts = tally(truth.to_numpy(), given.to_numpy())
    by_film = np.concatenate([counts.reshape(len(truth), -1), means.fillna(0.0), means.notna()], axis=1, dtype=float)
    by_patient = pd.DataFrame(by_film).groupby(patients.to_numpy(), sort=True).sum().to_numpy()
    plain = _metrics(by_patient.sum(axis=0, keepdims=True), truth.shape[1], list(means))
    samples = _metrics(resample(by_patient, n_resamples, rng), truth.shape[1], list(means))
    table = pd.DataFrame({"label": list(truth), "support": counts[..., [0, 2]].sum(axis=(0, 2))})
    table[list(COUNTS)] = counts.sum(axis=0)
    table[["precision", "recall"]] = rates(counts.sum(axis=0))[:, :2]
    n: dict[str, float] = {"n": len(truth), "n_normal": int(means["false_alarm_rate"].notna().sum())}
    return _scores(table, n, plain, samples, _contributors(by_patient, truth.shape[1], list(means)))


def _scores(table: pd.DataFrame, n: dict[str, float], plain: dict, samples: dict, contributors: dict) -> Scores:
    """The Scores of `plain` values (1, labels) or (1,) by metric, with the intervals of `samples` (n_resamples, ...).

    `contributors` has the number of patients behind each metric; with fewer than two there is no interval.
    """
    samples = {name: np.where(contributors[name] < 2, np.nan, values) for name, values in samples.items()}
    overall = dict(n)
    for name, value in plain.items():
        if value.ndim == 2:
            table[[name, f"{name}_low", f"{name}_high"]] = np.column_stack([value[0], *interval(samples[name])])
        else:
            overall |= with_interval(name, value[0], samples[name])
    return Scores(table, overall, pd.DataFrame({name: values for name, values in samples.items() if values.ndim == 1}))


def _contributors(by_patient: np.ndarray, labels: int, means: list[str]) -> dict[str, np.ndarray]:
    """How many patients have a film in the denominator of each metric of `_metrics`: (labels,) or a number."""
    tp, fp, fn, tn = np.moveaxis(by_patient[:, : labels * 4].reshape(-1, labels, 4), -1, 0)
    positive, negative, answered = tp + fn > 0, tn + fp > 0, tp + fp > 0
    patients = {"f1": positive.sum(axis=0), "specificity": negative.sum(axis=0)}
    for rate, there in zip(RATES, (answered, positive, positive), strict=True):
        patients |= {f"micro_{rate}": there.any(axis=1).sum(), f"macro_{rate}": there.sum(axis=0).max()}
    films = by_patient[:, labels * 4 + len(means) :]
    averaged = dict(zip(means, (films > 0).sum(axis=0), strict=True))
    return patients | {"macro_specificity": patients["specificity"].max()} | averaged


def _aligned(truth: pd.DataFrame, **tables: pd.DataFrame | pd.Series) -> None:
    """Raise ValueError if the truth is empty, a table has other films, or the answers have other labels."""
    if truth.empty:
        raise ValueError("nothing to score: the truth has no film or no label")
    for name, table in tables.items():
        if "answers" in name and list(table.columns) != list(truth.columns):
            raise ValueError(f"the {name} have the labels {list(table.columns)}, the truth has {list(truth.columns)}")
        if not table.index.equals(truth.index):
            raise ValueError(f"the {name} and the truth do not have the same films in the same order")
        if name == "patients" and table.isna().any():
            raise ValueError(
                f"film {table.index[table.isna()][0]} has no patient; its patient must be known to resample"
            )


def _metrics(totals: np.ndarray, labels: int, means: list[str]) -> dict[str, np.ndarray]:
    """All metrics of each row of `totals` (rows, labels * 4 counts, sums of means, films of means)."""
    counts = totals[:, : labels * 4].reshape(-1, labels, 4)
    sums, films = np.split(totals[:, labels * 4 :], 2, axis=1)
    metrics = {"f1": rates(counts)[..., 2], "specificity": specificity(counts)[..., 0]}
    for name, function in {"micro": micro, "macro": macro}.items():
        metrics |= {f"{name}_{rate}": column for rate, column in zip(RATES, function(counts).T, strict=True)}
    metrics["macro_specificity"] = _mean(specificity(counts))[..., 0]
    with np.errstate(invalid="ignore"):
        return metrics | dict(zip(means, (sums / films).T, strict=True))


def score_probabilities(
    truth: pd.DataFrame, probabilities: pd.DataFrame, patients: pd.Series, n_resamples: int, rng: np.random.Generator
) -> Scores:
    """AUROC and AUPRC of `probabilities` (films x labels) against `truth` (1, 0, NaN), with bootstrap intervals.

    Only the order of the probabilities matters; equal ones are ties.  If the truth or the probability of a label is NaN
    on a film, the film is left out of that label.  The three tables have the same index.  `labels` has label, support,
    films, auroc and auprc; `overall` has n, macro_auroc and macro_auprc; both with `_low` and `_high`.  With the same
    seed of `rng`, the resamples are those of `score`.  Raises ValueError like `score`.
    """
    _aligned(truth, answers=probabilities, patients=patients)
    owner, owners = pd.factorize(patients.to_numpy(), sort=True)
    states = pd.DataFrame(_known(truth), index=truth.index, columns=truth.columns).mask(probabilities.isna())
    ranked = [_ranked(states[name].to_numpy(), probabilities[name].to_numpy(float), owner) for name in truth]
    plain = _areas(ranked, np.ones((len(owners), 1)))
    blocks = [
        _areas(ranked, np.ascontiguousarray(times.T)) for times in _weights(len(owners), n_resamples, rng, len(truth))
    ]
    samples = {name: np.concatenate([block[name] for block in blocks]) for name in plain}
    positive, negative = (states.eq(state).groupby(owner).any().sum().to_numpy() for state in (1, 0))
    contributors = {"auroc": np.minimum(positive, negative), "auprc": positive}
    contributors |= {f"macro_{name}": count.max() for name, count in contributors.items()}
    table = pd.DataFrame({"label": list(truth), "support": states.eq(1).sum().to_numpy()})
    table["films"] = states.notna().sum().to_numpy()
    return _scores(table, {"n": len(truth)}, plain, samples, contributors)


def _ranked(truth: np.ndarray, probability: np.ndarray, owner: np.ndarray) -> list:
    """The number of films of each patient at each step, as three sparse matrices (steps, patients).

    A step is a probability of at least one positive film; steps go from the highest down.  The first matrix counts the
    positive films of a step, the second the negative films between the previous step and this one (included), the third
    the negative films with exactly this probability.  Negative films below the last step have an extra row.
    """
    from scipy.sparse import csr_array

    steps = np.unique(-probability[truth == 1])
    row = np.searchsorted(steps, -probability)
    level = np.append(steps, np.nan)[row] == -probability
    shape = (len(steps) + 1, owner.max() + 1)
    films = [np.flatnonzero(kind) for kind in (truth == 1, truth == 0, (truth == 0) & level)]
    return [csr_array((np.ones(len(each)), (row[each], owner[each])), shape=shape) for each in films]


def _areas(ranked: list[list], weights: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC and AUPRC (resamples, labels), and their means over labels, for `weights` (patients, resamples)."""
    areas = np.full((weights.shape[1], len(ranked), 2), np.nan)
    for label, (positive, negative, tied) in enumerate(ranked):
        found, tp, fp = positive @ weights, (positive @ weights).cumsum(axis=0), (negative @ weights).cumsum(axis=0)
        ahead = fp - tied @ weights / 2 if tied.nnz else fp  # of each positive film; one of its probability is half
        with np.errstate(invalid="ignore"):
            areas[:, label, 0] = 1 - np.einsum("sr,sr->r", found, ahead) / (tp[-1] * fp[-1])
            areas[:, label, 1] = np.einsum("sr,sr->r", found, tp / np.maximum(tp + fp, 1)) / tp[-1]
    means = _mean(areas)
    by_label = {name: areas[..., column] for column, name in enumerate(AREAS)}
    return by_label | {f"macro_{name}": means[:, column] for column, name in enumerate(AREAS)}


def difference(
    first: Scores | TransferGap, second: Scores | TransferGap, metrics: tuple[str, ...] = PAIRED
) -> pd.DataFrame:
    """The paired difference `second` minus `first` on the same films: metric, difference, low and high.

    Both must have been scored with the same resamples, so that errors on the same films cancel.  A metric that one of
    them does not have, or that is undefined, has no row.
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
    n_resamples: int,
    seed: int,
    metrics: tuple[str, ...] = PAIRED,
) -> pd.DataFrame:
    """What the answers `second` score above `first` on the same films, as `difference` tells it; see `score`."""
    before, after = (
        score(truth, given, patients, n_resamples, np.random.default_rng(seed)) for given in (first, second)
    )
    return difference(before, after, metrics)


def transfer_gap(in_domain: Scores, out_of_domain: Scores, metric: str = "macro_f1") -> TransferGap:
    """The change of `metric` from the scores `in_domain` to `out_of_domain`, for one model and one set of labels.

    The two must have been resampled independently.  A sample whose score in-domain is 0 has no relative change.
    """
    ends = {"in_domain": in_domain, "out_of_domain": out_of_domain}
    overall = {
        f"{name}_{metric}{end}": scored.overall[f"{metric}{end}"]
        for name, scored in ends.items()
        for end in ("", "_low", "_high")
    }
    plain = _changes(np.float64(in_domain.overall[metric]), np.float64(out_of_domain.overall[metric]))
    samples = _changes(in_domain.samples[metric].to_numpy(), out_of_domain.samples[metric].to_numpy())
    for name, value in plain.items():
        overall |= with_interval(name, value, samples[name])
    return TransferGap(overall, pd.DataFrame(samples))


def _changes(in_domain: np.ndarray | np.float64, out_of_domain: np.ndarray | np.float64) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "change": out_of_domain - in_domain,
            "relative": np.where(in_domain > 0, out_of_domain / in_domain - 1, np.nan),
        }


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
    """What a 95 % interval of a difference shows: "gain", "loss" or, if it includes zero, "no clear difference"."""
    if low > 0:
        return "gain"
    return "loss" if high < 0 else "no clear difference"
