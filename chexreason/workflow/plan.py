"""The plan of a study: its runs, what is missing on this machine, and approximate costs.

Nothing is downloaded, loaded or run. Hours and memory are those of measured steps (`measured`) times their number.
Every epoch counts. An answer has the length that the model's own weights gave or, if these were not measured, the
maximum length.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from chexreason import config, models
from chexreason.config import trl_arguments
from chexreason.display import markdown
from chexreason.workflow import measured, model_size
from chexreason.workflow.measured import Step

FILM_SECONDS = 0.04
"""Measured: one core of an AMD EPYC server makes MedGemma's pixels of a film of 896 pixels (Qwen's: 0.025)."""

SLACK = 1.2
"""Assumed: how much more memory a GPU must have than is held at the peak, as it is held in pieces."""

ADAPTER_BYTES = 16
"""Fact: of a LoRA weight in a checkpoint, float32 with its gradient's place and AdamW's two moments."""


class Cost(NamedTuple):
    """Hours and peak memory (10^9 bytes) of a run, and how they were computed; NaN if not known."""

    hours: float
    memory: float
    how: str


class Run(NamedTuple):
    """One run of the study: `run` is a prompt, the name of an SFT or GRPO run, or the checkpoint that makes
    predictions.
    """

    stage: str
    model: str
    run: str
    seed: int
    hours: float
    memory: float
    how: str


def plan(study: config.Study) -> dict:
    """Runs, what is missing, hours and the highest peak memory (10^9 bytes), and what the estimates assume.

    `short_hours` is without the runs that the params file marks `full`.  `films` counts, of each source in a folder,
    the films and the images of each split and view (`film_table.on_disk`), `steps` the measured steps.  Can be written
    as JSON; what is not known is None.
    """
    table, short = runs(study), {run[:4] for run in runs(study.short())}
    films, lacking = _films(study)
    known = [run for run in table if run.hours == run.hours]
    peak = max((run.memory for run in known if not _stand_in(study, run.model)), default=0.0)
    return {
        "study": study.study,
        "runs": [{name: None if value != value else value for name, value in run._asdict().items()} for run in table],
        "films": films,
        "missing": [*missing(study, peak), *lacking],
        "total_hours": round(sum(run.hours for run in known), 2),
        "short_hours": round(sum(run.hours for run in known if run[:4] in short), 2),
        "peak_memory": peak,
        "steps": [step._asdict() for steps in measured_models(study) for step in steps],
        "assumptions": assumptions(study),
    }


def runs(study: config.Study) -> list[Run]:
    """Every run of the study, stage by stage."""
    tried = study.prompts.variants if study.prompts else []
    trained = [(stage, each.run, each) for stage in ("sft", "grpo") for each in study.runs(stage)]
    asked = [("predict", each.name, each) for each in study.checkpoints()]
    grid: list[tuple[str, str, str, int, config.Checkpoint | None]]
    grid = [("prompts", study.trial.model, name, study.seeds[0], None) for name in tried]
    grid += [(stage, each.model, name, each.seed, each) for stage, name, each in trained + asked]
    return [
        Run(stage, model, name, seed, *_cost(study, stage, model, checkpoint))
        for stage, model, name, seed, checkpoint in grid
    ]


def job(study: config.Study, stage: str, checkpoint: config.Checkpoint | None = None) -> tuple[float, float]:
    """Hours of one job of the graph (NaN if not known), and the bytes of its model's weights.

    All tried prompts are one job, without a checkpoint.
    """
    model = checkpoint.model if checkpoint else study.trial.model
    hours = _cost(study, stage, model, checkpoint).hours * (1 if checkpoint else len(study.trial.variants))
    return hours, model_size.weights(_measured_path(study, model)) * {"float32": 4, "bfloat16": 2}[
        study.models[model].dtype
    ]


def _stand_in(study: config.Study, model: str) -> bool:
    return study.models[model].path.startswith(models.STAND_IN)


def _cost(study: config.Study, stage: str, model: str, checkpoint: config.Checkpoint | None) -> Cost:
    """The cost of one run; a tried prompt has no checkpoint."""
    asked = study.models[model]
    try:
        with models.one_line_errors(asked.path):
            steps = measured.steps(study, asked)
            if stage in ("sft", "grpo") and not _stand_in(study, model):
                models.refuse_unreached(model_size.empty(asked.path), asked)
            weights, key_values = model_size.weights(asked.path), model_size.key_values(asked.path)
    except models.ModelError as error:  # told, and the rest of the plan goes on
        return Cost(math.nan, math.nan, str(error))
    if not steps:
        measure = f"chexreason plan --measure {study.file.name}"
        return Cost(
            math.nan, math.nan, f"{asked.path}: no step in {asked.dtype} was measured; `{measure}` does it here"
        )
    base = weights * {"float32": 4, "bfloat16": 2}[asked.dtype]
    if checkpoint and stage == "sft":
        return _sft(study, steps, base, study.sft.of(checkpoint.run))
    if checkpoint and stage == "grpo":
        return _grpo(study, steps, base, key_values, study.grpo.of(checkpoint.run))
    return _predict(study, steps, key_values, _films_answered(study, checkpoint))


# What is done: films, steps and answers, by the params file.


def _trained(study: config.Study, settings: config.Sft) -> tuple[int, int]:
    """The number of training passes and validation passes of SFT over films."""
    held = round(study.curate.sft * study.curate.holdout)
    epochs = settings.num_train_epochs
    return epochs * (study.curate.sft - held), epochs * settings.evaluations_per_epoch * held


def _completion_counts(study: config.Study, settings: config.Grpo) -> tuple[int, int]:
    """The number of completions that GRPO samples and trains on, and of answers that choose the best checkpoint."""
    validated = settings.max_steps // settings.save_steps * min(settings.validation_films, study.curate.validation)
    return settings.max_steps * settings.films_per_step * settings.num_generations, validated


def _films_answered(study: config.Study, checkpoint: config.Checkpoint | None) -> int:
    """The number of films that a checkpoint answers or, without one, a prompt is tried on."""
    if checkpoint is None:
        return min(study.trial.films, study.curate.validation)
    films = {study.validation: study.curate.validation} | {name: test.films for name, test in study.tests.items()}
    films |= {name: study.crossing.films for name in study.crossed}
    return sum(films[dataset] for dataset in study.datasets(checkpoint))


# What that takes, by what was measured.


def _sft(study: config.Study, steps: list[Step], weights: int, settings: config.Sft) -> Cost:
    training, validation = _trained(study, settings)
    step, watch = _step(steps, "sft"), _step(steps, "watch")
    seconds = (
        training * step.seconds / step.films
        + validation * watch.seconds / watch.films
        + _processor_seconds(step, training + validation)
    )
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps / step.films
    return Cost(
        seconds / 3600,
        _peak(weights, step.memory, batch),
        f"{training:,} training passes of {step.seconds / step.films:.2f} s, {validation:,} validation passes",
    )


def _grpo(study: config.Study, steps: list[Step], weights: int, key_values: int, settings: config.Grpo) -> Cost:
    sampled, validated = _completion_counts(study, settings)
    updates = settings.steps_per_generation * settings.num_iterations
    rollouts, batch = math.ceil(settings.max_steps / updates), sampled // settings.max_steps
    rollout = _step(steps, "rollout")
    update = next((step for step in steps if step.step == "update"), rollout._replace(seconds=0.0))
    longer = settings.max_completion_length / rollout.new_tokens if rollout.weights != measured.OWN else 1.0
    more = max(1.0, batch * settings.steps_per_generation / rollout.films)  # fewer take as long: kernels are launched
    seconds = longer * (rollouts * more * rollout.seconds + settings.max_steps * batch / update.films * update.seconds)
    seconds += _answer_seconds(study, steps, validated)
    how = (
        f"{rollouts:,} rollouts, {longer * more * rollout.seconds:.1f} s each, and {settings.max_steps:,} updates, "
        f"{longer * batch / update.films * update.seconds:.1f} s each; {validated:,} films validated"
    )
    memory = max(_peak(weights, rollout.memory, longer * batch / update.films), _answer(study, steps, key_values)[1])
    return Cost(seconds / 3600, memory, how)


def _predict(study: config.Study, steps: list[Step], key_values: int, films: int) -> Cost:
    seconds, memory = _answer(study, steps, key_values)
    how = f"{films:,} films, {study.predict.batch} at once: {seconds:.1f} s a batch"
    return Cost(_answer_seconds(study, steps, films) / 3600, memory, how)


def _step(steps: list[Step], name: str) -> Step:
    """The first measured step of a kind."""
    return next(step for step in steps if step.step == name)


def _answer_seconds(study: config.Study, steps: list[Step], films: int) -> float:
    """Seconds to answer `films` films with answers of maximum length."""
    batches = math.ceil(films / study.predict.batch)
    return batches * _answer(study, steps, 0)[0] + _processor_seconds(steps[0], films)


def _answer(study: config.Study, steps: list[Step], key_values: int) -> tuple[float, float]:
    """Seconds and peak memory (10^9 bytes) of a batch of answers of maximum length.

    It uses the smallest measured batch that is large enough, or else the largest. Without the model's own weights, an
    answer has the maximum length, and the time is extrapolated by its tokens. The memory of keys and values
    (`key_values` numbers of two bytes per token) is added.
    """
    batch, longest = study.predict.batch, study.predict.max_new_tokens
    usual = steps[0].attention
    answers = [step for step in steps if step.step == "answer" and step.attention == usual]
    answer = min(answers, key=lambda step: (step.films < batch, abs(step.films - batch)))
    read = next(step for step in steps if step[3:5] == answer[3:5] and step.step == "read")
    seconds = answer.seconds
    if answer.weights != measured.OWN:
        seconds = read.seconds + (longest - 1) * (answer.seconds - read.seconds) / (answer.new_tokens - 1)
    seconds *= max(1.0, batch / answer.films)
    further = 2 * key_values * max(batch, answer.films) * max(0, longest - answer.new_tokens) / 1e9
    return seconds, SLACK * (answer.memory + further)


def _processor_seconds(step: Step, films: int) -> float:
    """Seconds to process images, which no measured step includes; small for stand-ins."""
    return 0.0 if step.model.startswith(models.STAND_IN) else films * FILM_SECONDS


def _peak(weights: int, memory: float, times: float) -> float:
    """Peak memory (10^9 bytes) of a step that is `times` as large as one with `memory`, weights included."""
    fixed = min(weights / 1e9, memory)
    return SLACK * (fixed + (memory - fixed) * max(1.0, times))


# What is missing on this machine.


def missing(study: config.Study, memory: float = 0.0) -> list[str]:
    """What is missing before the study can run here, one sentence each; `memory` is what the GPU needs (GB)."""
    return [
        *_data(study),
        *_teacher(study),
        *_packages(study),
        *(
            f"models.{name}: {told}"
            for name, model in study.models.items()
            if (told := access(model.path, model.revision))
        ),
        *_gpu(study, memory),
        *_disk(study),
    ]


def _data(study: config.Study) -> Iterator[str]:
    for name, source in study.sources.items():
        if isinstance(source, config.Folder):
            try:
                source.folder  # noqa: B018
            except config.ParamsError as error:
                yield f"sources.{name}.{error}"


def _films(study: config.Study) -> tuple[dict[str, list[dict]], list[str]]:
    """The films and images of each source whose folder exists, by split and view, and what is missing."""
    from chexreason.data import curate, film_table, sampling

    films, lacking = {}, []
    for name, source in study.sources.items():
        if isinstance(source, config.Folder):
            try:
                films[name] = film_table.images_on_disk(curate.source_films(study, name).table, source.folder)
            except config.ParamsError:
                continue  # the folder is not there: `missing` says so
            except film_table.SourceError as error:
                lacking.append(f"sources.{name}: {error}")
            except sampling.CurateError as error:
                lacking.append(str(error))
    for name, groups in films.items():
        there, listed = (sum(group[key] for group in groups) for key in ("images", "films"))
        if there < listed and not (study.sources[name].partial and there):
            lacking.append(f"sources.{name}: {listed - there:,} of {listed:,} images are not in the folder")
    return films, lacking


def _teacher(study: config.Study) -> Iterator[str]:
    teacher = study.teacher
    key = getattr(teacher, "key", None)
    if key and key not in os.environ:
        yield f"teacher.key: set the environment variable {key}"
    if isinstance(teacher, config.LocalTeacher) and (told := access(teacher.model)):
        yield f"teacher.model: {told}"


def _packages(study: config.Study) -> Iterator[str]:
    """Packages that the arguments under `trl` need."""
    for section in (study.sft, study.grpo):
        passed = [section.trl, *(section.of(run).trl for run in section.runs)]
        needed = {name for values in passed for name in trl_arguments.reporters(values)} - {"none"}
        needed |= {"vllm"} if any(values.get("use_vllm") for values in passed) else set()
        for name in sorted(needed):
            if find_spec({"azure_ml": "azureml", "flyte": "flytekit"}.get(name, name)) is None:
                yield f"{section.stage}.trl: install the package {name} with .venv/bin/pip"


def access(path: str, revision: str | None = None) -> str:
    """Why a model cannot be loaded without the network, or ""."""
    if path.startswith(models.STAND_IN):
        try:
            models.folder(path)
        except models.ModelError as error:
            return str(error)
        return ""
    if (Path(path) / "config.json").is_file() or _cached(path, revision):
        return ""
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        return f"{path}: no such folder with a config.json"
    download = f"hf download {path}" + (f" --revision {revision}" if revision else "")
    return f"{path} is not in this machine's hub cache: accept its terms on the hub, then `{download}`"


def _cached(path: str, revision: str | None) -> bool:
    """Whether all weights of a hub model are in the cache; without network access."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(path, "model.safetensors.index.json", revision=revision)
    except HFValidationError:
        return False
    shards = {"model.safetensors"}
    if isinstance(index, str):
        shards = set(json.loads(Path(index).read_text())["weight_map"].values())
    return all(
        isinstance(try_to_load_from_cache(path, shard, revision=revision), str) for shard in {"config.json", *shards}
    )


