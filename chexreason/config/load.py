"""Read a params file: YAML, the file that it extends, and the checks of its values."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar, NamedTuple

import yaml
from pydantic import (
    ValidationError,
)

from chexreason.config import scratch
from chexreason.config.messages import brief, causes, explain, locate
from chexreason.config.schema import ParamsError
from chexreason.config.study import Study
from chexreason.config.training import GrpoRun, Run, SftRun

MOST_BYTES = 1_000_000
"""Bytes. A params file has a few kilobytes; a larger file is something else and is not parsed."""


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases (a few can expand to gigabytes) and duplicate keys.

    Plain values are read as in YAML 1.2, not 1.1: `no` and `12:30` are text, and so are numbers with an unneeded zero,
    such as `001` or `0x10`. Numbers are as in Python: `1e-3`, `.5`, `1_000`.
    """

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                None, None, "aliases (*name) are not allowed; write the value out", event.start_mark
            )
        if event.tag is not None:
            raise yaml.MarkedYAMLError(
                None, None, f"tags ({event.tag}) are not allowed; write the value alone", event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_float(self, node):
        """A float; an int if it has an exponent and is whole, so that `1e3` can be a count."""
        number = float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))
        whole = "e" in node.value.lower() and number.is_integer() and abs(number) < 2**53
        return int(number) if whole else number


WHOLE = "(?:0|[1-9][0-9]*)"
PLAIN = {
    "null": ("~|null|Null|NULL|None|", yaml.SafeLoader.construct_yaml_null),
    "bool": ("true|True|TRUE|false|False|FALSE", yaml.SafeLoader.construct_yaml_bool),
    "int": (rf"[-+]?(?:{WHOLE}|[1-9][0-9]{{0,2}}(?:_[0-9]{{3}})+)", lambda loader, node: int(node.value)),
    "float": (
        rf"[-+]?(?:{WHOLE}\.?|{WHOLE}?\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _Loader.construct_float,
    ),
    "timestamp": ("[0-9]{4}-[0-9]{2}-[0-9]{2}", yaml.SafeLoader.construct_yaml_timestamp),
    "str": (None, yaml.SafeLoader.construct_yaml_str),
    "seq": (None, yaml.SafeLoader.construct_yaml_seq),
    "map": (None, yaml.SafeLoader.construct_yaml_map),
}
"""How each of YAML's tags is recognized, where nothing names it, and made: the core schema of YAML 1.2 (10.3.2), with
thousands set off by `_` and Python's None.  A date is recognized in order to be refused: in quotes it is text."""

for _tag, (_pattern, _make) in PLAIN.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _make)
    if _pattern is not None:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), None)


def find(path: str | Path) -> Path:
    """`path`; for a notebook that runs in its own folder, relative to the folder above. Raises ParamsError."""
    for candidate in (Path(path), Path("..") / path):
        if candidate.is_file():
            return candidate
    raise ParamsError(f"{path}: no such params file (looked in {Path.cwd().name}/ and the folder above it)")


