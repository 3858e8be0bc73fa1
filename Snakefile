"""The study as a graph: which notebook writes which records, from which, and with which parameters.

    chexreason run params/mini.yaml            everything that is missing or no longer valid
    chexreason run params/mini.yaml grpo       as far as the GRPO runs

A stage runs again when its `key` changes, and for no other reason: the cells of its notebook with the code they reach
(docstrings do not count), the params it uses, and the content it reads.  Time stamps do not count.  Curation is a checkpoint:
what it chose is known only after it ran, so the keys of the later stages are made then.
Paths are relative to the folder that holds `params/` and `runs/`.
"""

import atexit
import json
import os
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

from snakemake.utils import min_version

from chexreason import fingerprint, models, records, rewards
from chexreason.answers import ONLY_LABEL
from chexreason.config import BEST, UNTUNED, Checkpoint, Paths, load
from chexreason.inference.protocol import Protocol, protocols
from chexreason.prompts import load as load_prompt
from chexreason.prompts import names as prompt_names
from chexreason.workflow import resources

min_version("9.0")

ROOT = Path(workflow.basedir)
COMPARED = ("scores", "overall", "paired", "mcnemar", "transfer", "transfer_paired", "sensitivity")
FULL = bool(config.get("full"))
study = load(config.get("params", "params/mini.yaml"), full=FULL)
file, runs = os.path.relpath(study.file), os.path.relpath(study.folder)
values = study.model_dump()
if config.get("dry") and not os.path.exists(".snakemake"):  # a dry run leaves nothing, as Snakemake's own notes are
    atexit.register(shutil.rmtree, ".snakemake", ignore_errors=True)

