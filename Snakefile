"""The study as a graph: which notebook writes which records, from which, and with which parameters.

    chexreason run params/mini.yaml            everything that is missing or no longer valid
    chexreason run params/mini.yaml grpo       as far as the GRPO runs

A stage runs again when its `key` changes, and for no other reason: the cells of its notebook with the code they reach
(docstrings aside), the params it uses, and the content it reads.  Time stamps do not count.  Curation is a checkpoint:
what it chose is known only after it ran, so the keys of the later stages are made then.
Paths are relative to the folder that holds `params/` and `runs/`.
"""

import atexit
import json
import os
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

from snakemake.utils import min_version

from chexreason import fingerprint, models, records, rewards
from chexreason.config import load
from chexreason.inference.protocol import Protocol, protocols
from chexreason.prompts import load as load_prompt
from chexreason.prompts import names as prompt_names

min_version("9.0")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

ROOT = Path(workflow.basedir)
COMPARED = ("scores", "overall", "paired", "mcnemar", "travel", "travel_paired", "sensitivity")
FULL = bool(config.get("full"))
study = load(config.get("params", "params/mini.yaml"), full=FULL)
file, runs = os.path.relpath(study.file), os.path.relpath(study.folder)
values = study.model_dump()
if config.get("dry") and not os.path.exists(".snakemake"):  # a dry run leaves nothing, as Snakemake's own notes are
    atexit.register(shutil.rmtree, ".snakemake", ignore_errors=True)

SFT = [(run.model, run.format, seed) for run, seed in study.runs("sft")]
GRPO = {(run.model, run.variant, seed): run.format for run, seed in study.runs("grpo")}
GPU = int(config.get("gpus", 0) > 0)  # each stage that computes on a GPU has one to itself

manifest, traces = f"{runs}/curate/manifest.parquet", f"{runs}/curate/traces.parquet"
compared = [f"{runs}/compare/{name}.parquet" for name in COMPARED]
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
RUN = "chexreason notebook {params.notebook:q} {output.notebook:q} {params.given} 2> >(tee {log:q} >&2)"


def among(names):
    return "|".join(map(re.escape, names)) or "none"


wildcard_constraints:
    model=among(study.models),
    format=among({form for _, form, _ in SFT} | set(GRPO.values())),
    reward=among({reward for _, reward, _ in GRPO}),
    stage="sft|grpo",
    run=among([form for _, form, _ in SFT] + [reward + best for _, reward, _ in GRPO for best in ("", "-best")]),
    seed=r"\d+",


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


def loaded(model):
    """What of a model's entry its training depends on, with the version of its weights."""
    left_out = ("name", "prompt", "note", "full")
    entry = {name: value for name, value in values["models"][model].items() if name not in left_out}
    return entry | {"version": models.version(study.models[model])}


def folder(model, checkpoint, seed):
    """Where a checkpoint's adapter and log lie."""
    stage, _, variant = checkpoint.partition("/")
    return f"{runs}/{stage}/{model}/{variant.removesuffix('-best')}/seed{seed}"


def adapter(model, checkpoint, seed):
    """The trained weights of a checkpoint; the untuned model has none."""
    if checkpoint == "untuned":
        return []
    which = f"{folder(model, checkpoint, seed)}/{'best' if checkpoint.endswith('-best') else 'adapter'}"
    return [f"{which}/{name}" for name in ADAPTER]


def reward(model, checkpoint):
    """Of a GRPO checkpoint: the digests of the code of a reward of the user's own, and the arguments of its run."""
    stage, _, variant = checkpoint.partition("/")
    run = study.grpo_run(model, variant.removesuffix("-best")) if stage == "grpo" else None
    return run and {"code": [records.sha256(path) for path in rewards.code(run.reward, study.file.parent)], "args": run.reward_args}


def answers(model, checkpoint, seed):
    return f"{runs}/predict/{model}/{checkpoint}/seed{seed}/answers.parquet"


def executed(notebook, *run):
    """The executed notebook, named after its run: `3_sft-medgemma-free_reasoning-seed0.ipynb`."""
    return f"{runs}/notebooks/{'-'.join([notebook, *run]).replace('/', '-')}.ipynb"


def whole(wildcards):
    """The params of a chapter that looks at the whole study."""
    return {"full": FULL, "study": study.hash}


ASKED = [answers(*checkpoint) for checkpoint in study.checkpoints()]
SFT_LOGS = [f"{folder(model, f'sft/{form}', seed)}/log.parquet" for model, form, seed in SFT]
GRPO_LOGS = [f"{folder(model, f'grpo/{reward}', seed)}/log.parquet" for model, reward, seed in GRPO]
tried = study.prompts.variants if study.prompts else []
chapters = [
    executed("index"),
    executed("1_curate"),
    *([executed("2_prompts")] if study.prompts else []),
    *(executed("3_sft", model, form, f"seed{seed}") for model, form, seed in SFT),
    *(executed("4_grpo", model, reward, f"seed{seed}") for model, reward, seed in GRPO),
    *(executed("5_predict", model, checkpoint, f"seed{seed}") for model, checkpoint, seed in study.checkpoints()),
    executed("6_compare"),
    *([executed("7_variants")] if study.sft.runs else []),
    executed("8_reread"),
    executed("9_findings"),
]


