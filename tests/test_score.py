"""Counts, rates, intervals and comparisons, against scikit-learn, by hand, and against what theory says."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from chexreason import params, records, score
from chexreason.labels import CHEXPERT14, NIH9

RESULT_KEYS = ["model", "seed", "dataset", "label_set", "n", "micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high"]
RESULT_KEYS += ["fail_rate", "params_hash", "phantom"]


def rng(seed=0):
    return np.random.default_rng(seed)


def table(values, columns=None):
    return pd.DataFrame(values, columns=columns)


def scored(truth, given, patients=None, draws=50, seed=0, means=None):
    patients = pd.Series(range(len(truth))) if patients is None else pd.Series(patients)
    return score.score(truth, given, patients, draws, rng(seed), means)


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
    expected = [[1 / 2, 1 / 2, 1 / 2], [1, 1 / 2, 2 / 3], [0, NAN, NAN]]
    np.testing.assert_allclose(labels[["precision", "recall", "f1"]], expected, atol=1e-15)
    overall = result.overall
    assert overall["n"] == 4
    assert [overall[f"micro_{rate}"] for rate in score.RATES] == pytest.approx([2 / 4, 2 / 4, 2 / 4])
    assert [overall[f"macro_{rate}"] for rate in score.RATES] == pytest.approx([3 / 4, 1 / 2, 7 / 12])


@pytest.mark.parametrize("seed", range(20))
def test_rates_agree_with_scikit_learn(seed):
    from sklearn.metrics import precision_recall_fscore_support

    random = rng(seed)
    films, labels = random.integers(20, 200), random.integers(1, 15)
    truth = (random.random((films, labels)) < 0.4).astype(float)
    truth[0] = 1  # every label has a positive: there the two agree in every convention
    given = random.random((films, labels)) < random.random(labels)
    given[:, 0] = seed % 2  # a label never answered, or always
    counts = score.tally(truth, given).sum(axis=0)
    for average, ours in ((None, score.rates), ("micro", score.micro), ("macro", score.macro)):
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
    counts = score.tally(truth, given).sum(axis=0)
    expected = [f1_score(truth[known[:, k], k], given[known[:, k], k]) for k in range(6)]
    np.testing.assert_allclose(score.rates(counts)[:, 2], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(score.micro(counts)[2], f1_score(truth[known], given[known]), rtol=0, atol=1e-12)
    assert (counts.sum(axis=-1) == known.sum(axis=0)).all()


def test_a_label_without_positives_is_undefined_with_and_without_false_alarms():
    nothing, alarms = [0, 0, 0, 9], [0, 3, 0, 6]
    assert np.isnan(score.rates(np.array([nothing, alarms]))[:, 1:]).all()
    other = [2, 1, 1, 5]
    assert score.macro(np.array([other, alarms]))[2] == score.rates(np.array(other))[2]
    assert score.micro(np.array([other, alarms]))[0] == pytest.approx(2 / 6)  # its false alarms still count


def test_nothing_defined_is_nan_without_a_warning(recwarn):
    result = scored(table([[0.0], [NAN]], ["A"]), table([[True], [False]], ["A"]))
    assert np.isnan([result.overall["macro_f1"], result.overall["macro_f1_low"], result.overall["micro_f1"]]).all()
    assert not recwarn.list


@pytest.mark.parametrize("strange", [-1, 2, 0.5])
def test_unsettled_truth_is_refused(strange):
    with pytest.raises(ValueError, match=rf"truth holds {strange}; a settled label is 1, 0 or NaN"):
        score.tally([[strange]], [[True]])


def test_tables_that_do_not_line_up_are_refused():
    with pytest.raises(ValueError, match=r"answers are about \['B', 'A', 'C'\], the truth about \['A', 'B', 'C'\]"):
        scored(HAND_TRUTH, HAND_GIVEN[["B", "A", "C"]])
    with pytest.raises(ValueError, match="answers and the truth are not about the same films"):
        scored(HAND_TRUTH, HAND_GIVEN.iloc[::-1])
    with pytest.raises(ValueError, match="patients and the truth are not about the same films"):
        scored(HAND_TRUTH, HAND_GIVEN, patients=["p", "q", "r"])
    with pytest.raises(ValueError, match="no film or no label"):
        scored(HAND_TRUTH.iloc[:0], HAND_GIVEN.iloc[:0], patients=[])


# --- bootstrap -------------------------------------------------------------------------------------------------------


def mean_interval(values, patients, draws=4000, seed=0):
    films = table(np.ones((len(values), 1)), ["A"])
    overall = scored(films, films.astype(bool), patients, draws, seed, table({"reward": values})).overall
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


def test_paired_interval_is_much_narrower_than_the_models_own():
    """What the films share cancels: a model right wherever another is, and on a few films more."""
    truth = table((rng(3).random((600, 1)) < 0.5).astype(float), ["A"])
    wrong = rng(4).random((600, 1)) < 0.3
    first = scored(truth, (truth == 1) ^ wrong, draws=1000)
    better = wrong & (rng(5).random((600, 1)) < 0.9)
    second = scored(truth, (truth == 1) ^ better, draws=1000)
    row = score.difference(first, second, ("macro_f1",)).iloc[0]
    assert row["difference"] == second.overall["macro_f1"] - first.overall["macro_f1"]
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["high"] - row["low"] < 0.6 * (first.overall["macro_f1_high"] - first.overall["macro_f1_low"])


def test_a_model_differs_from_itself_by_exactly_nothing():
    first = scored(HAND_TRUTH, HAND_GIVEN, seed=7)
    rows = score.difference(first, scored(HAND_TRUTH, HAND_GIVEN, seed=7))
    assert list(rows["metric"]) == ["macro_f1", "micro_f1"]  # no reward was given, so none is compared
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)


def test_resampling_is_what_a_loop_over_patients_does():
    truth = (rng(6).random((60, 4)) < 0.4).astype(float)
    given, patients = rng(7).random((60, 4)) < 0.4, rng(8).integers(12, size=60)
    names, codes = np.unique(patients, return_inverse=True)
    result = scored(table(truth), table(given), patients, draws=30, seed=9)
    drawn = rng(9).integers(len(names), size=(30, len(names)))
    for draw, sample in zip(drawn, result.samples["macro_f1"], strict=True):
        films = np.concatenate([np.flatnonzero(codes == code) for code in draw])
        assert sample == pytest.approx(score.macro(score.tally(truth[films], given[films]).sum(axis=0))[2], abs=1e-12)


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    sums = rng(1).integers(5, size=(37, 3)).astype(float)
    whole = score.resample(sums, 101, rng(2))
    monkeypatch.setattr(score, "_CELLS", 200)
    assert whole.shape == (101, 3) and (score.resample(sums, 101, rng(2)) == whole).all()


def test_each_data_set_has_draws_of_its_own_the_same_every_time(study):
    first = score.generator(study, "b-test").integers(1000, size=9).tolist()
    assert first == score.generator(study, "b-test").integers(1000, size=9).tolist()
    assert first != score.generator(study, "c-test").integers(1000, size=9).tolist()


def test_the_order_of_films_does_not_matter():
    truth = table((rng(1).random((50, 3)) < 0.4).astype(float))
    given, patients = table(rng(2).random((50, 3)) < 0.4), pd.Series(rng(3).integers(20, size=50))
    order = rng(4).permutation(50)
    one = score.score(truth, given, patients, 40, rng(5))
    other = score.score(truth.iloc[order], given.iloc[order], patients.iloc[order], 40, rng(5))
    assert one.overall == other.overall


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.2, "gained"),
        (-0.2, -0.01, "lost"),
        (-0.1, 0.1, "cannot be told apart"),
        (0.0, 0.1, "cannot be told apart"),
        (-0.1, 0.0, "cannot be told apart"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, word):
    assert score.verdict(low, high) == word
    row = {"dataset": "b-test", "label_set": "shared9", "first": "m/untuned", "second": "m/sft/x"}
    row |= {"metric": "macro_f1", "difference": (low + high) / 2, "low": low, "high": high}
    (sentence,) = score.found(pd.DataFrame([row]))
    assert word in sentence and "macro-F1" in sentence and f"{low:+.3f} to {high:+.3f}" in sentence


def test_in_short_sorts_the_data_sets_of_a_step_by_its_verdict():
    bounds = {"a": (0.1, 0.2), "b": (0.1, 0.3), "c": (-0.2, -0.1), "d": (-0.1, 0.1)}
    rows = [
        {"step": "x → y", "seed": 0, "dataset": name, "low": low, "high": high} for name, (low, high) in bounds.items()
    ]
    assert score.in_short(pd.DataFrame(rows)) == [
        "x → y, seed 0: gained on a, b; lost on c; cannot be told apart on d."
    ]


# --- a made-up study -------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    return made_up(tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A made-up study and its comparison, for tests that change neither."""
    study = made_up(tmp_path_factory.mktemp("study"))
    return study, score.compare(study)