def _gpu(study: config.Study, memory: float) -> Iterator[str]:
    if all(_stand_in(study, model) for model in study.models):
        return
    import torch

    if not torch.cuda.is_available():
        yield f"GPU: none on this machine; the largest run needs about {memory:.0f} GB"
        return
    found = torch.cuda.get_device_properties(0)
    if found.total_memory < memory * 1e9:
        yield f"GPU: {found.name} has {found.total_memory / 1e9:.0f} GB; the largest run needs about {memory:.0f} GB"


def _disk(study: config.Study) -> Iterator[str]:
    place = next(folder for folder in (study.folder, *study.folder.parents) if folder.exists())
    free, need = shutil.disk_usage(place).free, disk_needed(study)
    if free < need:
        yield f"disk: {free / 1e9:.1f} GB are free for {study.folder.name}, and about {need / 1e9:.1f} GB are needed"


def disk_needed(study: config.Study) -> float:
    """Bytes of disk: images with one byte per pixel, the checkpoints of each run, models that are not here yet.

    SFT keeps two checkpoints and GRPO all of a run, with AdamW's moments; those of stand-ins are too small to count.
    """
    curated = study.curate
    size = (curated.sft + curated.rl + curated.validation) * study.sources[curated.train].size ** 2
    size += sum(test.films * study.sources[test.source].size ** 2 for test in study.tests.values())
    saved = [(each.model, 2) for each in study.runs("sft")]
    for each in study.runs("grpo"):
        settings = study.grpo.of(each.run)
        saved.append((each.model, settings.max_steps // settings.save_steps))
    for model, checkpoints in saved:
        if _stand_in(study, model):
            continue
        size += checkpoints * ADAPTER_BYTES * model_size.trainable(_measured_path(study, model), study.lora)
    return size + sum(
        2 * model_size.weights(_measured_path(study, name))
        for name, model in study.models.items()
        if access(model.path, model.revision)
    )


def _measured_path(study: config.Study, model: str) -> str:
    """The path of a model, or of Gemma 3 if the model's shape or LoRA layers are not known."""
    path = study.models[model].path
    try:
        with models.one_line_errors(path):
            model_size.trainable(path, study.lora)
        return path
    except models.ModelError:
        return next(iter(model_size.PUBLISHED))


# What the estimates rest on, in words.


def assumptions(study: config.Study) -> list[str]:
    """The assumptions of the estimates, one sentence each."""
    told = [
        "Every epoch is run: early stopping costs less.",
        "An answer is as long as the model's own weights made it when measured; without these, as long as it may be.",
        "Steps were measured with the batch and gradient checkpointing of their own params file; measure again after "
        "changing these.",
    ]
    told += [measured.sentence(steps) for steps in measured_models(study)]
    if not all(_stand_in(study, model) for model in study.models):
        told += [
            f"Measured: {FILM_SECONDS:g} s a film for its pixels, on one CPU core, while the GPU waits.",
            "A rollout of fewer completions is taken to last as long, one of more in proportion.",
            "`run` starts as many stages side by side as there are GPUs.",
        ]
    return [
        *told,
        f"Memory: the most that such a step held, and the keys and values of longer answers; {SLACK - 1:.0%} more are "
        "assumed, as memory is held in pieces.",
        "Starting a run (some ten seconds), the teacher, curation, comparison, the book and downloads are not in the "
        "hours.",
    ]


def measured_models(study: config.Study) -> list[list[Step]]:
    """The measured steps of each architecture of a study's models, if there are any."""
    found = {}
    for model in study.models.values():
        try:
            with models.one_line_errors(model.path):
                steps = measured.steps(study, model)
        except models.ModelError:
            continue  # its runs say so
        if steps:
            found[steps[0].model] = steps
    return list(found.values())


def table(found: dict) -> str:
    """A plan as text."""
    import pandas as pd

    from chexreason.data import film_table

    rows = pd.DataFrame(found["runs"], columns=Run._fields)
    shown = rows[["stage", "model", "run", "seed"]].assign(
        **{"h:mm": rows["hours"].map(_clock), "GB": rows["memory"].map("{:.1f}".format), "from": rows["how"]}
    )
    for name in ("stage", "model", "run", "from"):
        shown[name] = shown[name].str.ljust(shown[name].str.len().max())
    lines = [f"Study {found['study']}: {total(found)}", "", shown.to_string(index=False, justify="left")]
    for source, groups in found["films"].items():
        lines += ["", f"Films of {source}:", *film_table.disk_lines(groups)]
    lines += ["", "Missing on this machine:", *(f"- {each}" for each in found["missing"] or ["nothing"])]
    lines += ["", "The estimates rest on:", *(f"- {each}" for each in found["assumptions"])]
    return "\n".join(lines)


def page(found: dict) -> str:
    """A plan as Markdown for the book: total, runs, measured steps and assumptions."""
    rows = [
        (
            *(markdown.escape(str(run[name])) for name in ("stage", "model", "run", "seed")),
            _clock(run["hours"]),
            "?" if run["memory"] is None else f"{run['memory']:.1f}",
            markdown.escape(run["how"]),
        )
        for run in found["runs"]
    ]
    grid = markdown.table(("stage", "model", "run", "seed", "h:mm", "GB", "how it was estimated"), rows, "plan")
    rests = "\n".join(f"- {markdown.escape(told)}" for told in found["assumptions"])
    parts = [f"In all {markdown.escape(total(found))}", grid, "The steps that were measured:", _steps_table(found)]
    return "\n\n".join([*parts, "The estimates rest on:", rests])


def _steps_table(found: dict) -> str:
    """The measured steps of a plan as a Markdown table."""
    rows = [
        (
            *(markdown.escape(str(step[key])) for key in ("model", "step")),
            *(str(step[key]) for key in ("films", "prompt_tokens", "new_tokens")),
            step["attention"],
            f"{step['seconds']:.3g}",
            f"{step['memory']:.1f}",
        )
        for step in found["steps"]
    ]
    heads = ("model", "step", "films or completions", "tokens of the prompt", "of the answer", "attention", "s", "GB")
    told = measured.compared([Step(**step) for step in found["steps"]])
    return "\n\n".join([markdown.table(heads, rows, "steps"), *(f"- {markdown.escape(each)}" for each in told)])


def total(found: dict) -> str:
    """A sentence about the number of runs and their approximate time, in total, by stage, and without those marked
    `full`.
    """
    hours = {run["stage"]: 0.0 for run in found["runs"]}
    for run in found["runs"]:
        hours[run["stage"]] += run["hours"] or 0.0
    stages = ", ".join(f"{stage} {_clock(spent)}" for stage, spent in hours.items())
    told = f"{len(found['runs'])} runs, about {_clock(found['total_hours'])} h one after another ({stages})."
    if found["short_hours"] != found["total_hours"]:
        told += f"  Without those that the params file marks full: about {_clock(found['short_hours'])} h."
    return told


def _clock(hours: float | None) -> str:
    """Hours as h:mm, or "?"."""
    if hours is None or hours != hours:
        return "?"
    whole, minutes = divmod(round(60 * hours), 60)
    return f"{whole}:{minutes:02d}"
