"""The rewards, worked by hand from equations 3 and 4."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexreason.config import Reward
from chexreason.labels import CHEXPERT14
from chexreason.rewards import (
    NuancedReward,
    Parts,
    RewardError,
    Window,
    corrected,
    false_positive,
    format_reward,
    hard,
    jaccard,
    length,
    malformed,
    nuanced,
    nuanced_batch,
    read_labels,
)

SETTINGS = Reward(min_length=250, length_unit="characters", length_penalty=0.1)
LONG, SHORT = 250, 249
E, F, P = "Edema", "Fracture", "Pleural Effusion"


def reply(names: str) -> str:
    return f"<think>r</think>\n<solution>{names}</solution>"


@pytest.mark.parametrize(
    ("text", "truth", "size", "expected"),
    [
        (reply("Edema"), [E], LONG, 1.0),  # J = 1/1, and 250 is long enough
        (reply("Edema"), [E], LONG + 1, 1.0),
        (reply("Edema"), [E], SHORT, 0.9),  # 249 is not: 1/1 - 0.1
        (reply("Edema"), [E, F], LONG, 1 / 2),  # one agreed of the two that either names
        (reply("Edema, Fracture"), [E], LONG, 1 / 2),
        (reply("Edema, Fracture"), [E, P], LONG, 1 / 3),  # one of three
        (reply("Edema, Fracture, Pleural Effusion"), [E, P], SHORT, 2 / 3 - 0.1),
        (reply("Edema"), [F], LONG, 0.0),
        (reply("Edema"), [F], SHORT, -0.1),  # 0/2 - 0.1
        (reply("Edema, Edema"), [E], LONG, 1.0),  # a repeated name is one label
        (reply("Edema, Infiltration"), [E], LONG, 1.0),  # names outside the fourteen are filtered first
        (reply("Edema: yes, Fracture: no"), [E], LONG, 1.0),  # a denied name is not named
        (reply("Edema, no Fracture"), [E, F], LONG, 1 / 2),
        (reply("No Edema, Fracture"), [F], LONG, 0.0),  # unclear whether Fracture is denied: unreadable
        (reply("No Edema, Fracture"), [], LONG, 0.0),
        (reply("No Edema, Fracture"), [F], SHORT, 0.0),  # and no penalty for length
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


# The nuanced reward (equation 4).  The constants of the paper, then ours.
NUANCED = SimpleNamespace(
    match=100.0,
    recall=30.0,
    precision=20.0,
    window=100,
    dominance=0.7,
    repetition=30.0,
    collapse=50.0,
    invalid=100.0,
    duplicate=25.0,
    false_positive=10.0,
    frequency={
        "No Finding": 0.3323,
        "Enlarged Cardiomediastinum": 0.0305,
        "Cardiomegaly": 0.1706,
        "Lung Opacity": 0.2223,
        "Lung Lesion": 0.0267,
        "Edema": 0.1147,
        "Consolidation": 0.0458,
        "Pneumonia": 0.0688,
        "Atelectasis": 0.1976,
        "Pneumothorax": 0.0411,
        "Pleural Effusion": 0.2320,
        "Pleural Other": 0.0085,
        "Fracture": 0.0165,
        "Support Devices": 0.2872,
    },
    outside=50.0,
    format_limit=500.0,
    scale=150.0,
)
BOTH = SimpleNamespace(nuanced=NUANCED)
EMPTY = Window(100)
A, N, S = "Atelectasis", "No Finding", "Support Devices"
FALSE_EDEMA = 10 * (1 + 0.1147 / 0.3323)  # 13.45: the base, and as much again in proportion to the commonest


def filled(**counts: int) -> Window:
    """A window of one-label predictions, so many of each; `Pleural_Effusion` stands for its name with a space."""
    return EMPTY.add((name.replace("_", " "),) for name, count in counts.items() for _ in range(count))


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        # +100 for the exact match, and all of 30 x 1/1 + 20 x 1/1
        (reply("Edema"), [E], Parts(100, 50, 0, 0, 0)),
        (reply("Fracture, Edema"), [E, F], Parts(100, 50, 0, 0, 0)),
        (reply(""), [], Parts(100, 50, 0, 0, 0)),  # none of none: agreed
        # 30 x 1/2 of the truth + 20 x 1/1 of the answer = 15 + 20
        (reply("Edema"), [E, F], Parts(0, 35, 0, 0, 0)),
        # 30 x 1/1 + 20 x 1/2 = 30 + 10, less a false Fracture: 10 x (1 + 0.0165 / 0.3323)
        (reply("Edema, Fracture"), [E], Parts(0, 40, 10 * (1 + 0.0165 / 0.3323), 0, 0)),
        # 30 x 2/3 + 20 x 2/3 = 20 + 13 1/3, less a false Edema
        (reply("Fracture, Pleural Effusion, Edema"), [F, P, A], Parts(0, 20 + 40 / 3, FALSE_EDEMA, 0, 0)),
        # the commonest label costs twice the base, Support Devices next: 10 x (1 + 0.2872 / 0.3323) = 18.64
        (reply("No Finding"), [E], Parts(0, 0, 20, 0, 0)),
        (reply("Support Devices"), [E], Parts(0, 0, 10 + 10 * 0.2872 / 0.3323, 0, 0)),
        (reply("No Finding"), [], Parts(0, 0, 20, 0, 0)),
        (reply(""), [E], Parts(0, 0, 0, 0, 0)),
        # -100 for each invalid label, which is filtered before labels are compared
        (reply("Edema, Infiltration"), [E], Parts(100, 50, 0, 0, 100)),
        (reply("Infiltration, Mass"), [E], Parts(0, 0, 0, 0, 200)),
        # -25 for each duplicate: Edema thrice repeats twice
        (reply("Edema, Edema, Edema"), [E], Parts(100, 50, 0, 0, 50)),
        (reply("Edema, Edema, Infiltration"), [E], Parts(100, 50, 0, 0, 25 + 100)),
        # out of form: once `outside`, and what evaluation reads still counts
        ("Well: " + reply("Edema"), [E], Parts(100, 50, 0, 0, 50)),
        ("<solution>Edema</solution>", [E], Parts(100, 50, 0, 0, 50)),
        (reply("Edema") + " So it is.", [E, F], Parts(0, 35, 0, 0, 50)),
        ("I see edema.", [E], Parts(0, 0, 0, 0, 50)),
        (reply("No Edema, Fracture"), [F], Parts(0, 0, 0, 0, 50)),  # unreadable
        ("I see nothing.", [], Parts(0, 0, 0, 0, 50)),  # no answer is no match, even of nothing
        # all penalties of form together stop at the limit: 7 x 100 > 500
        (reply(", ".join(f"sign {number}" for number in range(7))), [E], Parts(0, 0, 0, 0, 500)),
    ],
)
def test_nuanced_parts_by_hand(text, truth, expected):
    assert nuanced(text, truth, EMPTY, NUANCED) == pytest.approx(expected)


def test_the_total_by_hand():
    # truth Edema, Fracture; answer Edema, Edema, Infiltration, No Finding; Edema holds 71 of the last 100
    parts = nuanced(reply("Edema, Edema, Infiltration, No Finding"), [E, F], filled(Edema=71, Fracture=29), NUANCED)
    # 0 + (30 x 1/2 + 20 x 1/2) - 20 - (30 + 50) - (100 + 25) = 25 - 20 - 80 - 125
    assert parts == Parts(0, 25, 20, 80, 125) and parts.total == -200


def test_no_finding_and_support_devices_are_the_dearest_false_positives():
    dearest = sorted(CHEXPERT14, key=lambda label: false_positive(label, NUANCED))
    assert set(dearest[-2:]) == {N, S}
    assert false_positive("Pleural Other", NUANCED) == pytest.approx(10.26, abs=0.005)  # 10 x (1 + .0085 / .3323)


@pytest.mark.parametrize(
    ("window", "text", "expected"),
    [
        (filled(Edema=70, Fracture=30), reply("Edema"), 0),  # 70 % has not passed 70 %
        (filled(Edema=71, Fracture=29), reply("Edema"), 80),  # 30 for the repetition, 50 for the collapse
        (filled(Edema=100), reply("Edema"), 80),  # a completion repeats once, however long the others have
        (filled(Edema=71, Fracture=29), reply("Fracture"), 0),  # it leaves the mode
        (filled(Edema=71, Fracture=29), reply(""), 0),
        (filled(Edema=71, Fracture=29), reply("Edema, Edema"), 80),  # the duplicate is a fault of form
        (filled(Edema=71), reply("Edema"), 80),  # 71 of the last 100 already, though only 71 are there
        (filled(Edema=70), reply("Edema"), 0),  # 100 % of 70, but the window is of 100
        (EMPTY.add([(E, F)] * 71), reply("Edema, Fracture"), 110),  # 2 x 30 + 50
        (EMPTY.add([(E, F)] * 71), reply("Edema"), 80),
        (filled(Edema=71), "it is <solution>Edema</solution>", 80),  # out of form, but a prediction
        (filled(Edema=71), "Edema", 0),  # no prediction
    ],
)
def test_mode_collapse_by_hand(window, text, expected):
    assert nuanced(text, [E], window, NUANCED).collapse == expected


def test_the_settings_are_the_constants():
    other = SimpleNamespace(**vars(NUANCED) | {"match": 7.0, "recall": 2.0, "precision": 1.0, "dominance": 0.5})
    assert nuanced(reply("Edema"), [E], filled(Edema=51), other) == Parts(7, 3, 0, 80, 0)


def test_the_101st_prediction_drives_the_first_out():
    window = filled(Edema=71, Fracture=29)
    assert window.dominant(0.7) == {E}
    after = window.add([(F,)])  # 70 Edema are left
    assert len(after.predictions) == 100 and after.dominant(0.7) == frozenset()
    assert window.dominant(0.7) == {E}  # unchanged itself


def test_a_batch_meets_the_window_of_the_batches_before_it():
    texts = [reply("Edema")] * 4
    before = filled(Fracture=10, Edema=70)
    parts, after = nuanced_batch(texts, [[E]] * 4, before, NUANCED)
    assert [part.collapse for part in parts] == [0] * 4  # not 0, 80, 80, 80
    assert after == before.add([(E,)] * 4)
    parts, _ = nuanced_batch(texts, [[E]] * 4, after, NUANCED)
    assert [part.collapse for part in parts] == [80] * 4


def test_a_reply_without_an_answer_does_not_enter_the_window_and_an_empty_answer_does():
    _, after = nuanced_batch([reply("Edema"), "nothing", reply(""), reply("Mass")], [[E]] * 4, EMPTY, NUANCED)
    assert after.predictions == ((E,), (), ())


answers_in_form = st.lists(st.sampled_from([*CHEXPERT14, "Infiltration"]), max_size=18).map(
    lambda names: reply(", ".join(names))
)
replies = answers_in_form | answers_in_form.map("Well: {}".format) | st.text(max_size=40)
windows = st.lists(subsets.map(sorted), max_size=130).map(EMPTY.add) | st.sampled_from(
    [filled(Edema=100), filled(No_Finding=80, Support_Devices=20), EMPTY.add([CHEXPERT14] * 90)]
)


@given(replies, subsets, windows)
def test_the_parts_add_up_and_no_reward_passes_the_exact_matchs(text, truth, window):
    parts = nuanced(text, truth, window, NUANCED)
    assert all(part >= 0 for part in parts)
    assert parts.total == parts.match + parts.partial - parts.false_positives - parts.collapse - parts.format
    assert -(14 * 20 + 14 * 30 + 50 + 500) <= parts.total <= 100 + 30 + 20
    assert (parts.match == 100) == (read_labels(text) is not None and set(read_labels(text)) == truth)


@given(subsets, subsets, windows, st.sampled_from(CHEXPERT14))
def test_a_wrong_label_more_never_raises_the_reward(truth, given, window, wrong):
    if wrong not in truth | given:
        without, more = (nuanced(reply(", ".join(names)), truth, window, NUANCED) for names in (given, {*given, wrong}))
        assert more.total < without.total


@given(replies, subsets, windows)
def test_an_invalid_name_never_raises_the_reward(text, truth, window):
    worse = text.replace("</solution>", ", Infiltration</solution>")
    assert nuanced(worse, truth, window, NUANCED).total <= nuanced(text, truth, window, NUANCED).total


@given(st.lists(subsets.map(sorted).map(tuple), max_size=230), st.integers(0, 230))
def test_the_window_keeps_just_the_last_hundred_however_they_come(predictions, cut):
    together = EMPTY.add(predictions)
    assert together.predictions == tuple(predictions[-100:])
    assert EMPTY.add(predictions[:cut]).add(predictions[cut:]) == together


def rollouts(batches, window):
    """The parts of every batch, one after the other, and the window at the end."""
    parts = []
    for texts, truth in batches:
        scored, window = nuanced_batch(texts, [truth] * len(texts), window, NUANCED)
        parts.append(scored)
    return parts, window


one_sided = st.lists(st.sampled_from([reply("Edema"), reply("Edema, No Finding"), reply(""), "?"]), max_size=40)


@given(st.lists(st.tuples(one_sided | st.lists(replies, max_size=8), subsets), max_size=6), st.integers(0, 6))
def test_a_run_that_was_killed_and_resumed_gives_the_same_rewards(batches, killed):
    whole, end = rollouts(batches, EMPTY)
    first, left = rollouts(batches[:killed], EMPTY)
    second, resumed = rollouts(batches[killed:], Window.from_json(left.to_json()))
    assert first + second == whole and resumed == end


def batch(texts: list[str], truth: list[str]) -> dict:
    return {"completions": [[{"role": "assistant", "content": text}] for text in texts], "truth": [truth] * len(texts)}


def test_trls_reward_is_points_over_the_scale_and_the_parts_are_logged():
    logged = {}
    score = NuancedReward(BOTH)
    texts = [reply("Edema"), reply("Edema, Edema"), reply("No Finding"), "no tags"]
    # 150, 150 - 25, -20 and -50 points of 150
    expected = [1, 125 / 150, -20 / 150, -50 / 150]
    assert score(**batch(texts, [E]), log_metric=logged.__setitem__, trainer_state=None) == pytest.approx(expected)
    assert logged == {
        "nuanced/match": 50,
        "nuanced/partial": 25,
        "nuanced/false_positives": 5,
        "nuanced/collapse": 0,
        "nuanced/format": 75 / 4,
    }
    assert score.window.predictions == ((E,), (E,), (N,))


def test_a_checkpoint_keeps_the_window_and_a_resumed_run_takes_it_back(tmp_path):
    from transformers import TrainerState

    from chexreason.training.grpo import reward_state

    before, after = NuancedReward(BOTH), NuancedReward(BOTH)
    before(**batch([reply("Edema")] * 71, [E]), log_metric=lambda *_: None)
    TrainerState(stateful_callbacks=reward_state(before)).save_to_json(str(tmp_path / "trainer_state.json"))
    state = TrainerState.load_from_json(str(tmp_path / "trainer_state.json"))
    (callback,) = reward_state(after)
    callback.on_train_begin(None, state, None)
    assert after.window == before.window
    assert after(**batch([reply("Edema")], [E]), log_metric=lambda *_: None) == [(150 - 80) / 150]


@pytest.mark.parametrize("named", [{"Edema"}, set(), {"Edema", "Fracture"}])
@pytest.mark.parametrize("there", [{"Edema"}, set(), {"Fracture"}])
def test_the_corrected_reward_is_in_the_mean_what_the_truth_would_give(there, named):
    sensitivity, false = {"Edema": 0.5, "Fracture": 0.8}, {"Edema": 0.05, "Fracture": 0.1}
    mean = 0.0
    for reported in ({"Edema", "Fracture"}, {"Edema"}, {"Fracture"}, set()):
        chance = 1.0
        for name in sensitivity:
            told = sensitivity[name] if name in there else false[name]
            chance *= told if name in reported else 1 - told
        mean += chance * corrected(reported, named, sensitivity, false)
    agrees = [(name in there) == (name in named) for name in sensitivity]
    assert mean == pytest.approx(sum(agrees) / 2)


def test_the_format_reward_is_the_same_whatever_the_labels():
    settings, long = (
        Reward(min_length=10, length_unit="characters", length_penalty=0.1),
        "<think>Clear lungs.</think>\n",
    )
    replies = [
        f"{long}<solution>Edema</solution>",
        f"{long}<solution></solution>",
        "Edema",
        "<solution>Edema</solution>",
    ]
    completions = [[{"role": "assistant", "content": text}] for text in replies]
    for truth in ([["Edema"]] * 4, [[]] * 4):
        assert format_reward(completions, completion_ids=[[0]] * 4, settings=settings, truth=truth) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("sensitivity", "false"),
    [({"Oedema": 0.5}, {}), ({"Edema": 0.5}, {"Fracture": 0.1}), ({"Edema": 0.5}, {"Edema": 0.5})],
)
def test_rates_of_no_label_or_without_information_are_refused(sensitivity, false):
    with pytest.raises(RewardError, match="corrected"):
        corrected(["Edema"], ["Edema"], sensitivity, false)
