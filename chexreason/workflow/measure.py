"""Measure real steps on this machine: `chexreason plan --measure` runs a few steps of each kind for each model.

The films are phantoms with the study's image size; everything else follows the params file. A model whose weights are
not on this machine gets random weights of its true shape, and every answer then has the maximum length. Without a GPU,
a stand-in is measured instead.
"""

import gc
import math
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from chexreason import answers, config, models, prompts, records
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.teacher import check, generate
from chexreason.training import grpo, sft
from chexreason.workflow import model_size
from chexreason.workflow.measured import FILE, OWN, RANDOM, STAND_IN_WEIGHTS, Step

STEPS, ROLLOUTS = 3, 2
"""Optimizer steps of SFT and rollouts of GRPO; the first of each warms up and is not counted."""

NEW_TOKENS = 128
"""How many tokens of an answer are written at most; the time for more is taken to grow with their number."""

DRAWN = 16
"""How many films are drawn to be asked about; a larger batch has them several times."""

REPEATS = 3
"""How often a batch is read and answered; the median counts."""

LARGER = (1, 2, 4)
"""Prediction is measured with the study's batch and with these multiples of it."""

RUN = "measured"
"""The name of the SFT run and the GRPO run of a measured model."""


def measure(study: config.Study) -> pd.DataFrame:
    """One row (`Step`) per kind of step and model; models of one architecture are measured once.

    Prints each step when it is measured, and writes measured.csv in the study's folder after each model.
    """
    rows, where = [], conditions()
    study.claim()
    for name in _models_to_measure(study):
        with TemporaryDirectory(dir=study.folder, prefix="measured-") as folder:
            for values in _model(study, name, Path(folder)):
                step = Step._make([*values, *where.values()])
                print(
                    f"{step.model}, {step.weights} weights: {step.step} of {step.films} ({step.prompt_tokens} + "
                    f"{step.new_tokens} tokens, {step.attention}): {step.seconds:.3g} s, {step.memory:.3g} GB",
                    flush=True,
                )
                rows.append(step)
        table = pd.DataFrame(rows)
        with records.replacing(study.folder / FILE) as unfinished:
            table.to_csv(unfinished, index=False, float_format="%.4g")
    return table


