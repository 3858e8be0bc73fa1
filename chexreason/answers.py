"""How answers are written and read: `read_strict(write(answer, form), form) == answer`.

`read_strict` decides the hard reward.  It accepts one `<think>` block, then one `<solution>` block, and nothing else
(PROTOCOL: equation 3).  An Only Label answer is the `<solution>` block alone.

`read` is the reading of evaluation.  It reads the replies of every model by these rules:

Where the labels are
1. Labels are between `<solution>` and `</solution>`, or between the tags of another word of `LABELS`.  If there are
   several blocks, the one that closes last counts.  A block that is still open at the end was cut off: it is not read.
2. A thought is between the tags of a word of `THOUGHTS`, in any case, or of Magistral, Kimi-VL or MedGemma; if only its
   closing tag is there, it began with the reply.  What follows the last thought wins over what is before it.  A block
   inside a thought is a draft and is not read, unless it ends the closed thought and nothing follows.  A thought that
   is never closed was cut off, and a block in it is no answer.
3. If no label tag follows the last thought, two other forms are read there: a JSON object with a word of `LABELS` as a
   key, or the paragraph after the last "conclusion:" (or another word of `LABELS`) if it has names and verdicts only.

What the names say (`read_strict` follows these rules too)
4. A name is one of the fourteen labels or of `SYNONYMS`.  Case, spacing, characters that do not print, emphasis,
   quotes, brackets and a final full stop do not count.  Names are separated by commas, semicolons, lines, bullets, code
   fences, tags, sentences, or "and".  Neutral words around a name, such as "Labels:" or "the findings are", are left
   out.  Any other words make it an unknown name: "mild Edema", "Edema?".
5. A name may have a verdict: "Edema: no", "Fracture = 1", "Edema (absent)", "no evidence of Edema", a check box, or a
   row of a table or of JSON.  "No Finding" is a label, not a denial.  Several words in parentheses that do not deny,
   doubt or name anything are an explanation and are left out: "Cardiomegaly (enlarged heart)".
6. A sign, number or check box before a name is a verdict too, except in a plain list, in which all names have a dash,
   or have numbers that rise from 1.  If one name has such a mark, all names of the list must have one.
7. A heading such as "Absent:" or "present:" is the verdict of the names in its line or, if it ends its line, of the
   lines after it.
8. The reply is unreadable if it is unclear which names are affirmed: a name without a verdict comes after a denial, or
   after a name that follows unknown words ("No Edema, Fracture", "hardly Edema, Fracture"), or before a name with a
   denial behind it ("Edema, Fracture: no"); a verdict without a name; a heading, a value or a sentence with names that
   is not understood; a name affirmed and denied; a block that only denies.  A discussion of a name behind a colon or
   dash is such a value ("Edema: the lungs are dry").

What comes out
9. A reply has failed if no block can be read, if the block is unreadable, or if it affirms none of the fourteen.  One
   of these is No Finding, so an empty list and "None" are not answers.
10. A failed reply that has one of `REFUSALS` in its opening, counted from the end of its thought, is a refusal.
11. The reasoning is the text of the thought, in tags or under a key or heading of `THOUGHTS`; without any of these, all
    text before the labels.  Text after the labels is left out, because it did not lead to them.

Reading takes time in proportion to the length of the reply.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from chexreason import fingerprint
from chexreason.labels import CHEXPERT14

RULES = fingerprint.code((Path(__file__),))[:12]
"""Which rules these are: twelve hexadecimal digits that change with the code of this module."""

ONLY_LABEL = "only_label"
"""The format without reasoning. All other formats have the form of the paper."""

THOUGHTS = ("think", "thinking", "thought", "reasoning", "analysis")
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
"""Other names of the same label. A subtype is not a synonym: Nodule and Pleural Thickening are unknown names."""

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
"""Phrases of replies that decline to answer. ("I cannot see the left base" describes a film and is not one.)"""

OPENING = 300
"""A refusal has such a phrase within this many characters; later ones do not count."""

_TAGS = ("<think>", "</think>", "<solution>", "</solution>")
_LABELS_OPENED = re.compile(f"<(?:{'|'.join(LABELS)})>")
_THOUGHT_TAG = re.compile(
    rf"(?i:<\s?(/?)\s?(?:{'|'.join(THOUGHTS)})\s?>)"
    r"|\[(/?)THINK\]|◁(/?)think▷|<unused94>thought|<unused9(?:4|(5))>"  # Magistral, Kimi-VL, MedGemma
)
_THOUGHT_HEADING, _LABEL_HEADING = (
    re.compile(rf"\b(?:{'|'.join(words)})[\"'*_`]{{0,3}}\s?:[*_]{{0,2}}", re.IGNORECASE) for words in (THOUGHTS, LABELS)
)
_SEPARATOR = re.compile(rf"[,;•]|(?<=[a-z]{{4}})\.[^\S\n]+(?=[A-Z])|```(?:\w*+\n)?|</?(?:{'|'.join(LABELS)})>")
_UNPRINTED = r"\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff"


class Answer(NamedTuple):
    """A reasoning text and its labels, in CheXpert's order."""

    reasoning: str
    labels: tuple[str, ...]