def made_up(folder):
    """A study of 60 films a data set whose answers are made up: untuned fails always, SFT knows all, GRPO a part."""
    values = yaml.safe_load(params.find("params/mini.yaml").read_text())
    values |= {"seeds": [0, 1], "compare": {"draws": 200, "seed": 0}}
    values["models"] = {"medgemma": values["models"]["medgemma"]}
    values["tests"] = {name: values["tests"][name] for name in ("b-test", "c-test")}
    values["sft"]["runs"] = [{"model": "medgemma", "format": "free_reasoning"}]
    values["grpo"]["runs"] = [{"model": "medgemma", "format": "free_reasoning", "reward": "hard"}]
    file = folder / "params" / "made_up.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(values))
    study = params.load(file)
    make_up(study)
    return study


def make_up(study):
    manifest = pd.concat([films(name) for name in score.datasets(study)] + [films("sft")], ignore_index=True)
    records.save(manifest, study.folder / "curate" / "manifest.parquet", records.origin(study))
    for model, checkpoint, seed in study.checkpoints():
        answers = pd.concat([replies(manifest, name, checkpoint) for name in score.datasets(study)], ignore_index=True)
        path = study.folder / "predict" / model / checkpoint / f"seed{seed}" / "answers.parquet"
        records.save(answers, path, records.origin(study, seed))


