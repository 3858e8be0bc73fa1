"""What a reasoning states is read from its sentences, and compared with the labels and with what was drawn."""

import numpy as np
import pytest

from chexreason import answers
from chexreason.data.phantom import hospitals
from chexreason.evaluation import reasoning
from chexreason.evaluation.reasoning import Statement
from chexreason.labels import positives
from chexreason.teacher import rules

FORMATS = ("free_reasoning", "reasoning_narrative", "reasoning_a")


@pytest.fixture(scope="module")
def films():
    table = hospitals.film_table(400, 5)
    return table.assign(boxes=[hospitals.boxes(recipe) for recipe in table["recipe"]])


@pytest.mark.parametrize("format", FORMATS)
def test_every_label_of_a_teacher_s_trace_is_stated_and_no_other(films, format):
    rng = np.random.default_rng(0)
    for film in films.to_dict("records"):
        labels = positives(film)
        text = rules.write_trace(labels, film["boxes"], film["view"], rng, format)
        stated = {each.label for each in reasoning.statements(text)} - {"No Finding"}
        assert stated == set(labels) - {"No Finding"}, text


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("No effusion is seen. The ribs are intact.", []),
        ("There is a mild effusion with a meniscus in the left lower zone.", [("Pleural Effusion", "left", "lower")]),
        ("There is no pneumothorax. There is cardiomegaly.", [("Cardiomegaly", "", "")]),
        ("Nodule in the right lung, without effusion.", [("Lung Lesion", "right", "")]),
        ("No sign of effusion, but cardiomegaly is present.", [("Cardiomegaly", "", "")]),
        ("Not only edema.", [("Edema", "", "")]),
        ("", []),
    ],
)
def test_denied_findings_are_not_stated(text, stated):
    assert reasoning.statements(text) == [Statement(*each) for each in stated]


def reply(text: str, *labels: str) -> str:
    return answers.write(answers.Answer(text, labels))


def test_counts_by_hand(films):
    boxes = [hospitals.Box("Pleural Effusion", 0.1, 0.7, 0.4, 0.9, "left", "lower", 0.8)]
    text = "There is a mild effusion on the left. A mild nodule with a round border is seen. Large heart."
    counted = dict(
        zip(reasoning.COLUMNS, reasoning.count(reply(text, "Edema", "Pleural Effusion"), boxes), strict=True)
    )
    assert counted == {
        "labels": 2,  # Edema and Pleural Effusion
        "stated_labels": 1,  # the effusion
        "statements": 3,
        "true_statements": 1,
        "unlabeled": 2,  # the nodule and the heart
        "placed": 1,
        "right_side": 1,
        "right_zone": 1,
    }


def test_a_wrong_side_is_not_right(films):
    boxes = [hospitals.Box("Pleural Effusion", 0.1, 0.7, 0.4, 0.9, "left", "lower", 0.8)]
    counted = reasoning.count(reply("There is a mild effusion on the right.", "Pleural Effusion"), boxes)
    assert counted[-3:] == (1, 0, 0)


def test_on_a_real_film_only_the_labels_are_compared():
    counted = reasoning.count(reply("There is a mild effusion on the right.", "Pleural Effusion"), None)
    assert counted[:3] == (1, 1, 1) and counted[3] == 0 and counted[-3:] == (0, 0, 0)
