"""What a study would run, what it lacks on this machine, and about what it would cost, before anything is spent.

Nothing is downloaded, loaded or asked here.  Hours and memory are estimates from above: every epoch is run, and every
answer is as long as it may be.  The numbers they rest on stand below, each said to be a fact, measured or assumed.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from chexreason import answers, config, models, prompts
from chexreason.config import trl_arguments
from chexreason.display import markdown
from chexreason.workflow import model_size

GPU = "A100 80 GB"
FLOPS = 312e12  # fact, NVIDIA's data sheet: bfloat16 operations a second
BANDWIDTH = 2.0e12  # fact, ditto: bytes a second from memory
UTILISATION = 0.35  # assumed: the share of FLOPS that training and reading a prompt reach
STREAMING = 0.6  # assumed: the share of BANDWIDTH that writing an answer reaches
LAYER_SECONDS = 1.5e-3  # assumed: what a layer takes at least for the next token, to launch its kernels
ADAPTED = 2  # assumed: how many times that with LoRA beside it, as while GRPO samples
FILM_SECONDS = 0.04  # measured: one core of an AMD EPYC server makes MedGemma's pixels of a film (Qwen's: 0.025)
TOKENS_A_WORD = 1.5  # assumed: of an answer
CHARACTERS_A_TOKEN = 4  # assumed: of a prompt
LABEL_TOKENS = 80  # assumed: the <solution> block and the chat template's own tokens
WIDTH = 0.82  # assumed: a film's width over its height, as of 2500 x 3050 pixels

HIDDEN_BYTES, INNER_BYTES = 75, 14
"""Counted on the meta device: what autograd keeps of a token in a layer with LoRA, for each number of the hidden state
and of the feed-forward layer.  Attention adds nothing to speak of: its fused kernels keep no square of the length."""

VISION_BYTES = 40  # assumed, from above: of a patch in the layer of the vision encoder at work; nothing is kept of it
ADAPTER_BYTES = 16  # fact: float32 weight and gradient, and AdamW's two moments
SLACK, CONTEXT = 1.2, 2e9  # assumed: fragmentation; bytes of CUDA's context and of one tile of logits

STAND_IN_SECONDS = {"learn": 6.0e-4, "watch": 2.5e-4, "sample": 1.2e-3, "answer": 2.2e-4}
"""Measured in one whole `make full` of params/mini.yaml, two runs side by side: seconds a token of film, prompt and
answer, to learn from in SFT and to watch the loss of (taken as 0.4 of that), to sample and learn from in GRPO, and to
answer.  At 22 to 43 tokens learning and sampling hold within a quarter, answering within a factor of two."""
STAND_IN_BYTES = {
    "curate": 0.6e9,
    "prompts": 1.0e9,
    "sft": 1.2e9,
    "grpo": 1.8e9,
    "predict": 1.2e9,
    "compare": 0.6e9,
    "book": 0.7e9,
}
"""Measured: the most that the processes of a stage held together, interpreters and libraries included, on
params/mini.yaml (the book: params/smoke.yaml)."""

STAND_IN_CONDITIONS = "one thread of an AMD EPYC server with 2 cores, 128 x 128 pixels, params/mini.yaml's batches"


class Cost(NamedTuple):
    """Hours and peak memory (10^9 bytes) of a run, and how they were arrived at; NaN where nothing is known."""

    hours: float
    memory: float
    how: str


class Run(NamedTuple):
    """One run of the grid: `run` is a prompt, the name of an SFT or GRPO run, or the checkpoint that is asked."""

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
    the films and the images of each split and view (`film_table.on_disk`).  Can be written as JSON; what is not known
    is None.
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
        "assumptions": assumptions(study),
    }


def runs(study: config.Study) -> list[Run]:
    """Every run of the grid, stage by stage."""
    tried = study.prompts.variants if study.prompts else []
    trained = [(stage, each.run, each) for stage in ("sft", "grpo") for each in study.runs(stage)]
    asked = [("predict", each.name, each) for each in study.checkpoints()]
    grid = [("prompts", study.prompts.model, name, name, study.seeds[0], None) for name in tried]
    grid += [(stage, each.model, name, study.prompt(each), each.seed, each) for stage, name, each in trained + asked]
    return [
        Run(stage, model, name, seed, *_cost(study, stage, model, prompt, checkpoint))
        for stage, model, name, prompt, seed, checkpoint in grid
    ]


def job(study: config.Study, stage: str, checkpoint: config.Checkpoint | None = None) -> tuple[float, float]:
    """Hours of one job of the graph, NaN where nothing is known, and bytes of the weights of its model.

    The prompts that are tried are one job, which has no checkpoint.
    """
    if checkpoint is None:
        model, tried = study.prompts.model, study.prompts.variants
        hours = sum(_cost(study, stage, model, name, None).hours for name in tried)
    else:
        model = checkpoint.model
        hours = _cost(study, stage, model, study.prompt(checkpoint), checkpoint).hours
    return hours, _weights(study.models[model], _known(study, model))


def _stand_in(study: config.Study, model: str) -> bool:
    return study.models[model].path.startswith(models.STAND_IN)


def _cost(study: config.Study, stage: str, model: str, prompt: str, checkpoint: config.Checkpoint | None) -> Cost:
    """What one run costs, asked or trained with `prompt`; a prompt that is tried has no checkpoint."""
    asked = study.models[model]
    try:
        with models.one_line(asked.path):
            if _stand_in(study, model):
                return _measured(study, stage, model, prompt, checkpoint)
            shape = _shape(study, model)
            if stage in ("sft", "grpo"):
                models.refuse_unreached(model_size.empty(asked.path), asked)
    except models.ModelError as error:  # told, and the rest of the plan goes on
        return Cost(math.nan, math.nan, str(error))
    if stage == "sft":
        return _sft(study, shape, study.models[model], prompt, study.sft.of(checkpoint.run))
    if stage == "grpo":
        return _grpo(study, shape, study.models[model], prompt, study.grpo.of(checkpoint.run))
    return _predict(study, shape, study.models[model], prompt, _answered(study, checkpoint))


# What is done: films, steps and answers, by the params file.


def _trained(study: config.Study, settings: config.Sft) -> tuple[int, int]:
    """How often SFT looks at a film to learn from it, and to watch the loss of the held-out films."""
    held = round(study.curate.sft * study.curate.holdout)
    epochs = settings.num_train_epochs
    return epochs * (study.curate.sft - held), epochs * settings.evaluations_per_epoch * held


def _sampled(study: config.Study, settings: config.Grpo) -> tuple[int, int]:
    """How many completions GRPO samples and learns from, and how many answers choose the best checkpoint."""
    validated = settings.max_steps // settings.save_steps * min(settings.validation_films, study.curate.validation)
    return settings.max_steps * settings.films_per_step * settings.num_generations, validated


def _answered(study: config.Study, checkpoint: config.Checkpoint | None) -> int:
    """How many films a checkpoint is asked about or, without one, a prompt is tried on."""
    if checkpoint is None:
        return min(study.prompts.films, study.curate.validation)
    films = {study.home: study.curate.validation} | {name: test.films for name, test in study.tests.items()}
    return sum(films[dataset] for dataset in study.datasets(checkpoint))


# The published models: counted operations and bytes.


def _sft(study: config.Study, shape: model_size.Shape, model: config.Model, format: str, settings: config.Sft) -> Cost:
    learnt, watched = _trained(study, settings)
    prompt, answer = _prompt(shape, format), _answer(study, format)
    forward, film = language_flops(shape, prompt + answer, answer), vision_flops(shape)
    operations = learnt * (_passes(settings) * forward + film) + watched * (forward + film)
    seconds = operations / (FLOPS * UTILISATION) + (learnt + watched) * FILM_SECONDS
    size = _weights(model, shape) + ADAPTER_BYTES * shape.lora
    size += activations(shape, settings.per_device_train_batch_size, prompt + answer, settings.gradient_checkpointing)
    how = f"{learnt:,} films learnt from, {prompt + answer:,} tokens each, {watched:,} watched: {operations:.1e} FLOP"
    return Cost(seconds / 3600, _peak(size), how)


def _grpo(
    study: config.Study, shape: model_size.Shape, model: config.Model, format: str, settings: config.Grpo
) -> Cost:
    sampled, validated = _sampled(study, settings)
    updates = settings.steps_per_generation * settings.num_iterations
    rollouts, batch = math.ceil(settings.max_steps / updates), sampled // settings.max_steps
    prompt, answer = _prompt(shape, format), settings.max_completion_length
    once_more = (updates > 1) + (settings.beta > 0)  # under the old policy, under the reference
    forward, first, film = (
        language_flops(shape, prompt + answer, answer),
        language_flops(shape, prompt, 1),
        vision_flops(shape),
    )
    operations = sampled * ((_passes(settings) + once_more) * forward + first)
    operations += sampled * (once_more + 2) * film  # to learn from, and to sample
    asked = batch * settings.steps_per_generation
    seconds = operations / (FLOPS * UTILISATION) + rollouts * writing(shape, asked, prompt, answer, ADAPTED)
    seconds += 2 * sampled * FILM_SECONDS + _answering(shape, study.predict, validated, prompt)  # trl prepares twice
    size = _weights(model, shape) + (ADAPTER_BYTES + 4) * shape.lora  # and the reference's adapter
    working = activations(shape, batch, prompt + answer, settings.gradient_checkpointing)
    how = (
        f"{sampled:,} completions of {answer} tokens in {rollouts:,} rollouts, {operations:.1e} FLOP; "
        f"{validated:,} films validated"
    )
    return Cost(seconds / 3600, _peak(size + max(working, held(shape, asked, prompt + answer))), how)


def _predict(study: config.Study, shape: model_size.Shape, model: config.Model, prompt: str, films: int) -> Cost:
    settings, tokens = study.predict, _prompt(shape, prompt)
    size = _weights(model, shape) + held(shape, settings.batch, tokens + settings.max_new_tokens)
    how = f"{films:,} films, {settings.batch} at once, {settings.max_new_tokens} tokens each"
    return Cost(_answering(shape, settings, films, tokens) / 3600, _peak(size), how)


def _measured(study: config.Study, stage: str, model: str, prompt: str, checkpoint: config.Checkpoint | None) -> Cost:
    """What a run of a stand-in takes, by what was measured."""
    size = study.sources[study.curate.train].size
    asked = study.models[model]
    tokens = _spoken(asked, prompt) + model_size.visual_tokens(asked, size, size)
    if stage == "sft":
        learnt, watched = _trained(study, study.sft.of(checkpoint.run))
        done, how = {"learn": learnt, "watch": watched}, f"{learnt:,} films learnt from, {watched:,} watched"
    elif stage == "grpo":
        sampled, validated = _sampled(study, study.grpo.of(checkpoint.run))
        done = {"sample": sampled, "answer": validated}
        how = f"{sampled:,} completions, {validated:,} films validated"
    else:
        films = _answered(study, checkpoint)
        done, how = {"answer": films}, f"{films:,} films"
    seconds = tokens * sum(count * STAND_IN_SECONDS[what] for what, count in done.items())
    return Cost(seconds / 3600, STAND_IN_BYTES[stage] / 1e9, f"{how}, about {tokens} tokens each; as measured")


@cache
def _spoken(model: config.Model, prompt: str) -> int:
    """Tokens of a prompt and of an answer as the rules write it, by a stand-in's own tokenizer."""
    from numpy.random import default_rng

    from chexreason.teacher import check, rules

    labels, form = ("Cardiomegaly", "Edema"), prompt if prompt in check.FORMATS else "free_reasoning"
    trace = rules.write_trace(labels, [], "AP", default_rng(0), form)
    words = models.load_processor(model).tokenizer
    return sum(
        len(words(text).input_ids)
        for text in (prompts.load(prompt), answers.write(answers.Answer(trace, labels), form))
    )


