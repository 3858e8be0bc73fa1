"""The study as a graph: which notebook writes which records, from which, and with which parameters.

    chexreason run params/mini.yaml            everything that is missing or stale
    chexreason run params/mini.yaml grpo       as far as the GRPO runs

A stage runs again when a record or a file of code it uses changes, or a value of the params file that it names below.
Paths are relative to the folder that holds `params/` and `runs/`.
"""

import atexit
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from chexreason import models
from chexreason.fingerprint import modules
from chexreason.config import load
from chexreason.inference.protocol import Protocol, protocols

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

ROOT = Path(workflow.basedir)
COMPARED = ("scores", "overall", "paired", "mcnemar", "travel", "travel_paired", "sensitivity")
FULL = bool(config.get("full"))
study = load(config.get("params", "params/mini.yaml"), FULL)
file, runs = os.path.relpath(study.file), os.path.relpath(study.folder)
values = study.model_dump()
if config.get("dry") and not os.path.exists(".snakemake"):  # a dry run leaves nothing, as Snakemake's own notes are
    atexit.register(shutil.rmtree, ".snakemake", ignore_errors=True)

manifest, traces = f"{runs}/curate/manifest.parquet", f"{runs}/curate/traces.parquet"
compared = [f"{runs}/compare/{name}.parquet" for name in COMPARED]
RUN = "chexreason notebook {input.notebook:q} {output.notebook:q} {params.given}"


def source(notebook):
    return os.path.relpath(ROOT / notebook)


def code(notebook):
    """The files of the package that a notebook's code reaches."""
    return [os.path.relpath(path) for path in modules(ROOT / notebook)]


def given(**parameters):
    """The parameters of a notebook, for the command line."""
    pairs = {"params": file, **parameters}.items()
    return literal(shlex.join(word for name, value in pairs for word in ("-p", name, str(value))))


def literal(text):
    """`text` for a rule's params, where braces in it would otherwise stand for wildcards."""
    return lambda wildcards: text


def used(*sections, **more):
    """The values a stage depends on.  A changed one runs the stage again, as does a changed file of code."""
    return json.dumps({**{name: values[name] for name in sections}, **more}, sort_keys=True)


def weights(model):
    """The files of a stand-in or of a model in a folder; a hub model is known by its commit (`version`)."""
    return [os.path.relpath(path) for path in models.weights(study.models[model])]


def version(model):
    """The entry of a model in the params file, with the commit of a hub model, which may move."""
    return {**values["models"][model], "revision": models.commit(study.models[model])}


def loaded(model):
    """What of a model's entry its training depends on: not how it is asked untrained, nor the note beside its scores."""
    return {name: value for name, value in version(model).items() if name not in ("prompt", "note", "full")}


def folder(model, checkpoint, seed):
    """Where a checkpoint's adapter and log lie."""
    stage, _, variant = checkpoint.partition("/")
    return f"{runs}/{stage}/{model}/{variant.removesuffix('-best')}/seed{seed}"


def adapter(model, checkpoint, seed):
    """The trained weights of a checkpoint; the untuned model has none."""
    if checkpoint == "untuned":
        return []
    which = f"{folder(model, checkpoint, seed)}/{'best' if checkpoint.endswith('-best') else 'adapter'}"
    return [f"{which}/adapter_{end}" for end in ("config.json", "model.safetensors")]


def answers(model, checkpoint, seed):
    return f"{runs}/predict/{model}/{checkpoint}/seed{seed}/answers.parquet"


def executed(notebook, *run):
    """The executed notebook, named after its run: `3_sft-medgemma-free_reasoning-seed0.ipynb`."""
    return f"{runs}/notebooks/{'-'.join([notebook, *run]).replace('/', '-')}.ipynb"


tried = study.prompts.variants if study.prompts else []
sft_runs = [(run.model, run.format, seed) for run, seed in study.runs("sft")]
grpo_runs = [(run.model, run.format, run.reward, seed) for run, seed in study.runs("grpo")]
chapters = [
    executed("index"),
    executed("1_curate"),
    *([executed("2_prompts")] if study.prompts else []),
    *(executed("3_sft", model, form, f"seed{seed}") for model, form, seed in sft_runs),
    *(executed("4_grpo", model, reward, f"seed{seed}") for model, _, reward, seed in grpo_runs),
    *(executed("5_predict", model, checkpoint, f"seed{seed}") for model, checkpoint, seed in study.checkpoints()),
    executed("6_compare"),
    *([executed("7_variants")] if study.sft.runs else []),
    executed("8_reread"),
    executed("9_findings"),
]


rule book:
    input:
        pages=[os.path.relpath(page) for page in sorted((ROOT / "book").rglob("*")) if page.is_file()],
        code=[os.path.relpath(path) for name in ("workflow", "display") for path in sorted((ROOT / "chexreason" / name).glob("*.py"))],
        paper=source("params/paper.yaml"),
        chapters=chapters,
    output:
        f"{runs}/book/_build/html/index.html",
    params:
        file=literal(shlex.quote(file)),
        used=used(full=FULL, study=study.hash),
    shell:
        "chexreason book {params.file} {input.chapters:q}"


