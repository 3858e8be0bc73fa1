"""The schema of a params file: its sections, except training. One file is one study; unknown keys are refused."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    StringConstraints,
    field_validator,
    model_validator,
)

from chexreason.config import trl_arguments
from chexreason.labels import CHEXPERT14

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes for one
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # names folders, too
View = Literal["PA", "AP", "lateral", "unknown"]
Label = Literal[CHEXPERT14]  # type: ignore[valid-type]
Agreement = Annotated[str, StringConstraints(strip_whitespace=True, min_length=10)]  # `no` names none


class ParamsError(ValueError):
    """A params file is missing or wrong; the message names the file, the key and what would be right."""


OWNER = "params_file"
"""The file in a study's folder that names the params file it belongs to."""


class Section(BaseModel):
    """Base of every section: unknown keys, wrong types and infinite numbers are refused; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Phantom(Section):
    """A source of phantoms: `films` candidate films of one phantom hospital.

    `labels` uses the labels of another hospital, or the truth; `pixels` uses the pixels of another hospital. `shuffled`
    gives each film the labels of another film, as a control. `noise` multiplies the errors of the labels: with 0.5
    they miss and invent half as many findings.
    """

    kind: Literal["phantom"]
    hospital: Literal["A", "B", "C"]
    labels: Literal["A", "B", "C", "truth"] | None = None
    shuffled: bool = False
    noise: NonNegativeFloat = 1.0
    pixels: Literal["A", "B", "C"] | None = None
    films: Count
    seed: Seed
    size: Count = 128
    views: None = None
    splits: None = None
    partial: Literal[False] = False
    credentialed: Literal[False] = False


class Folder(Section):
    """Base of the sources on disk, in the folder `root`.

    `root` may contain environment variables, such as `$NIH_FOLDER`. `views` and `splits` select the candidate films
    (default of `views`: `curate.views`). `partial` uses only films whose image exists. `size` is the longest side of
    the made images, in pixels.
    """

    kind: str
    root: str
    size: Count = 896
    views: list[View] | None = None
    splits: Sequence[str] | None = None
    partial: bool = False

    @property
    def folder(self) -> Path:
        """The folder on this machine; raises ParamsError if a variable is not set or the folder does not exist."""
        folder = Path(os.path.expandvars(self.root)).expanduser()
        if "$" in str(folder):
            raise ParamsError(
                f"root: {self.root}: set this environment variable to the folder of the {self.kind} films"
            )
        if not folder.is_dir():
            raise ParamsError(f"root: {self.root}: no such folder")
        return folder


class Mimic(Folder):
    """MIMIC-CXR-JPG, credentialed (`data/mimic.py`)."""

    kind: Literal["mimic"]
    labels: Literal["chexpert", "negbio", "radiologists"] = "chexpert"
    splits: list[Literal["train", "validate", "test"]] = ["train", "validate"]
    credentialed: Literal[True] = True


class Chexpert(Folder):
    """CheXpert, under its own agreement (`data/chexpert.py`)."""

    kind: Literal["chexpert"]
    splits: list[Literal["train", "valid", "test"]]
    credentialed: Literal[True] = True


class Nih(Folder):
    """NIH ChestX-ray14, free for everyone (`data/nih.py`). `fibrosis` counts Fibrosis as Pleural Other."""

    kind: Literal["nih"]
    splits: list[Literal["train_val", "test"]]
    fibrosis: bool = False
    credentialed: Literal[False] = False


class Own(Folder):
    """Your own films (`data/own.py`): a CSV with a mapping of its columns, or a function that reads the folder."""

    kind: Literal["own"]
    splits: list[str] | None = None
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
    """A test set: `films` films of a source, for predictions of every model.

    `draw` selects patients with all their films, or single films. `close_predictions` adds parent labels to the answers
    before they are scored (`labels.add_parent_labels`), as in CheXpert's test labels.
    """

    source: str
    films: Count
    label_sets: Annotated[list[str], Field(min_length=1)]
    draw: Literal["patients", "films"] = "patients"
    close_predictions: bool = False


class Shares(Section):
    """The shares of the training source's patients for each split; they sum to 1."""

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
    """Which films are used for what (PROTOCOL: Data).

    Validation is scored on `label_sets`. The study stops if more than `bad_share` of the films cannot be used. `frozen`
    is the manifest of an earlier study, whose films are used.
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
    """The rule-based teacher: sentences made from the labels and, on phantoms, from the boxes of the findings."""

    kind: Literal["rules"]
    seed: Seed


class Asked(Section):
    """Base of the teachers that are language models.

    `prompts` gives a format another prompt than `prompts/teacher/<format>.txt`: the name of a file there, without
    `.txt`, or a path relative to the params file. A trace has `min_words` to `max_words` words. A faulty trace is
    requested again up to `retries` times. `show_film` sends the image, too.
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

    `key` is the environment variable with the key. `workers` is the number of simultaneous requests. Prices are per
    million tokens, in any currency. `agreement` is the user's statement that the agreement for credentialed films
    allows sending them there; it is recorded with the traces.
    """

    key: str | None = None
    workers: Count = 8
    timeout: Count = 120
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0
    agreement: Agreement | None = None


class Endpoint(Hosted):
    """Any server with OpenAI's protocol, such as vLLM or Ollama on this machine."""

    kind: Literal["openai"]
    base_url: str

    @model_validator(mode="after")
    def _no_password(self):
        if "@" in urlsplit(self.base_url).netloc:
            raise ValueError("base_url must hold no user or password: name the variable that holds a key under key")
        return self

    @property
    def local(self) -> bool:
        """Whether the address is on this machine."""
        return urlsplit(self.base_url).hostname in trl_arguments.THIS_MACHINE