def conditions() -> dict[str, str]:
    """The device, the versions of libraries, the commit and the date."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    libraries = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    return {"device": gpu, **libraries, "commit": records.commit(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def _models_to_measure(study: config.Study) -> list[str]:
    """The models to measure: the first of each architecture, trained models before others."""
    trained = [run.model for run in study.sft.runs.values()]
    names = list(dict.fromkeys([*trained, *study.models]))
    shapes = {name: str(model_size.model_config(study.models[name].path).to_dict()) for name in names}
    return [name for name in names if name == next(other for other in names if shapes[other] == shapes[name])]


def _model(study: config.Study, name: str, folder: Path) -> Iterator[tuple]:
    """Each kind of step of one model; `folder` has its random weights while they are needed."""
    model = study.models[name]
    path, weights, dtype = _measured_stand_in(model, folder)
    small = config.load(
        study.file, _changes(study, name) | {f"models.{name}.path": path, f"models.{name}.dtype": dtype}
    )
    try:
        _curate(small, study)
        for steps in (_sft, _grpo, _predict):
            yield from ((model.path, weights, *step, dtype) for step in steps(small, name, weights == RANDOM))
            _free()
    finally:
        shutil.rmtree(small.folder, ignore_errors=True)


def _measured_stand_in(model: config.Model, folder: Path) -> tuple[str, str, str]:
    """The path of the measured model, whose weights it has, and its dtype."""
    import torch

    place = Path(models.folder(model.path))
    if any(place.glob("*.safetensors")) or models.commit(model):
        return model.path, OWN, model.dtype
    kind = model_size.model_config(model.path).model_type
    stand_in = next(
        each for each in ("medgemma", "qwen") if model_size.model_config(f"stand-in:{each}").model_type == kind
    )
    if not torch.cuda.is_available():
        return f"stand-in:{stand_in}", STAND_IN_WEIGHTS, "float32"
    _random(model, stand_in, folder)
    return str(folder), RANDOM, model.dtype


def _random(model: config.Model, stand_in: str, folder: Path) -> None:
    """Save a model of the true shape with random weights, with its own processor or that of a stand-in."""
    import torch
    from transformers import AutoModelForImageTextToText

    settings = model_size.model_config(model.path)
    if (Path(models.folder(model.path)) / "tokenizer.json").is_file():
        processor = models.load_processor(model)
    else:
        processor = models.load_processor(
            model.model_copy(update={"path": f"stand-in:{stand_in}", "visual_tokens": None})
        )
        processor.image_processor = model_size.image_processor(model)
        processor.image_seq_length = getattr(settings, "mm_tokens_per_image", None)
        for key, value in model_size.model_config(f"stand-in:{stand_in}").to_dict().items():
            if key.endswith(("_token_id", "_token_index")):
                setattr(settings, key, value)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        built = AutoModelForImageTextToText.from_config(settings, dtype=getattr(torch, model.dtype))
    built.save_pretrained(folder)
    processor.save_pretrained(folder)


def _changes(study: config.Study, name: str) -> dict:
    """The changes of the params for a measurement: one model, phantoms, a few steps."""
    size = study.sources[study.curate.train].size
    runs = [run for run, each in study.sft.runs.items() if each.model == name]
    runs.sort(key=lambda run: study.sft.runs[run].format == answers.ONLY_LABEL)  # which has no reasoning to reward
    format = study.sft.runs[runs[0]].format if runs else "free_reasoning"
    settings, rollout = study.sft.of(runs[0]) if runs else study.sft, study.grpo
    step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    sampled = rollout.films_per_step * rollout.steps_per_generation
    updates = ROLLOUTS * rollout.steps_per_generation * rollout.num_iterations
    return {
        "sources": {
            "films": {"kind": "phantom", "hospital": "A", "films": 3000, "seed": 0, "size": size},
            "others": {"kind": "phantom", "hospital": "B", "films": 9, "seed": 0, "size": size},
        },
        "curate.train": "films",
        "curate.sft": math.ceil(STEPS * step / (1 - study.curate.holdout)),
        "curate.rl": ROLLOUTS * sampled,
        "curate.shares": {"validation": 0.2, "sft": 0.5, "rl": 0.3},
        "curate.validation": DRAWN,
        "curate.floor": 0.0,
        "curate.label_sets": ["chexpert14"],
        "tests": {"others": {"source": "others", "films": 1, "label_sets": ["chexpert14"]}},
        "layers": None,
        "path": None,
        "teacher": {"kind": "rules", "seed": 0},
        "prompts": None,
        "models": {name: study.models[name].model_dump(exclude_defaults=True, exclude={"full"})},
        "sft.runs": {RUN: {"model": name, "format": format}},
        "sft.num_train_epochs": 1,
        "grpo.runs": {RUN: {"start": RUN, "reward": "hard"}},
        "grpo.max_steps": updates,
        "grpo.save_steps": updates,
        "grpo.validation_films": 1,
    }


def _curate(small: config.Study, study: config.Study) -> None:
    """Draw the films and write a trace for each, with the maximum length of the study's teacher."""
    records.save(curate.manifest(small).films, small.folder / curate.MANIFEST, records.provenance(small))
    films = pd.concat([curate.dataset(small, split) for split in ("sft", "sft-holdout")], ignore_index=True)
    traces = generate.write(small, films).traces
    if words := getattr(study.teacher, "max_words", 0):
        traces["text"] = traces["text"].map(lambda text: lengthen_trace(text, words))
    records.save(traces, small.folder / check.TRACES, records.provenance(small))


def lengthen_trace(text: str, words: int) -> str:
    """A trace whose reasoning is repeated until it has `words` words."""
    thought = text.partition("<think>")[2].partition("</think>")[0]
    said = thought.split()
    if not said:
        return text
    return text.replace(thought, " ".join((said * math.ceil(words / len(said)))[:words]))


# The steps.


def _sft(study: config.Study, name: str, to_the_end: bool) -> Iterator[tuple]:
    runner = sft.trainer(study, RUN, study.seeds[0])
    clock, batch = _clock(runner), runner.data_collator([runner.train_dataset[0]])
    prompt, answer = ((batch["labels"][0] == -100) == masked for masked in (True, False))
    lengths = int(prompt.sum()), int(answer.sum())
    with _measured_block() as spent:
        runner.train()
    films = runner.args.per_device_train_batch_size * runner.args.gradient_accumulation_steps
    attention = runner.model.config._attn_implementation
    yield "sft", attention, films, *lengths, _median(clock.seconds[1:]), spent.memory
    with _measured_block() as spent:
        runner.evaluate()
    yield "watch", attention, len(runner.eval_dataset), *lengths, spent.seconds, spent.memory
    runner.save_model(str(study.paths.adapter(study.checkpoint("sft", RUN, study.seeds[0]))))


