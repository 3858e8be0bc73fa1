"""Effects along paths of training, in worlds whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from chexreason.evaluation import dose
from chexreason.labels import CHEXPERT14, NIH9, bits

SEEDS = range(3)
FILMS = 1500


def as_bits(present: np.ndarray) -> list[int]:
    return [bits([label for label, there in zip(CHEXPERT14, row, strict=True) if there]) for row in present]


@pytest.fixture(scope="module")
def world():
    """Films with a truth and a noisy channel; each of three models answers them as a whole run of three seeds."""
    rng = np.random.default_rng(0)
    truth = rng.random((FILMS, 14)) < 0.3
    channel = np.where(truth, rng.random(truth.shape) < 0.5, rng.random(truth.shape) < 0.05)
    films = pd.DataFrame({"film": range(FILMS), "patient": np.arange(FILMS) // 2})
    films["truth"], films["labels"] = as_bits(truth), as_bits(channel)
    start = [truth ^ (rng.random(truth.shape) < 0.1) for _ in SEEDS]  # one label of ten is wrong
    answers = {
        "sft": start,
        "reads": [truth] * 3,  # the truth
        "copies": [channel] * 3,  # whatever the channel says
        "reformats": start,  # its labels stay what they were
    }
    rows = [
        pd.DataFrame({"run": run, "seed": seed, "step": 0, "film": films["film"], "labels": as_bits(given)})
        for run, by_seed in answers.items()
        for seed, given in zip(SEEDS, by_seed, strict=True)
    ]
    return films, pd.concat(rows)


@pytest.fixture(scope="module")
def effects(world):
    films, answers = world
    return {
        ruler: dose.dose_response(dose.score(films, answers, ruler, NIH9, 200, 0), ("sft", 0), SEEDS).set_index("run")
        for ruler in ("truth", "labels")
    }


def test_a_model_that_reads_the_truth_gains_on_the_truth_up_to_a_perfect_score(world, effects):
    films, answers = world
    scored = dose.score(films, answers, "truth", NIH9, 200, 0)
    start = scored.plain[(scored.names["run"] == "sft").to_numpy()].mean()
    assert effects["truth"].loc["reads", "effect"] == pytest.approx(1 - start)
    assert effects["truth"].loc["reads", "low"] > 0


def test_a_model_that_copies_the_channel_gains_on_its_labels_and_loses_on_the_truth(effects):
    assert effects["labels"].loc["copies", "low"] > 0
    assert effects["truth"].loc["copies", "high"] < 0


def test_a_model_that_only_reformats_has_no_effect_on_either_ruler(effects):
    for ruler in effects:
        found = dose.Effect(*effects[ruler].loc["reformats", list(dose.Effect._fields)])
        assert found.effect == 0
        assert dose.verdict(found, 0.02) == "no difference"


def test_scores_are_those_of_scikit_learn(world):
    from sklearn.metrics import f1_score

    films, answers = world
    scored = dose.score(films, answers, "labels", NIH9, 10, 0)
    for number, (run, seed, _) in enumerate(scored.names.itertuples(index=False)):
        given = answers[(answers["run"] == run) & (answers["seed"] == seed)]
        places = [CHEXPERT14.index(label) for label in NIH9]
        truth, said = dose.unpack(films["labels"])[:, places], dose.unpack(given["labels"])[:, places]
        assert scored.plain[number] == pytest.approx(f1_score(truth, said, average="macro"))


def test_answers_that_miss_a_film_are_refused(world):
    films, answers = world
    with pytest.raises(ValueError, match="1499 films"):
        dose.score(films, answers[answers["film"] != 7], "truth", NIH9, 10, 0)


def test_an_effect_without_noise_of_patients_is_student_s_interval_over_seeds():
    changes = [0.01, 0.03, 0.02, 0.05, 0.04]
    found = dose.effect(changes, np.zeros(10))
    low, high = stats.t.interval(0.95, 4, np.mean(changes), stats.sem(changes))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(stats.ttest_1samp(changes, 0).pvalue)


def test_an_effect_of_one_seed_has_the_interval_of_the_patients():
    samples = np.random.default_rng(1).normal(0, 0.01, 5000)
    found = dose.effect([0.02], samples)
    half = 1.96 * samples.std()
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-4)


@pytest.mark.parametrize(
    ("middle", "se", "told"),
    [
        (0.05, 0.01, "gain"),
        (-0.05, 0.01, "loss"),
        (0.005, 0.001, "small gain"),
        (0.0, 0.005, "no difference"),
        (0.01, 0.01, "open"),
    ],
)
def test_the_words_follow_the_intervals(middle, se, told):
    found = dose.effect([middle], middle + se * np.array([-1.0, 1.0]) / 2**0.5)
    assert found.se == pytest.approx(se)
    assert dose.verdict(found, 0.02) == told


def test_intervals_over_seeds_and_patients_cover_the_effect_and_the_others_do_not():
    found = dose.coverage(5, 600, (0.03, 0.4, 0.4), 400, np.random.default_rng(2))
    assert 0.93 <= found["seeds and patients"] <= 1.0
    assert found["patients alone"] < 0.93
    assert found["seeds alone"] < 0.93


def test_the_smallest_detectable_effect_has_its_power():
    rng, df, se = np.random.default_rng(3), 4, 0.01
    smallest = dose.smallest_detectable(se, df)
    seeds = rng.normal(smallest, se * 5**0.5, (20_000, 5))
    found = stats.ttest_1samp(seeds, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_an_effect_that_is_undefined_in_most_resamples_has_no_interval_and_no_verdict():
    found = dose.effect([0.1, 0.2], np.array([np.nan, np.nan, 0.1]))
    assert np.isnan(found.low) and dose.verdict(found, 0.02) == "undefined"
    assert np.isfinite(dose.effect([0.1, 0.2], np.array([np.nan, 0.1, 0.2, 0.15])).low)
