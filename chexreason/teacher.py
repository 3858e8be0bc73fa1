"""The rule-based teacher, which puts into words what is on a film, and the check that every teacher's traces pass."""

import hashlib
import re
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from chexreason import answers
from chexreason.labels import CHEXPERT14

TRACES = "curate/traces.parquet"
MAX_WORDS = 75
TERSE = 0.1
"""Share of traces that leave out the survey and most negatives, as some readers do."""

OPENINGS = {
    "PA": (
        "Frontal PA film with sharp contours and good exposure.",
        "This is a standing PA view of good quality.",
        "PA film of the chest with clear detail.",
    ),
    "AP": (
        "Portable AP film with some noise and blur.",
        "This is a bedside AP view, so the heart looks larger.",
        "AP film of the chest with limited detail.",
    ),
    "lateral": ("Lateral film of the chest.",),
    "unknown": (
        "Frontal film of the chest.",
        "This is a frontal view of the chest.",
    ),
}

SURVEYS = (
    "I look at the heart, the lungs, the pleura and the bones in turn.",
    "I go through heart, mediastinum, lungs, pleura, bones and devices.",
)

FINDINGS = {
    "No Finding": (
        "Heart, mediastinum, lungs and pleura look normal.",
        "Nothing abnormal is seen in the heart, lungs or pleura.",
        "The lungs are clear and the heart and pleura look normal.",
    ),
    "Enlarged Cardiomediastinum": (
        "There is{degree} widening of the upper mediastinum.",
        "The mediastinal contour shows{degree} widening.",
    ),
    "Cardiomegaly": (
        "There is{degree} enlargement of the heart.",
        "The cardiac silhouette shows{degree} enlargement.",
    ),
    "Lung Opacity": (
        "There is{degree} hazy opacity{place}.",
        "A{degree} diffuse opacity veils the vessels{place}.",
        "Faint haze of{degree} extent is seen{place}.",
    ),
    "Lung Lesion": (
        "There is{degree} round nodular density{place}.",
        "A{degree} nodule with a round border is seen{place}.",
    ),
    "Edema": (
        "There is{degree} bilateral perihilar haze with septal lines.",
        "A{degree} butterfly haze with septal lines spreads from both hila.",
    ),
    "Consolidation": (
        "There is{degree} dense consolidation{place}.",
        "A{degree} homogeneous dense area with a sharp edge is seen{place}.",
    ),
    "Pneumonia": (
        "There are{degree} fluffy patches with air bronchograms{place}.",
        "A{degree} patchy infiltrate with air bronchograms is seen{place}.",
    ),
    "Atelectasis": (
        "There is{degree} linear band atelectasis{place}.",
        "A{degree} plate of collapse raises the diaphragm{place}.",
    ),
    "Pneumothorax": (
        "There is a{degree} pneumothorax with a thin pleural line{place}.",
        "A{degree} dark crescent without vessels is seen{place}.",
    ),
    "Pleural Effusion": (
        "There is a{degree} effusion with a meniscus{place}.",
        "The costophrenic angle is blunted by{degree} fluid{place}.",
    ),
    "Pleural Other": (
        "There is{degree} pleural thickening with a calcified edge{place}.",
        "A{degree} bright pleural plaque is seen{place}.",
    ),
    "Fracture": (
        "There is a{degree} displaced rib fracture{place}.",
        "A rib shows a{degree} step with callus{place}.",
    ),
    "Support Devices": (
        "Support devices are in place.",
        "Lines of a support device are seen.",
        "There is a tube or line of a support device.",
    ),
}
"""How each label is said.  `{degree}` and `{place}` start with a space, or are empty where no box says them."""

SHORT = {
    "No Finding": "normal chest",
    "Enlarged Cardiomediastinum": "wide mediastinum",
    "Cardiomegaly": "large heart",
    "Lung Opacity": "hazy opacity",
    "Lung Lesion": "round nodule",
    "Edema": "perihilar edema",
    "Consolidation": "dense consolidation",
    "Pneumonia": "patchy pneumonia",
    "Atelectasis": "band atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "support devices",
}