def language_flops(shape: model_size.Shape, tokens: int, scored: int) -> float:
    """Operations of a forward pass over one sequence, of which `scored` tokens get logits: two a weight and token."""
    return 2.0 * (shape.language - shape.head) * tokens + 2.0 * shape.head * scored


def vision_flops(shape: model_size.Shape) -> float:
    """Operations of the vision encoder on one film; in SigLIP a third are patches looking at each other."""
    attention = 4.0 * shape.patches**2 * shape.vision_hidden * shape.vision_global
    return 2.0 * shape.vision * shape.patches + attention


def writing(shape: model_size.Shape, batch: int, prompt: int, answer: int, slower: int = 1) -> float:
    """Seconds to write `batch` answers side by side, no token faster than memory is read or kernels are launched."""
    moved = 2 * shape.language + cached(shape, batch, prompt + answer // 2)
    return answer * max(moved / (BANDWIDTH * STREAMING), slower * shape.layers * LAYER_SECONDS)


def cached(shape: model_size.Shape, batch: int, tokens: int) -> int:
    """Bytes of the keys and values of `batch` sequences, in bfloat16."""
    return 2 * shape.key_values * batch * tokens


def held(shape: model_size.Shape, batch: int, tokens: int) -> int:
    """Bytes that writing `batch` answers side by side takes: keys and values, and the films while they are seen."""
    return cached(shape, batch, tokens) + VISION_BYTES * batch * shape.patches * shape.vision_hidden


def activations(shape: model_size.Shape, batch: int, tokens: int, checkpointing: bool) -> int:
    """Bytes that a forward pass leaves for the backward pass.

    With checkpointing that is every layer's input, and all of one layer with its gradients at a time.
    """
    layer = HIDDEN_BYTES * shape.hidden + INNER_BYTES * shape.inner
    kept = 2 * shape.hidden * shape.layers + 2 * layer if checkpointing else (shape.layers + 1) * layer
    return batch * (tokens * kept + shape.patches * shape.vision_hidden * VISION_BYTES)


def _passes(settings: config.Sft | config.Grpo) -> int:
    """Forward, back through the frozen weights to the adapters and, with checkpointing, forward again."""
    return 3 if settings.gradient_checkpointing else 2


def _answering(shape: model_size.Shape, protocol: config.Predict, films: int, prompt: int) -> float:
    """Seconds to answer `films` films, none ending before the limit."""
    batches = math.ceil(films / protocol.batch)
    seconds = films * ((language_flops(shape, prompt, 1) + vision_flops(shape)) / (FLOPS * UTILISATION) + FILM_SECONDS)
    return seconds + batches * writing(shape, protocol.batch, prompt, protocol.max_new_tokens)


def _shape(study: config.Study, model: str) -> model_size.Shape:
    height = study.sources[study.curate.train].size
    return model_size.shape(study.models[model], study.lora, round(WIDTH * height), height)


def _prompt(shape: model_size.Shape, prompt: str) -> int:
    return shape.tokens + round(len(prompts.load(prompt)) / CHARACTERS_A_TOKEN)


def _answer(study: config.Study, format: str) -> int:
    """Tokens of the longest answer that is learnt from."""
    from chexreason.teacher.check import MAX_WORDS

    words = getattr(study.teacher, "max_words", MAX_WORDS.get(format, 0))
    return LABEL_TOKENS + (0 if format == answers.ONLY_LABEL else round(TOKENS_A_WORD * words))


def _weights(model: config.Model, shape: model_size.Shape) -> int:
    return shape.weights * {"float32": 4, "bfloat16": 2}[model.dtype]


def _peak(size: float) -> float:
    return (SLACK * size + CONTEXT) / 1e9


# What is missing on this machine.


def missing(study: config.Study, memory: float = 0.0) -> list[str]:
    """What must be provided before the study can run here, a sentence each; `memory` is what the GPU needs (GB)."""
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
    """The films and images of each source whose folder is there, by split and view, and what is missing of them."""
    from chexreason.data import curate, film_table, sampling

    films, lacking = {}, []
    for name, source in study.sources.items():
        if isinstance(source, config.Folder):
            try:
                films[name] = film_table.on_disk(curate.offered(study, name).table, source.folder)
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
    """What `trl` passes through needs further packages for."""
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
    """Whether all weights of a hub model are in the cache; the hub is not asked."""
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
    free, need = shutil.disk_usage(place).free, needed(study)
    if free < need:
        yield f"disk: {free / 1e9:.1f} GB are free for {study.folder.name}, and about {need / 1e9:.1f} GB are needed"


def needed(study: config.Study) -> float:
    """Bytes of disk: images of a byte a pixel at most, the checkpoints of each run, models that are not here yet.

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
        size += checkpoints * ADAPTER_BYTES * _known(study, model).lora
    return size + sum(
        2 * _known(study, name).weights for name, model in study.models.items() if access(model.path, model.revision)
    )


def _known(study: config.Study, model: str) -> model_size.Shape:
    """The shape of a model, of Gemma 3's size where it is not known."""
    try:
        with models.one_line(study.models[model].path):
            return _shape(study, model)
    except models.ModelError:
        height = study.sources[study.curate.train].size
        gemma = config.Model(name="gemma-3", path=next(iter(model_size.PUBLISHED)), dtype="bfloat16")
        return model_size.shape(gemma, study.lora, height, height)


# What the estimates rest on, in words.


def assumptions(study: config.Study) -> list[str]:
    """What the estimates rest on, a sentence each."""
    stand_ins = [_stand_in(study, model) for model in study.models]
    told = ["Every epoch is run and every answer is as long as it may be: early stopping and short answers cost less."]
    if not all(stand_ins):
        told += [
            f"Hours are for one {GPU}: {FLOPS / 1e12:.0f} TFLOP/s and {BANDWIDTH / 1e12:.1f} TB/s by its data sheet.",
            f"Assumed, not measured: training and reading reach {UTILISATION:.0%} of the operations, writing reaches "
            f"{STREAMING:.0%} of the bandwidth, and no layer takes less than {LAYER_SECONDS * 1e3:g} ms a token, "
            f"or {ADAPTED * LAYER_SECONDS * 1e3:g} ms with LoRA beside it.",
            "Operations: two a weight and token and pass; a pass forward, one back to the adapters and, with "
            "checkpointing, one forward again; the frozen vision encoder is passed forward only.  "
            "Weights are counted on the models' true shape, without loading them.",
            f"Measured: {FILM_SECONDS:g} s a film for its pixels, on one CPU core, while the GPU waits.",
            f"Lengths, assumed: {TOKENS_A_WORD} tokens a word, {CHARACTERS_A_TOKEN} characters a token of a prompt.",
            f"Memory: weights in the params file's dtype; {ADAPTER_BYTES} bytes a LoRA weight (itself, gradient, "
            "AdamW); bfloat16 keys and values; what autograd keeps, counted on the true shape; "
            f"{SLACK - 1:.0%} for fragmentation and {CONTEXT / 1e9:g} GB for the rest are assumed.",
            "`run` starts two stages side by side: on one GPU their memory adds up; --cores 1 runs one at a time.",
            "The teacher, curation and downloads are not in the hours.",
        ]
    if any(stand_ins):
        rates = ", ".join(f"{stage} {seconds:g}" for stage, seconds in STAND_IN_SECONDS.items())
        told.append(
            f"Stand-ins, measured: seconds a token to {rates}, on {STAND_IN_CONDITIONS}; two runs side by side take "
            "about half.  Starting a run (some ten seconds), curation, comparison and the book are not in the hours."
        )
        peaks = ", ".join(f"{stage} {size / 1e9:.1f}" for stage, size in STAND_IN_BYTES.items())
        told.append(f"Peak memory of a stage with stand-ins, measured, in GB: {peaks}; two stages side by side add up.")
    return told


def table(found: dict) -> str:
    """A plan as a person reads it."""
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
    """A plan as the book shows it, in Markdown: the total, every run, and what the estimates rest on."""
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
    return f"In all {markdown.escape(total(found))}\n\n{grid}\n\nThe estimates rest on:\n\n{rests}"


def total(found: dict) -> str:
    """How many runs a plan has and about how long they take, in all, by stage, and without those marked `full`."""
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