READERS = [
    fingerprint.PACKAGE / "data" / f"{kind}.py"
    for kind in sorted({source.kind for source in study.sources.values()} - {"phantom"})
]
SFT, GRPO = study.runs("sft"), study.runs("grpo")
paths = Paths(Path(runs))
GPUS = int(config.get("gpus", 0))  # of this machine; a stage that computes on a GPU has one alone
THREADS = max(1, (os.cpu_count() or 1) // GPUS) if GPUS else 1  # on a CPU, two jobs of one thread beat one of two

manifest, traces = f"{runs}/curate/manifest.parquet", f"{runs}/curate/traces.parquet"
compared = [str(paths.compared(name)) for name in COMPARED]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
RUN = (
    "chexreason notebook --gpus {resources.gpu} {params.notebook:q} {output.notebook:q} {params.given} "
    "2> >(tee {log:q} >&2)"
)


def among(names):
    return "|".join(map(re.escape, names)) or "none"


wildcard_constraints:
    model=among(study.models),
    stage="sft|grpo",
    run=among([*study.sft.runs, *(name + best for name in study.grpo.runs for best in ("", BEST))]),
    seed=r"\d+",
    found="10_rulers|11_layers|15_reasoning",
    chapter=r"index|resampling|[6-9]_(?!compare)\w+|12_reward|13_path",


def given(*names, **more):
    """The parameters of a notebook, for the command line: these wildcards, and `more`."""

    def words(wildcards):
        pairs = {"params": file, **{name: wildcards[name] for name in names}, **more}
        pairs = {name: value(wildcards) if callable(value) else value for name, value in pairs.items()}
        return shlex.join(word for name, value in pairs.items() for word in ("-p", name, str(value)))

    return words


@cache
def chosen(*splits):
    """The digest of the films of these splits, labels included, in the manifest as it is now."""
    films = records.load(manifest)
    return fingerprint.rows(films[films["split"].isin(splits)])


def key(notebook, used=None):
    """What a stage's validity depends on: its notebook and code, and `used(wildcards)`: params and content."""
    code = fingerprint.notebook(ROOT / notebook)

    def made_of(wildcards):
        checkpoints.curate.get()
        return json.dumps({"code": code, **(used(wildcards) if used else {})}, sort_keys=True)

    return made_of


def teacher_prompts():
    """The instructions of a teacher that is a language model; the rules read none."""
    asked = values["teacher"]["kind"] != "rules"
    return {name: load_prompt(f"teacher/{name}") for name in prompt_names("teacher")} if asked else {}


def source(notebook):
    return os.path.relpath(ROOT / notebook)


def chapter_file(name):
    return f"{'book' if name == 'index' else 'notebooks'}/{name}.ipynb"


def loaded(model):
    """What of a model's entry its training depends on, with the version of its weights."""
    left_out = ("name", "prompt", "note", "full")
    entry = {name: value for name, value in values["models"][model].items() if name not in left_out}
    return entry | {"version": models.version(study.models[model])}


def adapter(checkpoint):
    """The files of the trained weights of a checkpoint; the untuned model has none."""
    weights = paths.weights(checkpoint)
    return [f"{weights}/{name}" for name in ADAPTER] if weights else []


def trained(stage, wildcards):
    """The run of a training job."""
    return Checkpoint(wildcards.model, stage, wildcards.run, "last", int(wildcards.seed))


def named(wildcards):
    """The checkpoint of a prediction job."""
    name = f"{wildcards.stage}/{wildcards.run}" if "stage" in wildcards.keys() else UNTUNED
    return Checkpoint.parse(wildcards.model, name, int(wildcards.seed))


def reward(checkpoint):
    """Of a GRPO checkpoint: the digests of the code of a reward of the user's own, its arguments and its constants."""
    if checkpoint.stage != "grpo":
        return None
    run = study.grpo.runs[checkpoint.run]
    code = [records.sha256(path) for path in rewards.code_files(run.reward, study.file.parent)]
    constants = study.grpo.of(checkpoint.run).reward.model_dump()
    return {"reward": run.reward, "code": code, "args": run.reward_args, "constants": constants}


def needs(notebook, stage=None, checkpoint=lambda wildcards: None):
    """The `resources` of a job: of one of `stage`, what training or asking its `checkpoint(wildcards)` takes.

    A job that failed and is tried again asks for more memory and time.
    """

    @cache
    def of_job(name, one):
        benchmark = Path(f"{runs}/benchmarks/{paths.notebook(name, one).stem}.tsv")
        found = resources.of_job(study, stage, benchmark, one) if stage else resources.plain(benchmark)
        return found | {"gpu": int(bool(stage) and (GPUS > 0 or found["gpu"]))}

    def wanted(wildcards):
        return of_job(wildcards.get("chapter") or wildcards.get("found") or notebook, checkpoint(wildcards))

    return {
        "gpu": lambda wildcards: wanted(wildcards)["gpu"],
        "mem_mb": lambda wildcards, attempt: attempt * wanted(wildcards)["mem_mb"],
        "runtime": lambda wildcards, attempt: attempt * wanted(wildcards)["runtime"],
    }


def whole(wildcards):
    """The params of a chapter that looks at the whole study."""
    return {"full": FULL, "study": study.hash}


PATHS = [str(paths.path(each)) for each in (SFT + GRPO if study.path else [])]
ASKED = [str(paths.answers(each)) for each in study.checkpoints()]
SFT_LOGS = [str(paths.log(each)) for each in SFT]
GRPO_LOGS = [str(paths.log(each)) for each in GRPO]
RELEASED = sorted((ROOT / "released" / "reward").glob("*.parquet"))  # of the controlled experiment, in the repository
tried = study.prompts.variants if study.prompts else []
CHAPTERS = {
    "index": [manifest, *compared],
    "6_labels": [manifest, *compared],
    "6_robustness": [manifest, *compared],
    "7_variants": [manifest, *compared, *SFT_LOGS, *GRPO_LOGS],
    "8_reanalysis": [],
    "9_findings": [manifest, *compared, *ASKED],
    "resampling": [],
    **{name: [] for name in ("12_reward", "13_path") if RELEASED},
}  # what each chapter reads that neither trains nor asks; without inputs it has no `params` and `full` either
FOUND = {
    "10_rulers": study.phantom,
    "11_layers": bool(study.crossed),
    "15_reasoning": any(study.prompt(each) != ONLY_LABEL for each in study.checkpoints()),
    "16_baseline": True,
}
FOUND = [name for name, known in FOUND.items() if known]  # the experiments on the study's own checkpoints
chapters = [
    paths.notebook("index"),
    paths.notebook("1_curate"),
    *([paths.notebook("2_prompts")] if study.prompts else []),
    *(paths.notebook("3_sft", each) for each in SFT),
    *(paths.notebook("4_grpo", each) for each in GRPO),
    *(paths.notebook("5_predict", each) for each in study.checkpoints()),
    paths.notebook("6_compare"),
    *(paths.notebook(name) for name in FOUND),
    *(paths.notebook(name) for name in CHAPTERS if name not in ("index", *([] if study.sft.runs else ["7_variants"]))),
]


localrules:
    book,
    chapters,
    sft,
    grpo,
    predict,
    path,


pages = [path for path in sorted((ROOT / "book").rglob("*")) if path.is_file() and ".ipynb" not in path.name]


rule book:
    input:
        manifest,
        chapters=[str(path) for path in chapters],
    output:
        f"{runs}/book/_build/html/index.html",
    params:
        file=lambda wildcards: shlex.quote(file),
        key=key(
            "book/index.ipynb",
            lambda wildcards: {
                "builder": fingerprint.code(tuple(sorted((ROOT / "chexreason" / "workflow").glob("*.py")))),
                "pages": fingerprint.digest([records.sha256(path) for path in pages]),
                "paper": records.sha256(ROOT / "params" / "paper.yaml"),
                **whole(wildcards),
            },
        ),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/book.log",
    shell:
        "chexreason book {params.file} {input.chapters:q} 2> >(tee {log:q} >&2)"


checkpoint curate:
    output:
        update(manifest),
        update(traces),
        update(f"{runs}/curate/excluded.parquet"),
        update(f"{runs}/curate/prevalence.parquet"),
        update(f"{runs}/curate/relabeled.parquet"),
        notebook=str(paths.notebook("1_curate")),
    params:
        notebook=source("notebooks/1_curate.ipynb"),
        given=given(),
        key=lambda wildcards: json.dumps(
            {
                "code": fingerprint.notebook(ROOT / "notebooks/1_curate.ipynb"),
                **{name: values[name] for name in ("sources", "curate", "tests", "teacher")},
                **{name: getattr(load(study.file), name) for name in ("formats", "rl_sources", "relabelings")},
                "readers": fingerprint.code(tuple(READERS)),
                "teacher prompts": teacher_prompts(),
                "files": {path.name: records.sha256(path) for path in study.files()},
            },
            sort_keys=True,
        ),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/1_curate.log",
    benchmark:
        f"{runs}/benchmarks/1_curate.tsv"
    resources:
        **needs("1_curate"),
    shell:
        RUN


rule prompts:
    input:
        manifest,
    output:
        f"{runs}/prompts/answers.parquet",
        notebook=str(paths.notebook("2_prompts")),
    params:
        notebook=source("notebooks/2_prompts.ipynb"),
        given=given(),
        key=key(
            "notebooks/2_prompts.ipynb",
            lambda wildcards: {
                "films": chosen(study.validation),
                "protocols": [Protocol.of(study, name, study.validation).hash for name in tried],
                "models": {name: {**values["models"][name], **loaded(name)} for name in values["models"]},
                **{name: values[name] for name in ("prompts", "compare")},
                "reward": values["grpo"]["reward"],
            },
        ),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/2_prompts.log",
    benchmark:
        f"{runs}/benchmarks/2_prompts.tsv"
    threads: THREADS
    resources:
        **needs("2_prompts", "prompts"),
    shell:
        RUN


rule sft_run:
    input:
        manifest,
        traces,
    output:
        expand(f"{runs}/sft/{{{{model}}}}/{{{{run}}}}/seed{{{{seed}}}}/adapter/{{name}}", name=ADAPTER),
        f"{runs}/sft/{{model}}/{{run}}/seed{{seed}}/log.parquet",
        notebook=f"{runs}/notebooks/3_sft-{{model}}-{{run}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/3_sft.ipynb"),
        given=given("run", "seed"),
        key=key(
            "notebooks/3_sft.ipynb",
            lambda wildcards: {
                "films": chosen("sft", "sft-holdout"),
                "traces": written(study.sft.runs[wildcards.run].format),
                "prompt": load_prompt(study.sft.runs[wildcards.run].format),
                "lora": values["lora"],
                "sft": study.sft.of(wildcards.run).model_dump(),
                "model": loaded(wildcards.model),
            },
        ),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/3_sft-{{model}}-{{run}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/3_sft-{{model}}-{{run}}-seed{{seed}}.tsv"
    priority: 2
    threads: THREADS
    resources:
        **needs("3_sft", "sft", lambda wildcards: trained("sft", wildcards)),
    shell:
        RUN


rule grpo_run:
    input:
        manifest,
        f"{runs}/curate/relabeled.parquet",
        lambda wildcards: adapter(study.start(trained("grpo", wildcards))),
    output:
        expand(
            f"{runs}/grpo/{{{{model}}}}/{{{{run}}}}/seed{{{{seed}}}}/{{which}}/{{name}}",
            which=("adapter", "best"),
            name=ADAPTER,
        ),
        f"{runs}/grpo/{{model}}/{{run}}/seed{{seed}}/log.parquet",
        notebook=f"{runs}/notebooks/4_grpo-{{model}}-{{run}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/4_grpo.ipynb"),
        given=given("run", "seed"),
        key=key(
            "notebooks/4_grpo.ipynb",
            lambda wildcards: {
                "films": [rewarded(wildcards.run), chosen(study.validation)],
                "protocol": Protocol.of(study, study.prompt(trained("grpo", wildcards)), study.validation).hash,
                "grpo": study.grpo.of(wildcards.run).model_dump(),
                "reward": reward(trained("grpo", wildcards)),
                "model": loaded(wildcards.model),
            },
        ),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/4_grpo-{{model}}-{{run}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/4_grpo-{{model}}-{{run}}-seed{{seed}}.tsv"
    priority: 2
    threads: THREADS
    resources:
        **needs("4_grpo", "grpo", lambda wildcards: trained("grpo", wildcards)),
    shell:
        RUN


@cache
def written(format):
    """The digest of the teacher's traces of one format, as they are now."""
    table = records.load(traces)
    return fingerprint.rows(table.loc[table["format"] == format, ["film", "text"]])


@cache
def rewarded(run):
    """The digest of the films that a GRPO run trains on, with the labels it is rewarded for."""
    sources, other = study.grpo.runs[run].films or [study.curate.train], study.grpo.runs[run].labels
    labels = records.load(f"{runs}/curate/relabeled.parquet")
    films = [[chosen(study.rl_split(name)), other.get(name)] for name in sources]
    return [films, fingerprint.rows(labels[labels["labels"].isin(other.values())])]


def asked(checkpoint):
    """What the answers of a checkpoint depend on, but for its adapter, whose run triggers them."""
    return {
        "films": {name: chosen(name) for name in study.datasets(checkpoint)},
        "protocols": {name: each.hash for name, each in protocols(study, checkpoint).items()},
        "reward": [values["grpo"]["reward"], reward(checkpoint)],
        "model": {**values["models"][checkpoint.model], **loaded(checkpoint.model)},
    }


def walked(run):
    """What the answers along the path of a run depend on, but for its adapters."""
    tests = study.path.tests if study.path else []
    return {
        "films": {name: chosen(name) for name in tests},
        "protocols": {name: Protocol.of(study, study.prompt(run), name).hash for name in tests},
        "path": values["path"],
        "model": {**values["models"][run.model], **loaded(run.model)},
    }


rule predict_run:
    input:
        manifest,
        lambda wildcards: adapter(named(wildcards)),
    output:
        f"{runs}/predict/{{model}}/{{stage}}/{{run}}/seed{{seed}}/answers.parquet",
        notebook=f"{runs}/notebooks/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/5_predict.ipynb"),
        given=given("model", "seed", checkpoint=lambda wildcards: named(wildcards).name),
        key=key("notebooks/5_predict.ipynb", lambda wildcards: asked(named(wildcards))),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.tsv"
    threads: THREADS
    resources:
        **needs("5_predict", "predict", named),
    shell:
        RUN


