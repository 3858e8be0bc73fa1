"""What is written is read back, and awkward replies are read one way only."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexreason.answers import Answer, read, read_strict, write
from chexreason.labels import CHEXPERT14

TAGS = ("<think>", "</think>", "<solution>", "</solution>")
reasonings = st.text().filter(lambda text: not any(tag in text for tag in TAGS))
label_sets = st.sets(st.sampled_from(CHEXPERT14)).map(lambda names: tuple(n for n in CHEXPERT14 if n in names))


@given(reasonings, label_sets)
def test_a_written_answer_reads_back_strictly(reasoning, labels):
    assert read_strict(write(Answer(reasoning, labels))) == Answer(reasoning, labels)


@given(reasonings, label_sets)
def test_a_written_answer_reads_back_leniently(reasoning, labels):
    reading = read(write(Answer(reasoning, labels)))
    assert (reading.labels, reading.reasoning) == (labels, reasoning.strip())
    assert reading.failed == (not labels) and (reading.duplicates, reading.unknown) == (0, 0)


pieces = st.lists(st.sampled_from([*TAGS, *CHEXPERT14, ",", " ", "\n", "the heart is large", "é", "<", ">"]))


@given(pieces.map("".join) | st.text())
def test_any_text_can_be_read_and_what_is_strict_is_not_failed_unless_empty(text):
    reading, strict = read(text), read_strict(text)
    assert all(name in CHEXPERT14 for name in reading.labels) and len(set(reading.labels)) == len(reading.labels)
    assert reading.failed == (not reading.labels)
    if strict is not None:
        assert strict.labels == reading.labels


@given(pieces.map("".join))
def test_white_space_around_a_reply_changes_nothing(text):
    assert read_strict(f" \n{text}\t ") == read_strict(text)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("a <think> inside", ("Edema",)),
        Answer("a </solution> inside", ("Edema",)),
        Answer("", ("Infiltration",)),
        Answer("", ("Edema", "Edema")),
        Answer("", ("Fracture", "Edema")),
    ],
)
def test_an_answer_that_would_not_read_back_is_not_written(answer):
    with pytest.raises(ValueError, match="would not read back"):
        write(answer)


E, F, N, P, S = "Edema", "Fracture", "No Finding", "Pleural Effusion", "Support Devices"
FULL = "<think>r</think><solution>{}</solution>"

# reply, labels read strictly (None: not the published form), labels read by evaluation, duplicates, unknown names
REPLIES = [
    # the form itself
    (FULL.format("Edema"), (E,), (E,), 0, 0),
    (FULL.format("Edema, Fracture"), (E, F), (E, F), 0, 0),
    ("  \n<think>r</think>\n\n<solution>Edema</solution>\n", (E,), (E,), 0, 0),
    ("<think></think><solution>Edema</solution>", (E,), (E,), 0, 0),
    ("<think>line\nline</think>\n<solution>\nEdema,\nFracture\n</solution>", (E, F), (E, F), 0, 0),
    (FULL.format(""), (), (), 0, 0),
    (FULL.format(" , ,"), (), (), 0, 0),
    # names
    (FULL.format("fracture, EDEMA"), (E, F), (E, F), 0, 0),
    (FULL.format("pleural  effusion"), (P,), (P,), 0, 0),
    (FULL.format("PleuralEffusion"), (P,), (P,), 0, 0),
    (FULL.format("Pleural\nEffusion"), (P,), (P,), 0, 0),
    (FULL.format("Edema,Edema, edema"), (E,), (E,), 2, 0),
    (FULL.format("Edema,,Fracture,"), (E, F), (E, F), 0, 0),
    (FULL.format("Infiltration"), (), (), 0, 1),
    (FULL.format("Edema, Infiltration, Hernia"), (E,), (E,), 0, 2),
    (FULL.format("Edema; Fracture"), (), (), 0, 1),
    (FULL.format("No Finding, Edema"), (N, E), (N, E), 0, 0),
    (FULL.format("no Edema"), (), (), 0, 1),
    (FULL.format("Edema (mild)"), (), (), 0, 1),
    (FULL.format(", ".join(CHEXPERT14)), CHEXPERT14, CHEXPERT14, 0, 0),
    (FULL.format("é, 肺, \u200b"), (), (), 0, 3),
    # almost the form
    ("Sure! " + FULL.format("Edema"), None, (E,), 0, 0),
    (FULL.format("Edema") + " Thank you.", None, (E,), 0, 0),
    ("<think>r</think> so <solution>Edema</solution>", None, (E,), 0, 0),
    ("<solution>Edema</solution><think>r</think>", None, (E,), 0, 0),
    ("<solution>Edema</solution>", None, (E,), 0, 0),
    ("<think>r<solution>Edema</solution></think>", None, (E,), 0, 0),
    ("<think>r<think>r</think></think><solution>Edema</solution>", None, (E,), 0, 0),
    ("<think>a</think><think>b</think><solution>Edema</solution>", None, (E,), 0, 0),
    ("<think>r</think><Solution>Edema</Solution>", None, (), 0, 0),
    ("</think>r<think><solution>Edema</solution>", None, (E,), 0, 0),
    ("<think>r</think></solution>Edema<solution>", None, (), 0, 0),
    # several blocks: the last closed one counts
    (FULL.format("Edema") + "<solution>Fracture</solution>", None, (F,), 0, 0),
    (FULL.format("Edema") + "<solution>Frac", None, (E,), 0, 0),
    (FULL.format("Edema") + "\n</solution>", None, (E,), 0, 0),
    ("<think>r</think><solution>Edema<solution>Fracture</solution>", None, (F,), 0, 0),
    # cut off, or no form at all
    ("<think>r</think><solution>Edema, Frac", None, (), 0, 0),
    ("<think>the heart is", None, (), 0, 0),
    ("Edema, Fracture", None, (), 0, 0),
    ("", None, (), 0, 0),
    ("   ", None, (), 0, 0),
    ('{"analysis": "r", "conclusion": "Edema"}', None, (), 0, 0),
]


@pytest.mark.parametrize(("reply", "strict", "labels", "duplicates", "unknown"), REPLIES)
def test_awkward_replies(reply, strict, labels, duplicates, unknown):
    answer, reading = read_strict(reply), read(reply)
    assert (None if answer is None else answer.labels) == strict
    assert reading[:4] == (labels, not labels, duplicates, unknown)


def test_the_reasoning_is_what_stands_before_the_block():
    assert read("<think>r</think><solution>Edema</solution> tail").reasoning == "r"
    assert read("no tags").reasoning == "no tags"
    assert read("<think>cut </think><solution>Ede").reasoning == "cut"


def test_reading_a_hostile_reply_takes_linear_time():
    replies = ["<solution>" * 200_000, "</solution>" * 200_000, "<solution>" + "Edema," * 200_000 + "</solution>"]
    start = time.perf_counter()
    for reply in replies:
        read(reply), read_strict(reply)
    assert time.perf_counter() - start < 5