class Reading(NamedTuple):
    """What evaluation reads from a reply, by the rules above.

    `labels` are among the fourteen, each once, in CheXpert's order. `duplicates` counts repeated names and `unknown`
    names outside the fourteen. A reply that is `refused` has also `failed`.
    """

    labels: tuple[str, ...]
    failed: bool
    duplicates: int
    unknown: int
    reasoning: str
    refused: bool = False


def write(answer: Answer, form: str = "free_reasoning") -> str:
    """The answer as text in the form of the paper, or only its `<solution>` block if `form` is `ONLY_LABEL`.

    `form` is the name of an SFT format, which is also that of its prompt. Raises ValueError for an answer that could
    not be read back: a tag in the reasoning, a reasoning for `ONLY_LABEL`, a label outside the fourteen or repeated, or
    labels in another order.
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
    """The answer in a reply that has exactly the form of `write`, or None.

    White space around the blocks is allowed. Names outside the fourteen are dropped, because the paper filters them
    before it scores. Also None if the solution is unreadable by rule 8 or has a tag of a thought, so that a denied
    label earns nothing.
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
    names = None if _THOUGHT_TAG.search(body) else _names(body.removeprefix("<solution>").removesuffix("</solution>"))
    return None if names is None else Answer(reasoning, names[0])


def read(text: str) -> Reading:
    """What evaluation reads from a reply, by the rules at the head of this module, the same for every model.

    >>> read("<think>The heart is wide.</think> <solution>Cardiomegaly: yes, Edema: no</solution>").labels
    ('Cardiomegaly',)
    """
    text = _THOUGHT_TAG.sub(lambda tag: "</think>" if any(tag.groups()) else "<think>", text)
    reasoning, block = _answer(text) or (_thought(_LABELS_OPENED.split(text, 1)[0]), "")
    labels, duplicates, unknown = _names(block) or ((), 0, 0)
    refused = not labels and _refuses(text)
    return Reading(labels, not labels, duplicates, unknown, reasoning, refused)


# Where the labels are: each of these gives the reasoning and the text that names the labels, or None.


def _answer(text: str) -> tuple[str, str] | None:
    outside, closed = _outside_thoughts(text)
    start, end = outside.pop() if closed else (0, 0)
    if found := _tagged(text, start, end):
        return found
    if closed and not _LABELS_OPENED.search(text, start) and (found := _object(text, start) or _headed(text, start)):
        return found
    return next(filter(None, (_tagged(text, *part) for part in reversed(outside))), None) or _misnested(text)


def _outside_thoughts(text: str) -> tuple[list[tuple[int, int]], bool]:
    """Where the parts of `text` outside its thoughts start and end, and whether its last thought is closed."""
    parts, start, inside = [], 0, False
    for tag in re.finditer("<(/?)think>", text):
        if tag[1]:  # without an opening tag before it, all since the last thought was a thought
            start, inside = tag.end(), False
        elif not inside:
            parts.append((start, tag.start()))
            inside = True
    return (parts, False) if inside else ([*parts, (start, len(text))], True)


