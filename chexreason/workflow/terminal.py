"""The output of `chexreason run`: Snakemake's jobs, the remaining time, and the findings at the end.

    python -m chexreason.workflow.terminal <params file> full|short findings|progress|plan <arguments of snakemake>

Of Snakemake's own lines, only errors are shown; a dry run lists the jobs, their resources, and why they would run.
"""

import logging
import os
import sys
import threading
import time
from types import ModuleType

from snakemake import cli
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from chexreason import config
from chexreason.workflow import resources

NUMBERS = {"curate": "1_curate", "prompts": "2_prompts", "sft_run": "3_sft", "grpo_run": "4_grpo"}
NUMBERS |= {"predict_run": "5_predict", "predict_untuned": "5_predict", "compare": "6_compare"}
NUMBERS |= {"chapter_run": "[7-9]_", "book": "book"}
"""What the file of a rule's measurements begins with."""

WORDS = {
    "chapter_run": "chapter",
    "sft_run": "SFT",
    "grpo_run": "GRPO",
    "predict_run": "predict",
    "predict_untuned": "predict",
}
STAGES = {"sft_run": "sft", "grpo_run": "grpo", "predict_run": "predict", "predict_untuned": "predict"}
KEPT = ("Nothing to be done", "This was a dry-run")
"""The beginnings of Snakemake's lines that are shown."""

OTHER_SECONDS = 30.0
"""Assumed for a job without a measurement and without a model, or with a model of unknown cost."""


def job_name(rule: str, wildcards: dict) -> str:
    """The name of a job, such as `GRPO hard, seed 0`."""
    what = wildcards.get("run") or wildcards.get("chapter") or ("untuned" if rule == "predict_untuned" else "")
    stage = f"{wildcards['stage'].upper()} " if "stage" in wildcards else ""
    seed = f", seed {wildcards['seed']}" if "seed" in wildcards else ""
    model = f", {wildcards['model']}" if "model" in wildcards else ""
    return f"{WORDS.get(rule, rule)} {stage}{what}{model}{seed}".replace("  ", " ").strip()