class Gemini(Hosted):
    """Google's Gemini through google-genai."""

    kind: Literal["gemini"]
    local: Literal[False] = False


Teacher = Annotated[Rules | LocalTeacher | Endpoint | Gemini, Field(discriminator="kind")]


class Model(Section):
    """A base model: its path and its name in results; `full` as in an SFT run.

    `prompt` is the prompt of the untuned model if it is not `predict.prompt`, for models that another project trained.
    `note` is printed with its scores. `visual_tokens` limits the tokens per film of Qwen2.5-VL (PROTOCOL: Models); the
    default is the model's own limits. `revision` is the commit, branch or tag of a hub model; the default is the commit
    of `main` in this machine's cache. `target_modules` and `exclude_modules` are peft's: the layers that LoRA adapts (a
    regular expression for their full names), and the last parts of the names of layers that are left out on purpose.
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


class Prompts(Section):
    """The prompts that are tried on an untuned model, on the first `films` validation films (PROTOCOL: Table 1)."""

    model: str
    variants: Annotated[list[str], Field(min_length=1)]
    films: Count
    full: bool = False


class Predict(Section):
    """How every model makes predictions (`protocol.Protocol`).

    `batch` is the number of films per batch. Films in a batch share only padding, so a batch can change a reply only by
    rounding, when sums are taken in another order. In float32 on a CPU, replies were the same for every tested batch (a
    test checks this). In bfloat16 or on a GPU, two almost equally likely tokens may change places, and with them the
    rest of the reply. So do not change `batch` within a study.
    """

    prompt: str
    max_new_tokens: Count
    batch: Count


class Layers(Section):
    """Test sets that cross the layers of two phantom hospitals (`evaluation/layers.py`).

    `films` films are drawn from each of the sources `home` and `away`. Every film is drawn twice, with the pixels of
    both hospitals. It is scored on `label_set`, with the labels of both hospitals.
    """

    home: str
    away: str
    films: Count
    label_set: str


class TrainingPath(Section):
    """The path of every run: all its checkpoints make predictions for `tests` (`inference/path.py`).

    KL to the start is measured on the first `kl_films` films of each.
    """

    tests: Annotated[list[str], Field(min_length=1)]
    kl_films: Count


class Compare(Section):
    """Intervals: the number of resamples (`n_resamples`) of the patient bootstrap, and its seed.

    With fewer than 40 resamples, 2.5 % of them is less than one, and there is no 95 % interval.
    """

    n_resamples: Annotated[int, Field(ge=40, le=1_000_000)]
    seed: Seed
