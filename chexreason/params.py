"""The schema of a params file: one file is one study, and unknown keys are refused."""

import difflib
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from chexreason.labels import LABEL_SETS

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]


class ParamsError(ValueError):
    """A params file is missing or wrong; the message names the file, the key and what would be right."""


class Section(BaseModel):
    """Base of every section: strict about names and types, and never changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Phantom(Section):
    """A source drawn on the spot: `films` candidate films of one phantom hospital."""

    kind: Literal["phantom"]
    hospital: Literal["A", "B", "C"]
    labels: Literal["A", "B", "C"] | None = None
    pixels: Literal["A", "B", "C"] | None = None
    films: Count
    seed: int
    size: Count = 128


class Test(Section):
    """A test set: `films` films of a source, asked of every model."""

    source: str
    films: Count
    label_sets: list[str]


class Shares(Section):
    """The shares of the training source's patients that each split is drawn from; they sum to 1."""

    validation: Share
    sft: Share
    rl: Share

    @model_validator(mode="after")
    def _sum_to_one(self):
        total = self.validation + self.sft + self.rl
        if abs(total - 1) > 1e-9:
            raise ValueError(f"validation, sft and rl must sum to 1, not {total:g}")
        return self


class Curate(Section):
    """Who is trained on what (PROTOCOL: Data)."""

    train: str
    shares: Shares
    views: list[Literal["PA", "AP"]]
    policy: Literal["u_zeros", "u_ones", "u_ignore"]
    sft: Count
    rl: Count
    validation: Count
    holdout: Share
    floor: Share
    ceiling: Share
    penalty: Annotated[float, Field(ge=0)]
    seed: int

    @model_validator(mode="after")
    def _floor_below_ceiling(self):
        if self.floor > self.ceiling:
            raise ValueError(f"floor ({self.floor:g}) must not be above ceiling ({self.ceiling:g})")
        return self


class Teacher(Section):
    """Who writes the reasoning traces."""

    kind: Literal["rules"]
    seed: int


class Model(Section):
    """A base model: where it is loaded from, and what the results call it."""

    name: str
    path: str
    dtype: Literal["float32", "bfloat16"]


class Lora(Section):
    """LoRA on the language model's attention and feed-forward projections (PROTOCOL: SFT)."""

    r: Count
    alpha: Count
    dropout: Share


class SftRun(Section):
    """One cell of the SFT grid."""

    model: str
    format: str


class Sft(Section):
    """Supervised fine-tuning (PROTOCOL: SFT)."""

    runs: list[SftRun]
    epochs: Count
    patience: Count
    evaluations_per_epoch: Count
    learning_rate: float
    warmup: Share
    weight_decay: float
    clip: float
    batch: Count
    accumulate: Count
    checkpointing: bool


class Reward(Section):
    """The hard reward's two open constants (PROTOCOL: equation 3)."""

    min_length: Count
    length_unit: Literal["characters", "words", "tokens"]
    length_penalty: float


class GrpoRun(Section):
    """One GRPO run: the SFT checkpoint it starts from and the reward it climbs."""

    model: str
    format: str
    reward: Literal["hard"]


class Grpo(Section):
    """Group-relative policy optimisation (PROTOCOL: GRPO)."""

    runs: list[GrpoRun]
    reward: Reward
    steps: Count
    films_per_step: Count
    completions: Annotated[int, Field(ge=2)]
    updates_per_rollout: Count
    learning_rate: float
    warmup: Share
    temperature: float
    top_p: Share
    beta: float
    clip_low: float
    clip_high: float
    scale_rewards: Literal["none", "group", "batch"]
    max_completion_tokens: Count
    clip: float
    save_every: Count
    checkpointing: bool


class Predict(Section):
    """The one protocol under which every model answers."""

    prompt: str
    max_new_tokens: Count
    batch: Count


class Compare(Section):
    """Intervals: draws of the patient bootstrap and its seed."""

    draws: Count
    seed: int


class Study(Section):
    """A whole study.  `folder` is where its records lie: `runs/<study>` beside the folder of the params file."""

    study: str
    title: str
    seeds: list[int]
    sources: dict[str, Phantom]
    curate: Curate
    tests: dict[str, Test]
    teacher: Teacher
    models: dict[str, Model]
    lora: Lora
    sft: Sft
    grpo: Grpo
    predict: Predict
    compare: Compare
    _file: Path = PrivateAttr(default=Path("params/unnamed.yaml"))

    @model_validator(mode="after")
    def _names_exist(self):
        _known("curate.train", self.curate.train, self.sources)
        for name, test in self.tests.items():
            _known(f"tests.{name}.source", test.source, self.sources)
            for label_set in test.label_sets:
                _known(f"tests.{name}.label_sets", label_set, LABEL_SETS)
        for run in [*self.sft.runs, *self.grpo.runs]:
            _known("runs: model", run.model, self.models)
        trained = {(run.model, run.format): None for run in self.sft.runs}
        for run in self.grpo.runs:
            _known("grpo.runs: model and format", (run.model, run.format), trained)
        return self

    @property
    def file(self) -> Path:
        """The params file this study was read from."""
        return self._file

    @cached_property
    def folder(self) -> Path:
        """`runs/<study>` beside the folder that holds the params file."""
        return self._file.resolve().parent.parent / "runs" / self.study

    @property
    def phantom(self) -> bool:
        """Whether any film of this study is drawn rather than taken of a patient."""
        return any(source.kind == "phantom" for source in self.sources.values())

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when any value of the params file does."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]

    def checkpoints(self) -> list[tuple[str, str, int]]:
        """Every (model, checkpoint, seed) that is asked: `untuned`, `sft/<format>` or `grpo/<reward>`."""
        untuned = [(model, "untuned", self.seeds[0]) for model in self.models]
        sft = [(run.model, f"sft/{run.format}", seed) for run in self.sft.runs for seed in self.seeds]
        grpo = [(run.model, f"grpo/{run.reward}", seed) for run in self.grpo.runs for seed in self.seeds]
        return untuned + sft + grpo


def _known(key: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{key}: {value!r} is not defined in this file; choose one of {', '.join(map(str, choices))}")


def _fields(model: type[BaseModel], location: tuple) -> list[str]:
    """The field names allowed where `location` points, for the suggestion in an error."""
    for key in location:
        field = model.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            continue
        nested = [arg for arg in (field.annotation, *getattr(field.annotation, "__args__", ()))]
        model = next((arg for arg in nested if isinstance(arg, type) and issubclass(arg, BaseModel)), model)
    return list(model.model_fields)


def _explain(error: dict) -> str:
    *parents, key = error["loc"] or ("",)
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        allowed = _fields(Study, tuple(parents))
        near = difflib.get_close_matches(str(key), allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(allowed)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}, got {error['input']!r}" if where else message


def find(path: str | Path) -> Path:
    """`path` as given or, for a notebook opened in its own folder, seen from the folder above; raises ParamsError."""
    for candidate in (Path(path), Path("..") / path):
        if candidate.is_file():
            return candidate
    raise ParamsError(f"{path}: no such params file (looked in {Path.cwd().name}/ and the folder above it)")


def load(path: str | Path) -> Study:
    """Read and check a params file.

    Raises ParamsError before anything is spent: for a file that is not there, is not YAML, or holds an unknown key, a
    missing key, a wrong type or a name that nothing defines.
    """
    file = find(path)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: a params file is a mapping of sections, this one holds {type(values).__name__}")
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise ParamsError("\n".join(f"{path}: {_explain(each)}" for each in error.errors())) from None
    study._file = Path(os.path.abspath(file))
    return study
