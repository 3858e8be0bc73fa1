"""From a params file to a study: YAML, its sections, and messages for what is wrong."""

import difflib
import os
import re
from datetime import date
from pathlib import Path
from typing import ClassVar, get_args

import yaml
from pydantic import (
    ValidationError,
)

from chexreason.config.schema import ParamsError, Section
from chexreason.config.study import Study

MOST_BYTES = 1_000_000
"""A params file is a few kilobytes of text; a larger one is something else, and is not parsed."""


class _Loader(yaml.SafeLoader):
    """YAML without what no params file needs: tags, aliases (a few can stand for gigabytes) and repeated keys.

    Plain values are read as YAML 1.2 does, not 1.1: `no` and `12:30` are text, and so is what begins with a needless
    zero, such as `001` or `0x10`.  Numbers are as in Python: `1e-3`, `.5`, `1_000`.
    """

    yaml_implicit_resolvers: ClassVar = {}
    yaml_constructors: ClassVar = {}

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

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_float(self, node):
        """A float; an int where it has an exponent and is whole, so that `1e3` can be a count."""
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


def _sections(annotation) -> list[type[Section]]:
    """The sections named in an annotation, however deep: `dict[str, Phantom | Nih]` has two."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _kind(section: type[Section]) -> str:
    return get_args(section.model_fields["kind"].annotation)[0] if "kind" in section.model_fields else ""


def _locate(location: tuple) -> tuple[str, list[str]]:
    """A pydantic location as a dotted key, and the field names allowed where it points, for the suggestion.

    In a section of several kinds, pydantic names the kind in the location; the file does not.
    """
    where, sections = [], [Study]
    for key in location:
        kinds = {_kind(section): section for section in sections}
        if len(kinds) > 1 and key in kinds:
            sections = [kinds[key]]
            continue
        where.append(str(key))
        field = next((section.model_fields[key] for section in sections if key in section.model_fields), None)
        sections = (_sections(field.annotation) if field else []) or sections
    return ".".join(where), list(sections[0].model_fields)


def _explain(error: dict) -> str:
    location = error["loc"] or ("",)
    where, _ = _locate(location)
    if error["type"] == "extra_forbidden":
        _, allowed = _locate(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(allowed)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":  # our own messages say all
        message += f", got {_brief(error['input'])}"
    if advice := _advice(error):
        message += f"; {advice}"
    return f"{where}: {message}" if where else message


def _brief(value) -> str:
    """`value` as Python writes it, but no more than a line of it."""
    text = "nothing (null)" if value is None else str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def find(path: str | Path) -> Path:
    """`path` as given or, for a notebook opened in its own folder, seen from the folder above; raises ParamsError."""
    for candidate in (Path(path), Path("..") / path):
        if candidate.is_file():
            return candidate
    raise ParamsError(f"{path}: no such params file (looked in {Path.cwd().name}/ and the folder above it)")


def _yaml(file: Path, path: str | Path):
    """What a YAML file holds; raises ParamsError, calling the file `path`, where it cannot be read as YAML."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise ParamsError(f"{path}: more than {MOST_BYTES:,} bytes, so it is no params file")
    try:
        return yaml.load(text.decode(), _Loader)
    except RecursionError:
        raise ParamsError(f"{path}: not a params file: nested too deeply") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not a YAML file: no text in UTF-8; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number of 5,000 digits
        told = str(error).replace('in "<unicode string>", ', "")
        raise ParamsError(f"{path}: not a YAML file: {told}") from None


def load(path: str | Path, full: bool = True) -> Study:
    """Read and check a params file; without `full`, leave out the runs that it marks so.

    Raises ParamsError before anything is spent: for a file that is not there, is not YAML, or holds an unknown key, a
    missing key, a wrong type, a name that nothing defines, or the study name of another file whose folder is there.
    """
    file = find(path)
    values = _yaml(file, path)
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: not a params file: it must hold `key: value` sections, as params/mini.yaml does")
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise ParamsError("\n".join(f"{path}: {_explain(each)}" for each in error.errors())) from None
    study._file = Path(os.path.abspath(file))
    study._refuse_other_owner()
    return study if full else study.short()


def _advice(error: dict) -> str:
    """What to write in place of a plain value that YAML reads as another type, or ""."""
    if error["type"] == "string_type":
        return 'write text in quotes, such as "001"' if error["input"] is not None else 'write "" for an empty text'
    return {
        "int_type": "write a whole number, such as 8 or 1e3, without quotes and leading zeros",
        "float_type": "write a number, such as 0.5 or 1e-3, without quotes and leading zeros",
        "bool_type": "write true or false, without quotes",
        "string_pattern_mismatch": "a name is made of letters, digits, '_', '-' and '.'",
    }.get(error["type"], "")


def read_value(text: str):
    """A plain value as a params file has it: a number, true, false, null or text; raises ParamsError for anything else.

    `read_value("1e-3")` is 0.001, and `read_value("001")` is "001".
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ParamsError(f"{text[:100]!r} is no value; write a number, true, false or a text") from None
