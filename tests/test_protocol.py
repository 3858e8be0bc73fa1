"""Every model is asked and read in the same way, whatever the batch, and goes on after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import at, changed_study
from PIL import Image

from chexreason import answers, config, models, prompts, records
from chexreason.data import curate
from chexreason.data.phantom import hospitals
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol, protocols

FILMS = 10
ASKED = Protocol(prompt=prompts.load("free_reasoning"), max_new_tokens=120, image_size=128)
SMALL = {
    "layers": None,
    "sources.a.films": 1500,
    "curate.sft": 40,
    "curate.rl": 20,
    "curate.validation": 20,
    "tests": {"b-test": {"source": "b", "films": 12, "label_sets": ["chexpert14", "shared9"]}},
    "predict.batch": 4,
    "models": {
        "medgemma": {"name": "stand-in-medgemma", "path": "stand-in:medgemma", "dtype": "float32"},
        "external": {
            "name": "external",
            "path": "stand-in:qwen",
            "dtype": "float32",
            "prompt": "others/nv_reason",
            "note": "It has seen b-test.",
        },
    },
}


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    """Phantom films; every third is cut to three quarters of its height, every fifth to half its width."""
    folder, paths = tmp_path_factory.mktemp("films"), []
    for number, recipe in enumerate(hospitals.film_table(FILMS, 1)["recipe"]):
        width, height = 64 if number % 5 == 4 else 128, 96 if number % 3 == 2 else 128
        paths.append(folder / f"{number}.png")
        Image.fromarray(hospitals.draw(recipe).image).crop((0, 0, width, height)).save(paths[-1])
    return paths


def reader(name: str, batch: int) -> predict.Reader:
    return predict.load(config.Model(name=name, path=f"stand-in:{name}", dtype="float32"), None, batch)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    """A small study after curation, with a stand-in in the place of another project's model."""
    small = changed_study(tmp_path_factory.mktemp("study"), "smoke", SMALL)
    records.save(curate.manifest(small)[0], small.folder / curate.MANIFEST, records.provenance(small))
    return small


# The record.


@pytest.mark.parametrize("part", [{"prompt": "Read."}, {"max_new_tokens": 121}, {"image_size": 129}, {"reading": "0"}])
def test_the_hash_changes_with_every_part_of_the_protocol(part):
    assert ASKED.model_copy(update=part).hash != ASKED.hash
    assert set(Protocol.model_fields) == {"prompt", "decoding", "max_new_tokens", "image_size", "reading"}


def test_a_protocol_is_never_changed():
    with pytest.raises(ValueError, match="frozen"):
        ASKED.prompt = "Read."


def test_models_and_data_sets_are_asked_alike_unless_the_params_file_says_otherwise(study):
    asked = protocols(study, at("untuned"))
    assert list(asked) == ["a-validation", "b-test"]
    assert len({each.hash for each in asked.values()}) == 1
    assert protocols(study, at("sft/free_reasoning")) == asked  # its format is the untuned model's prompt
    assert protocols(study, at("untuned", "external"))["b-test"].prompt == "Find abnormalities and support devices."


def test_films_of_another_size_are_asked_under_another_protocol(tmp_path):
    study = changed_study(tmp_path, "smoke", {"sources.b.size": 64})
    asked = protocols(study, at("untuned"))
    assert asked["b-test"].image_size == 64
    assert asked["b-test"].hash != asked["c-test"].hash == asked["a-validation"].hash


def test_the_protocol_is_shown_whole(study):
    told = predict.format_protocols(study, at("untuned", "external"))
    asked = protocols(study, at("untuned", "external"))["b-test"]
    assert told.startswith(f"Protocol {asked.hash}, for a-validation, b-test\n")
    assert all(str(value) in told for value in asked.model_dump().values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models.medgemma.prompt": "nv_reason"}, "no prompt 'nv_reason'.*others/nv_reason"),
        ({"predict.prompt": "others/nv_reason"}, "no prompt 'others/nv_reason'.*free_reasoning"),
        ({"models.medgemma.notes": "seen"}, "models.medgemma.notes"),
    ],
)
def test_a_prompt_that_is_not_there_is_refused_before_anything_is_asked(tmp_path, changes, told):
    with pytest.raises(config.ParamsError, match=told):
        changed_study(tmp_path, "smoke", changes)


def test_the_published_study_asks_the_external_baseline_in_its_own_words_and_warns_of_its_scores():
    study = config.load("params/paper.yaml")
    asked = protocols(study, at("untuned", "nv_reason"))
    assert {each.prompt for each in asked.values()} == {"Find abnormalities and support devices."}
    assert list(asked) == ["mimic-validation", "chexpert-test", "nih-test"]
    assert "CheXpert" in study.models["nv_reason"].note
    assert {each.name for each in study.checkpoints() if each.model == "nv_reason"} == {"untuned"}


# Batches.


@pytest.mark.parametrize("name", ["medgemma", "qwen"])
def test_replies_do_not_depend_on_the_batch(films, tmp_path, name):
    alone, few, all_at_once = (
        predict.answer_films(reader(name, batch), films, ASKED, tmp_path / str(batch)) for batch in (1, 4, FILMS)
    )
    assert alone == few == all_at_once
    assert len(set(alone)) > 1


def test_films_of_equal_length_share_a_batch_and_the_longest_come_first(films):
    asked = reader("qwen", 4)
    turn = [{"role": "user", "content": [{"type": "image"}]}]
    question = asked.processor.apply_chat_template(turn, add_generation_prompt=True)
    lengths = [len(asked.processor(images=Image.open(f), text=question)["input_ids"][0]) for f in films]
    batches = predict._batches(asked, films)
    assert sorted(number for batch in batches for number in batch) == list(range(FILMS))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [lengths[number] for batch in batches for number in batch] == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1


