"""Every model is asked in the same way, and each answer is kept as it came."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, at, study_folder
from PIL import Image
from test_films import dicom, kept

from chexreason import answers, config, models, records, rewards
from chexreason.cli import main
from chexreason.data import curate
from chexreason.data.phantom import hospitals
from chexreason.display import figures
from chexreason.evaluation import csv_files
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol, protocols
from chexreason.labels import CHEXPERT14


@pytest.fixture(scope="module")
def asked(smoke):
    """The SFT model's answers in the smoke study."""
    return records.load(smoke.paths.answers(at("sft/free_reasoning")))


def test_every_film_of_every_data_set_is_answered_once(smoke, asked):
    for dataset in ("a-validation", *smoke.tests):
        films = asked.loc[asked["dataset"] == dataset, "film"]
        assert list(films) == list(curate.dataset(smoke, dataset)["film"])


def test_labels_and_failures_are_what_the_text_says(asked):
    readings = [answers.read(text) for text in asked["text"]]
    assert [list(reading.labels) for reading in readings] == [list(labels) for labels in asked["labels"]]
    assert [reading.failed for reading in readings] == list(asked["failed"])


def test_rewards_are_the_hard_reward_and_missing_where_labels_are_unknown(smoke, asked):
    truth = curate.dataset(smoke, "a-validation").set_index("film")["labels"]
    rows = asked[asked["dataset"] == "a-validation"]
    expected = [rewards.hard(row.text, truth[row.film], len(row.text), smoke.grpo.reward) for row in rows.itertuples()]
    assert list(rows["reward"]) == expected
    assert asked.loc[asked["dataset"] == "c-test", "reward"].isna().all()
    assert curate.dataset(smoke, "c-test")[list(CHEXPERT14)].isna().any().any()


def test_answers_do_not_depend_on_the_batch(smoke, asked, tmp_path):
    alone = predict.load(smoke.models["medgemma"], smoke.paths.adapter(at("sft/free_reasoning")), 1)
    films = curate.dataset(smoke, "a-validation").head(4)
    texts = predict.answer_films(
        alone, films["image"], Protocol.of(smoke, "free_reasoning", smoke.validation), tmp_path
    )
    assert texts == list(asked.loc[asked["dataset"] == "a-validation", "text"].head(4))


def test_every_row_bears_the_hash_of_the_protocol_that_the_record_holds(smoke, asked):
    told = {each.hash: each.model_dump() for each in protocols(smoke, at("sft/free_reasoning")).values()}
    assert asked.attrs["provenance"]["protocols"] == told
    assert set(asked["protocol"]) == set(told)


def test_model_text_is_escaped_in_the_sheet(smoke, asked):
    planted = asked.assign(text="<script>alert(1)</script>")
    page = figures.film_beside_text(predict.example_answers(smoke, planted, "a-validation", 2), phantom=True)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("Phantom film") == 4


def test_the_overview_counts_by_hand():
    table = pd.DataFrame(
        {
            "dataset": ["x", "x"],
            "film": ["1", "2"],
            "labels": [["Edema", "Fracture"], []],
            "failed": [False, True],
            "refused": [False, True],
            "reward": [0.5, 0.0],
        }
    )
    row = predict.overview(table).loc["x"]
    assert (row["films"], row["fail_rate"], row["refusals"]) == (2, 0.5, 1)
    assert (row["labels_a_film"], row["mean_reward"]) == (1.0, 0.25)


# A user's own films.


def ask(study, *films, model="medgemma", checkpoint="sft/free_reasoning", seed=0) -> int:
    """`chexreason predict` in this process; its exit status."""
    options = ["--params", study.file, "--model", model, "--checkpoint", checkpoint, "--seed", seed]
    return main(["predict", *map(str, options), *map(str, films)])


