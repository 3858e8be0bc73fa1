"""How much of the fall from one hospital to another is pixels, labels and case mix.

The films of both hospitals' patients are drawn with the pixels of both, and scored with the labels of both: eight
cells, of which two are the hospitals as they are.  The fall is the macro-F1 of the first minus that of the last.  Each
layer's share is its Shapley value: the mean fall when it is switched, over all orders of switching.  The three shares
add up to the fall.  The patients of the two case mixes are resampled independently.
"""

from itertools import permutations, product

import numpy as np
import pandas as pd

from chexreason import records
from chexreason.config import BEST, Study
from chexreason.data import curate, sampling
from chexreason.data.phantom import hospitals
from chexreason.display import tables
from chexreason.evaluation import compare, metrics

LAYERS = ("pixels", "labels", "cases")
RULERS = ("home", "away", "truth")


def shapley(cells: np.ndarray) -> np.ndarray:
    """The shares (..., 3) of pixels, labels and cases in the fall from `cells[..., 0, 0, 0]` to `cells[..., 1, 1, 1]`.

    `cells` (..., 2, 2, 2) has the score for each choice of pixels, labels and cases, 0 for home and 1 for away.
    """
    shares = np.zeros((*cells.shape[:-3], 3))
    orders = list(permutations(range(3)))
    for order in orders:
        place = [0, 0, 0]
        for layer in order:
            before = cells[..., place[0], place[1], place[2]]
            place[layer] = 1
            shares[..., layer] += (before - cells[..., place[0], place[1], place[2]]) / len(orders)
    return shares


def relabeled(study: Study) -> pd.DataFrame:
    """The films of `study.crossed` by name, with every ruler's labels: dataset, patient, and (ruler, label) columns.

    The rulers are the labels of the home hospital, those of the away hospital, and the truth.  Labels are settled by
    the study's policy; they are NaN where a hospital does not have the label.
    """
    manifest = records.load(study.folder / curate.MANIFEST)
    manifest = manifest[manifest["split"].isin(list(study.crossed))].set_index("film").sort_index()
    named = {"home": study.crossing.home, "away": study.crossing.away}
    of = {end: study.hospital(source) for end, source in named.items()}
    parts = []
    for source in named.values():
        films = manifest[manifest["source"] == source]
        section, original = study.sources[source], films.index.str.rpartition("@").get_level_values(0)
        rulers = {"truth": hospitals.truth(films).astype(float)}
        for end, hospital in of.items():
            read = hospitals.read(section.model_copy(update={"labels": hospital}), source)
            table = read.table.assign(never_stated=[list(read.unknown)] * len(read.table)).set_index("film")
            rulers[end] = sampling.apply_policy(table.loc[original], study.curate.policy).set_axis(films.index)
        parts.append(pd.concat(rulers, axis="columns"))
    found = pd.concat(parts)
    for name, column in (("dataset", "split"), ("patient", "patient")):
        found[name, ""] = manifest.loc[found.index, column]
    return found


