"""Counts, rates, intervals and comparisons, against scikit-learn, by hand, and against what theory says."""

import numpy as np
import pandas as pd
import pytest

from chexreason.evaluation import metrics


def rng(seed=0):
    return np.random.default_rng(seed)


def table(values, columns=None):
    return pd.DataFrame(values, columns=columns)


def scored(truth, given, patients=None, n_resamples=50, seed=0, means=None):
    patients = pd.Series(range(len(truth))) if patients is None else pd.Series(patients)
    return metrics.score(truth, given, patients, n_resamples, rng(seed), means)


# --- counts and rates ------------------------------------------------------------------------------------------------

NAN = float("nan")
HAND_TRUTH = table([[1, 0, 0], [1, 1, 0], [0, NAN, 0], [0, 1, 0]], ["A", "B", "C"])
HAND_GIVEN = table([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], ["A", "B", "C"]).astype(bool)


def test_a_case_worked_by_hand():
    result = scored(HAND_TRUTH, HAND_GIVEN)
    labels = result.labels.set_index("label")
    assert labels[["support", "tp", "fp", "fn", "tn"]].to_numpy().tolist() == [
        [2, 1, 1, 1, 1],
        [2, 1, 0, 1, 1],  # the third film is unknown, and its answer counts nowhere
        [0, 0, 1, 0, 3],
    ]
    expected = [[1 / 2, 1 / 2, 1 / 2, 1 / 2], [1, 1 / 2, 2 / 3, 1], [0, NAN, NAN, 3 / 4]]
    np.testing.assert_allclose(labels[["precision", "recall", "f1", "specificity"]], expected, atol=1e-15)
    overall = result.overall
    assert overall["n"] == 4
    assert [overall[f"micro_{rate}"] for rate in metrics.RATES] == pytest.approx([2 / 4, 2 / 4, 2 / 4])
    assert [overall[f"macro_{rate}"] for rate in metrics.RATES] == pytest.approx([3 / 4, 1 / 2, 7 / 12])
    assert overall["macro_specificity"] == pytest.approx(3 / 4)  # of all three labels: each has a negative film
    assert overall["n_normal"] == 0 and np.isnan(overall["false_alarm_rate"])  # no film shows none of the three