def test_replies_come_in_the_order_of_the_films(films, tmp_path):
    asked = reader("qwen", 4)
    replies = predict.answer_films(asked, films, ASKED, tmp_path / "journal")
    assert predict.answer_films(asked, films[::-1], ASKED, tmp_path / "another") == replies[::-1]


# The journal.


def count_batches(monkeypatch) -> list[int]:
    """The sizes of the batches that are asked from here on."""
    sizes, replies = [], predict._replies
    monkeypatch.setattr(
        predict,
        "_replies",
        lambda reader, files, protocol: sizes.append(len(files)) or replies(reader, files, protocol),
    )
    return sizes


def test_a_film_is_asked_again_only_if_its_image_the_protocol_or_the_weights_are_others(films, tmp_path, monkeypatch):
    asked, again = reader("qwen", 4), count_batches(monkeypatch)
    replies = predict.answer_films(asked, films, ASKED, tmp_path)
    assert again == [4, 4, 2]
    assert predict.answer_films(asked, films, ASKED, tmp_path) == replies
    assert again == [4, 4, 2]
    assert (
        predict.answer_films(replace(asked, batch=3), films[:-1], ASKED, tmp_path) == replies[:-1]
    )  # a film's reply is kept
    assert again == [4, 4, 2]
    predict.answer_films(asked, films, ASKED.model_copy(update={"max_new_tokens": 9}), tmp_path)
    assert again[3:] == [4, 4, 2]
    predict.answer_films(replace(asked, key="other weights"), films, ASKED, tmp_path)
    assert again[6:] == [4, 4, 2]


def test_the_key_of_a_reader_changes_with_its_weights(tmp_path):
    place = shutil.copytree(models.folder("stand-in:qwen"), tmp_path / "model")
    settings = config.Model(name="x", path=str(place), dtype="float32")
    before = predict.load(settings, None, 1).key
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    assert predict.load(settings, None, 1).key != before


PREDICT = """
import sys
from chexreason import config
from chexreason.inference import predict
predict.predict(config.load(sys.argv[1]), config.Checkpoint.parse("medgemma", "untuned", 0))
"""


def test_a_killed_prediction_goes_on_and_ends_as_one_that_was_never_killed(study, monkeypatch):
    place = study.paths.asked(at("untuned"))
    predict.predict(study, at("untuned"))
    whole = (place / "answers.parquet").read_bytes()
    shutil.rmtree(place)

    killed = subprocess.Popen(
        [sys.executable, "-c", PREDICT, study.file],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while killed.poll() is None and len(list(place.glob("asked/*.json"))) < 3:
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (place / "answers.parquet").exists()

    done, again = len(list(place.glob("asked/*.json"))), count_batches(monkeypatch)
    predict.predict(study, at("untuned"))
    assert done >= 3 and len(again) == 8 - done  # 20 films and 12, four at once
    assert (place / "answers.parquet").read_bytes() == whole


# Another project's model, through the whole path.


def test_another_projects_model_is_asked_in_its_own_words_and_read_by_the_same_rules(study, monkeypatch):
    said, load = [], predict.load

    def listening(*settings):
        """The model loaded as ever, with what it is asked written down."""
        asked = load(*settings)
        generate = asked.model.generate
        asked.model.generate = lambda **inputs: said.extend(inputs["input_ids"]) or generate(**inputs)
        return asked

    monkeypatch.setattr(predict, "load", listening)
    table = predict.predict(study, at("untuned", "external"))
    tokenizer = models.load_processor(study.models["external"]).tokenizer
    questions = {tokenizer.decode(question, skip_special_tokens=True) for question in said}
    assert len(said) == len(table) == 32
    assert all("Find abnormalities and support devices." in question for question in questions)
    assert not any("Read this chest X-ray" in question for question in questions)

    readings = [answers.read(text) for text in table["text"]]
    assert list(table["refused"]) == [reading.refused for reading in readings]
    assert list(table["failed"]) == [reading.failed for reading in readings]
    assert [tuple(labels) for labels in table["labels"]] == [reading.labels for reading in readings]
    kept = records.load(study.paths.answers(at("untuned", "external")))
    asked = protocols(study, at("untuned", "external"))["b-test"]
    assert set(kept["protocol"]) == {asked.hash}
    assert kept.attrs["provenance"]["protocols"] == {asked.hash: asked.model_dump()}
    assert "\n\nIt has seen b" in predict.summary(table, study.models["external"].note)


def test_replies_of_the_external_baseline_become_rows_with_refusals_counted_apart(study):
    films = curate.dataset(study, "b-test").head(3)
    replies = [
        "<think> The heart is wide.\n\nThe left base is dense. </think>\n<answer> Atelectasis, Cardiomegaly </answer>",
        "Please provide a frontal chest X-ray image.",
        "<think> A line ends in the right atrium, and",
    ]
    processor = models.load_processor(study.models["external"])
    table = predict.read(study, "b-test", films, replies, processor, ASKED)
    assert [tuple(labels) for labels in table["labels"]] == [("Cardiomegaly", "Atelectasis"), (), ()]
    assert list(table["failed"]) == [False, True, True]
    assert list(table["refused"]) == [False, True, False]
    assert "3 films, 66.7% unreadable, 1 refused" in predict.summary(table)
