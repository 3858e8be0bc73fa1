"""The rule-based teacher: true to labels and boxes, in few words, long enough for the reward; and all traces' check."""

import itertools
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from chexreason import answers, prompts
from chexreason.labels import CHEXPERT14
from chexreason.teacher import check, rules


class Box(NamedTuple):
    finding: str
    side: str
    zone: str
    strength: float


DISTINCTIVE = {
    "No Finding": r"normal|nothing abnormal",
    "Enlarged Cardiomediastinum": r"widening|wide mediastinum",
    "Cardiomegaly": r"enlargement|large heart",
    "Lung Opacity": r"hazy opacity|diffuse opacity|faint haze",
    "Lung Lesion": r"round",
    "Edema": r"haze with septal lines|perihilar edema",
    "Consolidation": r"dense consolidation|homogeneous dense",
    "Pneumonia": r"air bronchograms|pneumonia",
    "Atelectasis": r"atelectasis|plate of collapse",
    "Pneumothorax": r"a.* pneumothorax with|dark crescent|pneumothorax",
    "Pleural Effusion": r"effusion with|blunted|pleural effusion",
    "Pleural Other": r"thickening|plaque",
    "Fracture": r"rib fracture|step with callus",
    "Support Devices": r"support device",
}
"""What a reader looks for to tell a label from a trace, without the sentences that deny it."""

DENIALS = re.compile(
    r"(No|The) [a-z ]+ (is|are) (seen|not widened|of normal size|intact)\.|The ribs are intact\.|"
    r"so the heart looks larger"
)


