"""One protocol for every model and every data set: the same prompt, greedy decoding, the same reading."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from chexreason import answers, curate, models, params, prompts, records, rewards, training
from chexreason.films import FilmError, prepare


def folder(study: params.Study, model: str, checkpoint: str, seed: int) -> Path:
    """Where the answers of one checkpoint lie; `checkpoint` is `untuned`, `sft/<format>` or `grpo/<reward>`."""
    return study.folder / "predict" / model / checkpoint / f"seed{seed}"


def adapter(study: params.Study, model: str, checkpoint: str, seed: int) -> Path | None:
    """The adapter folder a checkpoint answers with; None for the untuned model."""
    if checkpoint == "untuned":
        return None
    stage, name = checkpoint.split("/")
    which = "best" if name.endswith("-best") else "adapter"
    return study.folder / stage / model / name.removesuffix("-best") / f"seed{seed}" / which


def answer(model, processor, images: Sequence[str | Path], protocol: params.Predict, what: str = "films") -> list[str]:
    """Ask `model` about every image file, in batches, greedily; the replies as text, in order."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    message = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompts.load(protocol.prompt)}]}
    ]
    question = processor.apply_chat_template(message, add_generation_prompt=True)
    replies = []
    with tqdm(total=len(images), desc=what, mininterval=5, file=sys.stderr) as bar, torch.inference_mode():
        for start in range(0, len(images), protocol.batch):
            films = [Image.open(path).convert("RGB") for path in images[start : start + protocol.batch]]
            inputs = processor(
                images=[[film] for film in films],
                text=[question] * len(films),
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            ).to(model.device)
            output = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            replies += processor.batch_decode(new, skip_special_tokens=True)
            bar.update(len(films))
    return replies


def load(study: params.Study, model: str, checkpoint: str, seed: int) -> tuple:
    """What `answer` needs to ask a checkpoint: its model, its processor, and the protocol with its prompt."""
    training.steady_threads()
    settings, trained = study.models[model], adapter(study, model, checkpoint, seed)
    loaded = models.load_trained(settings, trained) if trained else models.load_base(settings)
    protocol = study.predict.model_copy(update={"prompt": study.prompt(model, checkpoint)})
    return loaded, models.load_processor(settings), protocol


def own(study: params.Study, model: str, checkpoint: str, seed: int, paths: Sequence[str | Path]) -> list[str]:
    """Ask a checkpoint of the study about films of one's own (PNG, JPEG or DICOM), under the same protocol.

    The replies, in order.  Every file is read before the model is loaded: raises FilmError for the first that is no
    film, ParamsError for a checkpoint the params file does not name, RecordError for one that has not been made.
    """
    _refuse_missing(study, model, checkpoint, seed)
    size = study.sources[study.curate.train].size
    with TemporaryDirectory() as folder:
        images = [Path(folder) / f"{number}.png" for number in range(len(paths))]
        for path, image in zip(paths, images, strict=True):
            try:
                prepare(path, size).save(image)
            except FilmError as error:
                raise FilmError(f"{path}: {error}") from error
        loaded, processor, protocol = load(study, model, checkpoint, seed)
        return answer(loaded, processor, images, protocol)


def told(reply: str) -> str:
    """A reply as a person reads it: reasoning, then labels, or that there are none to be read."""
    reading = answers.read(reply)
    if reading.failed:
        return f"{reply}\n\n{'The model declined.' if reading.refused else 'No labels can be read from this answer.'}"
    return f"{reading.reasoning}\n\nLabels: {', '.join(reading.labels)}".lstrip()


def caution(study: params.Study, model: str) -> str:
    """What must be said beside any answer about a user's own film."""
    if study.models[model].path.startswith(models.STAND_IN) or study.sources[study.curate.train].kind == "phantom":
        return "This model learnt from phantoms, which are drawn: what it says is no reading of a film."
    return "This is what a model of a study says, and no diagnosis."


def _refuse_missing(study: params.Study, model: str, checkpoint: str, seed: int) -> None:
    there = study.checkpoints()
    for key, given, known in (
        ("model", model, list(study.models)),
        ("checkpoint", checkpoint, [variant for name, variant, _ in there if name == model]),
        ("seed", seed, [number for name, variant, number in there if (name, variant) == (model, checkpoint)]),
    ):
        if given not in known:
            choices = ", ".join(dict.fromkeys(map(str, known)))
            raise params.ParamsError(f"{study.file.name}: no {key} {given!r}; choose one of {choices}")
    weights = adapter(study, model, checkpoint, seed)
    if weights and not (weights / "adapter_config.json").exists():
        full = "" if (model, checkpoint, seed) in study.short().checkpoints() else "--full "
        command = f"chexreason run {full}{os.path.relpath(study.file)} {checkpoint.split('/')[0]}"
        raise records.RecordError(f"{weights}: no such checkpoint yet; `{command}` makes it")


