"""The rule-based teacher: it describes the labels of a film and, on phantoms, what was drawn."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from chexreason import answers
from chexreason.labels import CHEXPERT14
from chexreason.teacher import check

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

STRIKING = ("What strikes me first:", "My eye goes first to this:")
BALANCE = ("Against more than that:", "On the other side:")
CONFIDENT = ("Taken together I am fairly sure of this:", "The pieces add up to one picture:")
"""How the narrative names what is striking, what speaks against more, and what it all adds up to."""

LUNGS = ("Lung Opacity", "Lung Lesion", "Consolidation", "Pneumonia", "Atelectasis")
PLEURA = ("Pneumothorax", "Pleural Effusion", "Pleural Other")
STEPS = (
    ("Quality", (), ""),
    ("Devices", ("Support Devices",), "none"),
    ("Airways", (), "midline"),
    ("Mediastinum", ("Enlarged Cardiomediastinum",), "not wide"),
    ("Heart", ("Cardiomegaly",), "normal size"),
    ("Hila and vessels", ("Edema",), "normal"),
    ("Right lung", LUNGS, "clear"),
    ("Left lung", LUNGS, "clear"),
    ("Pleura", PLEURA, "free"),
    ("Diaphragm", (), "sharp"),
    ("Bones and soft tissues", ("Fracture",), "intact"),
    ("Synthesis", (), ""),
)
"""The twelve steps of Reasoning A: what each looks at, the labels it may find, and what it says where none is there."""


def write_trace(
    labels: Collection[str], boxes: Sequence, view: str, rng: np.random.Generator, format: str = "free_reasoning"
) -> str:
    """The reasoning for one film in an SFT format (Tables 2 and 3); "" for `only_label`.

    `labels` are the positive labels, `boxes` what is drawn on the film (`Box`: finding, side, zone, strength), `view`
    "PA", "AP", "lateral" or "unknown". A label without a box (a false positive of the labeler, or a real film) has no
    place and degree. Nothing that is drawn or labeled is denied. At most `MAX_WORDS` words; about nine in ten free ones
    have 250 characters. Raises ValueError for a label outside the fourteen, or another format.
    """
    unknown = set(labels) - set(CHEXPERT14)
    if unknown:
        raise ValueError(f"no such label: {', '.join(sorted(unknown))}; the labels are {', '.join(CHEXPERT14)}")
    if format not in check.FORMATS:
        raise ValueError(f"no such format: {format!r}; choose one of {', '.join(check.FORMATS)}")
    if format == "only_label":
        return ""
    write = {"free_reasoning": _free, "reasoning_narrative": _narrative, "reasoning_a": _steps}[format]
    return write([name for name in CHEXPERT14 if name in labels], boxes, view, rng)


def _free(names: list[str], boxes: Sequence, view: str, rng: np.random.Generator) -> str:
    """Opening, each positive label in CheXpert's order, negative findings, impression."""
    terse = rng.random() < TERSE
    opening = [_opening(view, rng)] + ([] if terse else [_pick(SURVEYS, rng)])
    closing = _impression(names, rng)
    findings = _findings(names, boxes, check.MAX_WORDS["free_reasoning"] - _words([*opening, closing]), rng)
    length = int(rng.integers(170, 250) if terse else rng.integers(265, 340))
    negatives = _negatives(_visible(names, boxes), length - _characters(opening + findings + [closing]), rng)
    return " ".join([*opening, *findings, *negatives, closing])


def _narrative(names: list[str], boxes: Sequence, view: str, rng: np.random.Generator) -> str:
    """The most striking finding, more evidence, evidence against other findings, and the conclusion."""
    strength = {box.finding: box.strength for box in sorted(boxes, key=lambda box: box.strength)}
    by_weight = sorted(names, key=lambda name: -strength.get(name, 0.0))
    opening, closing = _opening(view, rng), f"{_pick(CONFIDENT, rng)} {_finding_list(names)}."
    room = check.MAX_WORDS["reasoning_narrative"] - _words([opening, closing]) - 30
    first, *more = _findings(by_weight, boxes, room, rng) or ["Nothing abnormal stands out."]
    negatives = _negatives(_visible(names, boxes), 110, rng)
    against = [_pick(BALANCE, rng), *negatives] if negatives else []
    return " ".join([opening, _pick(STRIKING, rng), first, *more, *against, closing])


def _steps(names: list[str], boxes: Sequence, view: str, rng: np.random.Generator) -> str:
    """The twelve numbered lines of Reasoning A."""
    said = {"Quality": _opening(view, rng).rstrip("."), "Synthesis": _finding_list(names)}
    lines = [said.get(step) or _step(step, findings, normal, names, boxes) for step, findings, normal in STEPS]
    steps = [step for step, _, _ in STEPS]
    return "\n".join(
        f"{number}. {step}: {line}." for number, (step, line) in enumerate(zip(steps, lines, strict=True), 1)
    )