localrules:
    book,
    sft,
    grpo,
    predict,


pages = [path for path in sorted((ROOT / "book").rglob("*")) if path.is_file() and ".ipynb" not in path.name]


rule book:
    input:
        manifest,
        chapters=chapters,
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
    log:
        f"{runs}/logs/book.log",
    shell:
        "chexreason book {params.file} {input.chapters:q} 2> >(tee {log:q} >&2)"


checkpoint curate:
    output:
        update(manifest),
        update(traces),
        update(f"{runs}/curate/aside.parquet"),
        update(f"{runs}/curate/prevalence.parquet"),
        notebook=executed("1_curate"),
    params:
        notebook=source("notebooks/1_curate.ipynb"),
        given=given(),
        key=json.dumps(
            {
                "code": fingerprint.notebook(ROOT / "notebooks/1_curate.ipynb"),
                **{name: values[name] for name in ("sources", "curate", "tests", "teacher")},
                "formats": load(study.file).formats,
                "teacher prompts": teacher_prompts(),
                "files": {path.name: records.sha256(path) for path in study.files()},
            },
            sort_keys=True,
        ).replace("{", "{{").replace("}", "}}"),
    log:
        f"{runs}/logs/1_curate.log",
    benchmark:
        f"{runs}/benchmarks/1_curate.tsv"
    shell:
        RUN


rule prompts:
    input:
        manifest,
    output:
        f"{runs}/prompts/answers.parquet",
        notebook=executed("2_prompts"),
    params:
        notebook=source("notebooks/2_prompts.ipynb"),
        given=given(),
        key=key(
            "notebooks/2_prompts.ipynb",
            lambda wildcards: {
                "films": chosen(study.home),
                "protocols": [Protocol.of(study, name, study.home).hash for name in tried],
                "models": {name: {**values["models"][name], **loaded(name)} for name in values["models"]},
                **{name: values[name] for name in ("prompts", "compare")},
                "reward": values["grpo"]["reward"],
            },
        ),
    log:
        f"{runs}/logs/2_prompts.log",
    benchmark:
        f"{runs}/benchmarks/2_prompts.tsv"
    resources:
        gpu=GPU,
    shell:
        RUN


rule sft_run:
    input:
        manifest,
        traces,
    output:
        expand(f"{runs}/sft/{{{{model}}}}/{{{{format}}}}/seed{{{{seed}}}}/adapter/{{name}}", name=ADAPTER),
        f"{runs}/sft/{{model}}/{{format}}/seed{{seed}}/log.parquet",
        notebook=f"{runs}/notebooks/3_sft-{{model}}-{{format}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/3_sft.ipynb"),
        given=given("model", "format", "seed"),
        key=key(
            "notebooks/3_sft.ipynb",
            lambda wildcards: {
                "films": chosen("sft", "sft-holdout"),
                "traces": written(wildcards.format),
                "prompt": load_prompt(wildcards.format),
                "lora": values["lora"],
                "sft": {**values["sft"], "runs": None},
                "model": loaded(wildcards.model),
            },
        ),
    log:
        f"{runs}/logs/3_sft-{{model}}-{{format}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/3_sft-{{model}}-{{format}}-seed{{seed}}.tsv"
    priority: 2
    resources:
        gpu=GPU,
    shell:
        RUN


rule grpo_run:
    input:
        manifest,
        lambda wildcards: adapter(wildcards.model, f"sft/{start(wildcards)}", wildcards.seed),
    output:
        expand(
            f"{runs}/grpo/{{{{model}}}}/{{{{reward}}}}/seed{{{{seed}}}}/{{which}}/{{name}}",
            which=("adapter", "best"),
            name=ADAPTER,
        ),
        f"{runs}/grpo/{{model}}/{{reward}}/seed{{seed}}/log.parquet",
        notebook=f"{runs}/notebooks/4_grpo-{{model}}-{{reward}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/4_grpo.ipynb"),
        given=given("model", "reward", "seed", format=lambda wildcards: start(wildcards)),
        key=key(
            "notebooks/4_grpo.ipynb",
            lambda wildcards: {
                "films": chosen("rl", study.home),
                "protocol": Protocol.of(study, start(wildcards), study.home).hash,
                "grpo": {**values["grpo"], "runs": None},
                "reward": reward(wildcards.model, f"grpo/{wildcards.reward}"),
                "model": loaded(wildcards.model),
            },
        ),
    log:
        f"{runs}/logs/4_grpo-{{model}}-{{reward}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/4_grpo-{{model}}-{{reward}}-seed{{seed}}.tsv"
    priority: 2
    resources:
        gpu=GPU,
    shell:
        RUN


