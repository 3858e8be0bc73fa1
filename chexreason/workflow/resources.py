"""The resources that one job requests: a GPU, memory and time, as measured on this machine or else as planned."""

import csv
import math
from pathlib import Path

from chexreason import config, models
from chexreason.display import markdown
from chexreason.workflow import plan

CPU_JOB = {"mem_mb": 4000, "runtime": 60}
"""Megabytes and minutes for a job without a published model: four times what the default study needs on two laptop
cores.
"""

HOST_BYTES = 8e9
"""Assumed: host memory of a process with a published model, in addition to the weights, which pass through it."""

MARGIN = 2
"""A cluster stops a job that takes this many times the measured or planned time."""


UNKNOWN_HOURS = 24
"""Assumed if nothing is known about a model."""


def of_job(study: config.Study, stage: str, benchmark: Path, checkpoint: config.Checkpoint | None = None) -> dict:
    """`gpu` (number), `mem_mb` (host) and `runtime` (minutes) of a job that trains or makes predictions.

    Without a `checkpoint`, it is the job that tries the prompts of Table 1. Snakemake's measurements in the file
    `benchmark` are used if it exists.
    """
    model = study.models[checkpoint.model if checkpoint else study.trial.model]
    gpu = {"gpu": int(not model.path.startswith(models.STAND_IN))}
    if found := measured(benchmark):
        return gpu | found
    if not gpu["gpu"]:
        return gpu | CPU_JOB
    hours, weights = plan.job(study, stage, checkpoint)
    minutes = 60 * (UNKNOWN_HOURS if math.isnan(hours) else hours)
    return gpu | {"mem_mb": round((HOST_BYTES + weights) / 1e6), "runtime": math.ceil(MARGIN * minutes) + 10}


def plain(benchmark: Path) -> dict:
    """The same for a job without a model."""
    return {"gpu": 0} | (measured(benchmark) or CPU_JOB)


def measured(benchmark: Path) -> dict | None:
    """`mem_mb` and `runtime` of the last run of a job, with a margin; None if it was not measured."""
    if not benchmark.is_file():
        return None
    seconds, megabytes = read_benchmark(benchmark)
    memory = CPU_JOB["mem_mb"] if math.isnan(megabytes) else MARGIN * megabytes
    return {"mem_mb": math.ceil(memory), "runtime": math.ceil(MARGIN * seconds / 60) + 5}


def read_benchmark(file: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a job, from Snakemake's file; NaN for memory that was not measured."""
    with file.open(encoding="utf-8") as lines:
        *_, row = csv.DictReader(lines, delimiter="\t")
    return float(row["s"]), float(row["max_rss"]) if row["max_rss"] not in ("NA", "-") else math.nan


def page(study: config.Study) -> str:
    """Seconds and memory of each job of a study, as a Markdown table; a sentence if nothing was measured."""
    files = sorted((study.folder / "benchmarks").glob("*.tsv"))
    if not files:
        return "Nothing was measured: the study was not run as a whole."
    rows = []
    for file in files:
        seconds, megabytes = read_benchmark(file)
        memory = "?" if math.isnan(megabytes) else f"{megabytes / 1000:.2f}"
        rows.append((markdown.escape(file.stem), f"{seconds:.0f}", memory))
    total = sum(read_benchmark(file)[0] for file in files)
    table = markdown.table(("job", "seconds", "GB"), rows, "measured")
    return f"{len(files)} jobs took {total / 60:.0f} minutes one after another.\n\n{table}"