def _step(step: str, findings: Sequence[str], normal: str, names: list[str], boxes: Sequence) -> str:
    """The text of one step; a finding on the film that is not labeled is neither named nor denied."""
    side = {"Right lung": "right", "Left lung": "left"}.get(step)
    there = [box for box in boxes if box.finding in findings and (not side or box.side in (side, "both"))]
    placed = {box.finding for box in boxes}
    here = {box.finding for box in there}
    found = [name for name in names if name in findings and (name in here or name not in placed)]
    if found == ["Support Devices"]:
        return "in place"
    said = [
        _degree(seen).strip() + (" " if seen else "") + SHORT[name] + _where(seen, side)
        for name in found
        for seen in [[box for box in there if box.finding == name]]
    ]
    return ", ".join(said) or (normal if not here else "hard to judge")


def _where(boxes: Sequence, side: str | None) -> str:
    """The zone in a lung if the step is about one side; otherwise see `_place`."""
    zones = {box.zone for box in boxes}
    if not side:
        return _place(boxes)
    return f" in the {zones.pop()} zone" if len(zones) == 1 and "" not in zones else ""


def _visible(names: list[str], boxes: Sequence) -> set[str]:
    """What must not be denied: findings on the film, and labels."""
    return set(names) | {box.finding for box in boxes}


def _opening(view: str, rng: np.random.Generator) -> str:
    return _pick(OPENINGS.get(view, OPENINGS["unknown"]), rng)


def traces(films: pd.DataFrame, seed: int, format: str = "free_reasoning") -> pd.DataFrame:
    """A trace for every film: film, format, reasoning, labels (positive), text (in the form of the paper), check.

    `films` has film (str), view, labels (positive) and boxes (a list of `Box`), see `curate.dataset`. The words for a
    film depend on `seed`, the format and the film's name only.
    """
    rows = []
    for film in films.itertuples():
        labels = tuple(film.labels)
        reasoning = write_trace(labels, film.boxes, film.view, _generator(film.film, seed), format)
        text = answers.write(answers.Answer(reasoning, labels), format)
        rows.append((film.film, format, reasoning, list(labels), text, check.check(text, labels, format)))
    return pd.DataFrame(rows, columns=["film", "format", "reasoning", "labels", "text", "check"])


def summary(traces: pd.DataFrame, min_length: int) -> str:
    """A summary of the traces, one line per format; `min_length` (characters) is that of the hard reward."""
    told = traces.assign(length=traces["text"].str.len(), words=traces["reasoning"].str.lower().str.findall("[a-z-]+"))
    return "\n".join(
        f"{format}: {len(rows):,} traces in {rows['words'].explode().nunique()} different words, median length "
        f"{rows['length'].median():.0f} characters; {(rows['length'] >= min_length).mean():.0%} have {min_length} or "
        "more."
        for format, rows in told.groupby("format", sort=False)
    )


def _findings(names: list[str], boxes: Sequence, room: int, rng: np.random.Generator) -> list[str]:
    """One sentence for each label in `names`; shorter ones if the full sentences exceed `room` words."""
    seen = {name: [box for box in boxes if box.finding == name] for name in names}
    full = [_pick(FINDINGS[name], rng).format(degree=_degree(seen[name]), place=_place(seen[name])) for name in names]
    placed = [f"{_short(name)}{_place(seen[name]) if '{place}' in FINDINGS[name][0] else ''}." for name in names]
    bare = [f"{_short(name)}." for name in names]
    return next((said for said in (full, placed) if _words(said) <= room), bare)


def _short(name: str) -> str:
    return SHORT[name].capitalize()


def _negatives(shown: set[str], length: int, rng: np.random.Generator) -> list[str]:
    """Negative findings that `shown` does not contradict, in random order, up to `length` characters."""
    true = [sentence for sentence, untrue in NEGATIVES.items() if not untrue & shown]
    chosen: list[str] = []
    for index in rng.permutation(len(true)):
        if _characters(chosen) >= length:
            break
        chosen.append(true[index])
    return sorted(chosen, key=true.index)


def _impression(names: list[str], rng: np.random.Generator) -> str:
    lead = _pick(("Impression:", "In summary,", "Overall,"), rng)
    if len(names) > 3:
        return f"{lead} several abnormal findings."
    return f"{lead} {_finding_list(names)}."


def _finding_list(names: list[str]) -> str:
    """The findings as a phrase, joined as in a sentence."""
    said = [SHORT[name] for name in names] or ["no clear finding"]
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _degree(boxes: Sequence) -> str:
    """The degree of the strongest of `boxes`; "" without boxes."""
    if not boxes:
        return ""
    strength = max(box.strength for box in boxes)
    return " mild" if strength < 0.55 else " moderate" if strength < 0.8 else " marked"


def _place(boxes: Sequence) -> str:
    """The place of `boxes`, by the patient's sides; "" without boxes or in the midline."""
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
    return choices[int(rng.integers(len(choices)))]


def _words(sentences: Sequence[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _characters(sentences: Sequence[str]) -> int:
    return sum(len(sentence) + 1 for sentence in sentences)


def _generator(film: str, seed: int) -> np.random.Generator:
    """A random generator for one film, independent of other films."""
    digest = hashlib.sha256(f"{seed}/{film}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
