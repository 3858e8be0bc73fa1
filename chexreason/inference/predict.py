"""Predictions: every model answers every data set under one protocol, with greedy decoding."""

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd

from chexreason import answers, config, fingerprint, models, records, rewards, runtime
from chexreason.data import curate, images
from chexreason.data.images import FilmError, prepare
from chexreason.display.markdown import escape
from chexreason.inference.protocol import Protocol, protocols

JOURNAL = "asked"
"""The folder with the replies of finished batches, from which an interrupted run resumes."""


ENDINGS = {".png", ".jpg", ".jpeg", ".dcm", ".dicom"}
"""Suffixes of films; DICOM files often have none."""


class Reply(NamedTuple):
    """A reply, including the part that the chat template writes, and whether the token limit cut it off."""

    text: str
    cut_off: bool


@dataclass(frozen=True)
class Reader:
    """A model that answers `batch` films at once; `key` identifies it.

    `trained` is the folder of its adapter, None for the untuned model.  The weights are loaded when they are first
    used.
    """

    settings: config.Model
    trained: Path | None
    processor: Any
    batch: int
    key: str

    @cached_property
    def model(self) -> Any:
        """The base model with its adapter."""
        runtime.steady_threads()
        base, adapter = self.settings, self.trained
        loaded = models.load_trained(base, adapter) if adapter else models.load_base(base)
        return models.plain_generation(loaded, self.processor)


def load(settings: config.Model, trained: Path | None, batch: int) -> Reader:
    """A base model with its processor and, unless it is untuned, the adapter in the folder `trained`.

    `key` is a hash of the settings that can change a reply, the version of the base model (`models.version`), the
    adapter and the code.
    """
    weights = models.version(settings), records.sha256(trained / models.ADAPTER[1]) if trained else ""
    key = fingerprint.digest(fingerprint.room("predict"), weights, settings.dtype, settings.visual_tokens)
    return Reader(settings, trained, models.load_processor(settings), batch, key)


def answer_films(
    reader: Reader, images: Sequence[str | Path], protocol: Protocol, journal: Path, what: str = "films"
) -> list[str]:
    """The texts of `reply_to_films`."""
    return [reply.text for reply in reply_to_films(reader, images, protocol, journal, what)]


def reply_to_films(
    reader: Reader, images: Sequence[str | Path], protocol: Protocol, journal: Path, what: str = "films"
) -> list[Reply]:
    """The greedy replies of a model to image files, in the order of `images`.

    Batches have films of similar length in tokens, the longest first.  This needs the least padding, and memory runs
    out at the start or never.  The replies of each batch are saved in the folder `journal` and not made again.  A
    resumed run repeats whole batches, so its replies equal those of an uninterrupted run.
    """
    from tqdm import tqdm

    files = [Path(image) for image in images]
    keys = [fingerprint.digest(reader.key, protocol.hash, fingerprint.pixels(file)) for file in files]
    given = _journal_replies(journal)
    batches = [[number for number in batch if keys[number] not in given] for batch in _batches(reader, files)]
    done = len(files) - sum(map(len, batches))
    if done < len(files):
        _ = reader.model  # loaded here, where a lack of memory is not taken for that of a batch
    with tqdm(total=len(files), initial=done, desc=what, mininterval=5, file=sys.stderr) as bar:
        for numbers in filter(None, batches):
            new = [keys[number] for number in numbers]
            said = dict(
                zip(new, _replies_in_memory(reader, [files[number] for number in numbers], protocol), strict=True)
            )
            with records.replacing(journal / f"{fingerprint.digest(new)}.json") as unfinished:
                unfinished.write_text(json.dumps(said), encoding="utf-8")
            given |= said
            bar.update(len(numbers))
    return [given[key] for key in keys]


