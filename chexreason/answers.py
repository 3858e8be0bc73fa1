"""How answers are written and read: `read_strict(write(answer, form), form) == answer`.

Strict reading decides the hard reward: one `<think>` block, then one `<solution>` block, nothing else (PROTOCOL:
equation 3); of an Only Label answer the `<solution>` block alone.

Evaluation reads every model's replies by the same rules:

1. Labels stand between `<solution>` and `</solution>`, or the tags of another of `LABELS`.  Of several such blocks the
   one that closes last counts, wherever it stands and whatever it holds.  One that is still open at the end was cut
   off at the length limit: its list may lack names, so it is never read.
2. Where no tag is opened after the thought, a JSON object is read that has one of `LABELS` as a key, for a text or a
   list of texts.  Where there is none, the text after the last "conclusion:" (or another of `LABELS`) is, as far as a
   blank line, if it is nothing but names: without tags only that tells a list from prose.
3. Names are separated by commas, semicolons, bullets, code fences and tags.  What is no name then is split into its
   lines, and a line at "and" if every part of it is a name.
4. A name is one of the fourteen, or of `SYNONYMS`, whatever its case and spacing: white space, characters that do not
   print, and a hyphen or underscore between words.  Numbers and bullets before it, and emphasis, quotes, brackets and
   full stops around it, do not count.  Nothing else is forgiven: "no Edema", "Edema?", "mild Edema" are unknown names.
5. A reply has failed when no block can be read, or when its block names none of the fourteen.  One of these is No
   Finding, so an empty list and "None" are no answers.
6. A failed reply that says one of `REFUSALS` in its opening, counted from the end of its thought, is a refusal.
7. The reasoning is what stands in the thought, in tags or under a key or heading of `THOUGHTS`; without any of these,
   all that stands before the labels.  What comes after the labels did not lead to them, and is left out.

Strict reading takes names by rules 3 and 4 too, so that both read the same labels.  Either takes time in proportion to
the length of the reply.
"""

import hashlib
import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from chexreason.labels import CHEXPERT14

RULES = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
"""Which rules these are: twelve hexadecimal digits that change with anything in this module."""

ONLY_LABEL = "only_label"
"""The one form without a thought.  Every other form, whatever its name, is the published one."""

THOUGHTS = ("think", "thinking", "reasoning", "analysis")
LABELS = ("solution", "answer", "conclusion")
"""What the two parts of an answer are called; the paper says think and solution, but also analysis and conclusion."""

SYNONYMS = MappingProxyType(
    {
        "Airspace Opacity": "Lung Opacity",  # MIMIC-CXR's first tables
        "Effusion": "Pleural Effusion",  # NIH
        "Fractures": "Fracture",
        "Lung Lesions": "Lung Lesion",
        "Lung Opacities": "Lung Opacity",
        "No Findings": "No Finding",
        "Oedema": "Edema",
        "Pleural Effusions": "Pleural Effusion",
        "Pulmonary Edema": "Edema",
        "Pulmonary Oedema": "Edema",
        "Support Device": "Support Devices",
    }
)
"""Other names of just the same label.  The name of a kind is none: Nodule and Pleural Thickening are unknown."""

_UNABLE = ("cannot", "can't", "can not", "unable to", "not able to", "won't", "decline to")
_DECLINED = ("analyse", "analyze", "assist", "comply", "diagnose", "help", "interpret", "offer", "process", "provide")
REFUSALS = (
    *(f"{unable} {declined}" for unable in _UNABLE for declined in _DECLINED),
    "as an ai",
    "don't see an image",
    "not a chest radiograph",
    "not a chest x-ray",
    "not appear to be a chest",
    "please provide a frontal chest",  # NV-Reason-CXR-3B: issue 2 of github.com/NVIDIA-Medtech/NV-Reason-CXR
)
"""What replies say that decline to answer.  "I cannot see the left base" is how a film is read, and none of these."""

OPENING = 300
"""Characters within which a refusal says so; a disclaimer further down is none."""

_TAGS = ("<think>", "</think>", "<solution>", "</solution>")
_OPENED, _LABELS_OPENED = (re.compile(f"<(?:{'|'.join(words)})>") for words in (THOUGHTS + LABELS, LABELS))
_THOUGHT_HEADING, _LABEL_HEADING = (
    re.compile(rf"\b(?:{'|'.join(words)})[\"'*_`]{{0,3}}\s?:[*_]{{0,2}}", re.IGNORECASE) for words in (THOUGHTS, LABELS)
)
_SEPARATOR = re.compile(rf"[,;•]|```(?:\w*+\n)?|</?(?:{'|'.join(LABELS)})>")
_AND = re.compile(r"\s(?:and|&)\s", re.IGNORECASE)
_UNPRINTED = r"\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_SPACING = re.compile(rf"[\s{_UNPRINTED}]+|(?<=\w)[-_‐‑](?=\w)")
_BEFORE, _AFTER = "0123456789.)-–+*•#>_`\"'“‘[{", ".*_`\"'”’]}"


class Answer(NamedTuple):
    """A reasoning text and the labels it ends in, in CheXpert's order."""

    reasoning: str
    labels: tuple[str, ...]


class Reading(NamedTuple):
    """What evaluation reads from a reply, by the rules above.

    `labels` are of the fourteen, each once, in CheXpert's order; `duplicates` counts names given again and `unknown`
    names outside the fourteen.  Whatever is `refused` is also `failed`.
    """

    labels: tuple[str, ...]
    failed: bool
    duplicates: int
    unknown: int
    reasoning: str
    refused: bool = False


