"""Is the reasoning true?  What a reply's reasoning states, beside the labels it ends in and what was drawn.

A statement is read with a list of words for each label (`WORDS`) and a few words of denial, sentence by sentence.  The
words cover the sentences of the rule-based teacher completely, and free text only in part: a finding that a model
describes in other words counts as not stated.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import answers, records
from chexreason.config import Study
from chexreason.data import curate
from chexreason.evaluation import compare, metrics

WORDS = {
    "No Finding": r"look normal|lungs are clear|nothing abnormal|normal chest|no finding|unremarkable",
    "Enlarged Cardiomediastinum": r"enlarged cardiomediastinum|wid\w+ (of the upper )?mediast|mediastinal contour sh",
    "Cardiomegaly": r"cardiomegaly|enlarge\w+ (of the )?heart|cardiac silhouette shows|large heart|heart is enlarged",
    "Lung Opacity": r"lung opacity|hazy opacity|diffuse opacity|faint haze|opacit(y|ies)",
    "Lung Lesion": r"lung lesion|nodul\w+|\bmass\b",
    "Edema": r"\bo?edema|perihilar haze|butterfly haze|septal lines",
    "Consolidation": r"consolidation|homogeneous dense area",
    "Pneumonia": r"pneumonia|air bronchograms|infiltrate",
    "Atelectasis": r"atelecta\w+|plate of collapse|\bcollapse\b",
    "Pneumothorax": r"pneumothora\w+|dark crescent",
    "Pleural Effusion": r"effusion|angle is blunted",
    "Pleural Other": r"pleural other|pleural thickening|pleural plaque",
    "Fracture": r"fracture|step with callus",
    "Support Devices": r"support devices?|tube or line|\b(catheter|pacemaker)\b",
}
"""What states each label, in lower case."""

DENIAL = re.compile(r"\b(no|not(?! only)|without|free of|clear of|negative for|absen\w+|rather than|rules? out)\b")
"""What denies everything after it in a sentence, up to "but" or "however" (No Finding aside)."""

PLACE = re.compile(r"\b(right|left|both)\b(?: (upper|mid|lower))?")

_PATTERNS = {label: re.compile(words) for label, words in WORDS.items()}


class Statement(NamedTuple):
    """A label that a sentence states, with its side ("right", "left", "both" or "") and zone ("upper", "mid", "lower"
    or "")."""

    label: str
    side: str
    zone: str


def statements(reasoning: str) -> list[Statement]:
    """The labels that a reasoning states and does not deny, each once, with the first place that is named for it."""
    found: dict[str, Statement] = {}
    for sentence in re.split(r"(?<=[.:;\n])\s+|\b(?:but|however)\b", reasoning.lower()):
        denied = DENIAL.search(sentence)
        place = PLACE.search(sentence)
        side, zone = (place[1], place[2] or "") if place else ("", "")
        for label, pattern in _PATTERNS.items():
            stated = pattern.search(sentence)
            meant = stated and (label == "No Finding" or not denied or denied.start() > stated.start())
            if meant and (label not in found or (side and not found[label].side)):
                found[label] = Statement(label, side, zone)
    return list(found.values())


COLUMNS = (
    "labels",
    "stated_labels",
    "statements",
    "true_statements",
    "unlabeled",
    "placed",
    "right_side",
    "right_zone",
)
"""What is counted on each film: labels given, those that the reasoning states; findings stated, those that are there,
those that are not among the labels, those that are there and have a side in the reasoning, and of these the right
sides, and the right sides and zones."""

RATES = {
    "stated": ("stated_labels", "labels"),
    "true": ("true_statements", "statements"),
    "unlabeled": ("unlabeled", "statements"),
    "right_side": ("right_side", "placed"),
    "right_zone": ("right_zone", "placed"),
}
"""The reported shares, each as a quotient of two counts."""


def count(reply: str, boxes: Sequence | None) -> tuple[int, ...]:
    """The counts of `COLUMNS` for one reply; with `boxes` None (a real film), those that need the truth are 0."""
    reading = answers.read(reply)
    said, given = statements(reading.reasoning), set(reading.labels)
    stated = {each.label for each in said}
    known = boxes or []
    there = {box.finding for box in known} or {"No Finding"}
    there |= {"No Finding"} if not there - {"Support Devices"} else set()
    true = [each for each in said if boxes is not None and each.label in there]
    placed = [(each, [box for box in known if box.finding == each.label]) for each in true if each.side]
    placed = [(each, at) for each, at in placed if {box.side for box in at} & {"right", "left"}]
    side = [(each, at) for each, at in placed if each.side in _sides(at)]
    zone = [each for each, at in side if not each.zone or each.zone in {box.zone for box in at}]
    numbers = len(given), len(given & stated), len(stated), len(true), len(stated - given)
    return *numbers, len(placed), len(side), len(zone)


def _sides(boxes: Sequence) -> set[str]:
    """The sides that a statement about `boxes` may name."""
    sides = {box.side for box in boxes}
    return {"both"} if {"right", "left"} <= sides else sides


def score(study: Study) -> dict[str, pd.DataFrame]:
    """The records of the reasoning of every checkpoint whose format has one, for every test set.

    - `reasoning`: model, seed, dataset, n (films), the counts, and the shares of `RATES` with patient intervals
    - `reasoning_paired`: how each step of training changes each share, `second` minus `first`

    Shares that need the truth are NaN on real films.
    """
    rows, drawn = [], {}
    for one in study.checkpoints():
        if study.prompt(one) == answers.ONLY_LABEL:
            continue
        given = records.load(study.paths.answers(one))
        for dataset in [name for name in study.tests if name in study.datasets(one)]:
            counted = _counted(study, given[given["dataset"] == dataset], dataset)
            plain, samples = _rates(study, dataset, counted)
            drawn[one, dataset] = plain, samples
            row = {"model": compare.model_name(study, one), "seed": one.seed, "dataset": dataset, "n": len(counted)}
            row |= counted[list(COLUMNS)].sum().astype(int).to_dict()
            for place, name in enumerate(RATES):
                row |= metrics.with_interval(name, plain[place], samples[:, place])
            rows.append(row)
    return {"reasoning": pd.DataFrame(rows), "reasoning_paired": pd.DataFrame(_steps(study, drawn))}


def _counted(study: Study, given: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The counts of each reply about one data set, with the film's patient."""
    films = curate.dataset(study, dataset).set_index("film").loc[given["film"]]
    drawn = study.source(dataset).kind == "phantom"
    counts = [count(text, boxes if drawn else None) for text, boxes in zip(given["text"], films["boxes"], strict=True)]
    return pd.DataFrame(counts, columns=list(COLUMNS)).assign(patient=films["patient"].to_numpy())


