"""Names of checkpoints (`Checkpoint`), and every path in the folder of a study (`Paths`)."""

from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

from chexreason.config.training import BEST

UNTUNED: Final = "untuned"

Stage = Literal["untuned", "sft", "grpo"]


class Checkpoint(NamedTuple):
    """The name of a model's weights: untuned, or trained in one run of a stage with one seed.

    `run` is "" for the untuned model. `which` is "best" for a GRPO run's highest macro-F1 on validation films, and
    "last" otherwise.
    """

    model: str
    stage: Stage
    run: str
    which: Literal["last", "best"]
    seed: int

    @classmethod
    def parse(cls, model: str, name: str, seed: int) -> "Checkpoint":
        """The checkpoint with this `name`, as in records and notebooks; raises ValueError for any other text."""
        stage, _, run = name.partition("/")
        if (stage == UNTUNED and run) or (stage != UNTUNED and not run) or stage not in (UNTUNED, "sft", "grpo"):
            raise ValueError(f"{name!r} is no checkpoint; write {UNTUNED}, sft/RUN, grpo/RUN or grpo/RUN{BEST}")
        best = stage == "grpo" and run.endswith(BEST)
        run = run.removesuffix(BEST) if best else run
        return cls(model, cast(Stage, stage), run, "best" if best else "last", seed)

    @property
    def name(self) -> str:
        """`untuned`, `sft/<run>`, `grpo/<run>` (last step) or `grpo/<run>-best`."""
        if self.stage == UNTUNED:
            return UNTUNED
        return f"{self.stage}/{self.run}{BEST if self.which == 'best' else ''}"

    @property
    def best(self) -> "Checkpoint":
        """The best checkpoint of the same run."""
        return self._replace(which="best")


class Paths(NamedTuple):
    """The paths of the records of a study; `root` is its folder."""

    root: Path

    def run(self, checkpoint: Checkpoint) -> Path:
        """The folder of one training run."""
        return self.root / checkpoint.stage / checkpoint.model / checkpoint.run / f"seed{checkpoint.seed}"

    def adapter(self, checkpoint: Checkpoint) -> Path:
        """The folder of the weights that a run trained."""
        return self.run(checkpoint) / ("best" if checkpoint.which == "best" else "adapter")

    def steps(self, checkpoint: Checkpoint) -> Path:
        """The folder of the adapters of all kept checkpoints of a run, each named by its step."""
        return self.run(checkpoint) / "steps"

    def path(self, checkpoint: Checkpoint) -> Path:
        """The record of the predictions along the path of a run."""
        return self.root / "path" / self.run(checkpoint).relative_to(self.root) / "answers.parquet"

    def weights(self, checkpoint: Checkpoint) -> Path | None:
        """The folder of the trained weights; None for the untuned model."""
        return None if checkpoint.stage == UNTUNED else self.adapter(checkpoint)

    def log(self, checkpoint: Checkpoint) -> Path:
        """The log of one training run."""
        return self.run(checkpoint) / "log.parquet"

    def completions(self, checkpoint: Checkpoint) -> Path:
        """The replies that one GRPO run sampled while it trained."""
        return self.run(checkpoint) / "completions.parquet"

    def asked(self, checkpoint: Checkpoint) -> Path:
        """The folder of the predictions of a checkpoint."""
        return self.root / "predict" / checkpoint.model / checkpoint.name / f"seed{checkpoint.seed}"

    def answers(self, checkpoint: Checkpoint) -> Path:
        """The record of the answers of a checkpoint."""
        return self.asked(checkpoint) / "answers.parquet"

    def compared(self, name: str) -> Path:
        """A record of the comparison, such as `scores`."""
        return self.root / "compare" / f"{name}.parquet"

    def notebook(self, name: str, checkpoint: Checkpoint | None = None) -> Path:
        """The executed notebook of a chapter, or of one checkpoint: `3_sft-medgemma-free_reasoning-seed0.ipynb`."""
        words = [name]
        if checkpoint:
            which = checkpoint.run if name.startswith(("3_", "4_")) else checkpoint.name.replace("/", "-")
            words += [checkpoint.model, which, f"seed{checkpoint.seed}"]
        return self.root / "notebooks" / f"{'-'.join(words)}.ipynb"