def _misnested(text: str) -> tuple[str, str] | None:
    """The block that ends a closed thought which ends the reply."""
    reply = text.rstrip()
    if not reply.endswith("</think>"):
        return None
    reply = reply.removesuffix("</think>").rstrip()
    return _tagged(reply, 0, len(reply)) if reply.endswith(tuple(f"</{word}>" for word in LABELS)) else None


def _tagged(text: str, start: int, end: int) -> tuple[str, str] | None:
    blocks = []
    for word in LABELS:
        opening, closing = f"<{word}>", f"</{word}>"
        opened = text.rfind(opening, start, max(start, text.rfind(closing, start, end)))
        if opened >= 0:
            inside = opened + len(opening)
            blocks.append((text.index(closing, inside), opened, inside))
    if not blocks:
        return None
    closed, opened, inside = max(blocks)
    return _thought(text[:opened]), _block_with_denial(text[start:opened], text[inside:closed])


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
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        names = ",".join(names)
    elif isinstance(names, dict) or (isinstance(names, list) and any(isinstance(name, dict) for name in names)):
        names = json.dumps(names, ensure_ascii=False).replace("\\n", "\n")
    else:
        return None
    return (_thought(text[:opening]) if thought is None else thought.strip()), names


def _headed(text: str, start: int) -> tuple[str, str] | None:
    heading = max(_LABEL_HEADING.finditer(text, start), key=re.Match.start, default=None)
    if heading is None or text.count("{", start) > text.count("}", start):  # an object still open was cut off, too
        return None
    block = _block_with_denial(text[start : heading.start()], text[heading.end() :].lstrip().partition("\n\n")[0])
    labels, _, unknown = _names(block) or ((), 0, 0)
    return (_thought(text[: heading.start()]), block) if labels and not unknown else None


def _block_with_denial(before: str, block: str) -> str:
    """The block; with a denial in front where the unfinished sentence before it ends in one ("not present:")."""
    lead = re.split(r"[.!?\n]", re.sub(r":[\s*_]+$", ":", before[-OPENING:]))[-1]
    return f"no {block}" if re.search(r"\bno( [:(-])*$", " ".join(_kinds(lead)[0])) else block


# The thought, and what is said instead of an answer.


def _thought(text: str) -> str:
    """The reasoning in `text`: from the first opening tag to the last closing one, either of which may be missing."""
    _, opened, inside = text.partition("<think>")
    thought, closed, _ = (inside if opened else text).rpartition("</think>")
    if opened or closed:
        return (thought if closed else inside).strip()
    heading = _THOUGHT_HEADING.search(text)
    return text[heading.end() :].strip(" \t\n,*\"'{") if heading else text.strip()


def _refuses(text: str) -> bool:
    opening = (text.rpartition("</think>")[2].lstrip() or text)[:OPENING].lower().replace("’", "'")
    return any(refusal in " ".join(opening.split()) for refusal in REFUSALS)


# The names in a block, and the verdicts about them.


_CANONICAL = {
    re.sub("[ -]", "", name).casefold(): label
    for name, label in (*zip(CHEXPERT14, CHEXPERT14, strict=True), *SYNONYMS.items())
}

