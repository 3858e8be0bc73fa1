"""Prompts are files: those that models answer at the top, the teacher's in a folder of their own."""

import pytest

from chexreason import prompts
from chexreason.labels import CHEXPERT14


def test_the_teachers_prompts_are_not_among_those_a_model_answers():
    assert "free_reasoning" in prompts.names()
    assert not {"again", "teacher"} & set(prompts.names())
    assert prompts.names("teacher") == ["again", "free_reasoning"]


def test_the_teacher_is_told_labels_length_form_and_all_names_and_to_keep_quiet_about_it():
    text = prompts.load("teacher/free_reasoning")
    assert all(text.count(f"{{{place}}}") == 1 for place in ("labels", "min_words", "max_words"))
    assert all(name in text for name in (*CHEXPERT14, "<think>", "</think>", "<solution>", "</solution>"))
    assert "does not know how it ends" in text
    assert prompts.load("teacher/again").count("{fault}") == 1


@pytest.mark.parametrize("name", ["free", "teacher/free", "../labels", "teacher/"])
def test_a_prompt_that_is_not_there_is_told_with_those_that_are(name):
    with pytest.raises(ValueError, match=f"no prompt '{name}'.*free_reasoning.*teacher/again"):
        prompts.load(name)