@pytest.fixture
def unmade(tmp_path, monkeypatch) -> config.Study:
    """The smoke study before anything has run."""
    monkeypatch.chdir(study_folder(tmp_path))
    return config.load("params/smoke.yaml")


def test_ones_own_films_are_answered_as_the_studys_are(smoke, asked, tmp_path, capsys):
    first = curate.dataset(smoke, "a-validation").iloc[0]
    film = Image.open(first["image"])
    film.save(tmp_path / "film.jpg", quality=95)
    kept(tmp_path, dicom(np.asarray(film), bits=8))
    assert ask(smoke, first["image"], tmp_path / "film.jpg", tmp_path / "film.dcm") == 0
    png, jpg, dcm, caution = re.split(r"^/.*\n\n|\n\n(?=This model)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    reply = asked.loc[(asked["dataset"] == "a-validation") & (asked["film"] == first["film"]), "text"].item()
    assert png.strip() == predict.format_reply(reply)
    assert all(answer.strip() for answer in (jpg, dcm))
    assert caution == "This model was trained on phantoms (drawings), so its answer says nothing about a real film.\n"


def test_an_answer_is_reported_as_reasoning_and_labels():
    assert predict.format_reply("<think>Wide heart.</think><solution>Cardiomegaly, Edema</solution>") == (
        "Wide heart.\n\nLabels: Cardiomegaly, Edema"
    )
    assert predict.format_reply("<solution>Edema</solution>") == "Labels: Edema"
    assert predict.format_reply("Perhaps.") == "Perhaps.\n\nNo labels can be read from this answer."
    assert predict.format_reply("I cannot interpret this.").endswith("The model declined.")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model": "medgema"}, "no model 'medgema'; choose one of medgemma"),
        ({"checkpoint": "sft/free"}, "no checkpoint 'sft/free'; choose one of untuned, sft/free_reasoning, grpo/hard"),
        ({"seed": 7}, "no seed 7; choose one of 0"),
        ({}, "free_reasoning/seed0/adapter: no such checkpoint yet; `chexreason run params/smoke.yaml sft` makes it"),
        (
            {"checkpoint": "grpo/hard-best"},
            "seed0/best: no such checkpoint yet; `chexreason run params/smoke.yaml grpo`",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there_is_reported_with_what_makes_it(unmade, capsys, wrong, told):
    assert ask(unmade, "film.png", **wrong) == 2
    assert told in capsys.readouterr().err


def test_a_run_left_to_a_full_study_is_made_with_full(unmade, capsys):
    text = unmade.file.read_text().replace("format: free_reasoning}", "format: free_reasoning, full: true}")
    unmade.file.write_text(text.replace("reward: hard}", "reward: hard, full: true}"))
    assert ask(config.load(unmade.file), "film.png") == 2
    assert "`chexreason run --full params/smoke.yaml sft` makes it" in capsys.readouterr().err


def test_an_unreadable_film_is_named_before_the_model_is_loaded(unmade, capsys, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda *_: pytest.fail("the model was loaded"))
    (unmade.file.parent / "blank.png").write_bytes(b"")
    assert ask(unmade, "params/blank.png", checkpoint="untuned") == 2
    assert capsys.readouterr().err == "chexreason: params/blank.png: empty file\n"
    assert ask(unmade, "nowhere.dcm", checkpoint="untuned") == 2
    assert "nowhere.dcm: no such file" in capsys.readouterr().err


REPLIES = {
    "a.png": "<think>Wide heart.</think><solution>Cardiomegaly, Edema</solution>",
    "b.png": "Perhaps.",
    "c.png": "I cannot interpret this.",
}


@pytest.fixture
def answering(unmade, monkeypatch):
    """The folder `my films` of films a, b and c, one that is empty, one that is not there and a table; a model that
    answers as in `REPLIES`, without being loaded.
    """
    folder = Path("my films")
    (folder / "more").mkdir(parents=True)
    film = Image.fromarray(hospitals.draw(hospitals.film_table(1, seed=5)["recipe"][0], 160).image)
    for place in ("a.png", "more/b.png", "more/c.png"):
        film.save(folder / place)
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.dcm").symlink_to("nowhere")
    (folder / "linked").symlink_to("more")
    (folder / "labels.csv").write_text("id\n")
    monkeypatch.setattr(predict, "load", lambda *_: None)
    monkeypatch.setattr(predict, "answer_films", lambda reader, images, *_: list(REPLIES.values())[: len(images)])
    return folder


FOUND = [f"my films/{name}" for name in ("a.png", "empty.png", "gone.dcm", "more/b.png", "more/c.png")]
FAULTS = ["chexreason: my films/empty.png: empty file", "chexreason: my films/gone.dcm: no such file"]


def test_a_folder_of_films_is_answered_and_its_bad_films_are_reported_in_json(unmade, answering, capsys):
    assert main(["predict", "--json", "--checkpoint", "untuned", "--params", str(unmade.file), "my films"]) == 1
    told = capsys.readouterr()
    about = json.loads(told.out)
    films = about.pop("films")
    assert about == {
        "study": "smoke",
        "params_hash": unmade.hash,
        "model": "medgemma",
        "checkpoint": "untuned",
        "seed": 0,
        "caution": predict.caution(unmade, "medgemma"),
    }
    assert [row["film"] for row in films] == FOUND
    assert [row["error"] for row in films] == ["", "empty file", "no such file", "", ""]
    assert [row["labels"] for row in films] == [["Cardiomegaly", "Edema"], None, None, None, None]
    assert [row["reply"] for row in films if not row["error"]] == list(REPLIES.values())
    assert [row["refused"] for row in films] == [False, False, False, False, True]
    assert told.err.splitlines() == [
        "my films: not films: labels.csv, linked",
        "Asking medgemma, untuned, seed 0",
        *FAULTS,
    ]


def test_a_folder_of_films_is_answered_and_its_bad_films_are_reported_in_csv(unmade, answering, capsys):
    assert main(["predict", "--csv", "--checkpoint", "untuned", "--params", str(unmade.file), "my films"]) == 1
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), keep_default_na=False)
    assert list(table["id"]) == FOUND
    assert list(table["error"]) == ["", "empty file", "no such file", "", ""]
    assert [reply for reply in table["reply"] if reply] == list(REPLIES.values())
    first, *others = table[list(CHEXPERT14)].to_dict("records")
    assert {label for label, state in first.items() if state == "1"} == {"Cardiomegaly", "Edema"}
    assert set(first.values()) == {"0", "1"} and all(set(row.values()) == {""} for row in others)
    assert set(table["caution"]) == {predict.caution(unmade, "medgemma")}


