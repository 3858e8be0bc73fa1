"""Prompts are files: those that models answer at the top, the teacher's in a folder of their own."""

import re

import pytest

from chexreason import prompts
from chexreason.labels import CHEXPERT14

TAUGHT = ["free_reasoning", "reasoning_a", "reasoning_narrative"]
"""The formats for which a teacher is asked; Only Label has no reasoning to write."""


def test_the_teachers_prompts_are_not_among_those_a_model_answers():
    assert "free_reasoning" in prompts.names()
    assert not {"again", "teacher"} & set(prompts.names())
    assert prompts.names("teacher") == ["again", *TAUGHT]


def test_other_projects_prompts_are_asked_in_their_own_words_and_are_none_of_the_studys():
    assert prompts.load("others/nv_reason") == "Find abnormalities and support devices."
    assert not set(prompts.names("others")) & set(prompts.names())


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_is_told_labels_length_form_and_all_names_and_to_keep_quiet_about_it(name):
    text = prompts.load(f"teacher/{name}")
    assert all(text.count(f"{{{place}}}") == 1 for place in ("labels", "min_words", "max_words"))
    assert all(name in text for name in (*CHEXPERT14, "<think>", "</think>", "<solution>", "</solution>"))
    assert "does not know how it ends" in text
    assert "Never say or hint" in text
    assert set(re.findall("{[a-z_]*}", text)) == {"{labels}", "{min_words}", "{max_words}"}


def test_the_teacher_is_told_what_was_wrong():
    assert prompts.load("teacher/again").count("{fault}") == 1


def test_the_teacher_knows_the_format_as_the_model_does():
    steps = re.findall(r"^\d+\. .*", prompts.load("reasoning_a"), re.MULTILINE)
    assert re.findall(r"^\d+\. .*", prompts.load("teacher/reasoning_a"), re.MULTILINE) == steps
    for name, ideas in {
        "reasoning_a": ["twelve steps", "mandatory", "keep their order", "one line", "begins with its number"],
        "reasoning_narrative": ["radiologist", "prose", "no headings", "strikes you first", "evidence", "add up"],
    }.items():
        assert [idea for idea in ideas if idea not in prompts.load(f"teacher/{name}")] == []


@pytest.mark.parametrize("name", ["free", "teacher/free", "../labels", "teacher/"])
def test_a_prompt_that_is_not_there_is_reported_with_those_that_are(name):
    with pytest.raises(ValueError, match=f"no prompt '{name}'.*free_reasoning.*teacher/again"):
        prompts.load(name)


ENDING = prompts.load("free_reasoning").partition("Then give")[2]
"""What all prompts close with: the form of the labels, and the fourteen names."""

CUES = {
    "free_reasoning": ["reason freely"],
    "only_label": ["no reasoning"],
    "reasoning_narrative": ["experienced radiologist", "prose", "without headings", "evidence", "add up"],
    "reasoning_self_check": ["scan", "region by region", "verify", "look at that place again", "withdraw"],
    "reasoning_hypothesis": ["hypotheses", "candidate findings", "compare", "speaks for it", "against it", "reject"],
    "reasoning_a": ["twelve steps", "mandatory", "keep their order", "one line", "begins with its number"],
    "reasoning_b": ["zones", "upper, middle and lower", "right against left", "tell apart", "which features decide"],
    "reasoning_c": [
        "report",
        "evidence for | evidence against | confidence",
        "matrix",
        "one line for each of the labels",
    ],
    "reasoning_d": ["definitions", "met in full", "only suggested is not met"],
    "reasoning_e": [
        "second look",
        "apices",
        "hila",
        "behind the heart",
        "diaphragm",
        "edges",
        "ribs",
        "tips of tubes",
    ],
    "reasoning_f": ["differential diagnosis", "each abnormality", "every one of them", "without its differential"],
}
"""The key ideas of each prompt's design cue (PROTOCOL: Table 1)."""


def body(name: str) -> str:
    """What a prompt asks for before its ending."""
    return prompts.load(name).removesuffix(f"Then give{ENDING}")


def test_there_are_the_nine_variants_of_table_1_and_the_two_other_formats():
    assert prompts.names() == sorted(CUES)
    assert len(CUES) == 9 + 2


@pytest.mark.parametrize("name", CUES)
def test_a_prompt_says_its_cue(name):
    text = prompts.load(name).lower()
    assert [idea for idea in CUES[name] if idea not in text] == []


@pytest.mark.parametrize("name", CUES)
def test_every_prompt_asks_for_the_labels_in_the_same_words(name):
    text = prompts.load(name)
    assert text.endswith(f"Then give{ENDING}")
    assert text.count(", ".join(CHEXPERT14)) == 1
    assert text.count("<solution>") == text.count("</solution>") == 1


@pytest.mark.parametrize("name", CUES)
def test_a_prompt_names_the_labels_in_its_ending_only_unless_it_defines_them(name):
    defined = re.findall(r"^([A-Z][A-Za-z ]+): \w", body(name), re.MULTILINE) if name == "reasoning_d" else []
    assert defined == (list(CHEXPERT14) if name == "reasoning_d" else [])
    named = [label for label in CHEXPERT14 for _ in range(body(name).count(label))]
    assert named == defined


@pytest.mark.parametrize("name", CUES)
def test_every_prompt_but_only_label_asks_for_one_thought_before_the_labels(name):
    text, thoughts = prompts.load(name), 0 if name == "only_label" else 1
    assert text.count("<think>") == text.count("</think>") == thoughts
    assert not thoughts or text.index("<think> and </think>") < text.index("<solution> and </solution>")


def test_prompt_a_numbers_twelve_steps_in_order():
    steps = [int(number) for number in re.findall(r"^(\d+)\. [A-Z]", prompts.load("reasoning_a"), re.MULTILINE)]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("name", CUES)
def test_a_prompt_is_short_and_clean(name):
    text = prompts.load(name)
    assert text.startswith("Read this chest X-ray.")
    assert len(text.split()) <= 200
    assert [line for line in text.split("\n") if not line or line != line.strip()] == []
    assert text.isascii() and not re.search("  |[{}]", text)


def test_no_two_prompts_are_the_same():
    assert len({body(name) for name in CUES}) == len(CUES)