use rule predict_run as predict_untuned with:
    output:
        f"{runs}/predict/{{model}}/untuned/seed{{seed}}/answers.parquet",
        notebook=f"{runs}/notebooks/5_predict-{{model}}-untuned-seed{{seed}}.ipynb",
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/5_predict-{{model}}-untuned-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/5_predict-{{model}}-untuned-seed{{seed}}.tsv"


rule path_run:
    input:
        manifest,
        lambda wildcards: adapter(trained(wildcards.stage, wildcards)),
        lambda wildcards: adapter(study.start(trained(wildcards.stage, wildcards))),
    output:
        f"{runs}/path/{{stage}}/{{model}}/{{run}}/seed{{seed}}/answers.parquet",
        notebook=f"{runs}/notebooks/5_path-{{model}}-{{stage}}-{{run}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/5_path.ipynb"),
        given=given("stage", "run", "seed"),
        key=key("notebooks/5_path.ipynb", lambda wildcards: walked(trained(wildcards.stage, wildcards))),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/5_path-{{model}}-{{stage}}-{{run}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/5_path-{{model}}-{{stage}}-{{run}}-seed{{seed}}.tsv"
    priority: 1
    threads: THREADS
    resources:
        **needs("5_path", "predict", lambda wildcards: trained(wildcards.stage, wildcards)),
    shell:
        RUN


rule compare:
    input:
        manifest,
        ASKED,
    output:
        compared,
        notebook=str(paths.notebook("6_compare")),
    params:
        notebook=source("notebooks/6_compare.ipynb"),
        given=given(full=FULL),
        key=key("notebooks/6_compare.ipynb", whole),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/6_compare.log",
    benchmark:
        f"{runs}/benchmarks/6_compare.tsv"
    resources:
        **needs("6_compare"),
    shell:
        RUN


rule found_run:
    input:
        manifest,
        ASKED,
        compared,
    output:
        directory(f"{runs}/compare/{{found}}"),
        notebook=f"{runs}/notebooks/{{found}}.ipynb",
    params:
        notebook=lambda wildcards: source(f"notebooks/{wildcards.found}.ipynb"),
        given=given(full=FULL),
        key=lambda wildcards: key(f"notebooks/{wildcards.found}.ipynb", whole)(wildcards),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/{{found}}.log",
    benchmark:
        f"{runs}/benchmarks/{{found}}.tsv"
    resources:
        **needs("found"),
    shell:
        RUN


rule baseline_run:
    input:
        manifest,
        compared,
    output:
        directory(f"{runs}/compare/16_baseline"),
        notebook=f"{runs}/notebooks/16_baseline.ipynb",
    params:
        notebook=source("notebooks/16_baseline.ipynb"),
        given=given(full=FULL),
        key=key("notebooks/16_baseline.ipynb", whole),
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/16_baseline.log",
    benchmark:
        f"{runs}/benchmarks/16_baseline.tsv"
    threads: THREADS
    resources:
        **needs("16_baseline", "predict", lambda wildcards: study.checkpoints()[0]),
    shell:
        RUN


READS_RELEASED = ("index", "9_findings", "12_reward", "13_path")


def released(chapter):
    """For a chapter that reads the released records: the parameter that says where they are."""
    place = os.path.relpath(ROOT / "released" / "reward")
    return f" -p released {shlex.quote(place)}" if chapter in READS_RELEASED else ""


rule chapter_run:
    input:
        lambda wildcards: CHAPTERS[wildcards.chapter],
    output:
        notebook=f"{runs}/notebooks/{{chapter}}.ipynb",
    params:
        notebook=lambda wildcards: source(chapter_file(wildcards.chapter)),
        given=lambda wildcards: (
            (given(full=FULL)(wildcards) if CHAPTERS[wildcards.chapter] else "") + released(wildcards.chapter)
        ),
        key=lambda wildcards: [
            (key(chapter_file(wildcards.chapter), whole)(wildcards) if CHAPTERS[wildcards.chapter] else "")
            or fingerprint.notebook(ROOT / chapter_file(wildcards.chapter)),
            *(records.sha256(path) for path in RELEASED if wildcards.chapter in READS_RELEASED),
        ],
    conda:
        "environment.yml"
    log:
        f"{runs}/logs/{{chapter}}.log",
    benchmark:
        f"{runs}/benchmarks/{{chapter}}.tsv"
    resources:
        **needs("chapter"),
    shell:
        RUN


rule chapters:
    input:
        [str(path) for path in chapters],


rule sft:
    input:
        [adapter(each) for each in SFT],


rule grpo:
    input:
        [adapter(each) for each in GRPO],


rule predict:
    input:
        ASKED,


rule path:
    input:
        PATHS,
