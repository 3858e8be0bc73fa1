"""The measured steps for a plan: those of this study, or else those in the package."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from chexreason import config
from chexreason.workflow import model_size

FILE = "measured.csv"
"""In a study's folder what `chexreason plan --measure` found there, beside this module what was measured before."""


class Step(NamedTuple):
    """The cost of one kind of step: seconds, and peak memory so far (10^9 bytes).

    `step` is `sft` (an optimizer step), `watch` (the loss of held-out films), `rollout` (sampling, and the
    log-probabilities of the old policy and the reference), `update` (of the policy), `see` (the vision encoder alone),
    `read` (a prompt and one token) or `answer` (a prompt and `new_tokens` tokens). `films` is the number of films or
    completions, `prompt_tokens` and `new_tokens` the length of the longest one. `weights` says whose weights they were.
    Only `rollout` includes the processing of images.
    """

    model: str
    weights: str
    step: str
    attention: str
    films: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    memory: float
    dtype: str
    device: str
    torch: str
    transformers: str
    trl: str
    peft: str
    commit: str
    date: str


OWN, OTHER, RANDOM, STAND_IN_WEIGHTS = "its own", "another model's", "random", "a stand-in's"
"""Whose weights were measured.  Only its own show how long a model's answers are; random ones never end an answer, and
a stand-in's show nothing about a model."""


def steps(study: config.Study, model: config.Model) -> list[Step]:
    """The measured steps for the architecture and dtype of a model; empty if there are none.

    Raises ModelError if its architecture is not known.
    """
    wanted = model_size.architecture(model.path)
    for file in (study.folder / FILE, Path(__file__).parent / FILE):
        if file.is_file():
            every = [step for step in read(file, file.stat().st_mtime_ns) if step.weights != STAND_IN_WEIGHTS]
            alike = [step for step in every if step.dtype == model.dtype and _architecture(step.model) == wanted]
            if alike:
                others = {step for step in alike if step.weights == OWN and step.model != model.path}
                return [step._replace(weights=OTHER) if step in others else step for step in alike]
    return []


@cache
def read(file: Path, changed: int) -> list[Step]:
    """The steps in a file with this modification time."""
    kinds = Step.__annotations__.values()
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            Step(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in [*csv.reader(lines)][1:]
        ]


@cache
def _architecture(path: str) -> tuple:
    from chexreason.models import ModelError

    try:
        return model_size.architecture(path)
    except ModelError:  # measured elsewhere, or deleted since
        return ()


def sentence(steps: list[Step]) -> str:
    """A sentence about where, when and with what the steps were measured."""
    first = steps[0]
    return (
        f"{first.model}: measured on {first.date} on one {first.device} with {first.weights} weights in {first.dtype}, "
        f"{first.attention} attention, torch {first.torch}, transformers {first.transformers} and trl {first.trl}."
    )


def compared(steps: list[Step]) -> list[str]:
    """Sentences for each model about larger batches, stored vision features, and attention implementations."""
    told = []
    for model in dict.fromkeys(step.model for step in steps):
        own = [step for step in steps if step.model == model]
        answers = [step for step in own if (step.step, step.attention) == ("answer", own[0].attention)]
        few, many = min(answers, key=lambda step: step.films), max(answers, key=lambda step: step.films)
        see = {step.attention: step for step in own if step.step == "see" and step.films == few.films}
        each = see[few.attention].seconds / few.films
        sft, plain = next(step for step in own if step.step == "sft"), see.get("eager", see[few.attention])
        told += [
            f"{model}: {many.films} answers of {many.new_tokens} tokens took {many.seconds:.1f} s, {few.films} took "
            f"{few.seconds:.1f} s.",
            f"{model}: the vision encoder takes {each * 1000:.0f} ms a film, {each * sft.films / sft.seconds:.1%} of a "
            f"step of SFT and {each * few.films / few.seconds:.1%} of answers of {few.new_tokens} tokens; keeping its "
            "features would save no more.",
            f"{model}: {few.attention} attention held {see[few.attention].memory:.1f} GB while {few.films} films were "
            f"read, eager attention {plain.memory:.1f} GB.",
        ]
    return told
