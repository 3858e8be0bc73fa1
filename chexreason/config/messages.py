"""Error messages for a params file with invalid values."""

import difflib
from datetime import date
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

RENAMED = {
    "lora": {"alpha": "lora_alpha", "dropout": "lora_dropout"},
    "sft": {
        "epochs": "num_train_epochs",
        "patience": "early_stopping_patience",
        "warmup": "warmup_steps",
        "clip": "max_grad_norm",
        "batch": "per_device_train_batch_size",
        "accumulate": "gradient_accumulation_steps",
        "checkpointing": "gradient_checkpointing",
    },
    "grpo": {
        "steps": "max_steps",
        "completions": "num_generations",
        "updates_per_rollout": "steps_per_generation",
        "warmup": "warmup_steps",
        "clip_low": "epsilon",
        "clip_high": "epsilon_high",
        "max_completion_tokens": "max_completion_length",
        "clip": "max_grad_norm",
        "save_every": "save_steps",
        "checkpointing": "gradient_checkpointing",
    },
    "compare": {"draws": "n_resamples"},
}
"""Old keys of a section and their new names, after peft, transformers and trl; see book/running.md."""

NAMED = {
    "sft": "free_reasoning: {model: medgemma, format: free_reasoning}",
    "grpo": "hard: {start: free_reasoning, reward: hard}",
}
"""Examples of an entry of `runs`."""


def _sections(annotation) -> list[type[BaseModel]]:
    """The sections in an annotation, at any depth: `dict[str, Phantom | Nih]` has two."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _kind(section: type[BaseModel]) -> str:
    return get_args(section.model_fields["kind"].annotation)[0] if "kind" in section.model_fields else ""


def locate(location: tuple, root: type[BaseModel]) -> tuple[str, list[str]]:
    """A pydantic location in `root` as a dotted key, and the field names allowed there.

    If a section has several kinds, pydantic's location includes the kind; the params file does not.
    """
    where, sections = [], [root]
    for key in location:
        kinds = {_kind(section): section for section in sections}
        if len(kinds) > 1 and key in kinds:
            sections = [kinds[key]]
            continue
        where.append(str(key))
        field = next((section.model_fields[key] for section in sections if key in section.model_fields), None)
        sections = (_sections(field.annotation) if field else []) or sections
    return ".".join(where), list(sections[0].model_fields)


def explain(error: ErrorDetails, root: type[BaseModel]) -> str:
    """One error of a ValidationError as a sentence: where, what is wrong, what to do."""
    location = error["loc"] or ("",)
    where, _ = locate(location, root)
    if error["type"] == "extra_forbidden":
        if now := _renamed(location, root):
            return f"{where} is now {now}"
        return f"unknown key {where!r}; {_hint(location, root)}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    if location[-1] == "runs" and isinstance(error["input"], list):
        return f"{where}: runs have names now: write `{NAMED.get(str(location[0]), NAMED['grpo'])}` in place of a list"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":  # our own messages say all
        message += f", got {brief(error['input'])}"
    if advice := _advice(error):
        message += f"; {advice}"
    return f"{where}: {message}" if where else message


def _hint(location: tuple, root: type[BaseModel]) -> str:
    """A suggestion for an unknown key."""
    key, above = str(location[-1]), locate(location[:-1], root)[1]
    if len(location) == 4 and location[1] == "runs" and key in locate(location[:1], root)[1]:
        return f"write it under `set`, as in `set: {{{key}: ...}}`"
    near = difflib.get_close_matches(key, above, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(above)}"


def _renamed(location: tuple, root: type[BaseModel]) -> str:
    """The new name of an old key at a location, or "" if it is not an old key."""
    section = location[0] if len(location) > 1 else root.__name__.lower()
    return RENAMED.get(section, {}).get(location[-1], "")


def causes(errors: list[ErrorDetails], root: type[BaseModel]) -> list[ErrorDetails]:
    """The errors without those about a missing new key whose old name is given."""
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    found = {(*location[:-1], _renamed(location, root)) for location in unknown}
    return [error for error in errors if error["type"] != "missing" or error["loc"] not in found]


def brief(value) -> str:
    """`value` as Python writes it, at most one line."""
    text = "nothing (null)" if value is None else str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]} …"


def _advice(error: ErrorDetails) -> str:
    """What to write instead of a plain value that YAML reads as another type, or ""."""
    if error["type"] == "string_type":
        return 'write text in quotes, such as "001"' if error["input"] is not None else 'write "" for an empty text'
    return {
        "int_type": "write a whole number, such as 8 or 1e3, without quotes and leading zeros",
        "float_type": "write a number, such as 0.5 or 1e-3, without quotes and leading zeros",
        "bool_type": "write true or false, without quotes",
        "string_pattern_mismatch": "a name is made of letters, digits, '_', '-' and '.'",
    }.get(error["type"], "")
