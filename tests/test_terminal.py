"""What the terminal shows while a study runs, and how its time is told."""

import logging
from types import SimpleNamespace

import pytest
from conftest import changed_study
from snakemake_interface_logger_plugins.common import LogEvent

from chexreason.workflow import terminal


@pytest.fixture
def study(tmp_path):
    """The smoke study with a measurement of every rule: 100 seconds of GRPO, 10 of anything else."""
    study = changed_study(tmp_path, "smoke", {})
    folder = study.folder / "benchmarks"
    folder.mkdir(parents=True)
    for rule, number in terminal.NUMBERS.items():
        seconds = 100 if rule == "grpo_run" else 10
        (folder / f"{number}-x.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t100\n")
    return study


def handler(study, cores: int = 1, dry: bool = False) -> terminal.LogHandler:
    terminal.LogHandler.progress = terminal.Progress(study, cores)
    terminal.LogHandler.progress._looking.join()
    return terminal.LogHandler(SimpleNamespace(dryrun=dry), None)


def event(which, level=logging.INFO, msg="", **about) -> logging.LogRecord:
    record = logging.LogRecord("snakemake", level, "", 0, msg, (), None)
    record.__dict__.update(event=which, **about)
    return record


def job(number: int, rule: str, reason: str = "", **wildcards) -> logging.LogRecord:
    resources = {"gpu": 1, "mem_mb": 12000, "runtime": 90}
    about = {"jobid": number, "rule_name": rule, "wildcards": wildcards, "resources": resources, "threads": 8}
    return event(LogEvent.JOB_INFO, reason=reason, log=["a.log"], **about)


GRPO = {"model": "medgemma", "run": "hard-beta0", "seed": "3"}


def test_time_left_is_weighted_by_what_each_job_took_before(study, capsys):
    shown = handler(study)
    shown.emit(event(LogEvent.RUN_INFO, stats={"sft_run": 1, "grpo_run": 2, "compare": 1, "total": 4}))
    assert terminal.LogHandler.progress.seconds_left() == pytest.approx(220, abs=1)
    shown.emit(job(1, "sft_run", model="medgemma", run="free_reasoning", seed="0"))
    shown.emit(event(LogEvent.JOB_FINISHED, job_id=1))
    assert terminal.LogHandler.progress.seconds_left() == pytest.approx(210, abs=1)  # most of it: a third of the jobs
    shown.emit(job(2, "grpo_run", **GRPO))
    shown.emit(event(LogEvent.JOB_FINISHED, job_id=2))
    assert capsys.readouterr().err.splitlines() == [
        "started  SFT free_reasoning, medgemma, seed 0",
        "finished SFT free_reasoning, medgemma, seed 0 in 1 s (1 of 4 jobs, about 4 min left)",
        "started  GRPO hard-beta0, medgemma, seed 3",
        "finished GRPO hard-beta0, medgemma, seed 3 in 1 s (2 of 4 jobs, about 2 min left)",
    ]


def test_two_cores_halve_the_time_but_not_that_of_one_job(study):
    handler(study, cores=2).emit(event(LogEvent.RUN_INFO, stats={"grpo_run": 4, "total": 4}))
    assert terminal.LogHandler.progress.seconds_left() == pytest.approx(200, abs=1)
    terminal.LogHandler.progress.left = {"grpo_run": 1}
    assert terminal.LogHandler.progress.seconds_left() == pytest.approx(100, abs=1)


def test_jobs_that_curation_adds_are_counted(study):
    shown = handler(study)
    shown.emit(event(LogEvent.RUN_INFO, stats={"curate": 1, "total": 1}))
    shown.emit(job(1, "curate"))
    shown.emit(event(LogEvent.JOB_FINISHED, job_id=1))
    shown.emit(event(LogEvent.RUN_INFO, stats={"grpo_run": 2, "total": 2}))
    assert (shown.progress.total, sum(shown.progress.left.values())) == (3, 2)


def test_without_measurements_the_planned_hours_count(study):
    for file in (study.folder / "benchmarks").glob("*"):
        file.unlink()
    planned = terminal.costs(study)
    assert planned["grpo_run"] > planned["predict_run"] > terminal.OTHER_SECONDS and "compare" not in planned


def test_a_dry_run_says_what_each_job_needs_and_why(study, capsys):
    handler(study, dry=True).emit(job(1, "grpo_run", "Params have changed since last execution: ...", **GRPO))
    line = capsys.readouterr().err
    assert line.split() == [
        *(
            "grpo_run",
            "GRPO",
            "hard-beta0,",
            "medgemma,",
            "seed",
            "3",
            "threads",
            "8,",
            "gpu",
            "1,",
            "mem_mb",
            "12000,",
        ),
        *("runtime", "90", "min", "its", "params,", "its", "code", "or", "what", "it", "reads", "changed"),
    ]


def test_only_errors_warnings_and_the_last_word_of_snakemake_are_shown(study, capsys):
    shown = handler(study)
    for message in ("Select jobs to execute...", "Building DAG of jobs...", "Complete log(s): x"):
        shown.emit(event(None, msg=message))
    assert capsys.readouterr().err == ""
    shown.emit(event(None, msg="Nothing to be done (all requested files are present and up to date)."))
    shown.emit(job(7, "grpo_run", **GRPO))
    shown.emit(event(LogEvent.JOB_ERROR, logging.ERROR, jobid=7, rule_name="grpo_run", log=["runs/x.log"]))
    shown.emit(event(LogEvent.ERROR, logging.ERROR, "no such file"))
    assert capsys.readouterr().err.splitlines()[2:] == [
        "FAILED   GRPO hard-beta0, medgemma, seed 3; its log: runs/x.log",
        "no such file",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (12000, "3 h 20 min")])
def test_durations_are_reported_in_words(seconds, words):
    assert terminal.clock(seconds) == words