@pytest.mark.parametrize("seed", range(20))
def test_rates_agree_with_scikit_learn(seed):
    from sklearn.metrics import precision_recall_fscore_support

    random = rng(seed)
    films, labels = random.integers(20, 200), random.integers(1, 15)
    truth = (random.random((films, labels)) < 0.4).astype(float)
    truth[0] = 1  # every label has a positive: there the two agree in every convention
    given = random.random((films, labels)) < random.random(labels)
    given[:, 0] = seed % 2  # a label never answered, or always
    counts = metrics.tally(truth, given).sum(axis=0)
    for average, ours in ((None, metrics.rates), ("micro", metrics.micro), ("macro", metrics.macro)):
        theirs = precision_recall_fscore_support(truth, given, average=average, zero_division=np.nan)[:3]
        np.testing.assert_allclose(ours(counts), np.array(theirs, dtype=float).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_unknown_truth_agrees_with_scikit_learn_on_the_known_films(seed):
    from sklearn.metrics import f1_score

    random = rng(seed)
    truth = (random.random((80, 6)) < 0.4).astype(float)
    truth[random.random(truth.shape) < 0.3] = NAN
    given = random.random((80, 6)) < 0.5
    known = ~np.isnan(truth)
    counts = metrics.tally(truth, given).sum(axis=0)
    expected = [f1_score(truth[known[:, k], k], given[known[:, k], k]) for k in range(6)]
    np.testing.assert_allclose(metrics.rates(counts)[:, 2], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.micro(counts)[2], f1_score(truth[known], given[known]), rtol=0, atol=1e-12)
    assert (counts.sum(axis=-1) == known.sum(axis=0)).all()


def test_a_label_without_positives_is_undefined_with_and_without_false_alarms():
    nothing, alarms = [0, 0, 0, 9], [0, 3, 0, 6]
    assert np.isnan(metrics.rates(np.array([nothing, alarms]))[:, 1:]).all()
    other = [2, 1, 1, 5]
    assert metrics.macro(np.array([other, alarms]))[2] == metrics.rates(np.array(other))[2]
    assert metrics.micro(np.array([other, alarms]))[0] == pytest.approx(2 / 6)  # its false alarms still count


def test_nothing_defined_is_nan_without_a_warning(recwarn):
    result = scored(table([[0.0], [NAN]], ["A"]), table([[True], [False]], ["A"]))
    assert np.isnan([result.overall["macro_f1"], result.overall["macro_f1_low"], result.overall["micro_f1"]]).all()
    assert not recwarn.list


@pytest.mark.parametrize("strange", [-1, 2, 0.5])
def test_unsettled_truth_is_refused(strange):
    with pytest.raises(ValueError, match=rf"the truth contains {strange}; it must be 1, 0 or NaN"):
        metrics.tally([[strange]], [[True]])


def test_tables_that_do_not_line_up_are_refused():
    with pytest.raises(ValueError, match=r"answers have the labels \['B', 'A', 'C'\], the truth has \['A', 'B', 'C'\]"):
        scored(HAND_TRUTH, HAND_GIVEN[["B", "A", "C"]])
    with pytest.raises(ValueError, match="answers and the truth do not have the same films"):
        scored(HAND_TRUTH, HAND_GIVEN.iloc[::-1])
    with pytest.raises(ValueError, match="patients and the truth do not have the same films"):
        scored(HAND_TRUTH, HAND_GIVEN, patients=["p", "q", "r"])
    with pytest.raises(ValueError, match="no film or no label"):
        scored(HAND_TRUTH.iloc[:0], HAND_GIVEN.iloc[:0], patients=[])


@pytest.mark.parametrize("seed", range(5))
def test_specificity_agrees_with_scikit_learn(seed):
    from sklearn.metrics import recall_score

    truth = (rng(seed).random((90, 4)) < 0.4).astype(float)
    truth[:, 0] = seed % 2  # without a positive, or without a negative
    given = rng(seed + 50).random((90, 4)) < 0.3
    result = scored(table(truth), table(given))
    theirs = [recall_score(truth[:, k], given[:, k], pos_label=0, zero_division=np.nan) for k in range(4)]
    np.testing.assert_allclose(result.labels["specificity"], theirs, rtol=0, atol=1e-12)
    assert result.overall["macro_specificity"] == pytest.approx(np.nanmean(theirs), abs=1e-12)


def test_a_false_alarm_is_a_finding_answered_on_a_normal_film():
    names = ["No Finding", "Edema", "Support Devices"]
    truth = [[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0], [1, NAN, 0], [NAN, 0, 0]]
    given = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0]]
    alarms = metrics.false_alarms(table(truth, names), table(given, names).astype(bool))
    # a device that is there is no alarm; not normal: no "No Finding", a finding, an unknown label
    np.testing.assert_array_equal(alarms, [0, 1, 0, 0, NAN, NAN, NAN, NAN])
    overall = scored(table(truth, names), table(given, names).astype(bool)).overall
    assert overall["n_normal"] == 4 and overall["false_alarm_rate"] == 1 / 4
    assert overall["false_alarm_rate_low"] == 0 < overall["false_alarm_rate_high"]


def test_without_the_label_no_finding_a_normal_film_shows_no_label():
    truth, given = table([[0, 0], [0, 0], [1, 0], [NAN, 0]], ["A", "B"]), table([[1, 0], [0, 0], [1, 1], [1, 1]])
    alarms = metrics.false_alarms(truth, given.set_axis(["A", "B"], axis=1))
    np.testing.assert_array_equal(alarms, [1, 0, NAN, NAN])
    named = truth.assign(no_finding=[1, 0, 1, 1])
    np.testing.assert_array_equal(metrics.false_alarms(named, named.eq(1)), [0, NAN, 0, NAN])
    alone = table([[1.0], [0.0]], ["No Finding"])
    assert metrics.false_alarms(alone, alone).isna().all()  # there is no finding to answer


