"""What the paper's tables give when recomputed, and a simulation that agrees with theory and with enumeration."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pandas as pd
import pytest

from chexreason.display import figures
from chexreason.evaluation.metrics import macro, rates
from chexreason.labels import CHEXPERT14, NIH9
from chexreason.paper import published, reanalysis

# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_what_is_printed_follows_from_what_is_printed():
    for table, rows in (
        (reanalysis.claims(published.claims()), 4),
        (reanalysis.macro_means(), 10),
        (reanalysis.micro_f1(), 12),
    ):
        assert len(table) == rows and table["agrees"].all()
    assert reanalysis.claims(published.claims())["recomputed"].round(2).tolist() == [0.23, -0.19, -0.61, -0.30]


def test_a_change_that_rounding_does_not_explain_does_not_agree():
    wrong = published.claims().assign(printed=[0.25, -0.19, -0.61, -0.32])
    assert reanalysis.claims(wrong)["agrees"].tolist() == [False, True, True, False]


def test_like_with_like_the_gain_at_home_is_small_and_the_loss_elsewhere_stays():
    changes = reanalysis.like_with_like().set_index("claim").round(3)
    assert changes["nine_shared"].tolist() == [0.038, -0.186, -0.568, -0.111]
    assert changes.loc["GRPO over SFT on CheXpert", "five_competition"] == -0.037
    assert changes["five_competition"].isna().tolist() == [False, True, True, True]  # NIH has not all five


def test_contributions_add_up_and_one_label_carries_the_gain():
    table = reanalysis.contributions("CheXpert", "MedGemma-4B SFT", "ChexReason").set_index("label")
    assert table["share"].sum() == pytest.approx(1)
    assert table.index[0] == "Lung Opacity" and table["share"].iloc[0] == pytest.approx(
        0.582 / (14 * 0.0640714), abs=1e-5
    )
    others = published.f1("CheXpert").drop(index="Lung Opacity").mean()
    assert table["without"].iloc[0] == pytest.approx(others["ChexReason"] - others["MedGemma-4B SFT"])


# --- simulation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_an_operating_point_gives_back_its_f1_and_is_possible(answered):
    f1, prevalence = (
        np.array(values) for values in zip(*product([0.0, 0.01, 0.3, 0.67, 0.9, 1.0], [0.008, 0.3, 0.54]), strict=True)
    )
    sensitivity, false_positive = reanalysis.operating_point(f1, prevalence, answered)
    for rate in (sensitivity, false_positive):
        assert np.all(rate >= -1e-12) and np.all(rate <= 1 + 1e-12)
    given = sensitivity * prevalence + false_positive * (1 - prevalence)
    np.testing.assert_allclose(2 * sensitivity * prevalence / (prevalence + given), f1, atol=1e-12)


def test_answering_as_often_as_the_label_is_there_makes_precision_equal_recall():
    f1, prevalence = np.array([0.2, 0.7]), np.array([0.1, 0.5])
    sensitivity, false_positive = reanalysis.operating_point(f1, prevalence)
    precision = sensitivity * prevalence / (sensitivity * prevalence + false_positive * (1 - prevalence))
    np.testing.assert_allclose([sensitivity, precision], [f1, f1])
    sensitivity, _ = reanalysis.operating_point(np.array([0.4]), np.array([0.1]), answered=2.0)
    assert sensitivity == pytest.approx(0.6)  # precision 0.3, half of it: 2 * 0.3 * 0.6 / 0.9 is 0.4


def one_label(f1, prevalence, films, n_resamples, **assumed):
    arrays = (np.array([value]) for value in (f1, f1, prevalence))
    return reanalysis.simulate(*arrays, films, n_resamples, np.random.default_rng(0), **assumed)[0, :, 0]


def test_the_spread_of_f1_is_that_of_the_delta_method():
    f1, prevalence, films = 0.6, 0.3, 2000
    hit, error = prevalence * f1, 2 * prevalence * (1 - f1)  # shares of films: TP, and FP with FN
    slope = np.array([2 * error, -2 * hit]) / (2 * hit + error) ** 2
    shares = np.array([hit, error])
    covariance = (np.diag(shares) - np.outer(shares, shares)) / films
    simulated = rates(one_label(f1, prevalence, films, 20_000))[:, 2]
    assert simulated.mean() == pytest.approx(f1, abs=0.001)
    assert simulated.std() == pytest.approx(sqrt(slope @ covariance @ slope), rel=0.03)


def test_few_films_fall_as_enumeration_says():
    # F1 0.5 at prevalence 0.4: a film is hit, missed or falsely answered at 0.2 each, and rightly passed over at 0.4
    counts = one_label(0.5, 0.4, 3, 40_000)
    for tp, fp, fn in product(range(4), repeat=3):
        tn = 3 - tp - fp - fn
        expected = (
            comb(3, tp) * comb(3 - tp, fp) * comb(3 - tp - fp, fn) * 0.2 ** (tp + fp + fn) * 0.4**tn if tn >= 0 else 0
        )
        assert (counts == (tp, fp, fn)).all(axis=1).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("shared", "both"), [(0.0, 0.3 * 0.6), (1.0, 0.3), (0.5, 0.24)])
def test_two_models_hit_together_as_often_as_is_assumed(shared, both):
    prevalence = np.array([0.5])
    arrays = np.array([0.3]), np.array([0.6]), prevalence  # at precision equal to recall, F1 is the sensitivity
    first, second = reanalysis.simulate(*arrays, 1, 40_000, np.random.default_rng(1), shared=shared)[:, :, 0]
    assert (first[:, 0] & second[:, 0]).mean() == pytest.approx(both * 0.5, abs=0.008)
    assert [first[:, 0].mean(), second[:, 0].mean()] == pytest.approx([0.15, 0.3], abs=0.008)
    assert (first[:, [0, 2]].sum(axis=1) == second[:, [0, 2]].sum(axis=1)).all()  # the same films for both


# --- the four findings -----------------------------------------------------------------------------------------------


def test_every_finding_has_its_scores_as_printed():
    table = reanalysis.printed()
    means = table.groupby(["finding", "place", "series"])["f1"].mean()
    assert means[1, "CheXpert, 14 labels", "ChexReason"] == pytest.approx(
        published.printed_macro("CheXpert")["ChexReason"], abs=0.001
    )
    assert means[3, "Qwen2.5-VL-3B", "Reasoning A"] == pytest.approx(0.208)
    assert means[4, "Best F1-Score", "Hard"] == pytest.approx(0.258)
    assert table["prevalence"].between(0.005, 0.6).all()
    assert set(table.loc[table["place"].str.startswith("NIH"), "label"]) == set(NIH9)
    assert set(table.loc[table["finding"] == 4, "label"]) == set(CHEXPERT14)


def test_differences_are_those_of_the_scores_and_sharing_errors_narrows_their_intervals():
    scores, differences = reanalysis.scores(400, 0), reanalysis.differences(400, 0)
    published_scores = scores.set_index(["finding", "place", "series"])["published"]
    for row in differences.itertuples():
        first, second = reanalysis.CONTRASTS[row.finding]
        where = (row.finding, row.place)
        assert row.published == pytest.approx(published_scores[*where, second] - published_scores[*where, first])
        assert row.told == (row.low > 0 or row.high < 0) and row.low < row.published < row.high
    width = (differences["high"] - differences["low"]).groupby(differences["errors"]).apply(list)
    assert np.all(np.array(width["strongly shared errors"]) < np.array(width["independent errors"]))


def test_labels_as_uneven_as_table_5_would_give_narrower_intervals_than_even_ones():
    profile = published.f1("CheXpert")["MedGemma-4B SFT"]
    uneven, prevalence = profile.to_numpy(), published.prevalence()["MIMIC"][profile.index].to_numpy()
    even = np.full_like(uneven, uneven.mean())
    spread = [
        macro(reanalysis.simulate(f1, f1, prevalence, 500, 2000, np.random.default_rng(0))[0])[:, 2].std()
        for f1 in (uneven, even)
    ]
    assert spread[0] < spread[1]


def test_the_same_seed_gives_the_same_intervals():
    pd.testing.assert_frame_equal(reanalysis.transfer_gaps(50, 3), reanalysis.transfer_gaps(50, 3))
    assert not reanalysis.transfer_gaps(50, 3).equals(reanalysis.transfer_gaps(50, 4))


def test_a_fall_between_hospitals_is_that_of_the_shared_labels():
    falls = reanalysis.transfer_gaps(400, 0).set_index("model")
    assert falls.loc["ChexReason", "change"] == pytest.approx(-0.111, abs=0.001)
    assert (falls["low"] < falls["change"]).all() and (falls["change"] < falls["high"]).all()


@pytest.mark.parametrize(
    ("independent", "shared", "word"),
    [(6, 6, "can be told from chance"), (0, 0, "cannot be told from chance"), (1, 5, "depends on the assumptions")],
)
def test_a_verdict_follows_the_assumptions_tried(independent, shared, word):
    row = {"finding": 1, "place": "NIH", "contrast": "B less A", "published": -0.055, "tried": 6}
    row |= {"independent errors": independent, "strongly shared errors": shared}
    (line,) = reanalysis.verdicts(pd.DataFrame([row]))
    assert f"published -0.055 {word} (told under {independent} of 6" in line


def test_sensitivity_counts_the_assumptions_that_make_a_difference():
    table = reanalysis.sensitivity(50, 0)
    on_nih = table["place"].str.startswith("NIH")
    assert len(table) == 9 and set(table.loc[on_nih, "tried"]) == {6} and set(table.loc[~on_nih, "tried"]) == {3}
    for errors in reanalysis.ERRORS:
        assert table[errors].between(0, table["tried"]).all()
    level = table[(table["finding"] == 4) & (table["place"] == "Best F1-Score")]
    assert level[list(reanalysis.ERRORS)].to_numpy().tolist() == [[0, 0]]  # a difference of 0.001 among 500 films


def test_a_finding_is_drawn_with_its_scores_left_and_its_difference_right():
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2)
    scores, differences = (
        table.query("finding == 2") for table in (reanalysis.scores(50, 0), reanalysis.differences(50, 0))
    )
    left, right = figures.published_finding(scores, differences, axes)
    drawn = {line.get_label(): line.get_xdata() for ax in (left, right) for line in ax.lines}
    assert drawn["MedGemma-4B SFT"] == pytest.approx([0.264, 0.299], abs=0.001)
    assert drawn["independent errors"] == pytest.approx([-0.039, 0.056], abs=0.001)
    lines = [line for ax in (left, right) for line in ax.lines if not line.get_label().startswith("_")]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 4
    plt.close(figure)