def _yaml(file: Path, name: str) -> yaml.Node | None:
    """The YAML nodes of a file; their marks have the file name `name`. Raises ParamsError if it is not YAML."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ParamsError(f"{name}: cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise ParamsError(f"{name}: more than {MOST_BYTES:,} bytes, so it is no params file")
    try:
        loader = _Loader(text.decode())
        loader.name = name
        node = loader.get_single_node()
        _construct(node)
        return node
    except RecursionError:
        raise ParamsError(f"{name}: not a params file: nested too deeply") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{name}: not a YAML file: no text in UTF-8; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number of 5,000 digits
        told = str(error).replace('in "<unicode string>", ', "").replace(f'in "{name}", ', "")
        raise ParamsError(f"{name}: not a YAML file: {told}") from None


def _construct(node: yaml.Node | None):
    """The Python values of a node."""
    return None if node is None else _Loader("").construct_document(node)


EXTENDS, WITHOUT = "extends", "without"
"""`extends: mini.yaml` takes from mini.yaml every value that the params file does not state; `without: [tests]` leaves
out keys of mini.yaml."""

BESIDE = ("curate.frozen", "sources.*.read", "teacher.prompts.*", "grpo.runs.*.reward")
"""The keys of a study that name files beside the params file that states them."""


class Layer(NamedTuple):
    """A params file: its path, its name in messages, and its content with `extends` and `without`."""

    file: Path
    name: str
    node: yaml.MappingNode


def layers(path: str | Path) -> list[Layer]:
    """A params file and the files that it extends, in order, itself first; raises ParamsError."""
    found, file, name = [], find(path), str(path)
    while True:
        node = _yaml(file, name)
        if not isinstance(node, yaml.MappingNode):
            told = "it must hold `key: value` sections, as params/mini.yaml does"
            raise ParamsError(f"{name}: not a params file: {told}")
        found.append(Layer(Path(os.path.abspath(file)), name, node))
        base = _construct(dict(_pairs(node)).get(EXTENDS))
        if base is None:
            return found
        if not isinstance(base, str):
            raise ParamsError(f"{name}: {EXTENDS}: give the name of one params file, got {brief(base)}")
        file, above = file.parent / base, name
        name = os.path.normpath(os.path.join(os.path.dirname(name), base))
        if not file.is_file():
            raise ParamsError(f"{above}: {EXTENDS}: {base}: no such params file (looked in the folder of {above})")
        if any(file.samefile(each.file) for each in found):
            circle = " extends ".join([*(each.name for each in found), name])
            raise ParamsError(f"{above}: {EXTENDS}: a file cannot extend itself: {circle}")


def merged(path: str | Path) -> yaml.MappingNode:
    """A params file merged with the files that it extends; the mark of each value names its file.

    Mappings are merged key by key, in the order of the extended file. Any other value, and a section of another `kind`,
    is replaced. Raises ParamsError.
    """
    own, *bases = layers(path)
    for layer in bases:
        _move_paths(layer.node, layer.file.parent, own.file.parent)
    node = None
    for layer in reversed([own, *bases]):
        left_out = _construct(dict(_pairs(layer.node)).get(WITHOUT)) or []
        if not isinstance(left_out, list) or not all(isinstance(key, str) for key in left_out):
            raise ParamsError(f"{layer.name}: {WITHOUT}: give a list of keys, such as [tests, sources.b]")
        if left_out and node is None:
            raise ParamsError(f"{layer.name}: {WITHOUT}: this file extends no other, so there is nothing to leave out")
        for key in left_out:
            _leave_out(node, key, layer.name)
        layer.node.value = [pair for pair in layer.node.value if pair[0].value not in (EXTENDS, WITHOUT)]
        node = _merge(node, layer.node)
    return node


def _pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """The keys and values of a mapping node; none for other nodes."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, value) for key, value in node.value)


def _merge(base: yaml.Node | None, own: yaml.Node) -> yaml.Node:
    if not (isinstance(base, yaml.MappingNode) and isinstance(own, yaml.MappingNode)):
        return own
    below, above = (dict(_pairs(node)).get("kind") for node in (base, own))
    if below and above and below.value != above.value:
        return own
    pairs = {key.value: (key, value) for key, value in base.value}
    for key, value in own.value:
        pairs[key.value] = (key, _merge(pairs.get(key.value, (None, None))[1], value))
    return yaml.MappingNode(own.tag, list(pairs.values()), own.start_mark, own.end_mark, own.flow_style)