def _journal_replies(journal: Path) -> dict[str, Reply]:
    """The replies in a journal, by the digest of everything that can change them."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(journal.glob("*.json"))]
    return {key: Reply(*reply) for batch in kept for key, reply in batch.items()}


def _batches(reader: Reader, images: list[Path]) -> list[list[int]]:
    """The numbers of the images in batches, by the length of the input, the longest first.

    transformers computes the tokens of an image from its size, in a private method that vLLM uses, too.  For a
    processor without this method, the number of pixels is used.
    """
    from PIL import Image

    sizes = [Image.open(image).size[::-1] for image in images]
    if hasattr(reader.processor, "_get_num_multimodal_tokens"):
        tokens = reader.processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    else:
        tokens = [height * width for height, width in sizes]
    order = sorted(range(len(images)), key=lambda number: -tokens[number])
    return [order[start : start + reader.batch] for start in range(0, len(order), reader.batch)]


def _replies_in_memory(reader: Reader, files: list[Path], protocol: Protocol) -> list[Reply]:
    """The replies to one batch; if memory runs out, to one half of it and then the other.

    `config.Predict` describes when a smaller batch can change a reply.
    """
    try:
        return _replies(reader, files, protocol)
    except Exception as error:  # libraries wrap it in one of their own
        if not runtime.out_of_memory(error):
            raise
        if len(files) == 1:
            raise MemoryError("out of memory with a batch of one film; lower predict.max_new_tokens") from error
    half = len(files) // 2  # outside the handler, which holds on to all that did not fit
    print(f"out of memory with a batch of {len(files)} films; trying {half}", file=sys.stderr, flush=True)
    return _replies_in_memory(reader, files[:half], protocol) + _replies_in_memory(reader, files[half:], protocol)


def _replies(reader: Reader, files: list[Path], protocol: Protocol) -> list[Reply]:
    """The replies to one batch; a reply without an end token was cut off."""
    import torch
    from PIL import Image

    model, processor = reader.model, reader.processor
    inputs = models.inputs(processor, [Image.open(file) for file in files], protocol.prompt).to(model.device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, do_sample=False)
    written, opening = output[:, inputs["input_ids"].shape[1] :], models.template_opening(processor)
    ended = torch.isin(written, torch.tensor(model.generation_config.eos_token_id, device=written.device)).any(dim=1)
    texts = processor.batch_decode(written, skip_special_tokens=True)
    return [Reply(opening + text, not end) for text, end in zip(texts, ended.tolist(), strict=True)]


def choose_checkpoint(study: config.Study, model: str | None, name: str | None, seed: int | None) -> config.Checkpoint:
    """The checkpoint with this model, name and seed.

    The defaults are the study's first model, its last checkpoint in a run without `--full` (with GRPO, the best one),
    and the first seed.  Raises ParamsError for a name that the params file does not have, and if the default is not
    clear because there are several SFT runs and no GRPO run.
    """
    there = study.checkpoints()
    model = _among(study, "model", model or next(iter(study.models)), [each.model for each in there])
    there = [each for each in there if each.model == model]
    if name is None:
        short = [each for each in study.short().checkpoints() if each.model == model]
        *others, last = short or there
        if last.stage == "sft" and any(each.stage == "sft" and each.run != last.run for each in others):
            choices = ", ".join(dict.fromkeys(each.name for each in there))
            raise config.ParamsError(f"{study.file.name}: {model}: --checkpoint: choose one of {choices}")
        name = last.name
    name = _among(study, "checkpoint", name, [each.name for each in there])
    seeds = [each.seed for each in there if each.name == name]
    seed = _among(study, "seed", seeds[0] if seed is None else seed, seeds)
    return next(each for each in there if (each.name, each.seed) == (name, seed))


def _among(study: config.Study, key: str, given, known: list):
    if given not in known:
        choices = ", ".join(dict.fromkeys(map(str, known)))
        raise config.ParamsError(f"{study.file.name}: no {key} {given!r}; choose one of {choices}")
    return given


def find_films(paths: Sequence[str | Path]) -> list[Path]:
    """The files in `paths`; a folder is replaced by the films at any depth in it, sorted by name.

    In a folder, a film is a file with the suffix or the first bytes of a PNG, JPEG or DICOM file.  Other files are
    listed on standard error.  Raises FilmError for a folder without films.
    """
    found = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = (file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())  # links are not followed
        files = sorted(file for file in inside if not file.name.startswith("."))
        here = {file: file.suffix.lower() in ENDINGS or _begins_as_film(file) for file in files}
        if not any(here.values()):
            raise FilmError(f"{path}: no PNG, JPEG or DICOM file in this folder")
        if others := [file.name for file, film in here.items() if not film]:
            print(f"{path}: not films: {textwrap.shorten(', '.join(others), 200)}", file=sys.stderr)
        found += [file for file, film in here.items() if film]
    return found


def _begins_as_film(file: Path) -> bool:
    try:
        return file.name != "DICOMDIR" and bool(images._kind(file))
    except FilmError:
        return False


def answer_own_films(
    study: config.Study, checkpoint: config.Checkpoint, paths: Sequence[str | Path]
) -> list[str | FilmError]:
    """The replies of a checkpoint to the user's own films (PNG, JPEG or DICOM), under the study's protocol.

    For a file that cannot be used, the list has a FilmError.  All files are read before the model is loaded; without a
    usable film it is not loaded.  Raises RecordError if the checkpoint does not exist yet.
    """
    _refuse_missing(study, checkpoint)
    protocol = Protocol.of(study, study.prompt(checkpoint), study.validation)
    with TemporaryDirectory() as folder:
        images = {number: Path(folder) / f"{number}.png" for number in range(len(paths))}
        faults = {}
        for number, path in enumerate(paths):
            try:
                prepare(path, protocol.image_size).save(images[number])
            except FilmError as error:
                faults[number] = error
                del images[number]
        if not images:
            return list(faults.values())
        told = f"{checkpoint.model}, {checkpoint.name}, seed {checkpoint.seed}"
        print(f"Asking {told}", file=sys.stderr, flush=True)
        from transformers.utils import logging

        logging.disable_progress_bar()  # `answer_films` shows the one that tells how long it takes
        reader = load(study.models[checkpoint.model], study.paths.weights(checkpoint), study.predict.batch)
        replies = answer_films(reader, list(images.values()), protocol, Path(folder) / JOURNAL)
    answered = faults | dict(zip(images, replies, strict=True))
    return [answered[number] for number in range(len(paths))]


def answer_row(film: str | Path, reply: str | FilmError) -> dict:
    """One answer as plain data: `film`, `error` (why the film cannot be used, or ""), `reply` (the text as it came),
    `reasoning`, `labels` (a list, or None where none can be read) and `refused`.
    """
    row = {"film": str(film), "error": "", "reply": "", "reasoning": "", "labels": None, "refused": False}
    if isinstance(reply, FilmError):
        return row | {"error": str(reply)}
    reading = answers.read(reply)
    labels = None if reading.failed else list(reading.labels)
    return row | {"reply": reply, "reasoning": reading.reasoning, "labels": labels, "refused": reading.refused}


def format_reply(reply: str) -> str:
    """A reply for readers: reasoning and labels, or a note that it cannot be read."""
    reading = answers.read(reply)
    if reading.failed:
        return f"{reply}\n\n{'The model declined.' if reading.refused else 'No labels can be read from this answer.'}"
    return f"{reading.reasoning}\n\nLabels: {', '.join(reading.labels)}".lstrip()


def caution(study: config.Study, model: str) -> str:
    """The warning that is printed with any answer about a user's own film, with the model's note if it has one."""
    said = "This is the output of a study model, not a diagnosis."
    if study.models[model].path.startswith(models.STAND_IN) or study.source(study.validation).kind == "phantom":
        said = "This model was trained on phantoms (drawings), so its answer says nothing about a real film."
    return f"{said} {study.models[model].note}".rstrip()


def _refuse_missing(study: config.Study, checkpoint: config.Checkpoint) -> None:
    weights = study.paths.weights(checkpoint)
    if weights and not (weights / "adapter_config.json").exists():
        full = "" if checkpoint in study.short().checkpoints() else "--full "
        command = f"chexreason run {full}{shlex.quote(os.path.relpath(study.file))} {checkpoint.stage}"
        raise records.RecordError(
            f"{weights}: no such checkpoint yet; `{command}` makes it, and `--checkpoint untuned` needs none"
        )


def predict(study: config.Study, checkpoint: config.Checkpoint) -> pd.DataFrame:
    """Every answer of one checkpoint on validation and every test set; also written as `answers.parquet`.

    Columns: dataset, film, patient, text (the reply as it came), labels (what evaluation reads from it), failed,
    cut_off (whether it reached the token limit), refused, duplicates, unknown, reward (hard reward against the settled
    labels; NaN where a data set leaves labels unknown), protocol (the hash of the `Protocol`, whole in the record's
    provenance).  Of a GRPO run with another reward than the study's hard one, also own_reward: what
    its own reward gives each reply, NaN where `reward` is.  `reward` is the hard reward for every model, as the
    comparison needs one measure for all.
    The journal stays beside it: where the notebook is cut off after this record, nothing is asked again.
    """
    trained, model, tables = study.paths.weights(checkpoint), study.models[checkpoint.model], []
    reader, journal = load(model, trained, study.predict.batch), study.paths.asked(checkpoint) / JOURNAL
    for dataset, protocol in protocols(study, checkpoint).items():
        films = curate.dataset(study, dataset)
        what = f"{checkpoint.model} {checkpoint.name} on {dataset}"
        given = reply_to_films(reader, films["image"], protocol, journal, what)
        run = checkpoint.run if checkpoint.stage == "grpo" else None
        tables.append(read(study, dataset, films, given, reader.processor, protocol, run))
    table = pd.concat(tables, ignore_index=True)
    made_of = [study.folder / curate.MANIFEST, *([trained / "adapter_model.safetensors"] if trained else [])]
    told = {protocol.hash: protocol.model_dump() for protocol in protocols(study, checkpoint).values()}
    provenance = records.provenance(study, checkpoint.seed, made_of) | models.provenance(model) | {"protocols": told}
    records.save(table, study.paths.answers(checkpoint), provenance)
    return table


def try_prompts(study: config.Study) -> pd.DataFrame:
    """The untuned model's answers under each prompt of `study.prompts`, as `read` has them, with a `prompt` column.

    Also written as `prompts/answers.parquet`.  The journal stays, so that of edited prompts only those are asked again.
    """
    trial, place = study.trial, study.folder / "prompts"
    films = curate.dataset(study, study.validation).head(trial.films)
    reader, tables = load(study.models[trial.model], None, study.predict.batch), []
    for name in trial.variants:
        protocol = Protocol.of(study, name, study.validation)
        given = reply_to_films(reader, films["image"], protocol, place / JOURNAL, f"{trial.model}, {name}")
        tables.append(read(study, study.validation, films, given, reader.processor, protocol).assign(prompt=name))
    table = pd.concat(tables, ignore_index=True)
    provenance = records.provenance(study, study.seeds[0], [study.folder / curate.MANIFEST])
    records.save(table, place / "answers.parquet", provenance | models.provenance(study.models[trial.model]))
    return table


def read(
    study: config.Study,
    dataset: str,
    films: pd.DataFrame,
    given: Sequence[Reply | str],
    processor,
    protocol: Protocol,
    run: str | None = None,
) -> pd.DataFrame:
    """Read replies about `films`: labels, failure, and the hard reward where every label of the film is known.

    Of a reply given as text alone it is not known whether it was cut off (NA).  With the GRPO `run` that made the
    checkpoint, the column `own_reward` is added where its reward is not the study's hard one (`score_recorded`).
    """
    from chexreason.labels import CHEXPERT14

    settings, known = study.grpo.reward, films[list(CHEXPERT14)].notna().all(axis="columns")
    replied = [Reply(reply, pd.NA) if isinstance(reply, str) else reply for reply in given]
    texts = [reply.text for reply in replied]
    readings = [answers.read(text) for text in texts]
    table = films[["film", "patient"]].assign(
        dataset=dataset,
        text=texts,
        labels=[list(reading.labels) for reading in readings],
        failed=[reading.failed for reading in readings],
        cut_off=pd.array([reply.cut_off for reply in replied], dtype="boolean"),
        refused=[reading.refused for reading in readings],
        duplicates=[reading.duplicates for reading in readings],
        unknown=[reading.unknown for reading in readings],
        reward=[
            rewards.hard(
                text, truth, rewards.length(text, settings.length_unit, processor.tokenizer(text).input_ids), settings
            )
            if judged
            else float("nan")
            for text, truth, judged in zip(texts, films["labels"], known, strict=True)
        ],
        protocol=protocol.hash,
    )
    if run:
        own, constants = study.grpo.runs[run], study.grpo.of(run).reward
        if own.reward != "hard" or constants != settings:
            made = rewards.make_reward(own.reward, study.file.parent, own.reward_args, constants)
            table["own_reward"] = score_recorded(made, run, films, table, protocol.prompt, processor)
    return table[["dataset", *table.columns.drop("dataset")]]


def score_recorded(
    reward: Callable,
    name: str,
    films: pd.DataFrame,
    table: pd.DataFrame,
    prompt: str,
    processor,
    log_metric: Callable = lambda *_: None,
) -> pd.Series:
    """What a reward gives recorded replies to the text `prompt`, NaN where a label of the film is unknown.

    `films` (`curate.dataset`) and `table` (columns text and cut_off) have one row per reply, in the same order.  The
    reward is given the replies in this order, `rewards.BATCH` at once.  Raises RewardError where it fails.
    """
    from chexreason.labels import CHEXPERT14

    known = films[list(CHEXPERT14)].notna().all(axis="columns").to_numpy()
    replies = films[["film", "image", "credentialed"]].assign(
        truth=films["labels"].to_numpy(), text=table["text"].to_numpy(), cut_off=table["cut_off"].eq(True).to_numpy()
    )
    replies["prompts"] = [[{"role": "user", "content": prompt}]] * len(replies)
    if rewards.has_argument(reward, "completion_ids"):
        replies["completion_ids"] = [processor.tokenizer(text).input_ids for text in replies["text"]]
    values = pd.Series(float("nan"), table.index)
    values[known] = rewards.score_replies(reward, name, replies[known].to_dict("records"), log_metric)
    return values


def format_protocols(study: config.Study, checkpoint: config.Checkpoint) -> str:
    """The protocols a checkpoint is asked under, as text: each with its hash, its data sets and all its parts."""
    asked = protocols(study, checkpoint)
    texts = {
        protocol.hash: "\n".join(
            [
                f"Protocol {protocol.hash}, for {', '.join(name for name, each in asked.items() if each == protocol)}",
                *(f"{part}: {value}" for part, value in protocol.model_dump(exclude={"prompt"}).items()),
                f"prompt:\n{textwrap.indent(protocol.prompt, '    ')}",
            ]
        )
        for protocol in asked.values()
    }
    return "\n\n".join(texts.values())


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """One row a data set: films, share without a readable label block, refusals, mean labels a film, mean hard reward,
    and where the checkpoint's run has another, the mean of that.

    Refusals are among the unreadable answers, and counted apart.  `cut_off` is the share of answers that reached the
    token limit, and `malformed` the share that ended before it and yet cannot be read; NaN for a table that does not
    tell them apart.
    """
    cut_off = table["cut_off"] if "cut_off" in table else pd.Series(pd.NA, table.index)
    cut_off = cut_off.astype("Float64").astype(float)
    malformed = (table["failed"] & (cut_off == 0)).where(cut_off.notna()).astype(float)
    counted = table.assign(count=table["labels"].map(len), cut_off=cut_off, malformed=malformed)
    columns = {
        "films": ("film", "size"),
        "fail_rate": ("failed", "mean"),
        "cut_off": ("cut_off", "mean"),
        "malformed": ("malformed", "mean"),
        "refusals": ("refused", "sum"),
        "labels_a_film": ("count", "mean"),
        "mean_reward": ("reward", "mean"),
        **({"mean_own_reward": ("own_reward", "mean")} if "own_reward" in table else {}),
    }
    return counted.groupby("dataset", sort=False).agg(**columns).round(3)


def example_answers(study: config.Study, table: pd.DataFrame, dataset: str, count: int) -> pd.DataFrame:
    """The first `count` answers on `dataset` with films and labels, for `figures.film_beside_text`."""
    films = curate.dataset(study, dataset).query("not credentialed")[["film", "image", "labels"]]
    answered = table.loc[table["dataset"] == dataset, ["film", "text"]].head(count)
    return answered.merge(films, on="film", validate="one_to_one")


def summary(table: pd.DataFrame, note: str = "") -> str:
    """What the answers show, a line of a Markdown list for each data set, and the model's note where it has one."""
    lines = [
        f"- {name}: {row.films:.0f} films, {row.fail_rate:.1%} unreadable, {row.refusals:.0f} refused, "
        + (f"{row.cut_off:.1%} cut off at the token limit, " if pd.notna(row.cut_off) else "")
        + f"{row.labels_a_film:.2f} labels a film"
        + (f", mean hard reward {row.mean_reward:.3f}." if pd.notna(row.mean_reward) else ".")
        for name, row in overview(table).iterrows()
    ]
    return "\n".join([*lines, *(["", escape(note)] if note else [])])
