"""The study's comparison over made-up answers: which rows, which words, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from chexreason import compare, params, records, score
from chexreason.labels import CHEXPERT14, NIH9

RESULT_KEYS = ["model", "seed", "dataset", "label_set", "n", "micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high"]
RESULT_KEYS += ["fail_rate", "params_hash", "phantom"]


def rng(seed=0):
    return np.random.default_rng(seed)


def table(values, columns=None):
    return pd.DataFrame(values, columns=columns)


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
    (sentence,) = compare.found(pd.DataFrame([row]))
    assert word in sentence and "macro-F1" in sentence and f"{low:+.3f} to {high:+.3f}" in sentence


def test_in_short_sorts_the_data_sets_of_a_step_by_its_verdict():
    bounds = {"a": (0.1, 0.2), "b": (0.1, 0.3), "c": (-0.2, -0.1), "d": (-0.1, 0.1)}
    rows = [
        {"step": "x → y", "seed": 0, "dataset": name, "low": low, "high": high} for name, (low, high) in bounds.items()
    ]
    assert compare.in_short(pd.DataFrame(rows)) == [
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
    return study, compare.compare(study)


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
    manifest = pd.concat([films(name) for name in compare.datasets(study)] + [films("sft")], ignore_index=True)
    records.save(manifest, study.folder / "curate" / "manifest.parquet", records.origin(study))
    for model, checkpoint, seed in study.checkpoints():
        answers = pd.concat(
            [replies(manifest, name, checkpoint) for name in compare.datasets(study)], ignore_index=True
        )
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
    sets = sum(map(len, compare.datasets(study).values()))
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
    path = compare.answers_path(study, "medgemma", "untuned", 0)
    answers = records.load(path)
    answers["labels"] = [list(CHEXPERT14)] * len(answers)
    records.save(answers, path, records.origin(study))
    overall = compare.compare(study)["overall"]
    untuned = overall[overall["model"] == "stand-in-medgemma/untuned"]
    assert (untuned["macro_f1"] == 0).all() and (untuned["fail_rate"] == 1).all()


def test_a_label_the_hospital_does_not_have_is_in_no_score(compared):
    study, tables = compared
    scores = tables["scores"]
    away = scores[(scores["dataset"] == "c-test")]
    assert set(away["label"]) == set(NIH9)
    settled = compare.settled_films(study)
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
    gains = compare.gains(paired)
    assert set(gains["dataset"]) == set(compare.datasets(study)) and set(gains["metric"]) == {"macro_f1"}
    assert set(gains["step"]) == {
        "stand-in-medgemma/untuned → sft/free_reasoning",
        "stand-in-medgemma/sft/free_reasoning → grpo/hard",
        "stand-in-medgemma/sft/free_reasoning → grpo/hard-best",
    }
    assert all(
        ("gained" in text) == ("/sft/free_reasoning gained" in text) and "cannot" not in text
        for text in compare.found(gains)
    )


def test_paired_differences_are_those_of_the_overall_scores(compared):
    _, tables = compared
    keys = ["model", "seed", "dataset", "label_set"]
    macro = tables["overall"].set_index(keys)["macro_f1"]
    for row in compare.gains(tables["paired"]).itertuples():
        first = 0 if row.first.endswith("untuned") else row.seed
        where = (row.dataset, row.label_set)
        expected = macro[(row.second, row.seed, *where)] - macro[(row.first, first, *where)]
        assert row.difference == pytest.approx(expected, abs=1e-15) and row.low <= row.difference <= row.high


def test_comparing_twice_gives_the_same_records(compared):
    study, tables = compared
    for name, again in compare.compare(study).items():
        pd.testing.assert_frame_equal(again, tables[name])


def test_films_without_a_single_positive_are_compared_without_a_score(study):
    path = study.folder / "curate" / "manifest.parquet"
    manifest = records.load(path)
    manifest[list(CHEXPERT14)] = 0.0
    records.save(manifest, path, records.origin(study))
    tables = compare.compare(study)
    assert tables["overall"]["macro_f1"].isna().all() and tables["scores"]["f1"].isna().all()
    assert set(tables["paired"]["metric"]) == {"reward"}
    assert compare.in_short(compare.gains(tables["paired"])) == [compare.UNTRAINED]
    for name, one in tables.items():
        records.save(one, study.folder / f"{name}.parquet", records.origin(study))
        assert records.load(study.folder / f"{name}.parquet").dtypes.equals(one.dtypes)


def test_answers_about_other_films_are_refused(study):
    path = compare.answers_path(study, "medgemma", "untuned", 0)
    records.save(records.load(path).iloc[1:], path, records.origin(study))
    with pytest.raises(ValueError, match="a-validation: 59 films are answered and the manifest has 60"):
        compare.compare(study)


def test_a_checkpoint_not_asked_yet_is_named(study):
    compare.answers_path(study, "medgemma", "grpo/hard", 1).unlink()
    with pytest.raises(records.RecordError, match=r"grpo/hard/seed1/answers\.parquet: no such record"):
        compare.compare(study)


def test_results_are_json_with_the_promised_keys(study):
    compare.save(study, compare.compare(study))
    rows = json.loads(json.dumps(compare.results(study), allow_nan=False))
    assert all(list(row) == RESULT_KEYS for row in rows)
    assert len(rows) == 7 * sum(map(len, compare.datasets(study).values()))
    assert all(row["phantom"] is True and row["params_hash"] == study.hash and row["n"] == 60 for row in rows)
    inputs = records.load(study.folder / "compare" / "paired.parquet").attrs["origin"]["inputs"]
    assert len(inputs) == 1 + len(study.checkpoints())


def test_an_undefined_score_is_null_in_results(study):
    tables = compare.compare(study)
    tables["overall"].loc[0, ["macro_f1", "macro_f1_low", "macro_f1_high"]] = np.nan
    compare.save(study, tables)
    assert compare.results(study)[0]["macro_f1"] is None


def test_results_before_comparing_say_what_to_run(study):
    with pytest.raises(records.RecordError, match=r"compare/overall\.parquet: no such record; run the notebook"):
        compare.results(study)


def test_predictions_are_closed_upwards_where_a_test_set_asks_for_it(study):
    path = compare.answers_path(study, "medgemma", "untuned", 0)
    answers = records.load(path)
    answers["labels"], answers["failed"] = [["Edema", "Cardiomegaly"]] * len(answers), False
    records.save(answers, path, records.origin(study))
    films = compare.settled_films(study)
    closing = study.tests["b-test"].model_copy(update={"close_predictions": True})
    closed = study.model_copy(update={"tests": study.tests | {"b-test": closing}})
    given = {}
    for name, each in (("as given", study), ("closed", closed)):
        table = compare.score_answers(each, films, answers, "b-test", "chexpert14").labels.set_index("label")
        given[name] = set(table.index[(table["tp"] + table["fp"]) > 0])
    assert given["as given"] == {"Edema", "Cardiomegaly"}
    assert given["closed"] == {"Edema", "Cardiomegaly", "Lung Opacity", "Enlarged Cardiomediastinum"}


def test_each_data_set_has_draws_of_its_own_the_same_every_time(study):
    first = compare.generator(study, "b-test").integers(1000, size=9).tolist()
    assert first == compare.generator(study, "b-test").integers(1000, size=9).tolist()
    assert first != compare.generator(study, "c-test").integers(1000, size=9).tolist()