def write(answer: Answer, form: str = "free_reasoning") -> str:
    """The answer in the published form, or as its `<solution>` block alone where `form` is `ONLY_LABEL`.

    `form` is the name of an SFT format, which is that of its prompt.
    Raises ValueError for an answer that would not read back as itself: a tag inside the reasoning, a reasoning where
    there is no place for it, a label outside the fourteen or given twice, or labels out of CheXpert's order.
    """
    thought = "" if form == ONLY_LABEL else f"<think>{answer.reasoning}</think>\n"
    text = f"{thought}<solution>{', '.join(answer.labels)}</solution>"
    if read_strict(text, form) != answer:
        raise ValueError(
            f"{answer!r} would not read back: the reasoning must hold no tag, and be empty in {ONLY_LABEL}; "
            "the labels must be of the fourteen, each once, in CheXpert's order"
        )
    return text


def read_strict(text: str, form: str = "free_reasoning") -> Answer | None:
    """The answer in a reply of exactly the form that `write` gives it, or None.

    White space around the blocks is allowed, and names outside the fourteen are dropped, as the paper filters them
    before it scores.
    """
    thoughts = 0 if form == ONLY_LABEL else 1
    if [text.count(tag) for tag in _TAGS] != [thoughts, thoughts, 1, 1]:
        return None
    reasoning, body = "", text.strip()
    if thoughts:
        if not body.startswith("<think>"):
            return None
        reasoning, _, body = body.removeprefix("<think>").partition("</think>")
    body = body.lstrip()
    if not (body.startswith("<solution>") and body.endswith("</solution>")):
        return None
    return Answer(reasoning, _names(body.removeprefix("<solution>").removesuffix("</solution>"))[0])


def read(text: str) -> Reading:
    """Evaluation's reading, the same for every model."""
    found = _tagged(text)
    start = _thought_ends(text)
    if not found and not _OPENED.search(text, start):
        found = _object(text, start) or _headed(text, start)
    reasoning, block = found or (_thought(_LABELS_OPENED.split(text, 1)[0]), "")
    labels, duplicates, unknown = _names(block)
    return Reading(labels, not labels, duplicates, unknown, reasoning, not labels and _refuses(text, start))


# Where the labels stand: each of these gives the reasoning and the text that names the labels, or None.


def _tagged(text: str) -> tuple[str, str] | None:
    blocks = []
    for word in LABELS:
        opening, closing = f"<{word}>", f"</{word}>"
        start = text.rfind(opening, 0, max(0, text.rfind(closing)))
        if start >= 0:
            inside = start + len(opening)
            blocks.append((text.index(closing, inside), start, inside))
    if not blocks:
        return None
    end, start, inside = max(blocks)
    return _thought(text[:start]), text[inside:end]


def _object(text: str, start: int) -> tuple[str, str] | None:
    opening = text.find("{", start)
    try:
        values = json.loads(text[opening : text.rfind("}") + 1], strict=False) if opening >= 0 else {}
    except (ValueError, RecursionError):
        return None
    values = {key.strip().lower(): value for key, value in values.items()}
    thought = next((values[word] for word in THOUGHTS if isinstance(values.get(word), str)), None)
    given = next((values[word] for word in LABELS if word in values), None)
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return (_thought(text[:opening]) if thought is None else thought.strip()), ",".join(names)


def _headed(text: str, start: int) -> tuple[str, str] | None:
    heading = max(_LABEL_HEADING.finditer(text, start), key=re.Match.start, default=None)
    if heading is None or text.count("{", start) > text.count("}", start):  # an object still open was cut off, too
        return None
    block = text[heading.end() :].lstrip().partition("\n\n")[0]
    labels, _, unknown = _names(block)
    return (_thought(text[: heading.start()]), block) if labels and not unknown else None


# The thought, and what is said instead of an answer.


def _thought_ends(text: str) -> int:
    """Where the last closed thought ends; 0 without one."""
    closings = [f"</{word}>" for word in THOUGHTS]
    return max(text.rfind(closing) + len(closing) if closing in text else 0 for closing in closings)


def _thought(text: str) -> str:
    """The reasoning in `text`: from the first opening tag to the last closing one, either of which may be missing."""
    for word in THOUGHTS:
        _, opened, inside = text.partition(f"<{word}>")
        thought, closed, _ = (inside if opened else text).rpartition(f"</{word}>")
        if opened or closed:
            return (thought if closed else inside).strip()
    heading = _THOUGHT_HEADING.search(text)
    return text[heading.end() :].strip(" \t\n,*\"'{") if heading else text.strip()


def _refuses(text: str, start: int) -> bool:
    opening = (text[start:].lstrip() or text)[:OPENING].lower().replace("’", "'")
    return any(refusal in " ".join(opening.split()) for refusal in REFUSALS)


# The names in a block.


def _names(block: str) -> tuple[tuple[str, ...], int, int]:
    """Labels in CheXpert's order, how many were repeated, and how many names are none of the fourteen."""
    given = [label for item in _SEPARATOR.split(block) for label in _named(item)]
    known = [label for label in given if label]
    labels = tuple(name for name in CHEXPERT14 if name in known)
    return labels, len(known) - len(labels), len(given) - len(known)


def _named(item: str) -> list[str | None]:
    """The labels `item` names, None standing for an unknown name."""
    if not item.strip():
        return []
    if label := _CANONICAL.get(_key(item)):
        return [label]
    lines = item.splitlines()
    if len(lines) > 1:
        return [label for line in lines for label in _named(line)]
    parts = [_CANONICAL.get(_key(part)) for part in _AND.split(f" {item} ") if part.strip()]
    return parts if all(parts) else [None]


def _key(name: str) -> str:
    return _SPACING.sub("", name).lstrip(_BEFORE).rstrip(_AFTER).casefold()


_CANONICAL = {_key(name): label for name, label in (*zip(CHEXPERT14, CHEXPERT14, strict=True), *SYNONYMS.items())}
