"""How films are chosen: uncertainty policies, splits by patient, and the greedy sampler."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from chexreason import labels
from chexreason.config import Curate
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)


class CurateError(ValueError):
    """A source does not have what the params file requires; the message names the key and what is there."""


def apply_policy(films: pd.DataFrame, policy: str) -> pd.DataFrame:
    """The labels of `films` under an uncertainty policy (films x 14; 1.0, 0.0, NaN)."""
    kind, kinds = pd.factorize(films["never_stated"].map(tuple))
    unknown = np.array([[name in never for name in LABELS] for never in kinds], bool).reshape(-1, len(LABELS))[kind]
    return labels.apply_policy(films[LABELS].fillna(0.0), policy).mask(unknown)


def without_pixels(split: pd.Series) -> pd.Series:
    """The splits, with one name for the data sets of `layers` that have the same films with different pixels."""
    return split.str.replace(r"^(?!rl@)(.+)@.*", r"\1", regex=True)


def hash_to_unit(names: Iterable[str], salt: str) -> np.ndarray:
    """A number in [0, 1) for each name: a hash of the salt and the name, the same on every machine."""
    hashes = (hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in names)
    return np.fromiter((int.from_bytes(each, "big") >> 11 for each in hashes), dtype=float) / 2**53


def assign_shares(patients: pd.Series, shares: dict[str, float], salt: str) -> pd.Series:
    """The share (key of `shares`) of each patient.  It depends on the patient and `salt` only, not on other rows."""
    names = patients.unique()
    place = np.searchsorted(np.cumsum(list(shares.values())), hash_to_unit(names, salt), side="right")
    share = np.array(list(shares))[np.minimum(place, len(shares) - 1)]
    return patients.map(dict(zip(names, share, strict=True)))


def greedy(
    present: pd.DataFrame, count: int, floor: float, ceiling: float, penalty: float, order: np.ndarray
) -> pd.DataFrame:
    """Choose `count` films one by one, always a film with the highest score (PROTOCOL: Data; the formula is ours).

    With n_l chosen films with label l so far, and N = `count`, a film with labels Y has the score

        sum over l in Y of  D_l - penalty * A_l
        D_l = max(0, 1 - n_l / ceil(floor * N))                        how far l is below the floor
        A_l = n_l / (ceiling * N) if n_l >= ceiling * N, else 0        how far l is above the ceiling

    Of equal scores, the film that is lowest in `order` (one random number per film) is taken.  `present`: bool, films x
    labels.  Films with the same labels have the same score, so only the few label patterns are compared.
    Returns one row per chosen film, indexed like `present`: `pick` (from 1) and `lacking`, its labels below the floor.
    Raises CurateError if there are fewer than `count` films.
    """
    if len(present) < count:
        raise CurateError(f"{count} films are asked for, but these patients have only {len(present)}")
    columns = np.array(present.columns)
    codes = present.to_numpy(bool) @ (1 << np.arange(len(columns)))
    _, first, pattern = np.unique(codes, return_index=True, return_inverse=True)
    shows = present.to_numpy(float)[first]
    queue = np.lexsort((order, pattern))  # the films, pattern after pattern, each pattern in `order`
    following = np.searchsorted(pattern[queue], np.arange(len(shows)))
    end = np.append(following[1:], len(queue))
    need, limit = _floor_count(floor, count), max(ceiling * count, 1.0)
    seen = np.zeros(len(columns))
    picks = []
    for _ in range(count):
        deficit = np.maximum(need - seen, 0) / max(need, 1)
        abundance = np.where(seen >= limit, seen / limit, 0.0)
        score = (shows @ (deficit - penalty * abundance)).round(9)  # equal sums stay equal, whatever their order
        left = np.flatnonzero(following < end)
        best = left[score[left] == score[left].max()]
        chosen = best[np.argmin(order[queue[following[best]]])]
        picks.append((queue[following[chosen]], list(columns[(shows[chosen] > 0) & (deficit > 0)])))
        following[chosen] += 1
        seen += shows[chosen]
    rows, lacking = zip(*picks, strict=True)
    return pd.DataFrame({"pick": range(1, count + 1), "lacking": lacking}, index=present.index[list(rows)])


def sample(films: pd.DataFrame, split: str, count: int, section: Curate) -> pd.DataFrame:
    """`count` films chosen by `greedy`; every label of the source is on at least `section.floor` of them.

    `section` is `study.curate`.  Films without a positive label are not used.  Adds the columns `split` and `why`.
    Raises CurateError with the label, the number of films that show it, and the number needed.
    """
    present = apply_policy(films, section.policy) == 1.0
    present = present.loc[present.any(axis=1), [name for name in LABELS if name not in films["never_stated"].iloc[0]]]
    need = _floor_count(section.floor, count)
    _refuse_below(present.sum(), need, split, "its patients have")
    order = hash_to_unit(films.loc[present.index, "film"], f"{section.seed}/{split}")
    try:
        picks = greedy(present, count, section.floor, section.ceiling, section.penalty, order)
    except CurateError as error:
        source = films["source"].iloc[0] if len(films) else section.train
        raise CurateError(f"curate.{split}: {error}; raise sources.{source}.films") from None
    _refuse_below(present.loc[picks.index].sum(), need, split, "the sampler, with this ceiling and penalty, took")
    lacking = picks["lacking"].map(lambda names: f"deficit of {', '.join(names)}" if names else "no deficit left")
    why = split + ": greedy pick " + picks["pick"].astype(str) + ", " + lacking
    return films.loc[picks.index].assign(split=split, why=why)


def whole_patients(films: pd.DataFrame, count: int, salt: str) -> pd.DataFrame:
    """At most `count` films: all films of random patients; a patient with too many films is skipped."""
    sizes = films.groupby("patient").size()
    left, chosen = count, []
    for patient, size in sizes.iloc[np.argsort(hash_to_unit(sizes.index, salt))].items():
        if size <= left:
            chosen.append(patient)
            left -= size
    return films[films["patient"].isin(chosen)]


def _floor_count(floor: float, count: int) -> int:
    """ceil(floor * count), without the rounding error of 0.07 * 100 = 7.000000000000001."""
    return int(np.ceil(round(floor * count, 9)))


def _refuse_below(found: pd.Series, need: int, split: str, who: str) -> None:
    scarce = found[found < need]
    if len(scarce):
        told = "; ".join(f"{name}: {who} {number}, {need} are needed" for name, number in scarce.items())
        raise CurateError(f"curate.floor cannot be met in {split}: {told} (more films in the source, or a lower floor)")