def films(split):
    random = rng(sum(map(ord, split)))
    labels = table((random.random((60, 14)) < 0.4).astype(float), list(CHEXPERT14))
    labels = labels.mask(random.random(labels.shape) < 0.1).mask(random.random(labels.shape) < 0.05, -1)
    missing = [name for name in CHEXPERT14 if name not in NIH9 and name != "Pleural Effusion"]
    never = missing if split.startswith("c") else []
    names = {"film": [f"{split}-{k}" for k in range(60)], "patient": [f"{split}-{k // 3}" for k in range(60)]}
    never_stated = {"never_stated": [never] * 60}
    return table(names | {"source": split[0], "split": split} | never_stated).join(
        labels.assign(**dict.fromkeys(never))
    )


def replies(manifest, dataset, checkpoint):
    rows = manifest[manifest["split"] == dataset]
    known = [[name for name in CHEXPERT14 if film[name] == 1] for _, film in rows.iterrows()]
    labels = {"untuned": [[] for _ in known], "sft": known, "grpo": [names[:1] for names in known]}
    stage = checkpoint.split("/")[0]
    judged = {"untuned": 0.0, "sft": 1.0, "grpo": 0.5}[stage] if dataset[0] != "c" else np.nan
    return rows[["film", "patient"]].assign(
        dataset=dataset, labels=labels[stage], failed=stage == "untuned", reward=judged
    )


def test_compare_scores_every_checkpoint_seed_data_set_and_label_set(compared):
    study, tables = compared
    overall = tables["overall"]
    sets = sum(map(len, score.datasets(study).values()))
    assert len(overall) == 7 * sets and len(tables["scores"]) > 9 * 7 * sets
    assert set(overall["model"]) == {
        "stand-in-medgemma/untuned",
        "stand-in-medgemma/sft/free_reasoning",
        "stand-in-medgemma/grpo/hard",
        "stand-in-medgemma/grpo/hard-best",
    }
    sft = overall[overall["model"].str.contains("/sft/")]
    assert (sft[["micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high"]] == 1).all(axis=None)
    assert (sft["fail_rate"] == 0).all() and (overall["n"] == 60).all() and set(sft["seed"]) == {0, 1}


def test_a_failed_reply_counts_as_an_empty_answer_even_if_labels_stand_in_it(study):
    path = score.answers_path(study, "medgemma", "untuned", 0)
    answers = records.load(path)
    answers["labels"] = [list(CHEXPERT14)] * len(answers)
    records.save(answers, path, records.origin(study))
    overall = score.compare(study)["overall"]
    untuned = overall[overall["model"] == "stand-in-medgemma/untuned"]
    assert (untuned["macro_f1"] == 0).all() and (untuned["fail_rate"] == 1).all()


def test_a_label_the_hospital_does_not_have_is_in_no_score(compared):
    study, tables = compared
    scores = tables["scores"]
    away = scores[(scores["dataset"] == "c-test")]
    assert set(away["label"]) == set(NIH9)
    settled = score.settled_films(study)
    assert settled.loc[settled["dataset"] == "c-test", "Lung Opacity"].isna().all()
    assert settled.loc[settled["dataset"] == "b-test", list(CHEXPERT14)].isin([0, 1]).all(axis=None)


def test_paired_rows_are_the_steps_of_training(compared):
    study, tables = compared
    paired = tables["paired"]
    steps = paired[["first", "second", "seed"]].drop_duplicates().to_numpy().tolist()
    name = "stand-in-medgemma/{}".format
    assert sorted(steps) == sorted(
        [name(first), name(second), seed]
        for seed in (0, 1)
        for first, second in (
            ("untuned", "sft/free_reasoning"),
            ("sft/free_reasoning", "grpo/hard"),
            ("sft/free_reasoning", "grpo/hard-best"),
        )
    )
    rewards = paired[paired["metric"] == "reward"]
    assert set(rewards["dataset"]) == {"a-validation", "b-test"}  # elsewhere labels are unknown
    assert set(rewards["label_set"]) == {"chexpert14"} and set(rewards["difference"]) == {1.0, -0.5}
    gains = score.gains(paired)
    assert set(gains["dataset"]) == set(score.datasets(study)) and set(gains["metric"]) == {"macro_f1"}
    assert set(gains["step"]) == {
        "stand-in-medgemma/untuned → sft/free_reasoning",
        "stand-in-medgemma/sft/free_reasoning → grpo/hard",
        "stand-in-medgemma/sft/free_reasoning → grpo/hard-best",
    }
    assert all(
        ("gained" in text) == ("/sft/free_reasoning gained" in text) and "cannot" not in text
        for text in score.found(gains)
    )


