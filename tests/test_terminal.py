"""What the terminal shows while a study runs, when it has ended and in a dry run, and how time is told."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT, at, changed_study, with_run
from snakemake_interface_logger_plugins.common import LogEvent

from chexreason import records
from chexreason.evaluation import report
from chexreason.workflow import terminal
from chexreason.workflow.terminal import Job

NOON = 1_700_000_000.0
SFT = {"model": "medgemma", "run": "free_reasoning", "seed": "0"}
GRPO = {"model": "medgemma", "run": "hard", "seed": "0"}
LOGS = {"sft_run": "3_sft-medgemma-free_reasoning-seed0", "grpo_run": "4_grpo-medgemma-hard-seed0"}


@pytest.fixture
def study(tmp_path):
    """The smoke study, of which SFT was measured to take 100 seconds and GRPO 1000."""
    study = changed_study(tmp_path, "smoke", {})
    folder = study.folder / "benchmarks"
    folder.mkdir(parents=True)
    for rule, seconds in (("sft_run", 100), ("grpo_run", 1000)):
        (folder / f"{LOGS[rule]}.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t100\n")
    return study


class Graph:
    """Snakemake's graph: jobs in a row, each of which waits for the one before."""

    def __init__(self, *jobs: tuple[str, dict]):
        self.jobs = [
            SimpleNamespace(log=[log(rule)], rule=SimpleNamespace(name=rule), wildcards_dict=wildcards)
            for rule, wildcards in jobs
        ]
        keys = [_Key(job) for job in self.jobs]
        self.dependencies = {key: {before: set()} for before, key in zip(keys, keys[1:], strict=False)}
        self.keys, self.targetrules, self.targetfiles = keys, [], []

    def needrun_jobs(self, exclude_finished=True):
        return iter(self.keys)


class _Key:
    """A job that can be hashed."""

    def __init__(self, job):
        self.__dict__.update(vars(job))


def log(rule: str) -> str:
    return f"runs/smoke/logs/{LOGS.get(rule, rule)}.log"


def handler(study, *jobs: tuple[str, dict], dry: bool = False, **there: int) -> terminal.LogHandler:
    """A handler that watches `jobs` on a machine of one core."""
    shown = terminal.LogHandler(SimpleNamespace(dryrun=dry, printshellcmds=False), None)
    scheduler = SimpleNamespace(global_resources={"_cores": 1} | there)
    shown.study, shown.workflow = study, SimpleNamespace(dag=Graph(*jobs), scheduler=scheduler)
    return shown


def event(which, after: float = 0, level=logging.INFO, msg="", **about) -> logging.LogRecord:
    """What Snakemake logs `after` seconds."""
    record = logging.LogRecord("snakemake", level, "", 0, msg, (), None)
    record.__dict__.update(event=which, created=NOON + after, **about)
    return record


def started(number: int, rule: str, wildcards: dict, after: float = 0, reason: str = "") -> logging.LogRecord:
    resources = {"gpu": 1, "mem_mb": 12000, "runtime": 90}
    about = {"jobid": number, "rule_name": rule, "wildcards": wildcards, "resources": resources}
    return event(LogEvent.JOB_INFO, after, reason=reason, log=[log(rule)], **about)


def finished(number: int, after: float) -> logging.LogRecord:
    return event(LogEvent.JOB_FINISHED, after, job_id=number)


def lines(capsys) -> list[str]:
    """What was shown, without the time of day."""
    return [line.partition("] ")[2] or line for line in capsys.readouterr().err.splitlines()]


def test_the_time_left_is_weighted_by_what_each_job_took_before(study, capsys):
    shown = handler(study, ("sft_run", SFT), ("grpo_run", GRPO))
    shown.emit(event(LogEvent.RUN_INFO, stats={}))
    shown.emit(started(1, "sft_run", SFT))
    shown.emit(finished(1, 100))
    shown.emit(started(2, "grpo_run", GRPO, 100))
    shown.emit(finished(2, 1100))
    shown.close()
    assert (
        lines(capsys)
        == [
            "Study smoke: 2 jobs to run, about 18 min.",
            "SFT free_reasoning: started. About 18 min left, 0 of 2 jobs done.",
            "SFT free_reasoning: done in 2 min. About 17 min left, 1 of 2 jobs done.",  # half of the jobs, a tenth of the time
            "GRPO hard: started. About 17 min left, 1 of 2 jobs done.",
            "GRPO hard: done in 17 min.",
        ]
    )


def test_the_other_jobs_are_expected_to_keep_the_pace_of_those_that_are_done(study):
    shown = handler(study, ("sft_run", SFT), ("grpo_run", GRPO))
    for record in (event(LogEvent.RUN_INFO, stats={}), started(1, "sft_run", SFT), finished(1, 200)):
        shown.emit(record)
    shown.close()
    assert shown.seconds_left(NOON + 200) == 2000
    shown.emit(started(2, "grpo_run", GRPO, 200))
    assert shown.seconds_left(NOON + 700) == 1500
    assert shown.seconds_left(NOON + 9000) == 200  # it takes longer than expected: its last tenth