def films(number, seed=0):
    """(labels, boxes, view) of `number` made-up films; some labels have no box and some boxes no label."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        there = [name for name in CHEXPERT14[1:13] if rng.random() < 0.12]
        devices = ["Support Devices"] if rng.random() < 0.3 else []
        labels = [name for name in there if rng.random() < 0.93] or ["No Finding"]
        sides, zones = ("left", "right", "both", "midline"), ("upper", "mid", "lower", "")
        boxes = [Box(name, rng.choice(sides), rng.choice(zones), rng.uniform(0.35, 1)) for name in there]
        yield tuple(labels + devices), boxes, ("PA", "AP")[rng.integers(2)]


@pytest.fixture(scope="module")
def written():
    rng = np.random.default_rng(1)
    return [(labels, boxes, rules.write_trace(labels, boxes, view, rng)) for labels, boxes, view in films(3000)]


def test_every_positive_label_is_named_in_the_order_of_chexpert(written):
    for labels, _, trace in written:
        said = [re.search(DISTINCTIVE[name], DENIALS.sub("", trace), re.IGNORECASE) for name in labels]
        assert all(said), (labels, trace)
    labels = ("Cardiomegaly", "Atelectasis", "Fracture", "Support Devices")
    shuffled = rules.write_trace(labels[::-1], [], "PA", np.random.default_rng(0))
    places = [re.search(DISTINCTIVE[name], shuffled, re.IGNORECASE).start() for name in labels]
    assert places == sorted(places)


DENIED = {
    "The heart is of normal size.": "Cardiomegaly",
    "The mediastinum is not widened.": "Enlarged Cardiomediastinum",
    "No effusion is seen.": "Pleural Effusion",
    "No pneumothorax is seen.": "Pneumothorax",
    "No nodule is seen.": "Lung Lesion",
    "The ribs are intact.": "Fracture",
    "No septal lines are seen.": "Edema",
    "No collapse is seen.": "Atelectasis",
    "No tube or line is seen.": "Support Devices",
}


def test_nothing_is_denied_that_is_labelled_or_drawn(written):
    for labels, boxes, trace in written:
        there = set(labels) | {box.finding for box in boxes}
        assert not any(sentence in trace and name in there for sentence, name in DENIED.items()), (labels, trace)
    assert all(any(sentence in trace for _, _, trace in written) for sentence in DENIED), "a denial is never used"


def test_side_zone_and_degree_are_those_of_the_box():
    for side, zone, (strength, degree) in itertools.product(
        ("left", "right"), ("upper", "mid", "lower"), ((0.4, "mild"), (0.7, "moderate"), (0.95, "marked"))
    ):
        box = Box("Consolidation", side, zone, strength)
        trace = rules.write_trace(["Consolidation"], [box], "AP", np.random.default_rng(3))
        assert f"in the {side} {zone} zone" in trace and degree in trace


def test_findings_on_both_sides_are_written_as_bilateral():
    boxes = [Box("Lung Lesion", "left", "upper", 0.5), Box("Lung Lesion", "right", "upper", 0.9)]
    assert "in both upper zones" in rules.write_trace(["Lung Lesion"], boxes, "AP", np.random.default_rng(0))


def test_a_label_without_a_box_is_written_without_place_and_degree():
    trace = rules.write_trace(["Pneumonia"], [], "PA", np.random.default_rng(0))
    assert not re.search(r"mild|moderate|marked|left|right|both|  ", trace)


def test_about_nine_in_ten_traces_reach_the_rewards_250_characters_and_none_is_too_wordy(written):
    lengths = np.array([len(trace) for _, _, trace in written])
    assert 0.85 <= (lengths >= 250).mean() <= 0.97
    assert max(len(trace.split()) for _, _, trace in written) <= 75


def test_even_a_film_with_everything_keeps_within_the_words():
    boxes = [Box(name, "left", "lower", 0.9) for name in CHEXPERT14[1:]]
    for seed in range(20):
        trace = rules.write_trace(CHEXPERT14[1:], boxes, "AP", np.random.default_rng(seed))
        assert len(trace.split()) <= 75
        assert check.check(answers.write(answers.Answer(trace, CHEXPERT14[1:])), CHEXPERT14[1:]) == ""


def test_the_vocabulary_is_small_enough_for_a_small_model(written):
    vocabulary = {word for _, _, trace in written for word in re.findall(r"[a-z-]+", trace.lower())}
    assert len(vocabulary) < 350


def test_traces_vary(written):
    alone = [trace for labels, _, trace in written if labels == ("No Finding",)]
    assert len(set(alone)) > 0.9 * len(alone)


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="Oedema"):
        rules.write_trace(["Oedema"], [], "PA", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("<think>The heart is large.</think>\n<solution>Cardiomegaly, Edema</solution>", ""),
        ("<think>The heart is large.</think>\n<solution>Edema, Cardiomegaly</solution>", ""),
        ("The heart is large. Cardiomegaly, Edema", "published form"),
        ("<think>Large.</think> so <solution>Cardiomegaly, Edema</solution>", "published form"),
        ("<think>The heart is large.</think>\n<solution>Cardiomegaly</solution>", "not Cardiomegaly, Edema"),
        ("<think>As provided, large.</think>\n<solution>Cardiomegaly, Edema</solution>", "gives the answer away"),
        ("<think>The ground truth is.</think>\n<solution>Cardiomegaly, Edema</solution>", "gives the answer away"),
        ("<think>The labels say so.</think>\n<solution>Cardiomegaly, Edema</solution>", "gives the answer away"),
        (f"<think>{'very ' * 80}large</think>\n<solution>Cardiomegaly, Edema</solution>", "81 words"),
    ],
)
def test_check_says_what_is_wrong(text, wrong):
    said = check.check(text, ("Cardiomegaly", "Edema"))
    assert (wrong in said) if wrong else said == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "According to the report, the heart is enlarged.",
        "The radiology report describes an effusion.",
        "Consistent with the ground-truth, there is edema.",
        "This matches the ground\ntruth.",
        "The provided findings include cardiomegaly.",
        "The findings given are cardiomegaly and edema.",
        "As provided, the heart is enlarged.",
        "I was told that there is edema.",
        "We are given cardiomegaly.",
        "You told me to look for edema.",
        "As stated, the heart is large.",
        "The prompt mentions an effusion.",
        "I must conclude edema.",
        "Let me pretend not to know.",
        "I write as if I did not know the answer.",
        "We already know that the heart is large.",
        "The dataset marks this film as abnormal.",
        "The answer key says edema.",
        "THE LABELS ARE CLEAR.",
    ],
)
def test_words_that_give_the_labels_away_are_caught(sentence):
    text = answers.write(answers.Answer(f"The film is sharp. {sentence} So it is.", ("Edema",)))
    assert check.check(text, ("Edema",)).startswith("gives the answer away")


@pytest.mark.parametrize(
    "sentence",
    [
        "Given the enlarged heart, the vessels are looked at with care.",
        "The image provided is rotated to the left.",
        "Given these findings, edema is likely.",
        "A hint of blunting is seen at the angle.",
        "Prompt clinical correlation is advised.",
        "Consideration is given to an infection.",
        "The heart is enlarged, as is the left atrium.",
        "As expected on a supine film, the vessels are prominent.",
        "The findings are listed from top to bottom.",
        "I would report this as edema.",
        "If I had to choose, I would call it edema.",
    ],
)
def test_a_readers_own_words_are_not_taken_for_giveaways(sentence):
    assert check.check(answers.write(answers.Answer(sentence, ("Edema",))), ("Edema",)) == ""


def test_a_trace_with_too_few_words_is_reported_how_many_it_needs():
    text = answers.write(answers.Answer("The heart is large.", ("Cardiomegaly",)))
    assert check.check(text, ("Cardiomegaly",), min_words=30) == "too short: 4 words, at least 30 are needed"
    assert check.check(text, ("Cardiomegaly",), min_words=4, max_words=4) == ""


@pytest.mark.parametrize(("view", "opening"), [("unknown", "rontal"), ("lateral", "Lateral"), ("LL", "rontal")])
def test_a_film_of_another_view_is_not_called_pa_or_ap(view, opening):
    for seed in range(10):
        trace = rules.write_trace(["Edema"], [], view, np.random.default_rng(seed))
        assert opening in trace and not re.search(r"\b(PA|AP)\b", trace)


def test_a_film_keeps_its_trace_when_other_films_come_and_go():
    rows = [(f"film-{i}", view, list(labels), boxes) for i, (labels, boxes, view) in enumerate(films(40))]
    table = pd.DataFrame(rows, columns=["film", "view", "labels", "boxes"])
    whole = rules.traces(table, seed=5).set_index("film")
    part = rules.traces(table.iloc[::-3], seed=5).set_index("film")
    assert whole.loc[part.index, "reasoning"].tolist() == part["reasoning"].tolist()
    assert whole["check"].eq("").all()
    assert [answers.read_strict(text).labels for text in whole["text"]] == [tuple(row[2]) for row in rows]
    assert rules.traces(table, seed=6)["text"].ne(whole["text"].tolist()).any()


def test_the_summary_counts_traces_words_and_lengths_of_each_format():
    rows = [
        ("free_reasoning", "The heart. The lungs.", "x" * 260),
        ("free_reasoning", "the " * 9, "y"),
        ("only_label", "", "z"),
    ]
    said = rules.summary(pd.DataFrame(rows, columns=["format", "reasoning", "text"]), 250).split("\n")
    assert said[0].startswith("free_reasoning: 2 traces in 3 different words") and "50% have 250 or more" in said[0]
    assert said[1].startswith("only_label: 1 traces in 0 different words")


@pytest.mark.parametrize("format", check.FORMATS)
def test_every_format_passes_its_own_check_and_names_what_is_there(format):
    for seed, (labels, boxes, view) in enumerate(films(300)):
        reasoning = rules.write_trace(labels, boxes, view, np.random.default_rng(seed), format)
        ordered = tuple(name for name in CHEXPERT14 if name in labels)
        text = answers.write(answers.Answer(reasoning, ordered), format)
        assert check.check(text, labels, format) == ""
        if format not in ("only_label", "free_reasoning"):
            told = reasoning.splitlines()[-1] if format == "reasoning_a" else reasoning
            assert all(rules.SHORT[name] in told for name in labels)


def test_reasoning_a_takes_the_twelve_steps_of_its_prompt_in_order():
    asked = re.findall(r"^(\d+)\. ([^:]+):", prompts.load("reasoning_a"), re.MULTILINE)
    for seed, (labels, boxes, view) in enumerate(films(50)):
        trace = rules.write_trace(labels, boxes, view, np.random.default_rng(seed), "reasoning_a")
        assert re.findall(r"^(\d+)\. ([^:]+):", trace, re.MULTILINE) == asked


def test_a_step_denies_nothing_that_is_on_the_film_or_among_the_labels():
    seen = Box("Consolidation", "right", "mid", 0.9)
    trace = rules.write_trace(["Cardiomegaly"], [seen], "PA", np.random.default_rng(0), "reasoning_a").splitlines()
    assert trace[4] == "5. Heart: large heart." and trace[6] == "7. Right lung: hard to judge."
    assert trace[7] == "8. Left lung: clear."
    placed = rules.write_trace(["Consolidation"], [seen], "PA", np.random.default_rng(0), "reasoning_a").splitlines()
    assert (
        placed[6] == "7. Right lung: marked dense consolidation in the mid zone."
        and placed[7] == "8. Left lung: clear."
    )


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'haiku'; choose one of only_label, free_reasoning"):
        rules.write_trace(["Edema"], [], "PA", np.random.default_rng(0), "haiku")
