"""A study: all sections of a params file, checked against each other."""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from chexreason import prompts
from chexreason.answers import ONLY_LABEL
from chexreason.config import trl_arguments
from chexreason.config.checkpoint import UNTUNED, Checkpoint, Paths
from chexreason.config.schema import (
    OWNER,
    Compare,
    Curate,
    Folder,
    Hosted,
    Label,
    Layers,
    Model,
    Name,
    ParamsError,
    Phantom,
    Predict,
    Prompts,
    Section,
    Seed,
    Source,
    Teacher,
    Test,
    TrainingPath,
)
from chexreason.config.training import Grpo, Lora, Run, Sft, SftRun
from chexreason.labels import LABEL_SETS


class Study(Section):
    """A whole study.  Its records are in `folder`: `runs/<study>`, next to the folder of the params file.

    `notice` is printed at the top of every page of its book.  Every run is made with each of `seeds`.  `make full` also
    makes the runs marked `full`, and the others with each of `more_seeds`.  `label_sets` names lists of labels to
    score, in addition to `labels.LABEL_SETS`.
    """

    study: Name
    title: str
    notice: str = ""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    more_seeds: list[Seed] = Field(default_factory=list)
    label_sets: dict[Name, Annotated[list[Label], Field(min_length=1)]] = Field(default_factory=dict)
    sources: dict[Name, Source]
    curate: Curate
    tests: Annotated[dict[Name, Test], Field(min_length=1)]
    teacher: Teacher
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    prompts: Prompts | None = None
    lora: Lora
    sft: Sft
    grpo: Grpo
    predict: Predict
    layers: Layers | None = None
    path: TrainingPath | None = None
    compare: Compare
    _file: Path = PrivateAttr(default=Path("params/unnamed.yaml"))
    _scratch: bool = PrivateAttr(default=False)
    _left_out: list[str] = PrivateAttr(default=[])

    @model_validator(mode="after")
    def _names_exist(self):
        _require_known("curate.train", self.curate.train, self.sources)
        if built_in := LABEL_SETS.keys() & self.label_sets:
            raise ValueError(f"label_sets: {min(built_in)!r} is a built-in label set; give yours another name")
        for label_set in self.curate.label_sets:
            _require_known("curate.label_sets", label_set, [*LABEL_SETS, *self.label_sets])
        for name, test in self.tests.items():
            _require_known(f"tests.{name}.source", test.source, self.sources)
            for label_set in test.label_sets:
                _require_known(f"tests.{name}.label_sets", label_set, [*LABEL_SETS, *self.label_sets])
        for name, run in self.sft.runs.items():
            _require_known(f"sft.runs.{name}.model", run.model, self.models)
        if self.prompts:
            _require_known("prompts.model", self.prompts.model, self.models)
        tried = self.prompts.variants if self.prompts else []
        others = [f"others/{name}" for name in prompts.names("others")]
        for name in [self.predict.prompt, *tried, *(run.format for run in self.sft.runs.values())]:
            _prompt_exists(name, prompts.names())
        for name in [model.prompt for model in self.models.values() if model.prompt]:
            _prompt_exists(name, prompts.names() + others)
        for format in getattr(self.teacher, "prompts", {}):
            _require_known("teacher.prompts: format", format, self.formats)
        self._check_rewarded()
        self._check_layers()
        self._check_path()
        self._check_separation()
        self._check_credentialed()
        if twice := set(self.seeds) & set(self.more_seeds):
            raise ValueError(f"more_seeds: {min(twice)} is already listed in seeds")
        self._refuse_repeats()
        self._check_full_runs()
        return self

    def _refuse_repeats(self) -> None:
        """Raise ValueError for a list with the same value twice."""
        lists: dict[str, Any] = {
            "seeds": self.seeds,
            "more_seeds": self.more_seeds,
            **{f"label_sets.{name}": labels for name, labels in self.label_sets.items()},
            "curate.views": self.curate.views,
            "curate.label_sets": self.curate.label_sets,
            **{f"tests.{name}.label_sets": test.label_sets for name, test in self.tests.items()},
            **{f"sources.{name}.views": source.views for name, source in self.sources.items()},
            **{f"sources.{name}.splits": source.splits for name, source in self.sources.items()},
            "path.tests": self.path.tests if self.path else [],
            "models: name": [model.name for model in self.models.values()],
            "prompts.variants": self.prompts.variants if self.prompts else [],
            **{f"sft.runs.{name}.seeds": run.seeds for name, run in self.sft.runs.items()},
            **{f"grpo.runs.{name}.seeds": run.seeds for name, run in self.grpo.runs.items()},
            **{f"grpo.runs.{name}.films": run.films for name, run in self.grpo.runs.items()},
        }
        for key, values in lists.items():
            for value in values or []:
                if values.count(value) > 1:
                    raise ValueError(f"{key}: {value!r} is listed twice; list it once")

    def _check_rewarded(self) -> None:
        """Raise ValueError for a GRPO run whose start, films or labels do not exist."""
        for name, run in self.grpo.runs.items():
            key = f"grpo.runs.{name}"
            _require_known(f"{key}.start", run.start, self.sft.runs)
            if run.reward == "hard" and self.sft.runs[run.start].format == ONLY_LABEL:
                raise ValueError(
                    f"{key}: the hard reward (equation 3) is 0 for every answer of the format {ONLY_LABEL}, which has "
                    "no <think> block; start from a run of another format"
                )
            for source in [*(run.films or []), *run.labels.values()]:
                _require_known(key, source, self.sources)
            for source, other in run.labels.items():
                _require_known(f"{key}.labels", source, run.films or [self.curate.train])
                _refuse_other_films(f"{key}.labels", self.sources[source], self.sources[other], other)

    def _check_layers(self) -> None:
        """Raise ValueError unless `layers` names two sources of phantoms and a label set."""
        for key in ("home", "away") if self.layers else ():
            name = getattr(self.layers, key)
            _require_known(f"layers.{key}", name, self.sources)
            source = self.sources[name]
            if not isinstance(source, Phantom) or source.labels or source.shuffled or source.pixels:
                raise ValueError(f"layers.{key}: {name!r} must be a plain source of phantoms: layers are crossed here")
        if self.layers:
            _require_known("layers.label_set", self.layers.label_set, [*LABEL_SETS, *self.label_sets])
            if (hospital := self.hospital(self.layers.home)) == self.hospital(self.layers.away):
                raise ValueError(f"layers: home and away are both of hospital {hospital}; choose two hospitals")

    def _check_path(self) -> None:
        """Raise ValueError if `path` names no test set, or checkpoints are not kept."""
        for name in self.path.tests if self.path else ():
            _require_known("path.tests", name, self.tests)
        for section in (self.sft, self.grpo) if self.path else ():
            if not section.keep_checkpoints:
                raise ValueError(f"path: needs {section.stage}.keep_checkpoints: true")

    def _check_separation(self) -> None:
        """Raise ValueError if MIMIC's test split is trained on, or a test set has the name of a training set."""
        for name in self.tests:
            if name.casefold() in (taken := ("sft", "sft-holdout", "rl", "pool", self.validation.casefold())):
                raise ValueError(f"tests: {name!r} cannot name a test set; {', '.join(taken)} name other films")
        for name in self.rl_sources:
            if self.sources[name].kind == "mimic" and "test" in (self.sources[name].splits or []):
                raise ValueError(f"sources.{name}.splits: MIMIC's own test split must not be trained on")

    def _check_credentialed(self) -> None:
        """Raise ValueError if credentialed films would leave the machine without a stated agreement."""
        trained = {("sft", name): [self.curate.train] for name in self.sft.runs}
        trained |= {("grpo", name): run.films or [self.curate.train] for name, run in self.grpo.runs.items()}
        for (stage, name), sources in trained.items():
            settings = getattr(self, stage).of(name)
            for source in (each for each in sources if self.sources[each].credentialed):
                trl_arguments.refuse_sending(stage, source, settings.trl, settings.agreement)
        teacher, credentialed = self.teacher, self.sources[self.curate.train].credentialed
        if credentialed and isinstance(teacher, Hosted) and not teacher.local and not teacher.agreement:
            raise ValueError(
                f"teacher: films of {self.curate.train!r} are credentialed and this teacher is on another machine; "
                "use a local one, or state under teacher.agreement which agreement covers sending them there"
            )

    def _check_full_runs(self) -> None:
        """Raise ValueError if a run needs a run marked `full`, or a seed that its SFT run does not have."""
        for name, run in self.grpo.runs.items():
            if not run.full and self.sft.runs[run.start].full:
                raise ValueError(
                    f"grpo.runs.{name} is not marked full, but its start sft.runs.{run.start} is; mark both or neither"
                )
            if missing := set(self._seeds(run)) - set(self._seeds(self.sft.runs[run.start])):
                raise ValueError(f"grpo.runs.{name}.seeds: sft.runs.{run.start} is not trained with {min(missing)}")
        for section in (self.sft, self.grpo):
            for name in section.runs:
                model = self.sft_run(section.stage, name).model
                if self.models[model].full and not section.runs[name].full:
                    key = f"{section.stage}.runs.{name}"
                    raise ValueError(f"{key} is not marked full, and models.{model} is; mark both")

    @property
    def file(self) -> Path:
        """The params file this study was read from."""
        return self._file

    @cached_property
    def folder(self) -> Path:
        """`runs/<study>`, next to the folder of the params file; for changed values, `runs/<study>/scratch/<hash>`."""
        return self._runs / "scratch" / self.hash if self._scratch else self._runs

    @property
    def _runs(self) -> Path:
        """The folder of the params file's own records."""
        return self._root / "runs" / self.study

    @property
    def _root(self) -> Path:
        """The folder of `params/` and `runs/`."""
        return self._file.resolve().parent.parent

    @property
    def _place(self) -> str:
        """The path of the params file relative to the folder of `params/` and `runs/`, which may be moved."""
        return str(self._file.resolve().relative_to(self._root))

    def claim(self) -> None:
        """Make the study's folder and note in it that it belongs to this params file; `load` refuses any other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OWNER).write_bytes(os.fsencode(self._place))

    def _refuse_other_owner(self) -> None:
        owner = self._runs / OWNER
        other = os.fsdecode(owner.read_bytes()) if owner.is_file() else ""
        if other != self._place and (self._root / other).is_file():
            raise ParamsError(
                f"{self._place}: study: {self.study}: the folder runs/{self.study} belongs to {other}; give this study "
                f"another name, or remove runs/{self.study}/{OWNER} to use the folder for this file"
            )

    def files(self) -> list[Path]:
        """The user's own files that curation reads: tables, `read:` functions, teacher prompts, a frozen manifest."""
        beside = self.file.parent
        places = [
            beside / name for name in (self.curate.frozen, *getattr(self.teacher, "prompts", {}).values()) if name
        ]
        for source in self.sources.values():
            if source.kind == "own" and source.read:
                places.append(beside / source.read.partition(":")[0])
            elif source.kind == "own" and source.table and "$" not in os.path.expandvars(source.root):
                places.append(Path(os.path.expandvars(source.root)).expanduser() / source.table)
        return [place for place in places if place.is_file()]

    @property
    def validation(self) -> str:
        """The name of the validation set: films of the training source that are not used for training."""
        return f"{self.curate.train}-validation"

    @property
    def phantom(self) -> bool:
        """Whether any film of this study is a phantom."""
        return any(source.kind == "phantom" for source in self.sources.values())

    @property
    def formats(self) -> list[str]:
        """The formats of the SFT runs, each once, in order.  The teacher writes traces in each of them."""
        return list(dict.fromkeys(run.format for run in self.sft.runs.values())) or ["free_reasoning"]

    @property
    def trial(self) -> Prompts:
        """The section `prompts`; raises ParamsError if the study does not have it."""
        return self._given("prompts")

    @property
    def crossing(self) -> Layers:
        """The section `layers`; raises ParamsError if the study does not have it."""
        return self._given("layers")

    @property
    def walk(self) -> TrainingPath:
        """The section `path`; raises ParamsError if the study does not have it."""
        return self._given("path")

    def _given(self, key: str):
        section = getattr(self, key)
        if section is None:
            raise ParamsError(f"{self.file.name}: {key}: this study has no such section; add it")
        return section

    @property
    def left_out(self) -> list[str]:
        """The runs that only `make full` makes."""
        return self._left_out

    def short(self) -> "Study":
        """The study without the runs marked `full`; its hash stays that of the file."""
        kept: dict[str, Any] = {}
        for section in (self.sft, self.grpo):
            runs = {name: run for name, run in section.runs.items() if not run.full}
            kept[section.stage] = section.model_copy(update={"runs": runs})
        kept["more_seeds"] = []
        kept["models"] = {name: model for name, model in self.models.items() if not model.full}
        tried = self.prompts.variants if self.prompts and self.prompts.full else []
        study = self.model_copy(update=kept | ({"prompts": None} if tried else {}))
        study.__dict__["hash"] = self.hash
        study._left_out = [
            *([f"the {len(tried)} prompts of Table 1"] if tried else []),
            *(f"untuned {name}" for name, model in self.models.items() if model.full),
            *(f"SFT run {name}" for name, run in self.sft.runs.items() if run.full),
            *(f"GRPO run {name}" for name, run in self.grpo.runs.items() if run.full),
            *(f"seed {seed}" for seed in self.more_seeds),
        ]
        return study

    @cached_property
    def hash(self) -> str:
        """A hash of all values of the params file (twelve hexadecimal digits)."""
        values = self.model_dump(exclude=None if self.label_sets else {"label_sets"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def paths(self) -> Paths:
        """The paths of this study's records."""
        return Paths(self.folder)

    def _seeds(self, run: Run) -> list[int]:
        """The seeds that a run is made with."""
        return run.seeds or (self.seeds if run.full else [*self.seeds, *self.more_seeds])

    def sft_run(self, stage: str, run: str) -> SftRun:
        """The SFT run that a run is, or starts from; it has the model and the format."""
        return self.sft.runs[run if stage == "sft" else self.grpo.runs[run].start]

    def checkpoint(self, stage: Literal["sft", "grpo"], run: str, seed: int) -> Checkpoint:
        """The last checkpoint of a run; raises ParamsError for a run that the params file does not have."""
        there = getattr(self, stage).runs
        if run not in there:
            known = ", ".join(there) or "none"
            raise ParamsError(f"{self.file.name}: {stage}.runs: no run {run!r}; it has {known}")
        return Checkpoint(self.sft_run(stage, run).model, stage, run, "last", seed)

    def runs(self, stage: Literal["sft", "grpo"]) -> list[Checkpoint]:
        """Every training run of a stage with each of its seeds, as the checkpoint of its last step."""
        runs = getattr(self, stage).runs
        return [self.checkpoint(stage, name, seed) for name, run in runs.items() for seed in self._seeds(run)]

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that makes predictions: the untuned models, the SFT runs, and GRPO's last and best."""
        untuned = [Checkpoint(model, UNTUNED, "", "last", self.seeds[0]) for model in self.models]
        return untuned + self.runs("sft") + [each for last in self.runs("grpo") for each in (last, last.best)]

    def start(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint that a run starts from: the untuned model for SFT, the SFT run of the same seed for GRPO."""
        if checkpoint.stage == "grpo":
            return self.checkpoint("sft", self.grpo.runs[checkpoint.run].start, checkpoint.seed)
        return Checkpoint(checkpoint.model, UNTUNED, "", "last", self.seeds[0])

    def prompt(self, checkpoint: Checkpoint) -> str:
        """The prompt of a checkpoint: that of its format or, for an untuned model, its own or the study's."""
        if checkpoint.stage == UNTUNED:
            return self.models[checkpoint.model].prompt or self.predict.prompt
        return self.sft_run(checkpoint.stage, checkpoint.run).format

    @property
    def rl_sources(self) -> list[str]:
        """The sources of training films, the training source first."""
        return list(
            dict.fromkeys([self.curate.train, *(name for run in self.grpo.runs.values() for name in run.films or [])])
        )

    def rl_split(self, source: str) -> str:
        """The name of the split of GRPO films of `source` (the names of test sets have no @)."""
        return "rl" if source == self.curate.train else f"rl@{source}"

    @property
    def relabelings(self) -> list[tuple[str, str]]:
        """Pairs of sources: the films of the first get the labels of the second in a GRPO run."""
        return sorted({pair for run in self.grpo.runs.values() for pair in run.labels.items()})

    def labels(self, label_set: str) -> tuple[str, ...]:
        """The labels of a label set, a built-in one or one of this study."""
        return tuple(LABEL_SETS.get(label_set) or self.label_sets[label_set])

    @property
    def crossed(self) -> dict[str, tuple[str, str]]:
        """The data sets of `layers`: for each name, the source of its films and the hospital of its pixels."""
        ends = [self.layers.home, self.layers.away] if self.layers else []
        hospitals = [self.hospital(name) for name in ends]
        return {f"{name}@{pixels}": (name, pixels) for name in ends for pixels in hospitals}

    def hospital(self, source: str) -> str:
        """The hospital of a source of phantoms; "" for any other source."""
        return getattr(self.sources[source], "hospital", "")

    def source(self, dataset: str) -> Phantom | Folder:
        """The source of the validation set, of a test set or of a data set of `layers`."""
        if dataset in self.crossed:
            return self.sources[self.crossed[dataset][0]]
        return self.sources[self.curate.train if dataset == self.validation else self.tests[dataset].source]

    def datasets(self, checkpoint: Checkpoint) -> list[str]:
        """The data sets of a checkpoint: validation and, unless no GRPO run uses its format, every test set and those
        of `layers`.
        """
        chosen = {self.sft_run("grpo", name).format for name in self.grpo.runs} or set(self.formats)
        passed_over = checkpoint.stage == "sft" and self.prompt(checkpoint) not in chosen
        return [self.validation] if passed_over else [self.validation, *self.tests, *self.crossed]


def _refuse_other_films(key: str, source: Source, other: Source, name: str) -> None:
    """Raise ValueError unless two sources have the same films, as far as the params file shows."""
    same = source.kind == other.kind
    if isinstance(source, Phantom) and isinstance(other, Phantom):
        same = (source.hospital, source.seed) == (other.hospital, other.seed) and other.films >= source.films
    if not same:
        raise ValueError(
            f"{key}: {name!r} does not have these films; a source of other labels has the same kind and, for phantoms, "
            "the same hospital and seed and no fewer films"
        )


def _prompt_exists(name: str, there: list[str]) -> None:
    if name not in there:
        raise ValueError(f"no prompt {name!r}; chexreason/prompts has {', '.join(there)}")


def _require_known(key: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{key}: {value!r} is not defined in this file; choose one of {', '.join(map(str, choices))}")