def test_a_job_that_curation_makes_unnecessary_is_no_longer_counted(study, capsys):
    shown = handler(study, ("curate", {}), ("sft_run", SFT), ("grpo_run", GRPO))
    for record in (event(LogEvent.RUN_INFO, stats={}), started(1, "curate", {}), finished(1, 60)):
        shown.emit(record)
    shown.close()
    shown.workflow.dag = Graph(("grpo_run", GRPO))
    shown.emit(started(3, "grpo_run", GRPO, 60))
    assert lines(capsys)[-1].endswith("1 of 2 jobs done.")


@pytest.mark.parametrize(
    ("cores", "gpus", "seconds"),
    [(1, 99, 130), (2, 99, 100), (99, 99, 100), (99, 1, 120), (99, 2, 100)],
    ids=["work on one core", "the chain on two", "the chain on many", "models on one GPU", "models on two GPUs"],
)
def test_jobs_share_cores_and_gpus_but_wait_for_each_other(cores, gpus, seconds):
    jobs = {
        "a": Job("a", "sft_run"),
        "b": Job("b", "grpo_run", None, frozenset("a")),
        "c": Job("c", "predict_run"),
        "d": Job("d", "reread"),
    }
    took = {"a": 40, "b": 60, "c": 20, "d": 10}
    assert terminal.seconds_left(jobs, took, cores, gpus) == seconds


def test_what_was_not_measured_takes_as_long_as_planned(study):
    job = Job.of(study, "predict_untuned", {"model": "medgemma", "seed": "0"})
    assert job.checkpoint == at("untuned")
    planned = terminal.expected_seconds(study, "5_predict-medgemma-untuned-seed0", job)
    assert terminal.START_SECONDS < planned < 600
    assert terminal.expected_seconds(study, LOGS["sft_run"], Job.of(study, "sft_run", SFT)) == 100
    assert terminal.expected_seconds(study, "9_findings", Job.of(study, "findings", {})) == terminal.START_SECONDS


def test_a_job_is_named_in_words_with_model_and_seed_only_where_there_are_several(study):
    best = GRPO | {"stage": "grpo", "run": "hard-best"}
    assert Job.of(study, "predict_run", best).title == "Predictions, GRPO hard (best)"
    assert Job.of(study, "predict_run", SFT | {"stage": "sft"}).title == "Predictions, SFT free_reasoning"
    assert Job.of(study, "predict_untuned", SFT).title == "Predictions, untuned"
    assert Job.of(study, "my_chapter", {}).title == "my_chapter"
    other = with_run(study, "sft", "other", model="qwen", format="free_reasoning", seeds=[3])
    assert Job.of(other, "grpo_run", GRPO).title == "GRPO hard, medgemma, seed 0"


def test_a_failed_job_is_told_once_with_its_log_and_the_rest_of_snakemake_is_quiet(study, capsys):
    shown = handler(study, ("grpo_run", GRPO))
    shown.emit(event(None, msg="Building DAG of jobs..."))
    shown.emit(event(LogEvent.RUN_INFO, stats={}))
    shown.emit(started(7, "grpo_run", GRPO))
    shown.emit(event(None, msg="Select jobs to execute..."))
    error = {"level": logging.ERROR, "jobid": 7, "rule_name": "grpo_run", "log": [log("grpo_run")]}
    shown.emit(event(LogEvent.JOB_ERROR, **error))
    shown.emit(event(LogEvent.JOB_ERROR, **error))
    shown.emit(event(LogEvent.ERROR, level=logging.ERROR, msg="MissingOutputException in rule grpo_run"))
    shown.close()
    assert lines(capsys)[2:] == [
        f"GRPO hard: FAILED. Its log is {log('grpo_run')}.",
        "MissingOutputException in rule grpo_run",
    ]
    assert f"- GRPO hard: {log('grpo_run')}\n" in shown.ending(False, Path.cwd())


def test_a_dry_run_is_a_table_of_what_would_run_and_why_and_how_long_it_takes(study, capsys):
    shown = handler(study, ("sft_run", SFT), ("grpo_run", GRPO), dry=True)
    shown.emit(event(LogEvent.RUN_INFO, stats={}))
    shown.emit(started(1, "sft_run", SFT, reason="Params have changed since last execution: x"))
    shown.emit(started(2, "grpo_run", GRPO, reason="Input files updated by another job: y"))
    assert capsys.readouterr().err == ""
    assert shown.ending(True, Path.cwd()).splitlines() == [
        "rule      job                 about   gpu  mem_mb  runtime  why",
        "sft_run   SFT free_reasoning  2 min   1    12000   90 min   params, code or content changed",
        "grpo_run  GRPO hard           17 min  1    12000   90 min   follows from another job",
        "",
        "2 jobs, about 18 min.",
        "This was a dry-run: nothing was run.",
    ]


