"""What the paper states and what it leaves open, read from the marks in a params file.

A mark is a comment that ends the line of a key: `# paper: equation 4` says where the paper states the value, and
`# ours: no batch is given` why this project chose it.  A mark holds for all that stands under its key.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from chexreason.display import markdown

MARK = re.compile(r"\s# (paper|ours): (.+)$")
NONE = "No value of this params file is marked so; `params/paper.yaml` says of each whose it is."


class Choice(NamedTuple):
    """A marked key of a params file: its dotted key, the value as it stands there, whose it is, and where or why."""

    key: str
    value: str
    whose: str
    words: str


def read(file: Path) -> list[Choice]:
    """The marked keys of a params file, in its order."""
    text = file.read_text(encoding="utf-8")
    found = (MARK.search(line) for line in text.splitlines())
    marks = {number: mark.groups() for number, mark in enumerate(found) if mark}
    return list(_marked(yaml.compose(text, yaml.SafeLoader), (), marks))


def unmarked(file: Path) -> list[str]:
    """The dotted keys that hold a value, or a list, and stand under no mark."""
    text = file.read_text(encoding="utf-8")
    known = [choice.key for choice in read(file)]
    keys = [".".join(path) for path in _leaves(yaml.compose(text, yaml.SafeLoader), ())]
    return [key for key in keys if not any(f"{key}.".startswith(f"{each}.") for each in known)]


def _marked(node: yaml.Node, path: tuple[str, ...], marks: dict[int, tuple[str, str]]) -> Iterator[Choice]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        where = (*path, key.value)
        if key.start_mark.line in marks:
            yield Choice(".".join(where), _plain(value), *marks[key.start_mark.line])
        else:
            yield from _marked(value, where, marks)


def _leaves(node: yaml.Node, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        yield path
        return
    for key, value in node.value:
        yield from _leaves(value, (*path, key.value))


def _plain(node: yaml.Node) -> str:
    """A value on one line, its scalars as they stand in the file."""
    if isinstance(node, yaml.ScalarNode):
        return " ".join(node.value.split()) or '""'
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_plain, node.value))}]"
    return "{" + ", ".join(f"{_plain(key)}: {_plain(value)}" for key, value in node.value) + "}"


def tables(file: Path) -> dict[str, str]:
    """The two tables of the page in Markdown, by name: `ours` with reasons, `paper` with where it stands."""
    heads = {"ours": ("key", "value", "why"), "paper": ("key", "value", "where in the paper")}
    return {whose: _table(head, [each for each in read(file) if each.whose == whose]) for whose, head in heads.items()}


def _table(head: tuple[str, ...], choices: list[Choice]) -> str:
    rows = [(markdown.code(each.key), markdown.code(each.value), markdown.escape(each.words)) for each in choices]
    return markdown.table(head, rows, "choices") if rows else NONE