_WORDS = {
    "no": """no not non none nope nor neither never nothing nil neg negative negatives without absent absence deny
        denies denied denying except excepting but exclude excludes excluded excluding lack lacks lacking missing devoid
        unlike unlikely less-likely doubtful improbable false n unseen undetected resolved ruled-out rule-out rules-out
        ruling-out r/o w/o cannot minus zero free-of free-from clear-of clear-from clear-for unremarkable-for normal-for
        instead-of rather-than other-than wrong incorrect mistaken rejected discarded ✗ ✘ ✖ ❌ ☐ ☒""",
    "yes": """yes y true present positive positives pos seen visible identified detected found noted observed evident
        confirmed shown demonstrated apparent ✓ ✔ ✅ ☑""",
    "neutral": """a an the this that these those following below above all both any it its is are was were be been being
        has have had there here i we you my our your of for to on in at from with as by so thus therefore hence final
        predicted main overall definite patient image film radiograph radiographs scan study chest x-ray x-rays cxr
        label labels findings diagnosis diagnoses answer answers solution conclusion impression result results
        prediction predictions abnormality abnormalities pathology pathologies disease diseases condition conditions
        list output json boxed text evidence sign signs status value""",
    "struck": "< ~",
    "and": "and &",
    "or": "or",
    ":": ": = |",
    "-": "- – — −",
    "(": "(",
    "+": "+",
    "": "] ) [ { } * _ ` \" ' “ ” ‘ ’ . # > \\ $",
}
_KINDS = {word.replace("-", "") or word: kind for kind, words in _WORDS.items() for word in words.split()}
_KINDS |= {name: "name" for name in _CANONICAL}
"""What a word or symbol is.  The empty kind does not count."""
_NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?%?")
_WORD = re.compile(rf"(?<!\w){_NUMBER.pattern}(?!\w)|[rw]/o\b|[^\W_]+(?:['’][^\W_]+)*|[^\w\s]", re.IGNORECASE)
_HIDDEN, _GLUE = re.compile(rf"(?!\s)[{_UNPRINTED}*`]"), re.compile(r"(?<=\w)[-_‐‑](?=\w)")
_BOX = re.compile(r"(?<!:)(?<!:\s)(?:\[[\s_.]*\]|\([\s_.]*\))|[\[(]\s*(?:(?P<checked>[xX+✓✔])|[-–−✗✘])\s*[\])]")
_MARK = re.compile(
    r"[^\S\n]*[>#|\"'`*_\[{]*[^\S\n]*"
    r"(?:([-–—−]+(?!\d)|\++(?!\d))|([-+−]?\d+(?:\.\d+)?|[A-Za-z]{1,3}(?=[.)]\s))([\"']?[^\S\n]*[.)\]:=|-](?!\d))?)?"
)
"""What may precede a name: decoration, then a sign, or a number (or letter) and what ends it."""
_HEADING = re.compile(r"[:=|(]|\s[-–—]\s")
_NOTHING = re.compile(r"[\s\[\]{}()|:=]*|[\s|:-]*--[\s|:-]*")
_FORMS = tuple(
    (re.compile(form.replace("NAMES", "name( and name)*")), verdict)
    for form, verdict in (
        (r"(and )?NAMES( and)?", None),
        (r"NAMES( [:(-])? (yes|1|\+)|yes NAMES", True),
        (r"name( (and|or)( no)? name)*( [:(-])? (no|0|-)|no name(( or)?( no)? name)*", False),
    )
)
"""The verdict of an item about its names, by the kinds of its words."""
_VERDICTS = {"no", "0", "1", "number", "+", "-", ":", "struck", "neutral"}
"""Kinds by which an item that has names and no known form makes the block unreadable."""
_PARENTHESES = re.compile(r"(?<=[\w*])[^\S\n]*\(([^()\n]{1,200})\)")
_DOUBT = re.compile(
    r"[?/]|possib|probab|likel|suspect|question|uncertain|unclear|unsure|equivocal|borderline|maybe|perhaps|could|might"
    r"|\bmay\b|\bvs\b|versus|differential|consider|histor|prior|previous|\bold\b|artifact|only"
    r"|normal|clear|within|expanded|intact|aerated|healthy",
    re.IGNORECASE,
)
"""What keeps words in parentheses from being a mere explanation: the name may be in doubt, or what is normal."""


class _Item(NamedTuple):
    """One item of a list: its labels, none for an unknown name; the verdict of its words; the mark before them."""

    labels: tuple[str, ...] = ()
    verdict: bool | None = None
    mark: str = ""
    reaches_on: bool = False  # a denial or unknown words come before the names and may be about the next ones
    named: bool = False  # a label occurs, if only in an unknown name
    unclear: bool = False