def test_the_end_of_a_part_says_what_was_made_and_where(study, tmp_path):
    shown = handler(study, ("sft_run", SFT))
    for record in (event(LogEvent.RUN_INFO, stats={}), started(1, "sft_run", SFT), finished(1, 100)):
        shown.emit(record)
    shown.close()
    shown.workflow.dag.targetrules = [SimpleNamespace(name="sft"), SimpleNamespace(name="variants")]
    (study.folder / "sft").mkdir()
    said = shown.ending(True, tmp_path)
    assert said == "Done: SFT free_reasoning.\nThe results are in runs/smoke/sft, runs/smoke/notebooks."


def paired(study, **bounds: tuple[float, float]) -> pd.DataFrame:
    """A `paired` record of GRPO against SFT, with an interval for each data set."""
    names = {"first": "m/sft/free_reasoning", "second": "m/grpo/hard", "metric": "macro_f1", "seed": 0}
    rows = []
    for name, (low, high) in bounds.items():
        dataset = name.replace("_", "-")
        rows.append({**names, "dataset": dataset, "label_set": "shared9", "low": low, "high": high, "difference": 0.0})
    best = [{**row, "second": "m/grpo/hard-best", "low": 9.0, "high": 9.0} for row in rows]
    return pd.DataFrame([*rows, *best])


def test_a_whole_run_ends_with_three_findings_chosen_by_intervals_and_the_page_to_open(study, tmp_path):
    table = paired(study, a_validation=(0.01, 0.2), b_test=(-0.2, -0.1), c_test=(-0.1, 0.1), c_large=(-0.1, 0.0))
    records.save(table, study.paths.compared("paired"), records.origin(study))
    shown = handler(study)
    shown.emit(event(None, msg="Nothing to be done (all requested files are present and up to date)."))
    shown.workflow.dag.targetrules = [SimpleNamespace(name="book")]
    assert shown.ready
    _, _, first, second, third, scores, page = shown.ending(True, tmp_path).splitlines()
    assert first == "- In-domain, GRPO (last) against SFT: a gain on a-validation."
    assert second == (
        "- Out-of-domain, GRPO (last) against SFT: a loss on b-test; no clear difference on c-test, c-large."
    )
    assert "phantom results" in third
    assert scores.endswith("chexreason results params/smoke.yaml")
    assert page == "Book: runs/smoke/book/_build/html/index.html"


def test_several_runs_and_seeds_are_counted_and_a_study_that_trains_nothing_says_so(study):
    table = pd.concat([paired(study, b_test=bounds) for bounds in ((0.1, 0.2), (0.1, 0.2), (-0.1, 0.1))])
    _, second, _ = report.headline(study, table)
    assert "a gain on b-test (2 of 3); no clear difference on b-test (1 of 3)." in second
    assert report.headline(study, table[:0]) == [report.UNTRAINED]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (12000, "3 h 20 min"), (200_000, "2 days 8 h")],
)
def test_durations_are_told_in_words(seconds, words):
    assert terminal.duration(seconds) == words


# The real Snakemake over a graph of two jobs.

TINY = """
from chexreason.config import load

study = load("params/smoke.yaml")
for shown in workflow.logger_manager.get_log_handlers():
    shown.workflow, shown.study = workflow, study

rule last:
    input: "runs/first"
    output: "runs/last"
    log: "runs/logs/last.log"
    shell: "{command}"

rule first:
    output: "runs/first"
    log: "runs/logs/first.log"
    shell: "touch {{output}}"
"""


def snakemake(folder: Path, command: str, *options: str) -> subprocess.CompletedProcess:
    (folder / "Snakefile").write_text(TINY.format(command=command), encoding="utf-8")
    call = [sys.executable, "-m", "chexreason.workflow.terminal", "--cores", "1", "--keep-going", *options]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def test_snakemake_shows_our_lines_and_keeps_its_status(study, tmp_path):
    dry = snakemake(tmp_path, "touch {output}", "--dry-run")
    assert dry.returncode == 0 and [line.split()[0] for line in dry.stdout.splitlines()[:3]] == [
        "rule",
        "first",
        "last",
    ]
    failed = snakemake(tmp_path, "exit 3")
    shown = [line.partition("] ")[2] or line for line in failed.stderr.splitlines()]
    assert failed.returncode == 1
    assert shown == [
        "Study smoke: 2 jobs to run, about 30 s.",
        "first: started. About 30 s left, 0 of 2 jobs done.",
        shown[2],
        shown[3],
        "last: FAILED. Its log is runs/logs/last.log.",
        "Failed, with the log of each:",
        "- last: runs/logs/last.log",
        "Run the same command again: what is done is kept.",
    ]
    assert shown[2].startswith("first: done in ") and shown[3].startswith("last: started. ")
    again = snakemake(tmp_path, "touch {output}")
    assert again.returncode == 0 and again.stdout == "Done: last.\nThe results are in runs/smoke/notebooks.\n"


def test_a_graph_that_cannot_be_read_is_told_and_snakemakes_own_lines_can_be_had(study, tmp_path):
    broken = snakemake(tmp_path, "touch {output}", "--snakefile", "gone")
    assert broken.returncode == 1 and "gone" in broken.stderr
    own = snakemake(tmp_path, "touch {output}", "--dry-run", "--quiet", "host")
    assert own.returncode == 0 and "Job stats" in own.stdout
