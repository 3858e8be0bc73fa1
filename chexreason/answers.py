"""How an answer is written and read: `read_strict(write(answer)) == answer`."""

import re
from typing import NamedTuple

from chexreason.labels import CHEXPERT14

_CANONICAL = {"".join(name.lower().split()): name for name in CHEXPERT14}


class Answer(NamedTuple):
    """A reasoning text and the labels it ends in, in CheXpert's order."""

    reasoning: str
    labels: tuple[str, ...]


class Reading(NamedTuple):
    """What evaluation reads from a reply.

    `labels` are among the fourteen, each once; `failed` when there is no closed label block or it names none of the
    fourteen; `duplicates` and `unknown` count names given twice and names outside the fourteen; `reasoning` is what
    stands before the block.
    """

    labels: tuple[str, ...]
    failed: bool
    duplicates: int
    unknown: int
    reasoning: str


def write(answer: Answer) -> str:
    """The published form: one `<think>` block, then one `<solution>` block (PROTOCOL: equation 3).

    Raises ValueError for an answer that would not read back as itself: a tag inside the reasoning, a label outside the
    fourteen or given twice, or labels out of CheXpert's order.
    """
    text = f"<think>{answer.reasoning}</think>\n<solution>{', '.join(answer.labels)}</solution>"
    if read_strict(text) != answer:
        raise ValueError(
            f"{answer!r} would not read back: the reasoning must hold no tag, "
            "the labels must be of the fourteen, each once, in CheXpert's order"
        )
    return text


def read_strict(text: str) -> Answer | None:
    """The answer in a reply of exactly the published form, or None.

    Strict means: one `<think>` block, then one `<solution>` block, and nothing but white space around them.  Names
    outside the fourteen labels are dropped, as the paper filters them before it scores.
    """
    body = text.strip()
    if any(body.count(tag) != 1 for tag in ("<think>", "</think>", "<solution>", "</solution>")):
        return None
    reasoning, between, solution = _cut(body)
    framed = body.startswith("<think>") and body.endswith("</solution>") and reasoning is not None
    if not framed or between.strip() or solution is None:
        return None
    return Answer(reasoning, _names(solution)[0])


def read(text: str) -> Reading:
    """Evaluation's reading, the same for every model: the last closed `<solution>` block, wherever it stands.

    Labels match the fourteen names whatever their case or spacing.  Linear in the length of `text`.
    """
    before, opening, block = text.rpartition("</solution>")[0].rpartition("<solution>")
    if not opening:
        return Reading((), True, 0, 0, _thought(text.partition("<solution>")[0]))
    labels, duplicates, unknown = _names(block.partition("</solution>")[0])
    return Reading(labels, not labels, duplicates, unknown, _thought(before))


def _thought(text: str) -> str:
    return text.replace("<think>", "").replace("</think>", "").strip()


def _cut(body: str) -> tuple[str | None, str, str | None]:
    """Split `<think>R</think>B<solution>S</solution>` into R, B and S; None where the tags are out of order."""
    opened, closed = body.find("<think>"), body.find("</think>")
    begun, ended = body.find("<solution>"), body.find("</solution>")
    if not opened < closed < begun < ended:
        return None, "", None
    return body[opened + 7 : closed], body[closed + 8 : begun], body[begun + 10 : ended]


def _names(block: str) -> tuple[tuple[str, ...], int, int]:
    """Labels in CheXpert's order, how many were repeated, and how many names are none of the fourteen."""
    given = [re.sub(r"\s", "", name).lower() for name in block.split(",")]
    given = [name for name in given if name]
    known = [_CANONICAL[name] for name in given if name in _CANONICAL]
    labels = tuple(name for name in CHEXPERT14 if name in known)
    return labels, len(known) - len(labels), len(given) - len(known)