def cells(study: Study, films: pd.DataFrame, answers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Macro-F1 of one checkpoint for every pixels (2), ruler (3, as `RULERS`) and cases (2), 0 for home and 1 for away.

    Returns the values (2, 3, 2) and those of every resample (n_resamples, 2, 3, 2).  All checkpoints have the same
    resamples.  `films` comes from `relabeled`.
    """
    names, n = list(study.labels(study.crossing.label_set)), study.compare.n_resamples
    plain, drawn = np.zeros((2, 3, 2)), np.zeros((n, 2, 3, 2))
    for number, (dataset, (source, _)) in enumerate(study.crossed.items()):
        cases, pixels = divmod(number, 2)
        these = films[films["dataset"] == dataset]
        given = answers[answers["dataset"] == dataset].set_index("film").loc[these.index]
        said = np.array([[label in reply for label in names] for reply in compare.replies(given)])
        for place, ruler in enumerate(RULERS):
            counts = metrics.tally(these[ruler][names].to_numpy(), said)[..., :3].reshape(len(these), -1)
            sums = pd.DataFrame(counts).groupby(these["patient"].to_numpy()).sum().to_numpy(float)
            shape = (-1, len(names), 3)
            plain[pixels, place, cases] = metrics.macro(sums.sum(axis=0).reshape(shape))[0, 2]
            resampled = metrics.resample(sums, n, compare.generator(study, source))
            drawn[:, pixels, place, cases] = metrics.macro(resampled.reshape(shape))[:, 2]
    return plain, drawn


def decompose(study: Study) -> dict[str, pd.DataFrame]:
    """The records of the decomposition, for every checkpoint that answered the films of `study.crossed`.

    - `cells`: macro-F1 for every pixels, labels (home, away, truth) and cases
    - `layers`: the fall and the share of each layer
    - `layers_paired`: how each step of training changes the fall and the shares, `second` minus `first`

    All have intervals; those of the third are paired.
    """
    films, found = relabeled(study), {}
    for one in study.checkpoints():
        answers = records.load(study.paths.answers(one))
        if set(study.crossed) <= set(answers["dataset"]):
            found[one] = cells(study, films, answers)
    rows: dict[str, list[dict]] = {"cells": [], "layers": [], "layers_paired": []}
    for one, (plain, drawn) in found.items():
        named = {"model": compare.model_name(study, one), "seed": one.seed}
        for place in product(range(2), range(3), range(2)):
            where = {"pixels": RULERS[place[0]], "labels": RULERS[place[1]], "cases": RULERS[place[2]]}
            samples = drawn[:, place[0], place[1], place[2]]
            rows["cells"].append(named | where | metrics.with_interval("macro_f1", plain[place], samples))
        rows["layers"] += [named | row for row in _shares(plain, drawn)]
    for first, second in compare.training_steps(study):
        if first in found and second in found:
            names = (compare.model_name(study, one) for one in (first, second))
            step = dict(zip(("seed", "first", "second"), (second.seed, *names), strict=True))
            changes = [after - before for before, after in zip(found[first], found[second], strict=True)]
            rows["layers_paired"] += [step | row for row in _shares(*changes)]
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def _shares(plain: np.ndarray, drawn: np.ndarray) -> list[dict]:
    """The fall and its three shares, from the hospitals' own labels, each with its interval."""
    values, samples = shapley(plain[:, :2]), shapley(drawn[:, :, :2])
    together = {"fall": (values.sum(), samples.sum(axis=-1))}
    together |= {layer: (values[place], samples[:, place]) for place, layer in enumerate(LAYERS)}
    return [{"layer": name} | metrics.with_interval("share", *pair) for name, pair in together.items()]


def summary(study: Study, found: dict[str, pd.DataFrame]) -> list[str]:
    """Which layers the fall of each checkpoint of the first seed comes from, and what the last step changes."""
    lines = []
    for model, rows in found["layers"].query("seed == @study.seeds[0]").groupby("model", sort=False):
        fall, *parts = [
            f"{row.layer} {tables.estimate_text(row.share, row.share_low, row.share_high, sign='+')}"
            for row in rows.itertuples()
        ]
        lines.append(f"{model}: {fall}; of this, {', '.join(parts)}.")
    paired = found["layers_paired"]
    paired = paired[~paired["second"].str.endswith(BEST)] if len(paired) else paired
    if len(paired):
        last = paired[paired["second"] == paired["second"].iloc[-1]]
        changed = [
            row.layer for row in last.itertuples() if row.layer != "fall" and not row.share_low <= 0 <= row.share_high
        ]
        step = f"from {last['first'].iloc[0]} to {last['second'].iloc[0]}"
        lines.append(f"The share of {' and of '.join(changed) or 'no layer'} changes clearly {step}.")
    return lines
