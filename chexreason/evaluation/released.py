"""What a released experiment is read from; `release` writes it."""

from pathlib import Path

import pandas as pd

from chexreason import records

TABLES = ("films", "answers", "logs")

START = "start"
"""The name of the SFT checkpoints from which the GRPO runs of the same seed start, as a run with one step, 0."""

PLAN = Path("book") / "plan.md"


def load(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a released experiment (see `release.collect`); raises RecordError if one is missing."""
    return {name: records.load(folder / f"{name}.parquet") for name in TABLES}
