"""The schema of a params file: one file is one study, and unknown keys are refused."""

import difflib
import hashlib
import json
import os
import re
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from chexreason import prompts
from chexreason.answers import ONLY_LABEL
from chexreason.labels import CHEXPERT14, LABEL_SETS

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes for one
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # names folders, too
View = Literal["PA", "AP", "lateral", "unknown"]
Label = Literal[CHEXPERT14]


class ParamsError(ValueError):
    """A params file is missing or wrong; the message names the file, the key and what would be right."""


MOST_BYTES = 1_000_000
"""A params file is a few kilobytes of text; a larger one is something else, and is not parsed."""


OWNER = "params_file"
"""The file in a study's folder that names the params file it belongs to."""


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


class Section(BaseModel):
    """Base of every section: strict about names and types, every number finite, and never changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Phantom(Section):
    """A source drawn on the spot: `films` candidate films of one phantom hospital."""

    kind: Literal["phantom"]
    hospital: Literal["A", "B", "C"]
    labels: Literal["A", "B", "C"] | None = None
    pixels: Literal["A", "B", "C"] | None = None
    films: Count
    seed: Seed
    size: Count = 128
    views: None = None
    splits: None = None
    partial: Literal[False] = False
    credentialed: Literal[False] = False


class Folder(Section):
    """Base of the sources that lie on disk, in the folder `root`.

    `root` may name environment variables, as in `$NIH_FOLDER`, so that no path of a machine need stand in the file.
    `views` and `splits` say which films are candidates (views: `curate.views` where not given); `partial` takes only
    those whose image is there; `size` is the longest side, in pixels, of the images made from them.
    """

    root: str
    size: Count = 896
    views: list[View] | None = None
    splits: list[str] | None = None
    partial: bool = False

    @property
    def folder(self) -> Path:
        """The folder on this machine; raises ParamsError when a variable is not set or no folder is there."""
        folder = Path(os.path.expandvars(self.root)).expanduser()
        if "$" in str(folder):
            raise ParamsError(
                f"root: {self.root}: set this environment variable to the folder of the {self.kind} films"
            )
        if not folder.is_dir():
            raise ParamsError(f"root: {self.root}: no such folder")
        return folder


class Mimic(Folder):
    """MIMIC-CXR-JPG, credentialed (`sources/mimic.py`)."""

    kind: Literal["mimic"]
    labels: Literal["chexpert", "negbio", "radiologists"] = "chexpert"
    splits: list[Literal["train", "validate", "test"]] = ["train", "validate"]
    credentialed: Literal[True] = True


class Chexpert(Folder):
    """CheXpert, under its own agreement (`sources/chexpert.py`)."""

    kind: Literal["chexpert"]
    splits: list[Literal["train", "valid", "test"]]
    credentialed: Literal[True] = True


class Nih(Folder):
    """NIH ChestX-ray14, free of credentials (`sources/nih.py`).  `fibrosis` counts Fibrosis as Pleural Other."""

    kind: Literal["nih"]
    splits: list[Literal["train_val", "test"]]
    fibrosis: bool = False
    credentialed: Literal[False] = False


class Own(Folder):
    """Your own films (`sources/own.py`): a CSV and what its columns mean, or a function that reads the folder."""

    kind: Literal["own"]
    table: str | None = None
    columns: dict[str, str] = {}
    labels: dict[str, str] = {}
    read: str | None = None
    credentialed: bool = True

    @model_validator(mode="after")
    def _table_or_read(self):
        if (self.table is None) == (self.read is None):
            raise ValueError("give either table (a CSV, with columns and labels) or read (file.py:function)")
        return self


Source = Annotated[Phantom | Mimic | Chexpert | Nih | Own, Field(discriminator="kind")]


class Test(Section):
    """A test set: `films` films of a source, asked of every model.

    `draw` takes patients with all their films, or films one by one; `close_predictions` closes answers upwards before
    they are scored (`labels.close_upwards`), as the CheXpert test labels are.
    """

    source: str
    films: Count
    label_sets: Annotated[list[str], Field(min_length=1)]
    draw: Literal["patients", "films"] = "patients"
    close_predictions: bool = False


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
    """Who is trained on what (PROTOCOL: Data).

    Validation is scored on `label_sets`.  The study stops when more than `bad_share` of the films it looked at could
    not be used.  `frozen` names the manifest of an earlier study, to be followed film by film.
    """

    train: str
    shares: Shares
    views: Annotated[list[View], Field(min_length=1)]
    policy: Literal["u_zeros", "u_ones", "u_ignore"]
    sft: Count
    rl: Count
    validation: Count
    holdout: Share
    floor: Share
    ceiling: Share
    penalty: NonNegativeFloat
    bad_share: Share = 0.02
    frozen: str | None = None
    label_sets: Annotated[list[str], Field(min_length=1)]
    seed: Seed

    @model_validator(mode="after")
    def _floor_below_ceiling(self):
        if self.floor > self.ceiling:
            raise ValueError(f"floor ({self.floor:g}) must not be above ceiling ({self.ceiling:g})")
        return self


class Rules(Section):
    """The rule-based teacher: sentences put together from the labels and, on phantoms, from where findings lie."""

    kind: Literal["rules"]
    seed: Seed


class Asked(Section):
    """Base of the teachers that are language models.

    `prompts` gives a format another prompt than `prompts/teacher/<format>.txt`: the name of a file there, without
    `.txt`, or a path beside the params file.  A trace may have `min_words` to `max_words`, is asked for once and
    `retries` times more.  `show_film` sends the image along.
    """

    model: str
    prompts: dict[str, str] = {}
    show_film: bool = True
    min_words: Count = 30
    max_words: Count = 350
    max_new_tokens: Count = 1024
    temperature: NonNegativeFloat = 0.7
    retries: Annotated[int, Field(ge=0)] = 3
    seed: Seed


class LocalTeacher(Asked):
    """A transformers model on this machine."""

    kind: Literal["transformers"]
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch: Count = 8


class Hosted(Asked):
    """Base of the teachers behind a network address.

    `key` names the environment variable that holds the key; `workers` requests are under way at once; prices are per
    million tokens, in any currency.  `agreement` is the user's statement that the agreement for credentialed films
    covers sending them there; it is recorded with the traces.
    """

    key: str | None = None
    workers: Count = 8
    timeout: Count = 120
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0
    agreement: Annotated[str, StringConstraints(strip_whitespace=True, min_length=10)] | None = None  # `no` names none


class Endpoint(Hosted):
    """Any endpoint that speaks OpenAI's protocol, such as vLLM or Ollama on this machine."""

    kind: Literal["openai"]
    base_url: str

    @model_validator(mode="after")
    def _no_password(self):
        if "@" in urlsplit(self.base_url).netloc:
            raise ValueError("base_url must hold no user or password: name the variable that holds a key under key")
        return self

    @property
    def local(self) -> bool:
        """Whether the address is this machine's own."""
        return urlsplit(self.base_url).hostname in {"localhost", "127.0.0.1", "::1"}