def clock(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def costs(study: config.Study) -> dict[str, float]:
    """The average seconds of each rule's jobs, as measured in earlier runs or else as planned."""
    found = {}
    for rule, number in NUMBERS.items():
        files = (study.folder / "benchmarks").glob(f"{number}*.tsv")
        if took := [resources.read_benchmark(file)[0] for file in files]:
            found[rule] = sum(took) / len(took)
    if {"sft_run", "grpo_run", "predict_run"} - set(found):
        from chexreason.workflow import plan

        runs = [run for run in plan.runs(study) if run.hours == run.hours]
        for rule, stage in STAGES.items():
            hours = [run.hours for run in runs if run.stage == stage]
            if hours:
                found.setdefault(rule, 3600 * sum(hours) / len(hours) + OTHER_SECONDS)
    return found


REASONS = {
    "Missing output files": "not made yet",
    "Params have changed": "its params, its code or what it reads changed",
    "Input files updated by another job": "what it reads is made again",
    "Forced execution": "forced",
}
"""Why a job would run, by Snakemake's reason."""


class Progress:
    """The jobs of a run, their progress, and the remaining time."""

    def __init__(self, study: config.Study, cores: int):
        self.jobs: dict[int, tuple[str, str]] = {}  # rule and name
        self.started: dict[int, float] = {}
        self.left: dict[str, int] = {}
        self.total = 0
        self._cores = cores
        self._costs: dict[str, float] = {}
        self._looking = threading.Thread(target=lambda: self._costs.update(costs(study)), daemon=True)
        self._looking.start()

    def plan(self, stats: dict[str, int]) -> None:
        """Set the number of jobs of each rule; it grows when the graph is made again."""
        done = self.total - sum(self.left.values())
        self.left = {rule: count for rule, count in stats.items() if rule != "total"}
        self.total = done + sum(self.left.values())

    def start(self, job: int) -> str:
        self.started[job] = time.monotonic()
        return f"started  {self.jobs[job][1]}"

    def finish(self, job: int) -> str:
        rule, name = self.jobs[job]
        took = time.monotonic() - self.started.pop(job, time.monotonic())
        self.left[rule] = max(0, self.left.get(rule, 0) - 1)
        count = sum(self.left.values())
        left = f", about {clock(self.seconds_left())} left" if count else ""
        return f"finished {name} in {clock(took)} ({self.total - count} of {self.total} jobs{left})"

    def __str__(self) -> str:
        self._looking.join()
        return f"{self.total} jobs, about {clock(self.seconds_left())}" if self.total else ""

    def seconds_left(self) -> float:
        """The remaining seconds, if jobs take as long as before and share the cores."""
        each = {rule: self._costs.get(rule, OTHER_SECONDS) for rule in self.left}
        work = sum(count * each[rule] for rule, count in self.left.items())
        now = time.monotonic()
        work -= sum(min(now - since, each.get(self.jobs[job][0], 0)) for job, since in self.started.items())
        running = max((each[rule] for rule, count in self.left.items() if count), default=0)
        return max(work / self._cores, min(running, work), 1)


class LogHandler(LogHandlerBase):
    """Snakemake's events as lines on standard error."""

    writes_to_stream, writes_to_file, has_filter, has_formatter, needs_rulegraph = True, False, True, True, False
    progress: Progress

    def emit(self, record: logging.LogRecord) -> None:
        line = self._line(record)
        if line:
            print(line, file=sys.stderr, flush=True)

    def _line(self, record: logging.LogRecord) -> str:
        event, about = getattr(record, "event", None), record.__dict__
        match event:
            case LogEvent.RUN_INFO:
                self.progress.plan(about["stats"])
            case LogEvent.JOB_INFO:
                name = job_name(about["rule_name"], about["wildcards"] or {})
                self.progress.jobs[about["jobid"]] = (about["rule_name"], name)
                return dry_line(name, about) if self.common_settings.dryrun else self.progress.start(about["jobid"])
            case LogEvent.JOB_FINISHED:
                return self.progress.finish(about["job_id"]) if about["job_id"] in self.progress.jobs else ""
            case LogEvent.JOB_ERROR:
                _, name = self.progress.jobs.get(about["jobid"], ("", about["rule_name"]))
                return f"FAILED   {name}; its log: {', '.join(about['log'] or [])}"
            case LogEvent.ERROR:
                return record.getMessage()
            case None if record.levelno >= logging.WARNING or str(record.msg).startswith(KEPT):
                return record.getMessage()
        return ""


def dry_line(name: str, about: dict) -> str:
    """A job that would run: its resources and the reason."""
    given = about["resources"] or {}
    gpu, memory, minutes = (given.get(key, 0) for key in ("gpu", "mem_mb", "runtime"))
    needs = f"threads {about['threads']}, gpu {gpu}, mem_mb {memory}, runtime {minutes} min"
    why = next((words for told, words in REASONS.items() if told in str(about["reason"])), str(about["reason"]))
    return f"{about['rule_name']:16} {name:44} {needs:48} {why}"


def closing_lines(study: config.Study) -> str:
    """The findings of a finished study in three lines, and the page to open."""
    from chexreason import records
    from chexreason.evaluation import report

    gains = report.gains(records.load(study.paths.compared("paired")))
    gaps = records.load(study.paths.compared("transfer_paired"))
    gains, gaps = (
        table[(table["seed"] == study.seeds[0]) & ~table["second"].str.endswith(config.BEST)] for table in (gains, gaps)
    )
    rewarded = gaps[gaps["second"].str.contains("/grpo/")]
    lines = [*report.gain_lines(gains)[:2], *report.gap_lines(rewarded)[:1]]
    nature = "phantom films" if study.phantom else "real films"
    page = os.path.relpath(study.folder / "book" / "_build" / "html" / "index.html")
    scores = f"chexreason results {os.path.relpath(study.file)}"
    told = [f"- {line}" for line in report.with_labels(study, lines)]
    return "\n".join(["", f"{study.title}, {nature}:", *told, f"Scores: {scores}", f"Book: {page}"])


def main(file: str, scope: str, shown: str, *arguments: str) -> None:
    """Run Snakemake with our output for a params file, and end this process with its status.

    `scope` is full or short. With `shown` findings, a run without errors ends with the findings; with plan, a dry run
    ends with the approximate time.
    """
    study = config.load(file, full=scope == "full")
    cores = int(arguments[arguments.index("--cores") + 1]) if "--cores" in arguments else 1
    LogHandler.progress = Progress(study, cores)
    plugin = ModuleType("snakemake_logger_plugin_chexreason")
    vars(plugin)["LogHandler"] = LogHandler
    LoggerPluginRegistry().register_plugin(plugin.__name__, plugin)
    try:
        cli.main(["--logger", "chexreason", *arguments])
    except SystemExit as end:
        if not end.code and shown == "findings":
            print(closing_lines(study), flush=True)
        elif not end.code and shown == "plan":
            print(LogHandler.progress)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
