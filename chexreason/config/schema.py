"""The schema of a params file: one file is one study, and unknown keys are refused."""

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
    """Base of every section: strict about names and types, every number finite, and never changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Phantom(Section):
    """A source drawn on the spot: `films` candidate films of one phantom hospital.

    `labels` takes another hospital's label channel, or the truth, which a perfect reader would see; `pixels` takes
    another's pixels.  `shuffled` gives each film the labels of another one, as a control.
    """

    kind: Literal["phantom"]
    hospital: Literal["A", "B", "C"]
    labels: Literal["A", "B", "C", "truth"] | None = None
    shuffled: bool = False
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

    kind: str
    root: str
    size: Count = 896
    views: list[View] | None = None
    splits: Sequence[str] | None = None
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
    """NIH ChestX-ray14, free of credentials (`data/nih.py`).  `fibrosis` counts Fibrosis as Pleural Other."""

    kind: Literal["nih"]
    splits: list[Literal["train_val", "test"]]
    fibrosis: bool = False
    credentialed: Literal[False] = False


class Own(Folder):
    """Your own films (`data/own.py`): a CSV and what its columns mean, or a function that reads the folder."""

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
    """A test set: `films` films of a source, asked of every model.

    `draw` takes patients with all their films, or films one by one; `close_predictions` closes answers upwards before
    they are scored (`labels.add_parent_labels`), as the CheXpert test labels are.
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
    agreement: Agreement | None = None


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
        return urlsplit(self.base_url).hostname in trl_arguments.THIS_MACHINE


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


class Prompts(Section):
    """The prompts that are tried on an untuned model, on the first `films` validation films (PROTOCOL: Table 1)."""

    model: str
    variants: Annotated[list[str], Field(min_length=1)]
    films: Count
    full: bool = False


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
    """Intervals: resamples (`n_resamples`) of the patient bootstrap and its seed.

    With fewer than 40 resamples, 2.5 % of them is less than one, and there is no 95 % interval.
    """

    n_resamples: Annotated[int, Field(ge=40, le=1_000_000)]
    seed: Seed