class Gemini(Hosted):
    """Google's Gemini through google-genai."""

    kind: Literal["gemini"]
    local: Literal[False] = False


Teacher = Annotated[Rules | LocalTeacher | Endpoint | Gemini, Field(discriminator="kind")]


class Model(Section):
    """A base model: where it is loaded from, and what the results call it; `full` as in an SFT run.

    `prompt` names the prompt the untuned model is asked with where that is not `predict.prompt`: a model that another
    project has tuned is asked as that project does.  `note` is said beside its scores wherever they stand.
    `visual_tokens` bounds what Qwen2.5-VL makes of a film, whatever its size (PROTOCOL: Models); without it the bounds
    that the model came with hold.  `revision` is the commit, branch or tag of a hub model; without it, the commit of
    `main` that this machine's cache has.  `target_modules` and `exclude_modules` are peft's: which layers LoRA adapts,
    as a regular expression of their whole names, and the last parts of the names of those it deliberately leaves out.
    """

    name: Name
    path: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(min_length=1)] | None = None
    dtype: Literal["float32", "bfloat16"]
    target_modules: str | None = None
    exclude_modules: Annotated[tuple[str, ...], Field(strict=False)] = ()
    visual_tokens: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    prompt: str | None = None
    note: str = ""
    full: bool = False

    @model_validator(mode="after")
    def _fewest_first(self):
        if self.visual_tokens and self.visual_tokens[0] > self.visual_tokens[1]:
            raise ValueError("visual_tokens must be [fewest, most], the fewest first")
        return self

    @field_validator("target_modules")
    @classmethod
    def _is_a_pattern(cls, pattern):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern


class Lora(Section):
    """LoRA on the language model's attention and feed-forward projections (PROTOCOL: SFT)."""

    r: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]


class Prompts(Section):
    """The prompts that are tried on an untuned model, on the first `films` validation films (PROTOCOL: Table 1)."""

    model: str
    variants: Annotated[list[str], Field(min_length=1)]
    films: Count
    full: bool = False


class SftRun(Section):
    """One cell of the SFT grid; one marked `full` is left to `make full`."""

    model: str
    format: str
    full: bool = False