def predict(study: params.Study, model: str, checkpoint: str, seed: int) -> pd.DataFrame:
    """Every answer of one checkpoint on validation and every test set; also written as `answers.parquet`.

    Columns: dataset, film, patient, text (the reply as it came), labels (what evaluation reads from it), failed,
    duplicates, unknown, reward (hard reward against the settled labels; NaN where a data set leaves labels unknown).
    """
    loaded, processor, protocol = load(study, model, checkpoint, seed)
    tables, trained = [], adapter(study, model, checkpoint, seed)
    for dataset in study.datasets(checkpoint):
        films = curate.dataset(study, dataset)
        texts = answer(loaded, processor, films["image"], protocol, f"{model} {checkpoint} on {dataset}")
        tables.append(read(study, dataset, films, texts, processor))
    table = pd.concat(tables, ignore_index=True)
    made_of = [study.folder / curate.MANIFEST]
    made_of += [trained / "adapter_model.safetensors"] if trained else []
    place = folder(study, model, checkpoint, seed)
    records.save(table, place / "answers.parquet", records.origin(study, seed, made_of))
    return table


def try_prompts(study: params.Study) -> pd.DataFrame:
    """The untuned model's answers under each prompt of `study.prompts`, as `read` has them, with a `prompt` column.

    Also written as `prompts/answers.parquet`; each prompt's answers are kept as they are made, so that a run that was
    cut off goes on.
    """
    training.steady_threads()
    trial, settings = study.prompts, study.models[study.prompts.model]
    films = curate.dataset(study, study.home).head(trial.films)
    origin = records.origin(study, study.seeds[0], [study.folder / curate.MANIFEST])
    loaded, tables = None, []
    for name in trial.variants:
        decisive = [prompts.load(name), *films["sha256"], settings.path, study.predict.max_new_tokens]
        kept = (
            study.folder
            / "prompts"
            / name
            / f"{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]}.parquet"
        )
        if not kept.exists():
            loaded = loaded or (models.load_base(settings), models.load_processor(settings))
            protocol = study.predict.model_copy(update={"prompt": name})
            texts = answer(*loaded, films["image"], protocol, f"{trial.model}, {name}")
            records.save(read(study, study.home, films, texts, loaded[1]).assign(prompt=name), kept, origin)
        tables.append(records.load(kept))
    table = pd.concat(tables, ignore_index=True)
    records.save(table, study.folder / "prompts" / "answers.parquet", origin)
    return table


def read(study: params.Study, dataset: str, films: pd.DataFrame, texts: list[str], processor) -> pd.DataFrame:
    """Read replies about `films`: labels, failure, and the hard reward where every label of the film is known."""
    from chexreason.labels import CHEXPERT14

    settings, known = study.grpo.reward, films[list(CHEXPERT14)].notna().all(axis="columns")
    readings = [answers.read(text) for text in texts]
    table = films[["film", "patient"]].assign(
        dataset=dataset,
        text=texts,
        labels=[list(reading.labels) for reading in readings],
        failed=[reading.failed for reading in readings],
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
    )
    return table[["dataset", *table.columns.drop("dataset")]]


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """One row a data set: films, share without a readable label block, mean labels a film, mean hard reward."""
    counted = table.assign(count=table["labels"].map(len))
    columns = {
        "films": ("film", "size"),
        "fail_rate": ("failed", "mean"),
        "labels_a_film": ("count", "mean"),
        "mean_reward": ("reward", "mean"),
    }
    return counted.groupby("dataset", sort=False).agg(**columns).round(3)


def shown(study: params.Study, table: pd.DataFrame, dataset: str, count: int) -> pd.DataFrame:
    """The first `count` answers on `dataset`, with films and labels, for `figures.beside`; none if credentialed."""
    films = curate.dataset(study, dataset).query("not credentialed")[["film", "image", "labels"]]
    answered = table.loc[table["dataset"] == dataset, ["film", "text"]].head(count)
    return answered.merge(films, on="film", validate="one_to_one")


def summary(table: pd.DataFrame) -> str:
    """What the answers show, a line of a Markdown list for each data set."""
    lines = [
        f"- {name}: {row.films:.0f} films, {row.fail_rate:.1%} unreadable, {row.labels_a_film:.2f} labels a film"
        + (f", mean hard reward {row.mean_reward:.3f}." if pd.notna(row.mean_reward) else ".")
        for name, row in overview(table).iterrows()
    ]
    return "\n".join(lines)