def start(wildcards):
    """The SFT format from which a GRPO run starts."""
    return GRPO[wildcards.model, wildcards.reward, int(wildcards.seed)]


@cache
def written(format):
    """The digest of the teacher's traces of one format, as they are now."""
    table = records.load(traces)
    return fingerprint.rows(table.loc[table["format"] == format, ["film", "text"]])


def asked(model, checkpoint):
    """What the answers of a checkpoint depend on, but for its adapter, whose run triggers them."""
    return {
        "films": {name: chosen(name) for name in study.datasets(checkpoint)},
        "protocols": {name: each.hash for name, each in protocols(study, model, checkpoint).items()},
        "reward": [values["grpo"]["reward"], reward(model, checkpoint)],
        "model": {**values["models"][model], **loaded(model)},
    }


rule predict_run:
    input:
        manifest,
        lambda wildcards: adapter(wildcards.model, f"{wildcards.stage}/{wildcards.run}", wildcards.seed),
    output:
        f"{runs}/predict/{{model}}/{{stage}}/{{run}}/seed{{seed}}/answers.parquet",
        notebook=f"{runs}/notebooks/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/5_predict.ipynb"),
        given=given("model", "seed", checkpoint=lambda wildcards: f"{wildcards.stage}/{wildcards.run}"),
        key=key(
            "notebooks/5_predict.ipynb",
            lambda wildcards: asked(wildcards.model, f"{wildcards.stage}/{wildcards.run}"),
        ),
    log:
        f"{runs}/logs/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/5_predict-{{model}}-{{stage}}-{{run}}-seed{{seed}}.tsv"
    resources:
        gpu=GPU,
    shell:
        RUN


use rule predict_run as predict_untuned with:
    input:
        manifest,
    output:
        f"{runs}/predict/{{model}}/untuned/seed{{seed}}/answers.parquet",
        notebook=f"{runs}/notebooks/5_predict-{{model}}-untuned-seed{{seed}}.ipynb",
    params:
        notebook=source("notebooks/5_predict.ipynb"),
        given=given("model", "seed", checkpoint="untuned"),
        key=key("notebooks/5_predict.ipynb", lambda wildcards: asked(wildcards.model, "untuned")),
    log:
        f"{runs}/logs/5_predict-{{model}}-untuned-seed{{seed}}.log",
    benchmark:
        f"{runs}/benchmarks/5_predict-{{model}}-untuned-seed{{seed}}.tsv"


rule compare:
    input:
        manifest,
        ASKED,
    output:
        compared,
        notebook=executed("6_compare"),
    params:
        notebook=source("notebooks/6_compare.ipynb"),
        given=given(full=FULL),
        key=key("notebooks/6_compare.ipynb", whole),
    log:
        f"{runs}/logs/6_compare.log",
    benchmark:
        f"{runs}/benchmarks/6_compare.tsv"
    shell:
        RUN


rule variants:
    input:
        manifest,
        compared,
        SFT_LOGS,
        GRPO_LOGS,
    output:
        notebook=executed("7_variants"),
    params:
        notebook=source("notebooks/7_variants.ipynb"),
        given=given(full=FULL),
        key=key("notebooks/7_variants.ipynb", whole),
    log:
        f"{runs}/logs/7_variants.log",
    shell:
        RUN


rule reread:
    output:
        notebook=executed("8_reread"),
    params:
        notebook=source("notebooks/8_reread.ipynb"),
        given="",  # it reads nothing of a study
        key=fingerprint.notebook(ROOT / "notebooks/8_reread.ipynb"),
    log:
        f"{runs}/logs/8_reread.log",
    shell:
        RUN


rule findings:
    input:
        manifest,
        compared,
        ASKED,
    output:
        notebook=executed("9_findings"),
    params:
        notebook=source("notebooks/9_findings.ipynb"),
        given=given(full=FULL),
        key=key("notebooks/9_findings.ipynb", whole),
    log:
        f"{runs}/logs/9_findings.log",
    shell:
        RUN


rule index:
    input:
        manifest,
        compared,
    output:
        notebook=executed("index"),
    params:
        notebook=source("book/index.ipynb"),
        given=given(full=FULL),
        key=key("book/index.ipynb", whole),
    log:
        f"{runs}/logs/index.log",
    shell:
        RUN


rule sft:
    input:
        [adapter(model, f"sft/{form}", seed) for model, form, seed in SFT],


rule grpo:
    input:
        [adapter(model, f"grpo/{reward}", seed) for model, reward, seed in GRPO],


rule predict:
    input:
        ASKED,