def test_paired_differences_are_those_of_the_overall_scores(compared):
    _, tables = compared
    keys = ["model", "seed", "dataset", "label_set"]
    macro = tables["overall"].set_index(keys)["macro_f1"]
    for row in score.gains(tables["paired"]).itertuples():
        first = 0 if row.first.endswith("untuned") else row.seed
        where = (row.dataset, row.label_set)
        expected = macro[(row.second, row.seed, *where)] - macro[(row.first, first, *where)]
        assert row.difference == pytest.approx(expected, abs=1e-15) and row.low <= row.difference <= row.high


def test_comparing_twice_gives_the_same_records(compared):
    study, tables = compared
    for name, again in score.compare(study).items():
        pd.testing.assert_frame_equal(again, tables[name])


def test_films_without_a_single_positive_are_compared_without_a_score(study):
    path = study.folder / "curate" / "manifest.parquet"
    manifest = records.load(path)
    manifest[list(CHEXPERT14)] = 0.0
    records.save(manifest, path, records.origin(study))
    tables = score.compare(study)
    assert tables["overall"]["macro_f1"].isna().all() and tables["scores"]["f1"].isna().all()
    assert set(tables["paired"]["metric"]) == {"reward"}
    assert score.in_short(score.gains(tables["paired"])) == [score.UNTRAINED]
    for name, one in tables.items():
        records.save(one, study.folder / f"{name}.parquet", records.origin(study))
        assert records.load(study.folder / f"{name}.parquet").dtypes.equals(one.dtypes)


def test_answers_about_other_films_are_refused(study):
    path = score.answers_path(study, "medgemma", "untuned", 0)
    records.save(records.load(path).iloc[1:], path, records.origin(study))
    with pytest.raises(ValueError, match="a-validation: 59 films are answered and the manifest has 60"):
        score.compare(study)


def test_a_checkpoint_not_asked_yet_is_named(study):
    score.answers_path(study, "medgemma", "grpo/hard", 1).unlink()
    with pytest.raises(records.RecordError, match=r"grpo/hard/seed1/answers\.parquet: no such record"):
        score.compare(study)


def test_results_are_json_with_the_promised_keys(study):
    score.save(study, score.compare(study))
    rows = json.loads(json.dumps(score.results(study), allow_nan=False))
    assert all(list(row) == RESULT_KEYS for row in rows)
    assert len(rows) == 7 * sum(map(len, score.datasets(study).values()))
    assert all(row["phantom"] is True and row["params_hash"] == study.hash and row["n"] == 60 for row in rows)
    inputs = records.load(study.folder / "compare" / "paired.parquet").attrs["origin"]["inputs"]
    assert len(inputs) == 1 + len(study.checkpoints())


def test_an_undefined_score_is_null_in_results(study):
    tables = score.compare(study)
    tables["overall"].loc[0, ["macro_f1", "macro_f1_low", "macro_f1_high"]] = np.nan
    score.save(study, tables)
    assert score.results(study)[0]["macro_f1"] is None


def test_results_before_comparing_say_what_to_run(study):
    with pytest.raises(records.RecordError, match=r"compare/overall\.parquet: no such record; run the notebook"):
        score.results(study)


def test_predictions_are_closed_upwards_where_a_test_set_asks_for_it(study):
    path = score.answers_path(study, "medgemma", "untuned", 0)
    answers = records.load(path)
    answers["labels"], answers["failed"] = [["Edema", "Cardiomegaly"]] * len(answers), False
    records.save(answers, path, records.origin(study))
    films = score.settled_films(study)
    closing = study.tests["b-test"].model_copy(update={"close_predictions": True})
    closed = study.model_copy(update={"tests": study.tests | {"b-test": closing}})
    given = {}
    for name, each in (("as given", study), ("closed", closed)):
        table = score.score_answers(each, films, answers, "b-test", "chexpert14").labels.set_index("label")
        given[name] = set(table.index[(table["tp"] + table["fp"]) > 0])
    assert given["as given"] == {"Edema", "Cardiomegaly"}
    assert given["closed"] == {"Edema", "Cardiomegaly", "Lung Opacity", "Enlarged Cardiomediastinum"}