# --- bootstrap -------------------------------------------------------------------------------------------------------


def mean_interval(values, patients, n_resamples=4000, seed=0):
    films = table(np.ones((len(values), 1)), ["A"])
    overall = scored(films, films.astype(bool), patients, n_resamples, seed, table({"reward": values})).overall
    return overall["reward"], overall["reward_low"], overall["reward_high"]


def test_interval_of_a_mean_over_single_film_patients_is_the_normal_one():
    values = rng(1).normal(size=500)
    value, low, high = mean_interval(values, range(500))
    error = values.std() / np.sqrt(500)
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.1 * error)


def test_patients_whose_films_repeat_widen_the_interval_as_theory_says():
    """Nine equal films of each patient carry no more than one: an unclustered bootstrap is three times too sure."""
    values = np.repeat(rng(2).normal(size=200), 9)
    _, low, high = mean_interval(values, np.repeat(np.arange(200), 9))
    _, naive_low, naive_high = mean_interval(values, np.arange(1800))
    assert (high - low) / (naive_high - naive_low) == pytest.approx(3, rel=0.06)


def test_a_paired_bootstrap_of_films_is_three_times_too_sure_where_patients_have_twelve():
    """How widely a difference of F1 varies over 1,000 samples of new patients, and what one of them says of that."""
    patients, films, samples = 200, 12, 1000
    shape, random = (patients * films, samples), rng(0)
    truth, *right = (np.repeat(random.random((patients, samples)) < share, films, axis=0) for share in (0.5, 0.7, 0.7))
    given = [(one ^ (random.random(shape) < 0.05)) == truth for one in right]  # now and then films of a patient differ
    f1 = [metrics.rates(metrics.tally(truth, one).sum(axis=0))[:, 2] for one in given]
    real = 2 * 1.96 * np.std(f1[1] - f1[0])
    width = {}
    for drawn, owner in (("patients", np.arange(patients).repeat(films)), ("films", np.arange(patients * films))):
        sample = (table(each[:, [0]]) for each in (truth, *given))
        row = metrics.paired(*sample, pd.Series(owner), 1000, 0, ("macro_f1",)).iloc[0]
        width[drawn] = row["high"] - row["low"]
    assert width["patients"] == pytest.approx(real, rel=0.15)
    assert real / width["films"] == pytest.approx(3, abs=0.5)  # the root of 12, less what varies from film to film


def test_paired_interval_is_much_narrower_than_the_models_own():
    """What the films share cancels: a model right wherever another is, and on a few films more."""
    truth = table((rng(3).random((600, 1)) < 0.5).astype(float), ["A"])
    wrong = rng(4).random((600, 1)) < 0.3
    first = scored(truth, (truth == 1) ^ wrong, n_resamples=1000)
    better = wrong & (rng(5).random((600, 1)) < 0.9)
    second = scored(truth, (truth == 1) ^ better, n_resamples=1000)
    row = metrics.difference(first, second, ("macro_f1",)).iloc[0]
    assert row["difference"] == second.overall["macro_f1"] - first.overall["macro_f1"]
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["high"] - row["low"] < 0.6 * (first.overall["macro_f1_high"] - first.overall["macro_f1_low"])


def test_a_model_differs_from_itself_by_exactly_nothing():
    first = scored(HAND_TRUTH, HAND_GIVEN, seed=7)
    rows = metrics.difference(first, scored(HAND_TRUTH, HAND_GIVEN, seed=7))
    assert list(rows["metric"]) == ["macro_f1", "micro_f1"]  # no reward was given, so none is compared
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)


