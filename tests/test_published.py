"""The printed tables, carried over, say what the book will say they say."""

import json
from importlib.resources import files

import pytest
from conftest import ROOT

from chexreason import config
from chexreason.labels import CHEXPERT14, COMPETITION5, NIH9, NIH10
from chexreason.paper import published


def test_table_5_is_about_the_fourteen_labels_and_table_6_about_the_nine():
    assert set(published.f1("CheXpert").index) == set(CHEXPERT14)
    assert set(published.f1("NIH").index) == set(NIH9)


@pytest.mark.parametrize("dataset", published.TABLES)
def test_printed_macro_means_are_the_means_of_the_printed_labels(dataset):
    f1 = published.f1(dataset)
    assert f1.mean().sub(published.printed_macro(dataset)).abs().max() < 0.0011


def test_figures_are_shares():
    for dataset in published.TABLES:
        assert published.f1(dataset).stack().between(0, 1).all()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("NV-Reason-CXR-3B", 0.688),
        ("MedGemma-4B", 0.302),
        ("Qwen2.5-VL-3B", 0.157),
        ("MedGemma-4B SFT", 0.264),
        ("ChexReason", 0.274),
    ],
)
def test_chexpert_on_the_nine_shared_labels(model, expected):
    assert published.macro("CheXpert", NIH9)[model] == pytest.approx(expected, abs=0.0005)


def test_grpo_gains_4_percent_on_chexpert_where_the_labels_are_shared_and_23_as_printed():
    shared, printed = published.macro("CheXpert", NIH9), published.printed_macro("CheXpert")
    assert shared["ChexReason"] / shared["MedGemma-4B SFT"] - 1 == pytest.approx(0.037, abs=0.001)
    assert printed["ChexReason"] / printed["MedGemma-4B SFT"] - 1 == pytest.approx(0.23, abs=0.005)


def test_grpo_is_below_sft_on_the_competition_labels():
    five = published.macro("CheXpert", COMPETITION5)
    assert five["ChexReason"] == pytest.approx(0.332, abs=0.0005)
    assert five["MedGemma-4B SFT"] == pytest.approx(0.345, abs=0.0005)


def test_a_label_the_table_lacks_is_refused():
    with pytest.raises(KeyError, match="Pleural Effusion"):
        published.macro("NIH", ["Pleural Effusion"])


def test_every_table_names_its_source():
    for file in (*published.TABLES.values(), *published.VALIDATION.values(), "claims.csv"):
        assert "2512.23090v2" in files("chexreason.paper").joinpath(file).read_text(encoding="utf-8").splitlines()[0]


def test_the_validation_tables_hold_what_the_paper_says_of_them():
    prompts, medgemma, qwen, rewards = (published.validation(number) for number in (1, 2, 3, 4))
    assert len(prompts) == 9 and prompts["fail_rate"].max() == 0.482
    assert medgemma.loc[medgemma["macro_f1"].idxmax(), "variant"] == "Free Reasoning"
    assert qwen.loc[qwen["macro_f1"].idxmax(), "variant"] == "Reasoning A"  # finding 3: structure helps this model
    best = rewards[rewards["checkpoint"] == "Best F1-Score"].set_index("reward")["macro_f1"]
    assert best.to_dict() == {"Nuanced": 0.257, "Hard": 0.258}  # finding 4: level


@pytest.mark.parametrize("number", [2, 3, 4])
def test_printed_micro_f1_follows_from_printed_precision_and_recall(number):
    table = published.validation(number)
    f1 = 2 * table["micro_precision"] * table["micro_recall"] / (table["micro_precision"] + table["micro_recall"])
    assert (f1 - table["micro_f1"]).abs().max() < 0.0015


def test_prevalences_are_those_that_the_phantom_hospitals_are_made_from():
    shares = published.prevalence()
    assert list(shares.index) == list(CHEXPERT14) and shares.stack().dropna().between(0, 1).all()
    hospitals = json.loads(files("chexreason").joinpath("data/phantom/hospitals.json").read_text(encoding="utf-8"))
    cases = hospitals["hospitals"]["C"]["cases"]  # NIH's official test list
    known = shares["NIH official test"].dropna()
    assert set(known.index) == set(NIH10) and known["No Finding"] == cases["no_finding"]
    assert all(known[label] == cases["positive"][label] for label in NIH10 if label != "No Finding")
    frequency = config.load(config.find("params/mini.yaml")).grpo.reward.nuanced.frequency
    assert shares["MIMIC"].to_dict() == frequency


def test_chexperts_prevalences_are_whole_numbers_of_its_500_studies():
    studies = published.prevalence()["CheXpert"] * 500
    assert studies.sub(studies.round()).abs().max() < 1e-9


def test_claims_are_about_models_and_data_sets_of_the_tables():
    claims = published.claims()
    for side in ("first", "second"):
        for row in claims[[f"{side}_model", f"{side}_dataset"]].itertuples(index=False):
            assert row[0] in published.printed_macro(row[1])
    assert set(published.FILMS) == {*published.TABLES, "validation"}


def test_the_page_about_the_paper_prints_what_the_tables_hold():
    page = (ROOT / "book" / "paper.md").read_text(encoding="utf-8")
    models = {"MedGemma-4B, untuned": "MedGemma-4B", "after SFT": "MedGemma-4B SFT", "after SFT and GRPO": "ChexReason"}
    for words, model in models.items():
        printed = [published.printed_macro(dataset)[model] for dataset in published.TABLES]
        assert f"| {words} | {printed[0]:.3f} | {printed[1]:.3f} |" in page