class _Section(NamedTuple):
    """The items under one heading, whose verdict is None if it is neutral or missing."""

    verdict: bool | None
    items: list[_Item]


class _Unclear(ValueError):
    """By rule 8, the block is unreadable."""


def _names(block: str) -> tuple[tuple[str, ...], int, int] | None:
    """Labels in CheXpert's order, how many were repeated, and how many names are unknown; None if unreadable."""
    try:
        sections = _sections(block)
        items = [item for section in sections for item in section.items]
        affirmed = _affirmed(sections) if any(item.named for item in items) else []
    except _Unclear:
        return None
    labels = tuple(name for name in CHEXPERT14 if name in affirmed)
    return labels, len(affirmed) - len(labels), sum(not item.labels for item in items)


def _affirmed(sections: list[_Section]) -> list[str]:
    """The labels that are affirmed, repeated ones too."""
    affirmed: list[str] = []
    denied: set[str] = set()
    bare = denial = False
    for heading, items in sections:
        if any(item.unclear for item in items):
            raise _Unclear
        named = [item for item in items if item.labels]
        if heading is False:
            if any(item.verdict is not None for item in named) or not _plain([item.mark for item in named]):
                raise _Unclear
            denied.update(label for item in named for label in item.labels)
            continue
        denial = denial and heading is not True
        verdicts = iter(_verdicts(named))
        for item in items:
            if not item.labels:
                denial = denial or item.reaches_on
                continue
            verdict = next(verdicts)
            if (verdict is None and denial) or (verdict is False and bare and not item.reaches_on):
                raise _Unclear
            bare, denial = bare or verdict is None, denial or verdict is False
            (denied.update if verdict is False else affirmed.extend)(item.labels)
    if denied.intersection(affirmed) or (denied and not affirmed):
        raise _Unclear
    return affirmed


def _verdicts(items: list[_Item]) -> list[bool | None]:
    """The verdict of each item of one list, by its words or by the marks before it (rule 6)."""
    marks = [item.mark for item in items]
    if _plain(marks):
        return [item.verdict for item in items]
    one_kind = set(marks) <= {"+", "-"} or set(marks) <= {"1", "0"}
    if not one_kind or any(item.verdict is not None for item in items):
        raise _Unclear
    return [mark in ("+", "1") for mark in marks]


def _plain(marks: list[str]) -> bool:
    """Whether the marks are the bullets or numbers of a plain list."""
    if set(marks) in (set(), {""}, {"-"}, {"1."}):
        return True
    values = [float(number[1]) if (number := re.fullmatch(r"(\d+)\.?", mark)) else 0.0 for mark in marks]
    return values[0] >= 1 and all(one < two for one, two in pairwise(values))


def _sections(block: str) -> list[_Section]:
    """The items of a block under their headings."""
    sections, one_line = [_Section(None, [])], False
    heading_of, item_of = cache(_heading), cache(_item)  # a long reply repeats itself
    block = _BOX.sub(lambda box: "✓" if box["checked"] else "✗", _PARENTHESES.sub(_without_explanation, block))
    for line, breaks in _lines(block):
        one_line = one_line or not line.strip()
        left = breaks and one_line and sections[-1].verdict is False and sections[-1].items
        outer = None
        for _ in range(2):  # one heading within another: no more are understood
            if not (heading := heading_of(line)):
                break
            verdict, line = heading
            sections.append(_under(sections[-1], outer, verdict))
            outer, one_line, left = sections[-1].verdict, not _NOTHING.fullmatch(line), False
        if not _NOTHING.fullmatch(line):
            sections[-1].items.append(item_of(line))
            if left and item_of(line).named:  # the denial may or may not reach it
                raise _Unclear
    return sections


def _under(last: _Section, outer: bool | None, verdict: bool | None) -> _Section:
    """The section that a heading begins after the last one, within the outer heading of its line."""
    if (outer is False and verdict is True) or (verdict is None and last.verdict is not None and last.items):
        raise _Unclear  # a neutral heading does not end what another reaches
    return _Section(last.verdict if verdict is None else verdict, [])


