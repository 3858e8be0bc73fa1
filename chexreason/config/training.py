"""The sections of a params file about training: LoRA, SFT and GRPO, each with named runs."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from chexreason.config import messages, trl_arguments
from chexreason.config.schema import Agreement, Count, Label, Name, Section, Seed, Share

BEST = "-best"
"""The suffix of the name of a run's best checkpoint."""


class Lora(Section):
    """LoRA on the language model's attention and feed-forward projections (PROTOCOL: SFT); keys as in LoraConfig."""

    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]


class Run(Section):
    """Base of the named runs.

    `set` gives other values to keys of the run's section, as in `set: {learning_rate: 1.0e-5}`. `seeds` replaces those
    of the study. Only `make full` makes a run marked `full`.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    full: bool = False


class SftRun(Run):
    """One SFT run: the model, and the format of the teacher's traces."""

    model: str
    format: str


class Trained(Section):
    """Base of the sections for a trl trainer: values for every run, and the runs by name.

    `warmup_steps` below 1 is a share of all steps, and from 1 on a number of steps, as in transformers. `trl` has more
    arguments of the trainer's config class, which are checked against it (`config/trl_arguments.py`). `agreement` is
    the user's statement that the agreement for credentialed films allows what `trl` sends elsewhere.
    `keep_checkpoints` keeps the adapter of every saved checkpoint, in `steps/<step>` of the run's folder.
    """

    stage: ClassVar[str]
    runs: Mapping[Name, Run]
    learning_rate: PositiveFloat
    warmup_steps: Annotated[float, Field(ge=0, lt=2**31)]
    max_grad_norm: PositiveFloat
    gradient_checkpointing: bool
    keep_checkpoints: bool = False
    trl: dict[str, Any] = Field(default_factory=dict)
    agreement: Agreement | None = None

    @field_validator("warmup_steps")
    @classmethod
    def _share_or_steps(cls, value):
        if value > 1 and not value.is_integer():
            raise ValueError(f"write a share below 1 or a whole number of steps, not {value}")
        return value

    @field_validator("trl")
    @classmethod
    def _check_trl(cls, values):
        if values:
            trl_arguments.check(cls.stage, values, cls.model_fields)
        return values

    @model_validator(mode="after")
    def _runs_are_whole(self):
        names = [name.casefold() for name in self.runs]
        for name in self.runs:
            if name.endswith(BEST):
                raise ValueError(f"runs.{name}: a name must not end with {BEST}, which names a run's best checkpoint")
            if names.count(name.casefold()) > 1:
                raise ValueError(f"runs.{name}: another run has this name but for capitals, and would share its folder")
            if self.runs[name].set:
                self.of(name)
        return self

    def of(self, name: str) -> Self:
        """The section for the run `name`: with the values that the run sets, and without runs.

        Raises ValueError for a value that the section does not accept.
        """
        values = self.model_dump(exclude={"runs"})
        changes = self.runs[name].set
        if "runs" in changes:
            raise ValueError(f"runs.{name}.set: a run has no runs of its own; leave `runs` out")
        try:
            return type(self).model_validate({**_merged(values, changes), "runs": {}})
        except ValidationError as error:
            told = [messages.explain(each, type(self)) for each in error.errors()]
            raise ValueError("; ".join(f"runs.{name}.set: {each}" for each in told)) from None


def _merged(values: dict, changes: dict) -> dict:
    """`values` with `changes`, mapping by mapping."""
    inner = {
        key: _merged(values[key], change)
        for key, change in changes.items()
        if isinstance(change, dict) and isinstance(values.get(key), dict)
    }
    return values | changes | inner


class Sft(Trained):
    """Supervised fine-tuning (PROTOCOL: SFT); the keys are SFTConfig's, except `runs` and `evaluations_per_epoch`.

    The trainer counts evaluations in steps, which depend on the number of films with a trace; the paper counts in
    epochs. `early_stopping_patience` is EarlyStoppingCallback's, in evaluations.
    """

    stage: ClassVar[str] = "sft"
    runs: dict[Name, SftRun]
    num_train_epochs: Count
    early_stopping_patience: Count
    evaluations_per_epoch: Count
    weight_decay: NonNegativeFloat
    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count