def test_csv_of_predictions_can_be_scored(unmade, answering, capsys):
    main(["predict", "--csv", "--checkpoint", "untuned", "--params", str(unmade.file), "my films"])
    Path("pred.csv").write_text(capsys.readouterr().out)
    truth = pd.DataFrame({"id": FOUND, **dict.fromkeys(CHEXPERT14, 1)})
    truth.to_csv("truth.csv", index=False)
    scored = csv_files.score_files("truth.csv", "pred.csv", "chexpert14", None, n_resamples=40, seed=0)
    assert scored["left_out"] == {"truth": 0, "predictions": 4 * 14}
    recall = {row["label"]: row["recall"] for row in scored["labels"]}
    assert {label for label, share in recall.items() if share == 1} == {"Cardiomegaly", "Edema"}


def test_a_folder_of_films_is_answered_and_its_bad_films_are_reported_as_text(unmade, answering, capsys):
    assert ask(unmade, "my films", checkpoint="untuned") == 1
    told = capsys.readouterr()
    assert (
        "my films/a.png\n\nWide heart.\n\nLabels: Cardiomegaly, Edema\n\nmy films/empty.png\n\nNot read: empty"
        in told.out
    )
    asked = "Asking medgemma, untuned, seed 0"
    assert told.err.splitlines() == ["my films: not films: labels.csv, linked", asked, *FAULTS]


