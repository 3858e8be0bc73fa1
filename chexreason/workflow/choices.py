"""The marks in a params file: which values the paper states, and which are ours.

A mark is a comment at the end of a line: `# paper: equation 4` is the place in the paper, and `# ours: no batch is
given` the reason of our choice. A mark is about all values under its key in the same file that have no mark themselves.
If another file extends this one and changes a value, the value needs a mark there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from chexreason import config
from chexreason.display import markdown

MARK = re.compile(r"\s# (paper|ours): (.+)$")
NONE = "No value of this params file is marked so; `params/paper.yaml` says of each whose it is."
NAMES = ("study", "title", "notice")
UNEXPLAINED = "{file} states this value and gives no reason"


class Choice(NamedTuple):
    """A marked key of a params file: its dotted key, its value, whose choice it is, and where or why."""

    key: str
    value: str
    whose: str
    words: str


def read(file: Path) -> list[Choice]:
    """The marked keys of a params file and those that it extends, with the values that this study uses from each.

    They have the order of the study's keys, those of the extended file first.
    """
    node, marks = config.merged(file), _marks(file)
    about: dict[tuple, list] = {}
    for leaf in _leaves(node):
        if key := _marked(leaf, marks):
            about.setdefault((leaf.file, key), []).append(leaf.path)
    return [
        Choice(".".join(key), _plain(_at(node, key), key, paths), *marks[name][key])
        for (name, key), paths in about.items()
    ]


def unmarked(file: Path) -> list[str]:
    """The dotted keys of values without a mark in the file that states them."""
    marks = _marks(file)
    return [".".join(each.path) for each in _leaves(config.merged(file)) if not _marked(each, marks)]


class _Leaf(NamedTuple):
    """A value that is not a mapping: its keys, and the file that states it."""

    path: tuple[str, ...]
    file: str


def _leaves(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        yield _Leaf(path, node.start_mark.name)
        return
    for key, value in node.value:
        yield from _leaves(value, (*path, key.value))


def _marks(file: Path) -> dict[str, dict[tuple[str, ...], tuple[str, str]]]:
    """The marks of a params file and those that it extends, by file name and key."""
    return {layer.name: dict(_marks_of(layer.node, (), _lines(layer.file))) for layer in config.layers(file)}


def _lines(file: Path) -> dict[int, tuple[str, str]]:
    """The marks of a file, by line."""
    found = (MARK.search(line) for line in file.read_text(encoding="utf-8").splitlines())
    return {number: (mark[1], mark[2]) for number, mark in enumerate(found) if mark}


def _marks_of(node: yaml.Node, path: tuple[str, ...], lines: dict, above: int = -1) -> Iterator[tuple]:
    """Each marked key of a node with its mark; keys inside a marked line (`above`) have no mark of their own."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        where, line = (*path, key.value), key.start_mark.line
        if line in lines and line != above:
            yield where, lines[line]
        yield from _marks_of(value, where, lines, line)


def _marked(leaf: _Leaf, marks: dict) -> tuple[str, ...] | None:
    """The key with the mark for a value: its own, or the nearest above it in the same file."""
    ends = range(len(leaf.path), 0, -1)
    return next((leaf.path[:end] for end in ends if leaf.path[:end] in marks[leaf.file]), None)


def _at(node: yaml.Node, path: tuple[str, ...]) -> yaml.Node:
    for step in path:
        node = next(value for key, value in node.value if key.value == step)
    return node


def _plain(node: yaml.Node, at: tuple[str, ...] = (), paths: list[tuple[str, ...]] | None = None) -> str:
    """The value at the key `at` on one line, as written in the file; of a mapping, only `paths`."""
    if isinstance(node, yaml.ScalarNode):
        return " ".join(node.value.split()) or '""'
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_plain, node.value))}]"
    inside = [((*at, key.value), value) for key, value in node.value]
    if paths is not None:
        inside = [(key, value) for key, value in inside if any(path[: len(key)] == key for path in paths)]
    return "{" + ", ".join(f"{key[-1]}: {_plain(value, key, paths)}" for key, value in inside) + "}"


def tables(file: Path) -> dict[str, str]:
    """The two tables of the page in Markdown: `ours` with reasons, `paper` with places."""
    heads = {"ours": ("key", "value", "why"), "paper": ("key", "value", "where in the paper")}
    choices = read(file) + _unmarked_changes(file)
    return {whose: _table(head, [each for each in choices if each.whose == whose]) for whose, head in heads.items()}


def _unmarked_changes(file: Path) -> list[Choice]:
    """The keys that an extending file changes without a mark; none for other files."""
    if len(config.layers(file)) == 1:
        return []
    node, marks = config.merged(file), _marks(file)
    bare = [leaf for leaf in _leaves(node) if not _marked(leaf, marks) and leaf.path[0] not in NAMES]
    return [
        Choice(".".join(path), _plain(_at(node, path)), "ours", UNEXPLAINED.format(file=Path(name).name))
        for path, name in bare
    ]


def _table(head: tuple[str, ...], choices: list[Choice]) -> str:
    rows = [(markdown.code(each.key), markdown.code(each.value), markdown.escape(each.words)) for each in choices]
    return markdown.table(head, rows, "choices") if rows else NONE