def test_resampling_is_what_a_loop_over_patients_does():
    truth = (rng(6).random((60, 4)) < 0.4).astype(float)
    given, patients = rng(7).random((60, 4)) < 0.4, rng(8).integers(12, size=60)
    names, codes = np.unique(patients, return_inverse=True)
    result = scored(table(truth), table(given), patients, n_resamples=30, seed=9)
    drawn = rng(9).integers(len(names), size=(30, len(names)))
    for draw, sample in zip(drawn, result.samples["macro_f1"], strict=True):
        films = np.concatenate([np.flatnonzero(codes == code) for code in draw])
        assert sample == pytest.approx(
            metrics.macro(metrics.tally(truth[films], given[films]).sum(axis=0))[2], abs=1e-12
        )


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    sums = rng(1).integers(5, size=(37, 3)).astype(float)
    whole = metrics.resample(sums, 101, rng(2))
    monkeypatch.setattr(metrics, "_CELLS", 200)
    assert whole.shape == (101, 3) and (metrics.resample(sums, 101, rng(2)) == whole).all()


def test_the_order_of_films_does_not_matter():
    truth = table((rng(1).random((50, 3)) < 0.4).astype(float))
    given, patients = table(rng(2).random((50, 3)) < 0.4), pd.Series(rng(3).integers(20, size=50))
    order = rng(4).permutation(50)
    one = metrics.score(truth, given, patients, 40, rng(5))
    other = metrics.score(truth.iloc[order], given.iloc[order], patients.iloc[order], 40, rng(5))
    assert one.overall == other.overall


def test_one_patient_has_no_interval_however_many_films():
    truth = table(rng(1).random((50, 2)) < 0.4, ["A", "B"]).astype(float)
    given = table(rng(2).random((50, 2)) < 0.4, ["A", "B"])
    one, other = (
        scored(truth, each, ["p"] * 50, means=table({"reward": rng(3).random(50)})) for each in (given, ~given)
    )
    ends = [f"{metric}{end}" for metric in one.samples for end in ("_low", "_high")]
    assert np.isnan([one.overall[end] for end in ends]).all()
    assert one.labels[["f1_low", "f1_high", "specificity_low", "specificity_high"]].isna().all(axis=None)
    rows = metrics.difference(one, other)
    assert rows["difference"].notna().all() and rows[["low", "high"]].isna().all(axis=None)
    assert metrics.verdict(*rows.loc[0, ["low", "high"]]) == "no clear difference"


def test_a_score_that_rests_on_one_patient_has_no_interval():
    """F1 rests on patients with a positive film: A has one, B two; specificity: B has one with a negative film."""
    truth = table([[1, 1, 1], [1, 1, 1], [0, 1, 0], [0, 0, 1]], ["A", "B", "C"]).astype(float)
    given = table([[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]], ["A", "B", "C"]).astype(bool)
    result = scored(truth, given, ["p", "p", "q", "r"])
    labels = result.labels.set_index("label")
    assert labels["f1_low"].isna().tolist() == [True, False, False]
    assert labels["specificity_low"].isna().tolist() == [False, True, True]
    assert not np.isnan(result.overall["macro_f1_low"])  # B and C have one
    assert np.isnan(scored(truth[["A"]], given[["A"]], ["p", "p", "q", "r"]).overall["macro_f1_low"])
    assert np.isnan(scored(truth[["C"]], given[["C"]], ["p", "p", "q", "r"]).overall["micro_precision_low"])


def test_a_metric_undefined_in_most_resamples_has_no_interval():
    values = np.arange(100.0)
    assert metrics.interval(np.where(values < 50, np.nan, values)).tolist() == pytest.approx([51.225, 97.775])
    assert np.isnan(metrics.interval(np.where(values < 51, np.nan, values))).all()


def test_a_model_without_an_error_has_an_interval_without_width():
    overall = scored(HAND_TRUTH, HAND_TRUTH.eq(1)).overall
    assert (overall["macro_f1"], overall["macro_f1_low"], overall["macro_f1_high"]) == (1, 1, 1)


def test_a_film_without_a_patient_is_refused():
    with pytest.raises(ValueError, match="film 2 has no patient"):
        scored(HAND_TRUTH, HAND_GIVEN, ["p", "q", None, "r"])


# --- probabilities ---------------------------------------------------------------------------------------------------