class Sft(Section):
    """Supervised fine-tuning (PROTOCOL: SFT)."""

    runs: list[SftRun]
    epochs: Count
    patience: Count
    evaluations_per_epoch: Count
    learning_rate: PositiveFloat
    warmup: Share
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    batch: Count
    accumulate: Count
    checkpointing: bool


Frequency = Annotated[float, Field(gt=0, le=1)]


class Nuanced(Section):
    """The nuanced reward's constants, in points (PROTOCOL: equation 4; `rewards.nuanced` says what each does).

    `frequency` is the share of the training source's studies that have a label, before any balancing; `scale` is how
    many points are worth 1 under the hard reward.
    """

    match: NonNegativeFloat
    recall: NonNegativeFloat
    precision: NonNegativeFloat
    window: Count
    dominance: Share
    repetition: NonNegativeFloat
    collapse: NonNegativeFloat
    invalid: NonNegativeFloat
    duplicate: NonNegativeFloat
    false_positive: NonNegativeFloat
    frequency: Annotated[dict[Label, Frequency], Field(min_length=1)]
    outside: NonNegativeFloat
    format_limit: NonNegativeFloat
    scale: PositiveFloat


class Reward(Section):
    """The hard reward's constants that the paper leaves open (PROTOCOL: equation 3), and the nuanced reward's."""

    min_length: Count
    length_unit: Literal["characters", "words", "tokens"]
    length_penalty: NonNegativeFloat
    nuanced: Nuanced | None = None


class Collapse(Section):
    """When a run is said to have collapsed: a mean over the last `rollouts` rollouts on the wrong side of a limit.

    Entropy (nats a token) or length (share of the first rollouts') below; KL (nats a token), the commonest label's
    share of the answers, the share of groups without contrast or of answers cut off above.
    """

    rollouts: Count
    entropy: NonNegativeFloat
    kl: NonNegativeFloat
    length: Share
    commonest_label: Share
    groups_without_contrast: Share
    cut_off: Share


class GrpoRun(Section):
    """One GRPO run: the SFT checkpoint it starts from and the reward it climbs; `full` as in an SFT run."""

    model: str
    format: str
    reward: Literal["hard", "nuanced"]
    full: bool = False


class Grpo(Section):
    """Group-relative policy optimisation (PROTOCOL: GRPO).

    Every checkpoint is asked about `validation_films` films of validation, and the best is kept beside the last.
    `use_bias_correction_kl` multiplies the KL term by the ratio of new to old policy, by which its gradient is that of
    the reverse KL divergence; without it, the gradient is that of the k3 estimator alone.  Without `beta` there is no
    KL term.
    """

    runs: list[GrpoRun]
    reward: Reward
    steps: Count
    films_per_step: Count
    completions: Annotated[int, Field(ge=2)]
    updates_per_rollout: Count
    learning_rate: PositiveFloat
    warmup: Share
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    beta: NonNegativeFloat
    use_bias_correction_kl: bool = True
    clip_low: NonNegativeFloat
    clip_high: NonNegativeFloat
    scale_rewards: Literal["none", "group", "batch"]
    max_completion_tokens: Count
    clip: PositiveFloat
    save_every: Count
    validation_films: Count
    collapse: Collapse
    checkpointing: bool

    @model_validator(mode="after")
    def _whole_rollouts(self):
        if self.save_every % self.updates_per_rollout:
            raise ValueError(
                f"save_every ({self.save_every}) must be a multiple of updates_per_rollout "
                f"({self.updates_per_rollout}): a run resumed within a rollout would draw other answers"
            )
        if any(run.reward == "nuanced" for run in self.runs) and self.reward.nuanced is None:
            raise ValueError("a run has the nuanced reward, and its constants, reward.nuanced, are missing")
        if any(run.reward == "hard" and run.format == ONLY_LABEL for run in self.runs):
            raise ValueError(
                f"runs: the hard reward (equation 3) is 0 for every answer of the format {ONLY_LABEL}, which has no "
                "<think> block; start from another format"
            )
        return self


class Predict(Section):
    """How every model is asked (`protocol.Protocol`).

    `batch` films are asked at once.  Films share nothing but padding, so a batch can change a reply only by rounding:
    sums over other shapes may be taken in another order.  In float32 on a CPU the replies were the same for every batch
    tried (a test looks); in bfloat16, or on a GPU, two tokens that are almost equally likely may change places, and
    the rest of that reply with them.  So do not change `batch` within a study.
    """

    prompt: str
    max_new_tokens: Count
    batch: Count