NEGATIVES = {
    "The heart is of normal size.": {"Cardiomegaly"},
    "The mediastinum is not widened.": {"Enlarged Cardiomediastinum"},
    "No effusion is seen.": {"Pleural Effusion"},
    "No pneumothorax is seen.": {"Pneumothorax"},
    "No consolidation is seen.": {"Consolidation", "Pneumonia"},
    "No septal lines are seen.": {"Edema"},
    "No nodule is seen.": {"Lung Lesion"},
    "No collapse is seen.": {"Atelectasis"},
    "The ribs are intact.": {"Fracture"},
    "No tube or line is seen.": {"Support Devices"},
}
"""Pertinent negatives, each with the labels that would make it untrue."""

_ANSWER = r"(?:findings?|diagnos[ei]s|conclusions?|answers?|abnormalit(?:y|ies)|information|list|text)"
GIVEAWAYS = re.compile(
    "|".join(
        (
            r"ground.?truth|label|annotat|answer key|metadata|data ?set|pretend|beforehand|(?:already|without) know",
            r"\b(?:as|was|were) (?:given|provided|supplied|stated|told|listed|instructed|requested|required)",
            rf"\b(?:correct|expected|provided|supplied|stated|listed|specified|the given) {_ANSWER}",
            rf"\b{_ANSWER} (?:given|provided|supplied|stated|listed|specified)",
            r"\b(?:i|we) (?:am|are|have been) (?:given|told|asked|instructed)|\byou (?:gave|told|provided|asked)",
            r"\b(?:the|your|radiology|radiologist's|accompanying) (?:report|prompt|instructions?)\b",
            r"\bas (?:if|though) (?:i|we) (?:did|do|had|have|were)\b",
            r"\b(?:must|should|have to|need to) (?:conclude|end (?:in|with)|arrive at|justify|match)\b",
        )
    )
)
"""Words by which a trace would own that it knew the answer beforehand, in a text of lower case."""


def write_trace(labels: Collection[str], boxes: Sequence, view: str, rng: np.random.Generator) -> str:
    """The reasoning for one film: opening, each positive label in CheXpert's order, negatives, impression.

    `labels` are the settled positives, `boxes` what is drawn on the film (`Box`: finding, side, zone, strength), `view`
    "PA", "AP", "lateral" or "unknown".  A label without a box (the labeller's false positive, or a real film) is said
    without place and degree; what is on the film or among the labels is never denied.  At most `MAX_WORDS` words; about
    nine in ten have 250 characters.
    Raises ValueError for a label outside the fourteen.
    """
    unknown = set(labels) - set(CHEXPERT14)
    if unknown:
        raise ValueError(f"no such label: {', '.join(sorted(unknown))}; the labels are {', '.join(CHEXPERT14)}")
    names = [name for name in CHEXPERT14 if name in labels]
    terse = rng.random() < TERSE
    opening = [_pick(OPENINGS.get(view, OPENINGS["unknown"]), rng)] + ([] if terse else [_pick(SURVEYS, rng)])
    closing = _impression(names, rng)
    findings = _findings(names, boxes, MAX_WORDS - _words([*opening, closing]), rng)
    shown = set(labels) | {box.finding for box in boxes}
    length = rng.integers(170, 250) if terse else rng.integers(265, 340)
    negatives = _negatives(shown, length - _characters(opening + findings + [closing]), rng)
    return " ".join([*opening, *findings, *negatives, closing])


