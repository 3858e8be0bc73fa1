"""One protocol for every model and every data set: the same prompt, greedy decoding, the same reading."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from chexreason import answers, curate, models, params, prompts, records, rewards, training


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


def predict(study: params.Study, model: str, checkpoint: str, seed: int) -> pd.DataFrame:
    """Every answer of one checkpoint on validation and every test set; also written as `answers.parquet`.

    Columns: dataset, film, patient, text (the reply as it came), labels (what evaluation reads from it), failed,
    duplicates, unknown, reward (hard reward against the settled labels; NaN where a data set leaves labels unknown).
    """
    training.steady_threads()
    settings, trained = study.models[model], adapter(study, model, checkpoint, seed)
    loaded = models.load_trained(settings, trained) if trained else models.load_base(settings)
    processor = models.load_processor(settings.path)
    tables = []
    protocol = study.predict.model_copy(update={"prompt": study.prompt(model, checkpoint)})
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