def areas(truth, probability, weights=None):
    """scikit-learn's AUROC and AUPRC of one label, NaN where it has none."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    weights = np.ones(len(truth)) if weights is None else weights
    known = ~np.isnan(truth) & ~np.isnan(probability) & (weights > 0)
    films = {"y_true": truth[known], "y_score": probability[known], "sample_weight": weights[known]}
    there = set(truth[known])
    return (
        roc_auc_score(**films) if there == {0.0, 1.0} else NAN,
        average_precision_score(**films) if 1.0 in there else NAN,
    )


@pytest.mark.parametrize("seed", range(8))
def test_auroc_and_auprc_agree_with_scikit_learn_in_every_resample(seed):
    random, films = rng(seed), 30 + 10 * seed
    truth = np.where(random.random((films, 3)) < 0.1, NAN, random.random((films, 3)) < 0.3)
    probability = random.random((films, 3)).round(1 + seed % 3)  # of one digit: many are tied
    probability[random.random(probability.shape) < 0.05] = NAN
    patients = random.integers(films // 3, size=films)
    result = metrics.score_probabilities(table(truth), table(probability), pd.Series(patients), 15, rng(seed))
    plain = [areas(truth[:, k], probability[:, k]) for k in range(3)]
    np.testing.assert_allclose(result.labels[["auroc", "auprc"]], plain, rtol=0, atol=1e-12)
    names, codes = np.unique(patients, return_inverse=True)
    for draw, sample in zip(
        rng(seed).integers(len(names), size=(15, len(names))), result.samples.to_numpy(), strict=True
    ):
        weights = np.bincount(draw, minlength=len(names))[codes]
        theirs = np.nanmean([areas(truth[:, k], probability[:, k], weights) for k in range(3)], axis=0)
        np.testing.assert_allclose(sample, theirs, rtol=0, atol=1e-12)
    known = ~np.isnan(truth) & ~np.isnan(probability)
    assert result.labels["films"].tolist() == known.sum(axis=0).tolist()
    assert result.labels["support"].tolist() == (known & (truth == 1)).sum(axis=0).tolist()


def test_areas_worked_by_hand(recwarn):
    truth = table([[1, 1, 0, NAN], [1, 0, 0, NAN], [0, 1, 0, NAN], [0, 0, 0, NAN]], ["A", "B", "none", "unknown"])
    probability = table(
        [[0.9, 0.5, 0.1, 0.1], [0.8, 0.5, 0.2, 0.2], [0.2, 0.5, 0.3, 0.3], [0.1, 0.5, 0.4, 0.4]], list(truth)
    )
    result = metrics.score_probabilities(truth, probability, pd.Series(range(4)), 200, rng())
    np.testing.assert_array_equal(result.labels["auroc"], [1, 1 / 2, NAN, NAN])
    np.testing.assert_array_equal(result.labels["auprc"], [1, 1 / 2, NAN, NAN])
    assert (result.overall["macro_auroc"], result.overall["macro_auprc"]) == (3 / 4, 3 / 4)
    reverse = metrics.score_probabilities(truth, 1 - probability, pd.Series(range(4)), 2, rng())
    assert reverse.labels["auroc"].tolist()[:2] == [0, 1 / 2]
    assert not recwarn.list


def test_an_interval_of_auroc_needs_two_patients_of_either_kind():
    truth, probability = table({"A": [1.0, 1, 0, 0]}), table({"A": [0.9, 0.3, 0.4, 0.1]})
    low = [
        metrics.score_probabilities(truth, probability, pd.Series(list(owner)), 100, rng()).labels.iloc[0]
        for owner in ("pqrs", "ppqr", "pqrr", "pppp")
    ]
    assert [np.isnan(row["auroc_low"]) for row in low] == [False, True, True, True]
    assert [np.isnan(row["auprc_low"]) for row in low] == [False, True, False, True]


def test_resamples_of_auroc_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    truth, probability = table(rng(1).random((60, 2)) < 0.3).astype(float), table(rng(2).random((60, 2)))
    patients = pd.Series(rng(3).integers(20, size=60))
    whole = metrics.score_probabilities(truth, probability, patients, 101, rng(4))
    monkeypatch.setattr(metrics, "_CELLS", 300)
    again = metrics.score_probabilities(truth, probability, patients, 101, rng(4))
    pd.testing.assert_frame_equal(whole.samples, again.samples, check_exact=True)


# --- between data sets, and label by label ---------------------------------------------------------------------------


def model(f1, seed, films=400):
    """Scores on one label at a data set of its own, of a model with as many false alarms as positives missed."""
    truth = table(np.arange(films) < films // 2, ["A"]).astype(float)
    given = table(np.arange(films) < round(films // 2 * f1), ["A"])
    given |= (np.arange(films) >= films - round(films // 2 * (1 - f1)))[:, None]
    return scored(truth, given, n_resamples=4000, seed=seed)


def test_what_is_lost_on_the_way_is_the_difference_and_its_share_of_what_was_there():
    in_domain, out_of_domain = model(0.8, 1), model(0.6, 2)
    gaps = metrics.transfer_gap(in_domain, out_of_domain)
    assert gaps.overall["in_domain_macro_f1"] == pytest.approx(0.8)
    assert gaps.overall["out_of_domain_macro_f1"] == pytest.approx(0.6)
    assert gaps.overall["change"] == pytest.approx(-0.2) and gaps.overall["relative"] == pytest.approx(-0.25)
    ends = in_domain.samples["macro_f1"].std(), out_of_domain.samples["macro_f1"].std()
    assert gaps.samples["change"].std() == pytest.approx(np.hypot(*ends), rel=0.05)  # two samples of patients
    ratio = 0.75 * np.hypot(ends[0] / 0.8, ends[1] / 0.6)  # the delta method
    assert gaps.samples["relative"].std() == pytest.approx(ratio, rel=0.05)


def test_a_model_that_scores_nothing_has_no_share_to_lose(recwarn):
    nothing = scored(table([[1.0], [0.0]], ["A"]), table([[False], [False]], ["A"]))
    overall = metrics.transfer_gap(nothing, nothing).overall
    assert overall["change"] == 0 and np.isnan([overall["relative"], overall["relative_low"]]).all()
    assert not recwarn.list


def test_two_models_losses_on_the_way_are_compared_draw_by_draw():
    first, second = (
        metrics.transfer_gap(model(in_domain, 1), model(out_of_domain, 2))
        for in_domain, out_of_domain in ((0.8, 0.7), (0.8, 0.5))
    )
    row = metrics.difference(first, second, ("change",)).iloc[0]
    assert row["difference"] == pytest.approx(-0.2) and row["high"] < 0
    samples = second.samples["change"] - first.samples["change"]
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(samples, [2.5, 97.5]))


def test_mcnemar_counts_the_films_that_only_one_model_has_right():
    truth = table([[1.0, 1.0]] * 12 + [[0.0, NAN]] * 8, ["A", "B"])
    first = table([[True, True]] * 2 + [[False, True]] * 10 + [[False, False]] * 8, ["A", "B"])
    second = table([[False, True]] * 2 + [[True, True]] * 10 + [[False, True]] * 8, ["A", "B"])
    tested = metrics.mcnemar(truth, first, second).set_index("label")
    assert tested[["n", "first_only", "second_only"]].to_numpy().tolist() == [[20, 2, 10], [12, 0, 0]]
    by_hand = 2 * (1 + 12 + 66) / 2**12  # at most 2 heads or at most 2 tails in 12 throws
    assert tested["p"].tolist() == pytest.approx([by_hand, 1.0])
    assert tested["p_holm"].tolist() == pytest.approx([2 * by_hand, 1.0])


def test_holm_adjusts_step_by_step_and_keeps_the_order_given():
    assert metrics.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_models_tested_on_other_films_are_refused():
    with pytest.raises(ValueError, match="second answers and the truth do not have the same films"):
        metrics.mcnemar(HAND_TRUTH, HAND_GIVEN, HAND_GIVEN.iloc[::-1])
