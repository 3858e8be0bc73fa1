"""A study: all sections of a params file, checked against each other."""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    PrivateAttr,
    model_validator,
)

from chexreason import prompts
from chexreason.config import trl_arguments
from chexreason.config.schema import (
    OWNER,
    Compare,
    Curate,
    Folder,
    Grpo,
    GrpoRun,
    Hosted,
    Label,
    Lora,
    Model,
    Name,
    ParamsError,
    Phantom,
    Predict,
    Prompts,
    Section,
    Seed,
    Sft,
    SftRun,
    Source,
    Teacher,
    Test,
)
from chexreason.labels import LABEL_SETS


class Study(Section):
    """A whole study.  `folder` is where its records lie: `runs/<study>` beside the folder of the params file.

    `notice` stands at the head of every page of its book.  Every run is made with each of `seeds`, and those that are
    not marked `full` with each of `more_seeds` too, which are left to `make full`.  `label_sets` names lists of labels
    to score, beside those of `labels.LABEL_SETS`.
    """

    study: Name
    title: str
    notice: str = ""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    more_seeds: list[Seed] = Field(default_factory=list)
    label_sets: dict[Name, Annotated[list[Label], Field(min_length=1)]] = Field(default_factory=dict)
    sources: dict[Name, Source]
    curate: Curate
    tests: dict[Name, Test]
    teacher: Teacher
    models: dict[Name, Model]
    prompts: Prompts | None = None
    lora: Lora
    sft: Sft
    grpo: Grpo
    predict: Predict
    compare: Compare
    _file: Path = PrivateAttr(default=Path("params/unnamed.yaml"))
    _scratch: bool = PrivateAttr(default=False)
    _left_out: list[str] = PrivateAttr(default=[])

    @model_validator(mode="after")
    def _names_exist(self):
        _known("curate.train", self.curate.train, self.sources)
        if built_in := LABEL_SETS.keys() & self.label_sets:
            raise ValueError(f"label_sets: {min(built_in)!r} is a built-in label set; give yours another name")
        for label_set in self.curate.label_sets:
            _known("curate.label_sets", label_set, [*LABEL_SETS, *self.label_sets])
        for name, test in self.tests.items():
            _known(f"tests.{name}.source", test.source, self.sources)
            for label_set in test.label_sets:
                _known(f"tests.{name}.label_sets", label_set, [*LABEL_SETS, *self.label_sets])
        for run in [*self.sft.runs, *self.grpo.runs]:
            _known("runs: model", run.model, self.models)
        if self.prompts:
            _known("prompts.model", self.prompts.model, self.models)
        tried = self.prompts.variants if self.prompts else []
        others = [f"others/{name}" for name in prompts.names("others")]
        for name in [self.predict.prompt, *tried, *(run.format for run in self.sft.runs)]:
            _prompt_exists(name, prompts.names())
        for name in [model.prompt for model in self.models.values() if model.prompt]:
            _prompt_exists(name, prompts.names() + others)
        for format in getattr(self.teacher, "prompts", {}):
            _known("teacher.prompts: format", format, self.formats)
        self._keep_apart()
        self._keep_home()
        trained = {(run.model, run.format): None for run in self.sft.runs}
        for run in self.grpo.runs:
            _known("grpo.runs: model and format", (run.model, run.format), trained)
        self._keep_whole()
        if twice := set(self.seeds) & set(self.more_seeds):
            raise ValueError(f"more_seeds: {min(twice)} stands under seeds already")
        self._refuse_repeats()
        return self

    def _refuse_repeats(self) -> None:
        """What is listed twice would be run, counted or written over twice."""
        lists = {
            "seeds": self.seeds,
            "more_seeds": self.more_seeds,
            **{f"label_sets.{name}": labels for name, labels in self.label_sets.items()},
            "curate.views": self.curate.views,
            "curate.label_sets": self.curate.label_sets,
            **{f"tests.{name}.label_sets": test.label_sets for name, test in self.tests.items()},
            **{f"sources.{name}.views": source.views for name, source in self.sources.items()},
            **{f"sources.{name}.splits": source.splits for name, source in self.sources.items()},
            "models: name": [model.name for model in self.models.values()],
            "prompts.variants": self.prompts.variants if self.prompts else [],
            "sft.runs: model and format": [(run.model, run.format) for run in self.sft.runs if not run.full],
        }
        runs = [(run.model, run.variant.casefold()) for run in self.grpo.runs]
        for run in self.grpo.runs:
            if runs.count((run.model, run.variant.casefold())) > 1:
                raise ValueError(
                    f"grpo.runs: model and reward: {(run.model, run.variant)!r} is listed twice; list it once, or give "
                    "one of the runs another name (name: ...)"
                )
        for key, values in lists.items():
            for value in values or []:
                if values.count(value) > 1:
                    raise ValueError(f"{key}: {value!r} is listed twice; list it once")

    def _keep_apart(self) -> None:
        """What is trained on is never tested: neither MIMIC's test split, nor a test set named like a training set."""
        for name in self.tests:
            if name.casefold() in (taken := ("sft", "sft-holdout", "rl", "pool", self.home.casefold())):
                raise ValueError(f"tests: {name!r} cannot name a test set; {', '.join(taken)} name other films")
        source = self.sources[self.curate.train]
        if source.kind == "mimic" and "test" in source.splits:
            raise ValueError(f"sources.{self.curate.train}.splits: MIMIC's own test split must not be trained on")

    def _keep_home(self) -> None:
        """A credentialed film is sent to nobody unless the file says why that is allowed."""
        if self.sources[self.curate.train].credentialed:
            for section in (self.sft, self.grpo):
                trl_arguments.refuse_sending(section.stage, self.curate.train, section.trl, section.agreement)
        hosted = isinstance(self.teacher, Hosted) and not self.teacher.local
        if hosted and self.sources[self.curate.train].credentialed and not self.teacher.agreement:
            raise ValueError(
                f"teacher: films of {self.curate.train!r} are credentialed and this teacher is on another machine; "
                "use a local one, or state under teacher.agreement which agreement covers sending them there"
            )

    def _keep_whole(self) -> None:
        """What is not marked `full` must not need what is: a short study lacks it, and a further seed of it."""
        left = {(run.model, run.format) for run in self.sft.runs if run.full}
        for run in self.grpo.runs:
            if not run.full and (run.model, run.format) in left:
                raise ValueError(
                    f"grpo.runs: {run.model}, {run.variant} reward, is not marked full, and what it starts from is "
                    f"(sft.runs: {run.model}, {run.format}); mark both or neither"
                )
        for stage, runs in (("sft", self.sft.runs), ("grpo", self.grpo.runs)):
            for run in runs:
                if self.models[run.model].full and not run.full:
                    raise ValueError(
                        f"{stage}.runs: a run of {run.model} is not marked full, and models.{run.model} is; mark both"
                    )

    @property
    def file(self) -> Path:
        """The params file this study was read from."""
        return self._file

    @cached_property
    def folder(self) -> Path:
        """`runs/<study>` beside the folder that holds the params file; with changes, `runs/<study>/scratch/<hash>`."""
        return self._runs / "scratch" / self.hash if self._scratch else self._runs

    @property
    def _runs(self) -> Path:
        """The folder of the params file's own records."""
        return self._root / "runs" / self.study

    @property
    def _root(self) -> Path:
        """The folder that holds `params/` and `runs/`."""
        return self._file.resolve().parent.parent

    @property
    def _place(self) -> str:
        """The params file as seen from the folder that holds `params/` and `runs/`: the same wherever that is moved."""
        return str(self._file.resolve().relative_to(self._root))

    def claim(self) -> None:
        """Make the study's folder and write there that it belongs to this params file; `load` refuses any other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OWNER).write_bytes(os.fsencode(self._place))

    def _refuse_other_owner(self) -> None:
        owner = self._runs / OWNER
        other = os.fsdecode(owner.read_bytes()) if owner.is_file() else ""
        if other != self._place and (self._root / other).is_file():
            raise ParamsError(
                f"{self._place}: study: {self.study}: the folder runs/{self.study} belongs to {other}; give this study "
                f"another name, or remove runs/{self.study}/{OWNER} for this file to take the folder over"
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
            elif source.kind == "own" and "$" not in os.path.expandvars(source.root):
                places.append(Path(os.path.expandvars(source.root)).expanduser() / source.table)
        return [place for place in places if place.is_file()]

    @property
    def home(self) -> str:
        """The name of the validation set: films of the training source that nothing was trained on."""
        return f"{self.curate.train}-validation"

    @property
    def phantom(self) -> bool:
        """Whether any film of this study is drawn rather than taken of a patient."""
        return any(source.kind == "phantom" for source in self.sources.values())

    @property
    def formats(self) -> list[str]:
        """The formats that SFT trains, each once, in the order of its runs: the teacher writes traces of each."""
        return list(dict.fromkeys(run.format for run in self.sft.runs)) or ["free_reasoning"]

    @property
    def left_out(self) -> list[str]:
        """The runs of the file that this study leaves to `make full`."""
        return self._left_out

    def short(self) -> "Study":
        """The study without the runs marked `full`; its hash stays that of the file."""
        kept = {
            stage: getattr(self, stage).model_copy(update={"runs": [run for run in runs if not run.full]})
            for stage, runs in (("sft", self.sft.runs), ("grpo", self.grpo.runs))
        }
        kept["more_seeds"] = []
        kept["models"] = {name: model for name, model in self.models.items() if not model.full}
        trying = self.prompts is not None and self.prompts.full
        study = self.model_copy(update=kept | ({"prompts": None} if trying else {}))
        study.__dict__["hash"] = self.hash
        study._left_out = [
            *([f"the {len(self.prompts.variants)} prompts of Table 1"] if trying else []),
            *(f"untuned {name}" for name, model in self.models.items() if model.full),
            *(f"SFT of {run.model}, {run.format}" for run in self.sft.runs if run.full),
            *(f"GRPO of {run.model}, {run.variant} reward" for run in self.grpo.runs if run.full),
            *(f"seed {seed}" for seed in self.more_seeds),
        ]
        return study

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when any value of the params file does."""
        values = self.model_dump(exclude=None if self.label_sets else {"label_sets"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def runs(self, stage: Literal["sft", "grpo"]) -> list[tuple[SftRun | GrpoRun, int]]:
        """Every training run of a stage, with its seed."""
        return [
            (run, seed)
            for run in getattr(self, stage).runs
            for seed in (self.seeds if run.full else [*self.seeds, *self.more_seeds])
        ]

    def checkpoints(self) -> list[tuple[str, str, int]]:
        """Every (model, checkpoint, seed) that is asked.

        A checkpoint is `untuned`, `sft/<format>`, `grpo/<reward>` (of the last step) or `grpo/<reward>-best` (of the
        best macro-F1 on validation films), where a GRPO run with a name has it in place of its reward.
        """
        untuned = [(model, "untuned", self.seeds[0]) for model in self.models]
        sft = [(run.model, f"sft/{run.format}", seed) for run, seed in self.runs("sft")]
        grpo = [
            (run.model, f"grpo/{run.variant}{which}", seed)
            for run, seed in self.runs("grpo")
            for which in ("", "-best")
        ]
        return untuned + sft + grpo

    def prompt(self, model: str, checkpoint: str) -> str:
        """The prompt a checkpoint is asked with: that of its format; of the untuned model, its own or the study's."""
        stage, _, variant = checkpoint.partition("/")
        if stage == "sft":
            return variant
        untuned = self.models[model].prompt or self.predict.prompt
        return self.grpo_run(model, variant.removesuffix("-best")).format if stage == "grpo" else untuned

    def grpo_run(self, model: str, variant: str) -> GrpoRun | None:
        """The GRPO run of a model by its name, which is that of its reward unless it has another; None without one."""
        return next((run for run in self.grpo.runs if (run.model, run.variant) == (model, variant)), None)

    def labels(self, label_set: str) -> tuple[str, ...]:
        """The labels of a label set, a built-in one or one of this study."""
        return tuple(LABEL_SETS.get(label_set) or self.label_sets[label_set])

    def source(self, dataset: str) -> Phantom | Folder:
        """The source that the films of validation or of a test set come from."""
        return self.sources[self.curate.train if dataset == self.home else self.tests[dataset].source]

    def datasets(self, checkpoint: str) -> list[str]:
        """What a checkpoint is asked about: validation, and every test set unless GRPO passed its format over."""
        stage, _, variant = checkpoint.partition("/")
        chosen = {run.format for run in self.grpo.runs} or {run.format for run in self.sft.runs}
        return [self.home] if stage == "sft" and variant not in chosen else [self.home, *self.tests]


def _prompt_exists(name: str, there: list[str]) -> None:
    if name not in there:
        raise ValueError(f"no prompt {name!r}; chexreason/prompts has {', '.join(there)}")


def _known(key: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{key}: {value!r} is not defined in this file; choose one of {', '.join(map(str, choices))}")
