"""What a reward teaches: changes of macro-F1 along paths of training, with intervals over patients and seeds.

All runs answer the same films, and every run is compared with the SFT checkpoint of its own seed, from which it
started.  An effect is the mean change over seeds.

Its variance has two parts: between seeds (the variance of the changes, divided by the number of seeds), and between
patients (the variance of the mean change over resampled patients).  Their sum counts the noise of one seed on one
patient twice, so an interval is a little too wide (Owen and Eckles 2012, on the pigeonhole bootstrap).  The interval
is Student's, with Satterthwaite's degrees of freedom, because a bootstrap of five seeds is too narrow.  `coverage`
simulates how often intervals contain the true effect.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason.evaluation import metrics
from chexreason.labels import CHEXPERT14

KEYS = ["run", "seed", "step"]


class Effect(NamedTuple):
    """An effect with its 95 % interval (`low`, `high`), the 90 % interval of the equivalence test (`low90`, `high90`),
    its standard error, the degrees of freedom, the p-value of no effect, and the number of seeds."""

    effect: float
    low: float
    high: float
    low90: float
    high90: float
    se: float
    df: float
    p: float
    seeds: int


def effect(changes: Sequence[float], samples: np.ndarray) -> Effect:
    """The mean of `changes` (one per seed) with intervals over seeds and patients.

    `samples` (n_resamples,) are the means of the same changes over resampled patients.  With one seed, the interval is
    over patients only.  If nothing varies, the interval has no width.  It is NaN if the score is undefined in half of
    the resamples or more; in fewer, it is over those in which it is defined.
    """
    from scipy.stats import t

    values = np.asarray(changes, dtype=float)
    between = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    defined = samples[~np.isnan(samples)]
    within = float(np.var(defined, ddof=1)) if 2 * len(defined) > len(samples) else np.nan
    total = between + within
    se, df = total**0.5, total**2 / (between**2 / (len(values) - 1)) if between else np.inf
    middle = float(values.mean())
    wide, narrow = (t.ppf(level, df) * se for level in (0.975, 0.95))
    p = 2 * t.sf(abs(middle) / se, df) if se else float(middle == 0)
    low, high, low90, high90 = (float(middle + each) for each in (-wide, wide, -narrow, narrow))
    return Effect(middle, low, high, low90, high90, float(se), float(df), float(p), len(values))


def verdict(found: Effect, margin: float) -> str:
    """What the intervals of an effect show; `margin` is the smallest effect of interest.

    "undefined" if there is no interval.  "gain" or "loss" if the 95 % interval excludes 0; with "small" before it if
    the 90 % interval lies within the margin.  "no difference" if only the latter holds (two one-sided tests at 5 %,
    TOST: Schuirmann 1987).  Otherwise "open".
    """
    if np.isnan(found.low):
        return "undefined"
    within = -margin < found.low90 and found.high90 < margin
    if found.low > 0 or found.high < 0:
        return ("small " if within else "") + ("gain" if found.low > 0 else "loss")
    return "no difference" if within else "open"


def unpack(bits: pd.Series) -> np.ndarray:
    """Sets of labels that were written as numbers (`labels.bits`): bool (rows, 14)."""
    return (bits.to_numpy()[:, None] >> np.arange(len(CHEXPERT14)) & 1).astype(bool)


class Scored(NamedTuple):
    """Macro-F1 of several checkpoints on the same films: `names` (one row of `KEYS` each), `plain` (checkpoints,) and
    `samples` (n_resamples, checkpoints) over resampled patients."""

    names: pd.DataFrame
    plain: np.ndarray
    samples: np.ndarray


def score(
    films: pd.DataFrame, answers: pd.DataFrame, ruler: str, labels: Sequence[str], n_resamples: int, seed: int
) -> Scored:
    """Macro-F1 of every checkpoint in `answers` on `labels`, by the column `ruler` of `films`.

    `films` has film, patient and one column per ruler; `answers` has `KEYS`, film, and labels; all labels are numbers
    (`labels.bits`).  Every checkpoint must have answered every film once.  The resamples of patients depend on `seed`
    only, so effects on both rulers are paired.  Raises ValueError if answers are missing.
    """
    places = [CHEXPERT14.index(label) for label in labels]
    films = films.sort_values("film").reset_index(drop=True)
    truth = unpack(films[ruler])[:, places].astype(float)
    names, counts = [], []
    for key, given in answers.groupby(KEYS, sort=True):
        given = given.sort_values("film")
        if given["film"].tolist() != films["film"].tolist():
            raise ValueError(f"{key}: answers about {len(given)} films, and there are {len(films)} (or other ones)")
        names.append(key)
        counts.append(metrics.tally(truth, unpack(given["labels"])[:, places])[..., :3].reshape(len(films), -1))
    sums = pd.DataFrame(np.hstack(counts)).groupby(films["patient"].to_numpy()).sum().to_numpy(float)
    shape = (-1, len(names), len(labels), 3)
    plain = metrics.macro(sums.sum(axis=0).reshape(shape))[0, :, 2]
    drawn = metrics.resample(sums, n_resamples, np.random.default_rng(seed)).reshape(shape)
    return Scored(pd.DataFrame(names, columns=KEYS), plain, metrics.macro(drawn)[..., 2])


Weights = Mapping[tuple, float]
"""A contrast of checkpoints: for each (run, step), its weight in a sum of scores."""


def contrast(scored: Scored, weights: Weights, seeds: Iterable[int]) -> Effect:
    """The effect of a contrast: for every seed, the weighted sum of the scores of its checkpoints.

    `{("labels-a", 224): 1, ("sft", 0): -1}` is the change of a run from its start.  Raises KeyError for a checkpoint
    that was not scored.
    """
    place = {tuple(name): number for number, name in enumerate(scored.names.itertuples(index=False))}
    chosen = [[place[run, seed, step] for run, step in weights] for seed in seeds]
    factors = np.array(list(weights.values()))
    plain = scored.plain[np.array(chosen)] @ factors
    samples = np.mean([scored.samples[:, columns] @ factors for columns in chosen], axis=0)
    return effect(plain, samples)


def dose_response(scored: Scored, start: tuple, seeds: Sequence[int]) -> pd.DataFrame:
    """The effect of every run at every step against `start` (run, step): one row each, with the fields of `Effect`."""
    rows = []
    for run, step in scored.names[["run", "step"]].drop_duplicates().itertuples(index=False):
        if (run, step) != start:
            found = contrast(scored, {(run, step): 1.0, start: -1.0}, seeds)
            rows.append({"run": run, "step": step} | found._asdict())
    return pd.DataFrame(rows)


def coverage(
    seeds: int, patients: int, sds: tuple[float, float, float], repeats: int, rng: np.random.Generator
) -> dict[str, float]:
    """How often three 95 % intervals contain the true effect, in simulated experiments.

    The change of seed s on patient p is the effect plus a normal term of the seed, one of the patient and one of both,
    with the standard deviations `sds`.  The intervals: of `effect`; over patients alone, as if the seeds were all
    there are; and over seeds alone, as if the patients were.  Returns the share of `repeats` for each.
    """
    from scipy.stats import t

    covered = {"seeds and patients": 0, "patients alone": 0, "seeds alone": 0}
    for _ in range(repeats):
        of_seed, of_patient = rng.normal(0, sds[0], (seeds, 1)), rng.normal(0, sds[1], (1, patients))
        changes = of_seed + of_patient + rng.normal(0, sds[2], (seeds, patients))
        by_seed, by_patient = changes.mean(axis=1), changes.mean(axis=0)
        within = by_patient.var(ddof=1) / patients  # what resampling patients estimates, without its noise
        drawn = by_patient.mean() + within**0.5 * np.array([-1.0, 1.0]) / 2**0.5  # two values of this variance
        found = effect(by_seed, drawn)
        half = t.ppf(0.975, seeds - 1) * by_seed.std(ddof=1) / seeds**0.5
        covered["seeds and patients"] += found.low <= 0 <= found.high
        covered["patients alone"] += abs(found.effect) <= 1.96 * within**0.5
        covered["seeds alone"] += abs(found.effect) <= half
    return {name: count / repeats for name, count in covered.items()}


def smallest_detectable(se: float, df: float, power: float = 0.8) -> float:
    """The effect that a two-sided test at 5 % finds with this power, for a standard error and degrees of freedom."""
    from scipy.stats import t

    return float((t.ppf(0.975, df) + t.ppf(power, df)) * se)