def test_films_that_can_all_be_read_leave_no_error(unmade, answering, capsys):
    assert ask(unmade, "my films/a.png", "my films/more", checkpoint="untuned") == 0
    assert capsys.readouterr().err == "Asking medgemma, untuned, seed 0\n"


def test_a_film_in_a_folder_is_known_by_its_name_or_its_first_bytes(tmp_path, capsys):
    def name(place: str, content: bytes = b"") -> None:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)

    for place in ("b/10.JPG", "b/9.dicom", "a.jpeg", ".hidden.png", "b/README.md", "a.txt"):
        name(place)
    name("b/IM0001", bytes(128) + b"DICM")
    name("b/1.2.840.113", bytes(128) + b"DICM")
    name("DICOMDIR", bytes(128) + b"DICM")
    name("picture", b"\xff\xd8\xff\xe0")
    found = [path.relative_to(tmp_path).as_posix() for path in predict.find_films([tmp_path])]
    assert found == ["a.jpeg", "b/1.2.840.113", "b/10.JPG", "b/9.dicom", "b/IM0001", "picture"]
    assert capsys.readouterr().err == f"{tmp_path}: not films: DICOMDIR, a.txt, README.md\n"


def test_a_folder_without_films_is_refused(unmade, capsys):
    assert ask(unmade, "params", checkpoint="untuned") == 2
    assert capsys.readouterr().err == "chexreason: params: no PNG, JPEG or DICOM file in this folder\n"


@pytest.mark.parametrize(
    ("file", "given", "chosen"),
    [
        ("mini", (None, None, None), at("grpo/hard-best")),
        ("paper", ("qwen", "untuned", None), at("untuned", "qwen")),
        ("mini", (None, "sft/only_label", None), at("sft/only_label")),
        ("mini", (None, "grpo/hard", 2), at("grpo/hard", seed=2)),
        ("nih_sample", (None, None, None), at("untuned")),
    ],
)
def test_without_a_name_the_last_checkpoint_of_the_first_model_is_asked(file, given, chosen):
    assert predict.choose_checkpoint(config.load(ROOT / "params" / f"{file}.yaml"), *given) == chosen


def test_of_several_formats_one_is_to_be_named():
    with pytest.raises(
        config.ParamsError, match=r"qwen: --checkpoint: choose one of untuned, sft/qwen-only_label, sft/qwen-free"
    ):
        predict.choose_checkpoint(config.load(ROOT / "params" / "mini.yaml"), "qwen", None, None)


def test_a_prediction_says_that_it_is_not_a_diagnosis(unmade):
    source = config.Nih(kind="nih", root="$NIH", splits=["test"])
    real = unmade.model_copy(update={"sources": unmade.sources | {"a": source}})
    assert "phantoms" in predict.caution(real, "medgemma")  # a stand-in never learnt from films
    hub = config.Model(name="x", path="google/medgemma-4b-it", dtype="bfloat16")
    assert predict.caution(real.model_copy(update={"models": {"medgemma": hub}}), "medgemma").endswith(
        "not a diagnosis."
    )
    noted = hub.model_copy(update={"note": "It has seen them."})
    assert "seen them" in predict.caution(real.model_copy(update={"models": {"medgemma": noted}}), "medgemma")


def test_prompts_asked_before_are_not_asked_again(smoke, monkeypatch):
    before = records.load(smoke.folder / "prompts" / "answers.parquet")
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("a model was loaded for nothing"))
    again = predict.try_prompts(smoke)
    assert again.drop(columns="labels").equals(before.drop(columns="labels"))
    assert list(again["prompt"].unique()) == smoke.prompts.variants
    assert len(again) == len(smoke.prompts.variants) * smoke.prompts.films