def _without_explanation(parentheses: re.Match) -> str:
    """The words in parentheses, or nothing if they only explain the name before them (rule 5)."""
    kinds, _ = _kinds(parentheses[1])
    explains = len(kinds) > 1 and "other" in kinds and set(kinds) <= {"other", "neutral", "and", "or"}
    return "" if explains and not _DOUBT.search(parentheses[1]) else parentheses[0]


def _marked(text: str) -> re.Match[str]:
    """The mark that a text begins with, which may be empty."""
    found = _MARK.match(text)
    assert found is not None
    return found


def _lines(block: str) -> Iterator[tuple[str, bool]]:
    """The items of a block, those of several lines line by line, and whether each begins a new line."""
    for item in _SEPARATOR.split(block):
        lines = item.strip().splitlines()
        if len(lines) == 2 and _kinds(item[_marked(item).end() :])[0] == ["name"]:
            lines = [item]
        yield from ((line, number > 0) for number, line in enumerate(lines))


def _heading(line: str) -> tuple[bool | None, str] | None:
    """The verdict of the heading that a line begins with, and the rest of the line; None without a heading."""
    mark = _marked(line)
    end = _HEADING.search(line, mark.end())
    if not end and not line.lstrip().startswith("#"):
        return None
    head, rest = (line[mark.end() : end.start()], line[end.end() :]) if end else (line, "")
    kinds, labels = _kinds(head)
    if labels:
        return None
    understood = kinds in ([], ["yes"], ["no"]) and (mark[2] or "1")[0] not in "0-−"
    if end and end[0] in ":=|" and not understood:
        raise _Unclear
    if not understood or not (head.strip() or (end and end[0] in ":=|")):
        return None
    return {"yes": True, "no": False}.get("".join(kinds)), rest


def _item(line: str) -> _Item:
    """What one item says."""
    line = line.rstrip().removesuffix("|")
    found = _marked(line)
    rest, (sign, number, end) = line[found.end() :], found.groups()
    mark = ("+" if sign[0] == "+" else "-") if sign else (number or "") + ("." if end else "")
    kinds, labels = _kinds(rest)
    for form, verdict in _FORMS:
        if form.fullmatch(" ".join(kinds)):
            return _Item(labels, verdict, mark, kinds[0] == "no", named=True)
    if labels:
        unclear = not _VERDICTS.isdisjoint(kinds) or "No Finding" in labels or rest.count("(") != rest.count(")")
        return _Item(reaches_on=kinds[0] != "name", named=True, unclear=unclear)
    kinds, _ = _kinds(line)
    return _Item(unclear="no" in kinds or (bool(kinds) and "other" not in kinds))


def _kinds(text: str) -> tuple[list[str], tuple[str, ...]]:
    """The kinds of the words in a text that count, and the labels among them."""
    words = _WORD.findall(_GLUE.sub(" ", _HIDDEN.sub("", text)).casefold())
    kinds: list[str] = []
    labels: list[str] = []
    at = 0
    while at < len(words):
        pair = "".join(words[at : at + 2])  # of a name, or "ruled out"
        word = pair if pair in _KINDS else words[at]
        at += 2 if pair in _KINDS else 1
        kind = _kind(word)
        if kind == "neutral" and kinds and kinds[-1] == "name" and labels[-1] == "No Finding":
            kinds[-1] = "no"  # "no finding of ..." is a denial
            labels.pop()
        if kind == "name":
            labels.append(_CANONICAL[word])
        if kind:
            kinds.append(kind)
    if "other" not in kinds:  # beside unknown words, neutral ones make a sentence
        kinds = [kind for kind in kinds if kind != "neutral"]
    said = ["", *kinds]
    return [kind for before, kind in pairwise(said) if kind != "yes" or before not in ("no", "yes")], tuple(labels)


def _kind(word: str) -> str:
    """What a word or number is."""
    if _NUMBER.fullmatch(word) and word not in _KINDS:
        return word if word in ("0", "1") else "number"
    return "no" if word.endswith(("n't", "n’t")) else _KINDS.get(word, "other")
