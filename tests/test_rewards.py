"""The hard reward, worked by hand from equation 3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexreason.labels import CHEXPERT14
from chexreason.params import Reward
from chexreason.rewards import hard, jaccard, length, malformed

SETTINGS = Reward(min_length=250, length_unit="characters", length_penalty=0.1)
LONG, SHORT = 250, 249
E, F, P = "Edema", "Fracture", "Pleural Effusion"


def reply(names: str) -> str:
    return f"<think>r</think>\n<solution>{names}</solution>"


@pytest.mark.parametrize(
    ("text", "truth", "size", "expected"),
    [
        (reply("Edema"), [E], LONG, 1.0),
        (reply("Edema"), [E], LONG + 1, 1.0),
        (reply("Edema"), [E], SHORT, 0.9),
        (reply("Edema"), [E, F], LONG, 1 / 2),
        (reply("Edema, Fracture"), [E], LONG, 1 / 2),
        (reply("Edema, Fracture"), [E, P], LONG, 1 / 3),
        (reply("Edema, Fracture, Pleural Effusion"), [E, P], SHORT, 2 / 3 - 0.1),
        (reply("Edema"), [F], LONG, 0.0),
        (reply("Edema"), [F], SHORT, -0.1),
        (reply("Edema, Edema"), [E], LONG, 1.0),  # a repeated name is one label
        (reply("Edema, Infiltration"), [E], LONG, 1.0),  # names outside the fourteen are filtered first
        (reply(""), [], LONG, 1.0),
        (reply(""), [E], LONG, 0.0),
        (reply("Edema"), [], LONG, 0.0),
        ("<solution>Edema</solution>", [E], LONG, 0.0),
        ("Well: " + reply("Edema"), [E], LONG, 0.0),
        (reply("Edema") + reply("Edema"), [E], LONG, 0.0),
        ("<think>r</think><solution>Edema", [E], SHORT, 0.0),
        ("", [], LONG, 0.0),
    ],
)
def test_hard_reward_by_hand(text, truth, size, expected):
    assert hard(text, truth, size, SETTINGS) == pytest.approx(expected)


def test_the_penalty_and_the_limit_are_the_settings():
    strict = Reward(min_length=10, length_unit="words", length_penalty=0.5)
    assert hard(reply("Edema"), [E], 9, strict) == 0.5
    assert hard(reply("Edema"), [E], 10, strict) == 1.0


subsets = st.sets(st.sampled_from(CHEXPERT14))


@given(subsets, subsets)
def test_jaccard_is_symmetric_within_0_and_1_and_1_only_when_equal(truth, answer):
    value = jaccard(truth, answer)
    assert 0 <= value <= 1 and value == jaccard(answer, truth) and (value == 1) == (truth == answer)


@given(st.text(), subsets)
def test_a_malformed_reply_earns_nothing_however_long(text, truth):
    if malformed(text):
        assert hard(text, truth, LONG, SETTINGS) == hard(text, truth, SHORT, SETTINGS) == 0.0


@pytest.mark.parametrize(("unit", "expected"), [("characters", 11), ("words", 2), ("tokens", 3)])
def test_length_is_counted_in_the_unit_asked_for(unit, expected):
    assert length("hello world", unit, [5, 6, 7]) == expected