rule prompts:
    input:
        manifest,
        weights(study.prompts.model) if study.prompts else [],
        notebook=source("notebooks/2_prompts.ipynb"),
        code=code("notebooks/2_prompts.ipynb"),
    output:
        f"{runs}/prompts/answers.parquet",
        notebook=executed("2_prompts"),
    params:
        given=given(),
        used=used(
            "prompts",
            "compare",
            protocols=[Protocol.of(study, name, study.home).hash for name in tried],
            batch=study.predict.batch,
            reward=values["grpo"]["reward"],
            models={name: version(name) for name in values["models"]},
        ),
    shell:
        RUN


rule curate:
    input:
        notebook=source("notebooks/1_curate.ipynb"),
        code=code("notebooks/1_curate.ipynb"),
    output:
        manifest,
        traces,
        f"{runs}/curate/aside.parquet",
        f"{runs}/curate/prevalence.parquet",
        notebook=executed("1_curate"),
    params:
        given=given(),
        used=used("sources", "curate", "tests", "teacher", formats=load(study.file).formats),
    shell:
        RUN


for model, form, seed in sft_runs:

    rule:
        name:
            f"sft_{model}_{form}_seed{seed}"
        input:
            manifest,
            traces,
            weights(model),
            notebook=source("notebooks/3_sft.ipynb"),
            code=code("notebooks/3_sft.ipynb"),
        output:
            adapter(model, f"sft/{form}", seed),
            f"{folder(model, f'sft/{form}', seed)}/log.parquet",
            notebook=executed("3_sft", model, form, f"seed{seed}"),
        params:
            given=given(model=model, format=form, seed=seed),
            used=used("lora", sft={**values["sft"], "runs": None}, model=loaded(model)),
        priority: 2
        shell:
            RUN


for model, form, reward, seed in grpo_runs:

    rule:
        name:
            f"grpo_{model}_{reward}_seed{seed}"
        input:
            manifest,
            weights(model),
            adapter(model, f"sft/{form}", seed),
            notebook=source("notebooks/4_grpo.ipynb"),
            code=code("notebooks/4_grpo.ipynb"),
        output:
            adapter(model, f"grpo/{reward}", seed),
            adapter(model, f"grpo/{reward}-best", seed),
            f"{folder(model, f'grpo/{reward}', seed)}/log.parquet",
            notebook=executed("4_grpo", model, reward, f"seed{seed}"),
        params:
            given=given(model=model, format=form, reward=reward, seed=seed),
            used=used(
                "lora",
                protocol=Protocol.of(study, form, study.home).hash,
                grpo={**values["grpo"], "runs": None},
                model=loaded(model),
            ),
        priority: 2
        shell:
            RUN


for model, checkpoint, seed in study.checkpoints():

    rule:
        name:
            f"predict_{model}_{checkpoint.replace('/', '_')}_seed{seed}"
        input:
            manifest,
            weights(model),
            adapter(model, checkpoint, seed),
            notebook=source("notebooks/5_predict.ipynb"),
            code=code("notebooks/5_predict.ipynb"),
        output:
            answers(model, checkpoint, seed),
            notebook=executed("5_predict", model, checkpoint, f"seed{seed}"),
        params:
            given=given(model=model, checkpoint=checkpoint, seed=seed),
            used=used(
                protocols={dataset: each.hash for dataset, each in protocols(study, model, checkpoint).items()},
                batch=study.predict.batch,
                reward=values["grpo"]["reward"],
                model=version(model),
            ),
        shell:
            RUN


rule compare:
    input:
        manifest,
        [answers(*checkpoint) for checkpoint in study.checkpoints()],
        notebook=source("notebooks/6_compare.ipynb"),
        code=code("notebooks/6_compare.ipynb"),
    output:
        compared,
        notebook=executed("6_compare"),
    params:
        given=given(full=FULL),
        used=used(full=FULL, study=study.hash),
    shell:
        RUN


rule variants:
    input:
        compared,
        [f"{folder(model, f'sft/{form}', seed)}/log.parquet" for model, form, seed in sft_runs],
        [f"{folder(model, f'grpo/{reward}', seed)}/log.parquet" for model, _, reward, seed in grpo_runs],
        notebook=source("notebooks/7_variants.ipynb"),
        code=code("notebooks/7_variants.ipynb"),
    output:
        notebook=executed("7_variants"),
    params:
        given=given(full=FULL),
        used=used(full=FULL, study=study.hash),
    shell:
        RUN


rule findings:
    input:
        manifest,
        compared,
        [answers(*checkpoint) for checkpoint in study.checkpoints()],
        notebook=source("notebooks/9_findings.ipynb"),
        code=code("notebooks/9_findings.ipynb"),
    output:
        notebook=executed("9_findings"),
    params:
        given=given(full=FULL),
        used=used(full=FULL, study=study.hash),
    shell:
        RUN


rule reread:
    input:
        notebook=source("notebooks/8_reread.ipynb"),
        code=code("notebooks/8_reread.ipynb"),
    output:
        notebook=executed("8_reread"),
    params:
        given="",  # it reads nothing of a study
    shell:
        RUN


rule index:
    input:
        manifest,
        compared,
        notebook=source("book/index.ipynb"),
        code=code("book/index.ipynb"),
    output:
        notebook=executed("index"),
    params:
        given=given(full=FULL),
        used=used(full=FULL, study=study.hash),
    shell:
        RUN


rule sft:
    input:
        [adapter(model, f"sft/{form}", seed) for model, form, seed in sft_runs],


rule grpo:
    input:
        [adapter(model, f"grpo/{reward}", seed) for model, _, reward, seed in grpo_runs],


rule predict:
    input:
        [answers(*checkpoint) for checkpoint in study.checkpoints()],
