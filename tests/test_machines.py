"""What the jobs of a study ask of a machine, and that no two of them use one GPU at once."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack

import nbformat
import pytest
import yaml
from conftest import ROOT, at, changed_study

from chexreason import config, runtime
from chexreason.workflow import gpus, resources
from chexreason.workflow.notebook import execute

SNAKEMAKE = [sys.executable, "-m", "snakemake"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine with two simulated GPUs, and a folder for their locks."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,MIG-b/1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield tmp_path
    tempfile.tempdir = None


# One GPU for each kernel.


@pytest.mark.parametrize(
    ("visible", "names"), [("", []), ("-1", []), ("1", ["1"]), ("2,3", ["2", "3"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_the_visible_gpus_are_those_that_cuda_may_use(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert runtime.gpus() == names


def test_each_process_has_another_gpu_and_one_too_many_waits_until_one_is_free(here, capsys):
    with ExitStack() as first, gpus.one_gpu() as (other, _):
        name, _ = first.enter_context(gpus.one_gpu())
        assert {name, other} == {"GPU-a", "MIG-b/1"}
        waiting = gpus.one_gpu(wait=0.01)
        code = "import time; from chexreason.workflow import gpus\nwith gpus.one_gpu(0.05) as (name, _): print(name)"
        third = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert third.stderr.readline() == "waiting for a GPU: GPU-a, MIG-b/1 in use\n" and third.poll() is None
        first.close()
        assert third.communicate()[0].strip() == name
        with waiting as (again, _):
            assert again == name


def test_who_inherits_the_lock_keeps_the_gpu(here):
    with gpus.one_gpu() as (name, files):
        kernel = subprocess.Popen(["sleep", "30"], pass_fds=files)
    with gpus.one_gpu() as (other, _):
        assert other != name
    kernel.kill()
    kernel.wait()
    with gpus.one_gpu() as (free, _):
        assert free == "GPU-a"


def test_slurm_has_chosen_the_gpu_already(here, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with gpus.one_gpu() as (one, files), gpus.one_gpu() as (other, _):
        assert one == other == "GPU-a" and files == []


@pytest.mark.parametrize(("gpu", "seen"), [(True, "GPU-a"), (False, "")])
def test_a_kernel_sees_one_gpu_or_none(here, gpu, seen):
    cell = nbformat.v4.new_code_cell("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), here / "in.ipynb")
    execute(here / "in.ipynb", here / "out.ipynb", {}, gpu=gpu)
    (output,) = nbformat.read(here / "out.ipynb", 4).cells[0].outputs
    assert output.text.strip() == seen


@pytest.mark.soak
def test_as_many_gpu_jobs_run_at_once_as_there_are_gpus_and_each_has_its_own(here):
    """Real Snakemake with the graph's own limits; each job says which GPU it had, and when."""
    (here / "job.py").write_text(
        "import json, sys, time\nfrom chexreason.workflow import gpus\n"
        "with gpus.one_gpu(0.05) as (name, _):\n    start = time.time()\n    time.sleep(0.5)\n"
        "    open(sys.argv[1], 'w').write(json.dumps([name, start, time.time()]))\n"
    )
    (here / "Snakefile").write_text(
        "rule all:\n    input: expand('{n}.json', n=range(5))\n"
        "rule job:\n    output: '{n}.json'\n    resources: gpu=1\n"
        f"    shell: '{sys.executable} job.py {{output}}'\n"
    )
    call = [*SNAKEMAKE, "--cores", "4", "--resources", "gpu=2", "--quiet", "all", "--scheduler", "greedy"]
    subprocess.run(call, cwd=here, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    jobs = [json.loads((here / f"{number}.json").read_text()) for number in range(5)]
    assert {name for name, _, _ in jobs} == {"GPU-a", "MIG-b/1"}
    for name in ("GPU-a", "MIG-b/1"):
        mine = sorted((start, end) for other, start, end in jobs if other == name)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(mine))


# What a job asks for.


def test_a_published_models_job_asks_for_a_gpu_its_memory_and_twice_the_planned_time(tmp_path):
    study = config.load(ROOT / "params" / "paper.yaml")
    wanted = resources.of_job(study, "grpo", tmp_path / "none.tsv", at("grpo/hard"))
    planned = next(run for run in resources.plan.runs(study) if (run.stage, run.run) == ("grpo", "hard"))
    assert wanted["gpu"] == 1 and wanted["runtime"] == pytest.approx(2 * 60 * planned.hours + 10, abs=1)
    assert wanted["mem_mb"] == pytest.approx(8000 + 2 * 4300, rel=0.02)  # 4.3e9 weights of two bytes


def test_what_was_measured_counts_more_than_what_is_planned(tmp_path):
    study = changed_study(tmp_path, "smoke", {})
    file = tmp_path / "3_sft.tsv"
    assert resources.of_job(study, "sft", file, at("sft/free_reasoning")) == {"gpu": 0, **resources.CPU_JOB}
    file.write_text("s\th:m:s\tmax_rss\tmax_vms\n600.5\t0:10:00\t1500.0\t9\n")
    wanted = {"gpu": 0, "mem_mb": 3000, "runtime": 26}
    assert resources.of_job(study, "sft", file, at("sft/free_reasoning")) == wanted
    assert resources.plain(file) == wanted


@pytest.mark.soak
def test_every_job_of_the_published_study_says_what_it_needs_on_a_cluster(tmp_path):
    """The graph of paper.yaml with curation's folders faked: on a login node without a GPU, by a dry run."""
    values = config.read(ROOT / "params" / "paper.yaml")
    for source in values["sources"].values():
        source["root"] = str(tmp_path)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "paper.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    call = [sys.executable, "-m", "chexreason.cli", "run", str(tmp_path / "params" / "paper.yaml"), "--dry-run"]
    call += ["--profile", str(ROOT / "profiles" / "slurm")]
    shown = subprocess.run(
        call, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert shown.returncode == 0, shown.stderr[-3000:]
    lines = [line for line in shown.stderr.splitlines() if "mem_mb" in line]
    asking = [line for line in lines if line.startswith(("sft_run", "grpo_run", "predict", "prompts"))]
    study = config.load(tmp_path / "params" / "paper.yaml")
    assert len(asking) == len(study.runs("sft")) + len(study.runs("grpo")) + len(study.checkpoints()) + 1
    assert all("gpu 1," in line and "runtime 0" not in line and "mem_mb 0" not in line for line in asking)
    assert all("gpu 0," in line for line in lines if line not in asking)


def test_the_graph_passes_snakemakes_own_lint():
    call = [*SNAKEMAKE, "--lint", "--snakefile", "Snakefile", "--config", "params=params/smoke.yaml"]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0 and "good condition" in said.stdout + said.stderr, said.stderr