Frequency = Annotated[float, Field(gt=0, le=1)]


class Nuanced(Section):
    """The constants of the nuanced reward, in points (PROTOCOL: equation 4; see `rewards.nuanced`).

    `frequency` is the share of the training source's studies with each label, before sampling. `scale` is the number of
    points that equal 1 under the hard reward.
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
    """The constants of the hard reward that the paper does not print (PROTOCOL: equation 3), and of the nuanced
    reward.
    """

    min_length: Count
    length_unit: Literal["characters", "words", "tokens"]
    length_penalty: NonNegativeFloat
    nuanced: Nuanced | None = None


class Collapse(Section):
    """Limits at which a run counts as collapsed, for means over the last `rollouts` rollouts.

    A run has collapsed if entropy (nats per token) or length (as a share of the first rollouts) is below its limit, or
    if KL (nats per token), the share of answers with the most frequent label, the share of groups without contrast or
    the share of answers cut off is above its limit.
    """

    rollouts: Count
    entropy: NonNegativeFloat
    kl: NonNegativeFloat
    length: Share
    commonest_label: Share
    groups_without_contrast: Share
    cut_off: Share


Plain = bool | int | float | str | None


class GrpoRun(Run):
    """One GRPO run: the SFT run whose checkpoint it starts from, and its reward.

    `reward` is a name of `rewards.REWARDS`, `package.module:function`, or `file.py:function` in a file next to the
    params file; `reward_args` are its constants. `films` lists the sources of its training films, `curate.rl` films
    from each; the default is the training source. `labels` replaces the labels of a source's films by those of another
    source with the same films: `{a: a-by-c}`.
    """

    start: str
    reward: str
    reward_args: dict[str, Plain | list[Plain] | dict[str, Plain]] = Field(default_factory=dict)
    films: Annotated[list[str], Field(min_length=1)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Grpo(Trained):
    """Group-relative policy optimization (PROTOCOL: GRPO); the keys are GRPOConfig's, except those named here.

    `films_per_step` is per_device_train_batch_size / num_generations: trl counts a batch in completions, a study in
    films. `validation_films` is ours: every checkpoint answers that many validation films, and the best checkpoint is
    kept in addition to the last. `reward` and `collapse` are sections. `use_bias_correction_kl` multiplies the KL term
    by the ratio of new to old policy, so that its gradient is that of the reverse KL divergence; without it, the
    gradient is that of the k3 estimator. With `beta: 0` there is no KL term.
    """

    stage: ClassVar[str] = "grpo"
    runs: dict[Name, GrpoRun]
    reward: Reward
    max_steps: Count
    films_per_step: Count
    num_generations: Annotated[int, Field(ge=2)]
    steps_per_generation: Count
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    beta: NonNegativeFloat
    use_bias_correction_kl: bool = True
    epsilon: NonNegativeFloat
    epsilon_high: NonNegativeFloat
    scale_rewards: Literal["none", "group", "batch"]
    max_completion_length: Count
    save_steps: Count
    validation_films: Count
    collapse: Collapse

    @property
    def num_iterations(self) -> int:
        """How often every rollout is trained on; trl's default is once."""
        return self.trl.get("num_iterations", 1)

    @model_validator(mode="after")
    def _whole_rollouts(self):
        if self.num_iterations < 1 or self.save_steps % (self.steps_per_generation * self.num_iterations):
            times = f" x num_iterations ({self.num_iterations})" if "num_iterations" in self.trl else ""
            raise ValueError(
                f"save_steps ({self.save_steps}) must be a multiple of steps_per_generation "
                f"({self.steps_per_generation}){times}: a run resumed within a rollout would draw other answers"
            )
        if self.reward.nuanced is None and any(run.reward == "nuanced" for run in self.runs.values()):
            raise ValueError("a run has the nuanced reward, and its constants, reward.nuanced, are missing")
        return self