class Compare(Section):
    """Intervals: resamples (`draws`) of the patient bootstrap and its seed.

    With fewer than 40 resamples, 2.5 % of them is less than one, and there is no 95 % interval.
    """

    draws: Annotated[int, Field(ge=40, le=1_000_000)]
    seed: Seed


class Study(Section):
    """A whole study.  `folder` is where its records lie: `runs/<study>` beside the folder of the params file.

    `notice` stands at the head of every page of its book.  Every run is made with each of `seeds`, and those that are
    not marked `full` with each of `more_seeds` too, which are left to `make full`.
    """

    study: Name
    title: str
    notice: str = ""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    more_seeds: list[Seed] = []
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
    _left_out: list[str] = PrivateAttr(default=[])

    @model_validator(mode="after")
    def _names_exist(self):
        _known("curate.train", self.curate.train, self.sources)
        for label_set in self.curate.label_sets:
            _known("curate.label_sets", label_set, LABEL_SETS)
        for name, test in self.tests.items():
            _known(f"tests.{name}.source", test.source, self.sources)
            for label_set in test.label_sets:
                _known(f"tests.{name}.label_sets", label_set, LABEL_SETS)
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
            "curate.views": self.curate.views,
            "curate.label_sets": self.curate.label_sets,
            **{f"tests.{name}.label_sets": test.label_sets for name, test in self.tests.items()},
            **{f"sources.{name}.views": source.views for name, source in self.sources.items()},
            **{f"sources.{name}.splits": source.splits for name, source in self.sources.items()},
            "models: name": [model.name for model in self.models.values()],
            "prompts.variants": self.prompts.variants if self.prompts else [],
            "sft.runs: model and format": [(run.model, run.format) for run in self.sft.runs if not run.full],
            "grpo.runs: model and reward": [(run.model, run.reward) for run in self.grpo.runs],
        }
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
                    f"grpo.runs: {run.model}, {run.reward} reward, is not marked full, and what it starts from is "
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
        """`runs/<study>` beside the folder that holds the params file."""
        return self._file.resolve().parent.parent / "runs" / self.study

    @property
    def _place(self) -> str:
        """The params file as seen from the folder that holds `params/` and `runs/`: the same wherever that is moved."""
        return str(self._file.resolve().relative_to(self.folder.parent.parent))

    def claim(self) -> None:
        """Make the study's folder and write there that it belongs to this params file; `load` refuses any other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OWNER).write_bytes(os.fsencode(self._place))

    def _refuse_other_owner(self) -> None:
        owner = self.folder / OWNER
        other = os.fsdecode(owner.read_bytes()) if owner.is_file() else ""
        if other != self._place and (self.folder.parent.parent / other).is_file():
            raise ParamsError(
                f"{self._place}: study: {self.study}: the folder runs/{self.study} belongs to {other}; give this study "
                f"another name, or remove runs/{self.study}/{OWNER} for this file to take the folder over"
            )

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
            *(f"GRPO of {run.model}, {run.reward} reward" for run in self.grpo.runs if run.full),
            *(f"seed {seed}" for seed in self.more_seeds),
        ]
        return study

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when any value of the params file does."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]

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
        best macro-F1 on validation films).
        """
        untuned = [(model, "untuned", self.seeds[0]) for model in self.models]
        sft = [(run.model, f"sft/{run.format}", seed) for run, seed in self.runs("sft")]
        grpo = [
            (run.model, f"grpo/{run.reward}{which}", seed) for run, seed in self.runs("grpo") for which in ("", "-best")
        ]
        return untuned + sft + grpo

    def prompt(self, model: str, checkpoint: str) -> str:
        """The prompt a checkpoint is asked with: that of its format; of the untuned model, its own or the study's."""
        stage, _, variant = checkpoint.partition("/")
        if stage == "sft":
            return variant
        formats = {(run.model, run.reward): run.format for run in self.grpo.runs}
        untuned = self.models[model].prompt or self.predict.prompt
        return formats[model, variant.removesuffix("-best")] if stage == "grpo" else untuned

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


def find(path: str | Path) -> Path:
    """`path` as given or, for a notebook opened in its own folder, seen from the folder above; raises ParamsError."""
    for candidate in (Path(path), Path("..") / path):
        if candidate.is_file():
            return candidate
    raise ParamsError(f"{path}: no such params file (looked in {Path.cwd().name}/ and the folder above it)")


def read_value(text: str):
    """A plain value as a params file has it: a number, true, false, null or text; raises ParamsError for anything else.

    `read_value("1e-3")` is 0.001, and `read_value("001")` is "001".
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ParamsError(f"{text[:100]!r} is no value; write a number, true, false or a text") from None


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
