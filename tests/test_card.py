"""The model card beside an adapter can be read by the hub's own reader, and says what must be said."""

import pytest
from conftest import ROOT
from huggingface_hub import ModelCard

from chexreason import config
from chexreason.training import model_card

MINI, PAPER = (config.load(ROOT / "params" / f"{name}.yaml") for name in ("mini", "paper"))
SCORES = model_card.Scores("a-validation", "On 250 films.", {"macro_f1": 0.4321, "micro_f1": float("nan")})


def written(study: config.Study, scores: model_card.Scores = SCORES) -> ModelCard:
    settings = {"seed": 7, "lora": study.lora.model_dump()}
    return ModelCard(model_card.text(study, "medgemma", "grpo/hard, seed 7", "1,000 films.", settings, scores))


def test_the_hub_reads_base_library_and_scores():
    data = written(PAPER).data
    assert (data.base_model, data.library_name) == ("google/medgemma-4b-it", "peft")
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_type) == ("macro_f1", 0.4321, "a-validation")


def test_params_data_and_settings_are_stated():
    text = written(PAPER).text
    for words in (
        PAPER.hash,
        "1,000 films.",
        "On 250 films.",
        "seed: 7",
        "lora_alpha: 32",
        "macro_f1: 0.4321",
        "not a diagnosis",
    ):
        assert words in text


def test_an_undefined_score_is_left_out():
    assert "micro_f1" not in written(MINI).content
    none = written(MINI, SCORES._replace(values={"macro_f1": float("nan")}))
    assert none.data.eval_results is None
    assert "None is defined" in none.text


def test_only_a_phantom_study_says_phantom():
    assert "phantom" in written(MINI).data.tags
    assert "**Phantom**" in written(MINI).text and "**Stand-in**" in written(MINI).text
    assert "phantom" not in written(PAPER).content.lower() and "stand-in" not in written(PAPER).content.lower()


@pytest.mark.parametrize("study", [MINI, PAPER], ids=["mini", "paper"])
def test_the_same_study_gives_the_same_bytes_without_a_path_of_this_machine(study):
    assert written(study).content == written(study).content
    assert str(ROOT) not in written(study).content
