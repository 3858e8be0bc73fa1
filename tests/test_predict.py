"""Every model is asked in the same way, and each answer is kept as it came."""

import pandas as pd
import pytest

from chexreason import answers, curate, figures, models, predict, records, rewards
from chexreason.labels import CHEXPERT14


@pytest.fixture(scope="module")
def asked(smoke):
    """The SFT model's answers in the smoke study."""
    return records.load(predict.folder(smoke, "medgemma", "sft/free_reasoning", 0) / "answers.parquet")


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


def test_answers_do_not_depend_on_the_batch(smoke, asked):
    model = models.load_trained(smoke.models["medgemma"], predict.adapter(smoke, "medgemma", "sft/free_reasoning", 0))
    processor = models.load_processor(smoke.models["medgemma"].path)
    films = curate.dataset(smoke, "a-validation").head(4)
    alone = smoke.predict.model_copy(update={"batch": 1})
    texts = predict.answer(model, processor, films["image"], alone)
    assert texts == list(asked.loc[asked["dataset"] == "a-validation", "text"].head(4))


def test_model_text_is_escaped_in_the_sheet(smoke, asked):
    planted = asked.assign(text="<script>alert(1)</script>")
    page = figures.beside(predict.shown(smoke, planted, "a-validation", 2), phantom=True)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("Phantom film") == 4


def test_the_overview_counts_by_hand():
    table = pd.DataFrame(
        {
            "dataset": ["x", "x"],
            "film": ["1", "2"],
            "labels": [["Edema", "Fracture"], []],
            "failed": [False, True],
            "reward": [0.5, 0.0],
        }
    )
    row = predict.overview(table).loc["x"]
    assert (row["films"], row["fail_rate"], row["labels_a_film"], row["mean_reward"]) == (2, 0.5, 1.0, 0.25)