def _grpo(study: config.Study, name: str, to_the_end: bool) -> Iterator[tuple]:
    """A step with a rollout includes sampling and an update; the others are updates only."""
    runner, settings = grpo.trainer(study, RUN, study.seeds[0]), study.grpo
    if to_the_end:
        runner.generation_config.min_new_tokens = settings.max_completion_length
    clock, every = _clock(runner), settings.steps_per_generation * settings.num_iterations
    with _measured_block() as spent:
        runner.train()
    rolled = [seconds for number, seconds in enumerate(clock.seconds) if number >= every and number % every == 0]
    updates = [seconds for number, seconds in enumerate(clock.seconds) if number >= every and number % every]
    update, batch = _median(updates or [0.0]), runner.args.per_device_train_batch_size
    written = [
        entry["completions/max_length"] for entry in runner.state.log_history if "completions/max_length" in entry
    ]
    lengths = _prompt_tokens(study, runner.processing_class), round(written[-1])
    attention = runner.model.config._attn_implementation
    yield "rollout", attention, batch * settings.steps_per_generation, *lengths, _median(rolled) - update, spent.memory
    if updates:
        yield "update", attention, batch, *lengths, update, spent.memory


def _predict(study: config.Study, name: str, to_the_end: bool) -> Iterator[tuple]:
    from PIL import Image

    reader = predict.load(study.models[name], None, study.predict.batch)
    films = [Image.open(path) for path in curate.dataset(study, study.validation)["image"]]
    attention = reader.model.config._attn_implementation
    kinds = [(attention, times) for times in LARGER] + [("eager", 1)]
    for kind, times in kinds:
        reader.model.set_attn_implementation(kind)
        batch = times * study.predict.batch
        shown = (films * math.ceil(batch / DRAWN))[:batch]
        asked = models.inputs(reader.processor, shown, prompts.load(study.predict.prompt)).to(reader.model.device)
        prompt = asked["input_ids"].shape[1]
        if (kind, times) == kinds[0]:
            _answers(reader.model, asked, 2, to_the_end)  # warms up
        with _vision_seconds(reader.model) as seen:
            read, _ = _answers(reader.model, asked, 1, to_the_end)
        yield "see", kind, batch, prompt, 0, sum(seen) / REPEATS, read.memory
        yield "read", kind, batch, prompt, 1, read.seconds, read.memory
        most = min(NEW_TOKENS, study.predict.max_new_tokens) if to_the_end else study.predict.max_new_tokens
        answer, written = _answers(reader.model, asked, most, to_the_end)
        yield "answer", kind, batch, prompt, written, answer.seconds, answer.memory


def _answers(model, asked, most: int, to_the_end: bool):
    """Seconds and memory of answering `asked`, and the length of the longest answer, at most `most` tokens."""
    import torch

    taken = []
    for _ in range(REPEATS):
        with _measured_block() as spent, torch.inference_mode():
            output = model.generate(**asked, min_new_tokens=most * to_the_end, max_new_tokens=most, do_sample=False)
        taken.append(spent)
    usual = sorted(taken, key=lambda spent: spent.seconds)[REPEATS // 2]
    return usual, output.shape[1] - asked["input_ids"].shape[1]


def _prompt_tokens(study: config.Study, processor) -> int:
    from PIL import Image

    film = Image.open(curate.dataset(study, "rl")["image"].iloc[0])
    prompt = study.prompt(study.checkpoint("grpo", RUN, study.seeds[0]))
    return models.inputs(processor, [film], prompts.load(prompt))["input_ids"].shape[1]


# Clocks.


def _clock(runner):
    """A callback for a trainer; its `seconds` are those of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        seconds: list[float]

        def on_step_begin(self, args, state, control, **kwargs):
            self.began = _now()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds.append(_now() - self.began)

    clock = Clock()
    clock.seconds = []
    runner.add_callback(clock)
    return clock


@contextmanager
def _measured_block():
    """An object with the `seconds` and the peak `memory` (10^9 bytes) of the block."""
    import torch

    class Spent:
        seconds = memory = math.nan

    gpu, spent = torch.cuda.is_available(), Spent()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    began = _now()
    yield spent
    spent.seconds = _now() - began
    held = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent.memory = held / 1e9


@contextmanager
def _vision_seconds(model):
    """A list of the seconds of each pass through the vision encoder in the block."""
    encoder, seconds, began = models.image_encoder(model), [], []
    hooks = []
    if encoder is not None:
        hooks.append(encoder.register_forward_pre_hook(lambda *_: began.append(_now())))
        hooks.append(encoder.register_forward_hook(lambda *_: seconds.append(_now() - began.pop())))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _now() -> float:
    """The time in seconds, after the GPU has finished its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _median(values: list[float]) -> float:
    return float(pd.Series(values).median())


def _free() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
