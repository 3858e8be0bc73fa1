"""A small study after curation, and stand-ins that are saved as models of others are."""

import json
import shutil
from pathlib import Path

import pandas as pd
from conftest import at, changed_study

from chexreason import config, models, records
from chexreason.data import curate
from chexreason.teacher import check, generate

SMALL = {
    "layers": None,
    "sources.a.films": 300,
    "sources.b.films": 20,
    "curate.sft": 10,
    "curate.rl": 8,
    "curate.validation": 4,
    "curate.floor": 0.0,
    "tests": {"b-test": {"source": "b", "films": 3, "label_sets": ["chexpert14"]}},
    "prompts": None,
    "sft.runs": {form: {"model": "medgemma", "format": form} for form in ("free_reasoning", "only_label")},
    "grpo.runs": {reward: {"start": "free_reasoning", "reward": reward} for reward in ("hard", "nuanced")},
    "sft.num_train_epochs": 1,
    "sft.per_device_train_batch_size": 5,
    "grpo.films_per_step": 2,
    "grpo.num_generations": 2,
    "grpo.max_steps": 2,
    "grpo.max_completion_length": 24,
    "grpo.validation_films": 2,
    "predict.max_new_tokens": 24,
}


def curated(folder: Path, changes: dict | None = None) -> config.Study:
    """The small study with its films and traces; `changes` as in `changed_study`."""
    study = changed_study(folder, "smoke", SMALL | (changes or {}))
    records.save(curate.manifest(study)[0], study.folder / curate.MANIFEST, records.provenance(study))
    films = curate.dataset(study, "sft")
    held_out = curate.dataset(study, "sft-holdout")
    written = generate.write(study, pd.concat([films, held_out], ignore_index=True)).traces
    records.save(written, study.folder / check.TRACES, records.provenance(study))
    return study


def changed(study: config.Study, **sections: dict) -> config.Study:
    """The study with other values in some sections."""
    update = {name: getattr(study, name).model_copy(update=values) for name, values in sections.items()}
    return _anew(study.model_copy(update=update), study)


def _anew(other: config.Study, study: config.Study) -> config.Study:
    """`other` with a hash of its own, which pydantic copies from `study` with all that it has cached."""
    other.__dict__.pop("hash", None)
    other._file = study.file
    return other


def with_model(study: config.Study, place: Path, **keys) -> config.Study:
    """The study with the model in the folder `place` in place of its own."""
    model = config.Model(name="other", path=str(place), dtype="float32", **keys)
    return _anew(study.model_copy(update={"models": {"medgemma": model}}), study)


def stand_in(place: Path, name: str = "medgemma", template=None, **files: dict) -> Path:
    """A copy of a stand-in; `template` changes its chat template, `files` the values of its JSON files."""
    shutil.copytree(models.folder(f"stand-in:{name}"), place)
    for file, values in files.items():
        path = place / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    if template:
        path = place / "chat_template.jinja"
        path.write_text(template(path.read_text()))
    return place


def adds(token: str, number: int, after: bool = False) -> dict:
    """The `tokenizer` file of a tokenizer that adds a special token to every text, as the published Gemma 3's does."""
    added, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    single = [text, added] if after else [added, text]
    known = {token: {"id": token, "ids": [number], "tokens": [token]}}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}}


def untrained_adapter(study: config.Study, format: str = "free_reasoning") -> None:
    """An adapter with random weights where SFT would leave its own, so that GRPO has a reference to start from."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(0)
    model = study.models["medgemma"]
    adapted = get_peft_model(models.load_base(model), models.lora_config(study.lora, model))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.peft_config["default"].base_model_name_or_path = model.path
    adapted.save_pretrained(str(study.paths.adapter(at(f"sft/{format}"))), save_embedding_layers=False)