def _rates(study: Study, dataset: str, counted: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The shares of `RATES` (5,) and over resampled patients (n_resamples, 5)."""
    sums = counted.groupby("patient")[list(COLUMNS)].sum().to_numpy(float)
    resampled = metrics.resample(sums, study.compare.n_resamples, compare.generator(study, dataset))
    tops, bottoms = zip(*[[COLUMNS.index(name) for name in pair] for pair in RATES.values()], strict=True)
    with np.errstate(invalid="ignore"):
        plain, samples = (
            totals[..., list(tops)] / totals[..., list(bottoms)] for totals in (sums.sum(axis=0), resampled)
        )
    if study.source(dataset).kind != "phantom":
        plain[1], samples[:, 1] = np.nan, np.nan  # whether a statement is true
    return plain, samples


def _steps(study: Study, drawn: dict) -> list[dict]:
    rows = []
    for first, second in compare.training_steps(study):
        for dataset in study.tests:
            if (first, dataset) in drawn and (second, dataset) in drawn:
                before, after = drawn[first, dataset], drawn[second, dataset]
                step = {"seed": second.seed, "first": compare.model_name(study, first)}
                step |= {"second": compare.model_name(study, second), "dataset": dataset}
                for place, name in enumerate(RATES):
                    change = metrics.with_interval(
                        "difference", after[0][place] - before[0][place], after[1][:, place] - before[1][:, place]
                    )
                    rows.append(step | {"metric": name} | change)
    return rows


def summary(study: Study, found: dict[str, pd.DataFrame]) -> list[str]:
    """For each checkpoint of the first seed, over all test sets: how many labels are stated, and what is true."""
    lines = []
    for model, rows in found["reasoning"].query("seed == @study.seeds[0]").groupby("model", sort=False):
        total = rows[list(COLUMNS)].astype(object).sum()
        stated, true = (total[top] / max(total[bottom], 1) for top, bottom in (RATES["stated"], RATES["true"]))
        known = rows["true"].notna().any()
        lines.append(
            f"{model}: {stated:.1%} of {total['labels']:,} labels are stated in the reasoning"
            + (f", and {true:.1%} of {total['statements']:,} statements are true." if known else ".")
        )
    return lines