def _leave_out(node: yaml.MappingNode, key: str, name: str) -> None:
    """Remove the dotted `key` from a node; raises ParamsError with the file `name` if it does not exist."""
    inside, rest = node, key
    while True:
        if rest in dict(_pairs(inside)):
            inside.value = [pair for pair in inside.value if pair[0].value != rest]
            return
        part, inside = next(((at, to) for at, to in _pairs(inside) if rest.startswith(f"{at}.")), (None, None))
        if part is None:
            near = difflib.get_close_matches(key, _keys(node), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParamsError(f"{name}: {WITHOUT}: the extended file has no key {key!r}{hint}")
        rest = rest.removeprefix(f"{part}.")


def _keys(node: yaml.Node, above: str = "") -> list[str]:
    """All dotted keys of a node."""
    return [found for key, value in _pairs(node) for found in (above + key, *_keys(value, f"{above}{key}."))]


def _move_paths(node: yaml.MappingNode, here: Path, there: Path) -> None:
    """Make each path under `BESIDE` relative to the folder `there` instead of `here`."""
    for pattern in BESIDE if here != there else ():
        found = [node]
        for part in pattern.split("."):
            found = [value for each in found for key, value in _pairs(each) if part in (key, "*")]
        for value in found:
            file = here / str(value.value).partition(":")[0]
            if value.tag.endswith(":str") and file.is_file():  # a packaged prompt has a name that is not a path
                value.value = os.path.relpath(here / value.value, there)


def read(path: str | Path) -> dict:
    """The values of a params file merged with those that it extends, without checks; raises ParamsError."""
    return _construct(merged(path))


def load(path: str | Path, changes: Mapping[str, object] | None = None, *, full: bool = True) -> Study:
    """The study of a params file; without `full`, the runs marked `full` are left out.

    `changes` are values to try, by dotted key: `load("params/mini.yaml", {"grpo.beta": 0.1})`. The records of a study
    with changes are in a scratch folder (`config.scratch`), never in the folder of the params file.

    Raises ParamsError if the file is missing, is not YAML, or has an unknown key, a missing key, a wrong type, an
    undefined name, a reward that cannot be imported, or the study name of another params file.
    """
    if not isinstance(changes, Mapping | None):
        raise TypeError(f"changes: give a dict of values by dotted key, not {changes!r}")
    node, file = merged(path), Path(os.path.abspath(find(path)))
    study = _validated_study(_construct(node), file, lambda where: _stating_file(node, where))
    if _stating_file(node, "study") != str(path):
        raise ParamsError(f"{path}: study: give this study a name of its own; {study.study!r} is the file's it extends")
    if changes:
        values = _construct(node)
        for key, value in changes.items():
            _set_value(values, key, value)
        changed = _validated_study(values, file, lambda where: f"changes of {path}")
        changed._scratch = True
        scratch.copy_finished(study, changed)
        study = changed
    return study if full else study.short()


def _validated_study(values: dict, file: Path, place) -> Study:
    """The study of `values`; `place` returns the file that states a dotted key, and the study's file for ""."""
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        errors = causes(error.errors(), Study)
        wheres = ["" if each["type"] == "missing" else locate(each["loc"] or ("",), Study)[0] for each in errors]
        told = [f"{place(where)}: {explain(each, Study)}" for where, each in zip(wheres, errors, strict=True)]
        raise ParamsError("\n".join(told)) from None
    study._file = file
    study._refuse_other_owner()
    _check_rewards(study, place)
    return study


def _stating_file(node: yaml.Node, where: str) -> str:
    """The name of the file that states a dotted key or, if the key is missing, the mapping that should have it."""
    while where:
        inside = list(_pairs(node))
        if isinstance(node, yaml.SequenceNode):
            inside = [(str(number), value) for number, value in enumerate(node.value)]
        part, value = next(((key, to) for key, to in inside if f"{where}.".startswith(f"{key}.")), (None, None))
        if part is None:
            break
        node, where = value, where.removeprefix(part).removeprefix(".")
    return node.start_mark.name


RUNS: dict[str, type[Run]] = {"sft": SftRun, "grpo": GrpoRun}


def _set_value(values: dict, key: str, value) -> None:
    """Set a dotted key; the schema checks later whether it exists.

    If a run does not have the key, as in `grpo.runs.hard.beta`, it is set under the run's `set`.
    """
    if key in ("study", EXTENDS, WITHOUT):
        raise ParamsError(f"changes: {key} cannot be changed here; write a params file with `{EXTENDS}:`")
    inside, rest = values, key
    for stage, kind in RUNS.items():
        names = sorted(values.get(stage, {}).get("runs", {}), key=len, reverse=True)
        name = next((name for name in names if key.startswith(f"{stage}.runs.{name}.")), None)
        if name and (own := key.removeprefix(f"{stage}.runs.{name}.")).partition(".")[0] not in kind.model_fields:
            inside, rest = values[stage]["runs"][name].setdefault("set", {}), own
    while True:
        part = next((each for each in inside if rest.startswith(f"{each}.")), rest.partition(".")[0])
        if rest in inside or part == rest:
            inside[rest] = value
            return
        rest, inside = rest.removeprefix(f"{part}."), inside.setdefault(part, {})
        if not isinstance(inside, dict):
            raise ParamsError(f"changes: {key}: {part} holds {brief(inside)}, no keys; change it as a whole")


def _check_rewards(study: Study, place) -> None:
    rewards = import_module("chexreason.rewards")  # by name, so that the stages without rewards are not of its code
    for name, run in study.grpo.runs.items():
        try:
            rewards.check(run.reward, study.file.parent, run.reward_args)
        except rewards.RewardError as error:
            where = f"grpo.runs.{name}.reward"
            raise ParamsError(f"{place(where)}: {where}: {error}") from None


def read_value(text: str):
    """A plain value as in a params file: a number, true, false, null or text; raises ParamsError for anything else.

    `read_value("1e-3")` is 0.001, and `read_value("001")` is "001".
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ParamsError(f"{text[:100]!r} is no value; write a number, true, false or a text") from None