def traces(films: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A trace for every film: film, reasoning, labels (positives), text (as published), check ("" when fine).

    `films` has film (str), view, labels (positive names) and boxes (a list of `Box`) a row, as `curate.dataset` gives
    them.  The words of a film depend on `seed` and the film's name only, not on the other films.
    """
    rows = []
    for film in films.itertuples():
        labels = tuple(film.labels)
        reasoning = write_trace(labels, film.boxes, film.view, _generator(film.film, seed))
        text = answers.write(answers.Answer(reasoning, labels))
        rows.append((film.film, reasoning, list(labels), text, check(text, labels)))
    return pd.DataFrame(rows, columns=["film", "reasoning", "labels", "text", "check"])


def check(text: str, truth: Collection[str], min_words: int = 0, max_words: int = MAX_WORDS) -> str:
    """What is wrong with a trace in its published form, the kind of fault before a colon; "" when nothing is."""
    answer = answers.read_strict(text)
    if answer is None:
        return "not of the published form"
    if set(answer.labels) != set(truth):
        return f"wrong labels: {', '.join(answer.labels) or 'none'}, not {', '.join(truth) or 'none'}"
    giveaway = GIVEAWAYS.search(" ".join(answer.reasoning.lower().split()))
    if giveaway:
        return f"gives the answer away: {giveaway[0]!r}"
    words = len(answer.reasoning.split())
    if words < min_words:
        return f"too short: {words} words, at least {min_words} are needed"
    return f"too long: {words} words, at most {max_words} are allowed" if words > max_words else ""


def summary(traces: pd.DataFrame, min_length: int) -> str:
    """What was written, in two sentences; `min_length` in characters is what the hard reward asks for."""
    lengths, words = traces["reasoning"].str.len(), traces["reasoning"].str.lower().str.findall(r"[a-z-]+")
    faulty, vocabulary, long = traces["check"].ne("").sum(), words.explode().nunique(), (lengths >= min_length).mean()
    return (
        f"{len(traces):,} traces, {faulty} of them faulty, in {vocabulary} different words.\n"
        f"Median length {lengths.median():.0f} characters; {long:.0%} have {min_length} or more."
    )


def _findings(names: list[str], boxes: Sequence, room: int, rng: np.random.Generator) -> list[str]:
    """A sentence for each label in `names`; in fewer words when the full sentences do not fit into `room` words."""
    seen = {name: [box for box in boxes if box.finding == name] for name in names}
    full = [_pick(FINDINGS[name], rng).format(degree=_degree(seen[name]), place=_place(seen[name])) for name in names]
    placed = [f"{_short(name)}{_place(seen[name]) if '{place}' in FINDINGS[name][0] else ''}." for name in names]
    bare = [f"{_short(name)}." for name in names]
    return next((said for said in (full, placed) if _words(said) <= room), bare)


def _short(name: str) -> str:
    return SHORT[name].capitalize()


def _negatives(shown: set[str], length: int, rng: np.random.Generator) -> list[str]:
    """Negatives that none of `shown` makes untrue, in random order, until they fill `length` characters."""
    true = [sentence for sentence, untrue in NEGATIVES.items() if not untrue & shown]
    chosen = []
    for index in rng.permutation(len(true)):
        if _characters(chosen) >= length:
            break
        chosen.append(true[index])
    return sorted(chosen, key=true.index)


def _impression(names: list[str], rng: np.random.Generator) -> str:
    lead = _pick(("Impression:", "In summary,", "Overall,"), rng)
    if len(names) > 3:
        return f"{lead} several abnormal findings."
    said = [SHORT[name] for name in names] or ["no clear finding"]
    return f"{lead} {' and '.join([', '.join(said[:-1]), said[-1]] if len(said) > 1 else said)}."


def _degree(boxes: Sequence) -> str:
    """How marked the strongest of `boxes` is; "" without boxes."""
    if not boxes:
        return ""
    strength = max(box.strength for box in boxes)
    return " mild" if strength < 0.55 else " moderate" if strength < 0.8 else " marked"


def _place(boxes: Sequence) -> str:
    """Where `boxes` lie, in the patient's sides; "" without boxes or in the midline."""
    sides = {box.side for box in boxes} - {"midline"}
    zones = {box.zone for box in boxes}
    zone = zones.pop() if len(zones) == 1 else ""
    if not sides:
        return ""
    if len(sides) > 1 or "both" in sides:
        return f" in both {zone} zones" if zone else " on both sides"
    side = sides.pop()
    return f" in the {side} {zone} zone" if zone else f" on the {side}"


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]


def _words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _characters(sentences: Sequence[str]) -> int:
    return sum(len(sentence) + 1 for sentence in sentences)


def _generator(film: str, seed: int) -> np.random.Generator:
    """A generator of the film's own, so that its trace stays when other films come and go."""
    digest = hashlib.sha256(f"{seed}/{film}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
