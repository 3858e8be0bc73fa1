"""The study's comparison over made-up answers: which rows, which words, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import at

from chexreason import config, records
from chexreason.display import tables
from chexreason.evaluation import compare, metrics, report
from chexreason.labels import CHEXPERT14, LABEL_SETS, NIH9, NIH10, POLICIES

RESULT_KEYS = ["model", "seed", "dataset", "label_set", "ruler", "n", "micro_f1"]
RESULT_KEYS += ["macro_f1", "macro_f1_low", "macro_f1_high"]
RESULT_KEYS += ["fail_rate", "params_hash", "phantom", "refusal_rate", "protocol"]
RESULT_KEYS += ["macro_specificity", "macro_specificity_low", "macro_specificity_high"]
RESULT_KEYS += ["false_alarm_rate", "false_alarm_rate_low", "false_alarm_rate_high"]


def rng(seed=0):
    return np.random.default_rng(seed)


def table(values, columns=None):
    return pd.DataFrame(values, columns=columns)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.2, "gain"),
        (-0.2, -0.01, "loss"),
        (-0.1, 0.1, "no clear difference"),
        (0.0, 0.1, "no clear difference"),
        (-0.1, 0.0, "no clear difference"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, word):
    assert metrics.verdict(low, high) == word
    row = {"dataset": "b-test", "label_set": "shared9", "seed": 2, "first": "m/untuned", "second": "m/sft/x"}
    row |= {"metric": "macro_f1", "difference": (low + high) / 2, "low": low, "high": high}
    (sentence,) = report.step_lines(pd.DataFrame([row]))
    assert (
        {"gain": "gains", "loss": "loses"}.get(word, word) in sentence
        and "macro-F1" in sentence
        and "seed 2" in sentence
        and f"{low:+.3f} to {high:+.3f}" in sentence
    )


def test_in_short_sorts_the_data_sets_of_a_step_by_its_verdict():
    bounds = {"a": (0.1, 0.2), "b": (0.1, 0.3), "c": (-0.2, -0.1), "d": (-0.1, 0.1)}
    rows = [
        {"step": "x → y", "seed": 0, "dataset": name, "low": low, "high": high} for name, (low, high) in bounds.items()
    ]
    assert report.gain_lines(pd.DataFrame(rows)) == [
        "x → y, seed 0: gain on a, b; loss on c; no clear difference on d."
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
    values = yaml.safe_load(config.find("params/mini.yaml").read_text())
    values |= {"seeds": [0, 1], "more_seeds": [], "compare": {"n_resamples": 200, "seed": 0}}
    values["models"] = {"medgemma": values["models"]["medgemma"]}
    values["tests"] = {name: values["tests"][name] for name in ("b-test", "c-test")}
    values["sft"]["runs"] = {"free_reasoning": {"model": "medgemma", "format": "free_reasoning"}}
    values["grpo"]["runs"] = {"hard": {"start": "free_reasoning", "reward": "hard"}}
    file = folder / "params" / "made_up.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(values))
    study = config.load(file)
    make_up(study)
    return study


def make_up(study):
    manifest = pd.concat([films(name) for name in compare.datasets(study)] + [films("sft")], ignore_index=True)
    records.save(manifest, study.folder / "curate" / "manifest.parquet", records.provenance(study))
    for checkpoint in study.checkpoints():
        answers = pd.concat(
            [replies(manifest, name, checkpoint.stage) for name in compare.datasets(study)], ignore_index=True
        )
        records.save(answers, study.paths.answers(checkpoint), records.provenance(study, checkpoint.seed))


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


def replies(manifest, dataset, stage):
    rows = manifest[manifest["split"] == dataset]
    known = [[name for name in CHEXPERT14 if film[name] == 1] for _, film in rows.iterrows()]
    labels = {"untuned": [[] for _ in known], "sft": known, "grpo": [names[:1] for names in known]}
    judged = {"untuned": 0.0, "sft": 1.0, "grpo": 0.5}[stage] if dataset[0] != "c" else np.nan
    return rows[["film", "patient"]].assign(
        dataset=dataset,
        labels=labels[stage],
        failed=stage == "untuned",
        refused=False,
        reward=judged,
        protocol=f"{stage} on {dataset}",
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
    path = study.paths.answers(at("untuned"))
    answers = records.load(path)
    answers["labels"] = [list(CHEXPERT14)] * len(answers)
    records.save(answers, path, records.provenance(study))
    overall = compare.compare(study)["overall"]
    untuned = overall[overall["model"] == "stand-in-medgemma/untuned"]
    assert (untuned["macro_f1"] == 0).all() and (untuned["fail_rate"] == 1).all()


def test_a_label_the_hospital_does_not_have_is_in_no_score(compared):
    study, tables = compared
    scores = tables["scores"]
    away = scores[(scores["dataset"] == "c-test")]
    assert set(away["label"]) == set(NIH10)
    settled = compare.labeled_films(study)
    assert settled.loc[settled["dataset"] == "c-test", "Lung Opacity"].isna().all()
    assert settled.loc[settled["dataset"] == "b-test", list(CHEXPERT14)].isin([0, 1]).all(axis=None)


def test_specificity_and_false_alarms_stand_beside_f1(study):
    from sklearn.metrics import recall_score

    path = study.paths.answers(at("untuned"))
    answers = records.load(path).query("dataset == 'b-test'").assign(failed=False)
    answers["labels"] = [["No Finding"] if k % 3 else ["Edema", "Cardiomegaly"] for k in range(len(answers))]
    films = compare.labeled_films(study)
    labels, overall, _ = compare.score_answers(study, films, answers, "b-test", "shared9")
    truth = films.loc[answers["film"]]
    for row in labels.itertuples():
        given = [row.label in labels for labels in answers["labels"]]
        assert row.specificity == pytest.approx(recall_score(truth[row.label] == 1, given, pos_label=0))
        assert row.specificity_low <= row.specificity <= row.specificity_high
    assert overall["macro_specificity"] == pytest.approx(labels["specificity"].mean())
    alarms = (np.arange(60) % 3 == 0) & (truth[["Edema", "Cardiomegaly"]] == 0).any(axis=1)
    normal = truth["No Finding"] == 1
    assert overall["n_normal"] == normal.sum() > 10
    assert overall["false_alarm_rate"] == pytest.approx(alarms[normal].mean())
    assert overall["false_alarm_rate_low"] < overall["false_alarm_rate"] < overall["false_alarm_rate_high"]


def test_the_records_hold_specificity_and_false_alarms_with_intervals(compared):
    _, tables = compared
    sft, untuned = (tables["overall"].query(f"model.str.contains('/{name}')") for name in ("sft/", "untuned"))
    ends = [f"{name}{end}" for name in ("macro_specificity", "false_alarm_rate") for end in ("", "_low", "_high")]
    assert (sft[ends[:3]] == 1).all(axis=None) and (untuned[ends[:3]] == 1).all(axis=None)  # no answer is wrong
    assert (sft.loc[sft["n_normal"] > 1, ends[3]] == 0).all() and {"n_normal", *ends} <= set(tables["overall"])
    assert (tables["scores"]["specificity"] == 1).all() and {"specificity_low", "specificity_high"} <= set(
        tables["scores"]
    )


def test_a_difference_without_an_interval_is_reported_as_such():
    row = {"dataset": "b", "label_set": "shared9", "seed": 0, "first": "m/untuned", "second": "m/sft/x"}
    row |= {"metric": "macro_f1", "difference": 0.1, "low": np.nan, "high": np.nan, "step": "untuned → sft/x"}
    rows = pd.DataFrame([row])
    (sentence,) = report.step_lines(rows)
    assert sentence.endswith(": +0.100 macro-F1 (no interval: too few patients).") and "no clear difference" in sentence
    assert report.gain_table(rows).loc[0, "change"] == "+0.10 (no interval: too few patients)"
    assert tables.estimate_text(0.5, np.nan, np.nan) == "0.500 (no\u00a0interval)"


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
    gains = report.gains(paired)
    assert set(gains["dataset"]) == set(compare.datasets(study)) and set(gains["metric"]) == {"macro_f1"}
    steps = {"untuned → SFT", "SFT → GRPO (last)", "SFT → GRPO (best)"}
    assert set(report.with_labels(study, gains)["step"]) == steps
    assert all(
        ("gains" in text) == ("/sft/free_reasoning gains" in text) and "no clear" not in text
        for text in report.step_lines(gains)
    )


def test_readers_see_the_run_and_the_model_where_there_are_several(compared):
    study, _ = compared
    full = config.load("params/mini.yaml")
    assert list(report.checkpoint_labels(study).values()) == ["untuned", "SFT", "GRPO (last)", "GRPO (best)"]
    labels = report.checkpoint_labels(full)
    assert labels["stand-in-qwen/untuned"] == "stand-in-qwen: untuned"
    assert labels["stand-in-medgemma/grpo/nuanced-best"] == "stand-in-medgemma: GRPO nuanced (best)"
    sentence, other = (
        "x stand-in-medgemma/grpo/hard-best y stand-in-medgemma/grpo/hard.",
        "stand-in-medgemma/grpo/hardest",
    )
    assert report.with_labels(study, [sentence, other]) == ["x GRPO (best) y GRPO (last).", other]
    scores = report.with_labels(study, pd.DataFrame({"label": ["Edema"], "stand-in-medgemma/untuned": [0.5]}))
    assert list(scores) == ["label", "untuned"]


def test_a_naming_column_with_one_value_is_not_shown():
    rows = pd.DataFrame({"seed": [0, 0], "dataset": ["b", "c"], "f1": [0.1, 0.2]})
    assert list(tables.compact(rows)) == ["dataset", "f1"]
    assert list(tables.compact(rows.assign(seed=[0, 1]))) == ["seed", "dataset", "f1"]


def test_paired_differences_are_those_of_the_overall_scores(compared):
    _, tables = compared
    keys = ["model", "seed", "dataset", "label_set"]
    macro = tables["overall"].set_index(keys)["macro_f1"]
    for row in report.gains(tables["paired"]).itertuples():
        first = 0 if row.first.endswith("untuned") else row.seed
        where = (row.dataset, row.label_set)
        expected = macro[(row.second, row.seed, *where)] - macro[(row.first, first, *where)]
        assert row.difference == pytest.approx(expected, abs=1e-15) and row.low <= row.difference <= row.high


def test_every_row_names_the_protocol_its_answers_were_given_under(compared):
    _, tables = compared
    for name in ("scores", "overall"):
        asked = tables[name]["model"].str.split("/").str[1] + " on " + tables[name]["dataset"]
        assert (tables[name]["protocol"] == asked).all()


def test_answers_under_two_protocols_are_refused(study):
    path = study.paths.answers(at("untuned"))
    answers = records.load(path)
    answers.loc[0, "protocol"] = "another"
    records.save(answers, path, records.provenance(study))
    with pytest.raises(
        ValueError,
        match="a-validation: these predictions have several protocols, another, untuned on a-validation; run 5_predict",
    ):
        compare.compare(study)


def test_failures_are_empty_answers_in_the_score_and_left_out_beside_it(study):
    """Every second reply to SFT fails, all others are right: half the labels are found, or all of those asked for."""
    path = study.paths.answers(at("sft/free_reasoning"))
    answers = records.load(path)
    answers["failed"] = np.arange(len(answers)) % 2 == 0
    answers["refused"] = np.arange(len(answers)) % 4 == 0
    records.save(answers, path, records.provenance(study))
    settled = compare.labeled_films(study)
    overall = compare.score_answers(study, settled, answers, "b-test", "chexpert14").overall
    read = answers.loc[(answers["dataset"] == "b-test") & ~answers["failed"], "film"]
    present = settled.loc[settled["dataset"] == "b-test", list(CHEXPERT14)] == 1
    found, all_of_them = present[present.index.isin(read)].to_numpy().sum(), present.to_numpy().sum()
    assert overall["micro_recall"] == found / all_of_them and overall["micro_precision"] == 1
    assert overall["micro_f1_answered"] == overall["macro_f1_answered"] == 1 and overall["n_answered"] == 30
    assert overall["n"] == 60 and overall["fail_rate"] == 0.5 and overall["refusal_rate"] == 0.25


def test_the_way_to_the_far_hospital_is_measured_on_the_nine_labels_both_have(compared):
    study, tables = compared
    assert compare.transfer_pairs(study) == [(("b-test", "shared9"), ("c-test", "nih9"))]
    macro = tables["overall"].set_index(["model", "seed", "dataset", "label_set"])["macro_f1"]
    transfer = tables["transfer"].set_index(["model", "seed"])
    assert len(transfer) == 7
    for (model, seed), row in transfer.iterrows():
        in_domain, out_of_domain = macro[model, seed, "b-test", "shared9"], macro[model, seed, "c-test", "nih9"]
        assert [row["in_domain_macro_f1"], row["out_of_domain_macro_f1"], row["change"]] == [
            in_domain,
            out_of_domain,
            out_of_domain - in_domain,
        ]
        assert (
            np.isnan(row["relative"])
            if in_domain == 0
            else row["relative"] == pytest.approx(out_of_domain / in_domain - 1)
        )
    paired = tables["transfer_paired"].query("metric == 'change'")
    assert len(paired) == 6
    for row in paired.itertuples():
        before = transfer.loc[(row.first, 0 if row.first.endswith("untuned") else row.seed), "change"]
        assert row.difference == pytest.approx(transfer.loc[(row.second, row.seed), "change"] - before)


SCORED = {"b": ["chexpert14", "shared9", "competition5"], "c": ["nih9", "nih10"]}


def pairs(*tests: tuple[str, str, list[str]], **label_sets: list[str]) -> list[str]:
    """The transfer pairs of test sets given as (name, source, label sets), each written as a text."""
    values = yaml.safe_load(config.find("params/mini.yaml").read_text())
    values |= {"label_sets": label_sets, "sources": {name: values["sources"]["b"] for name in "abcd"}}
    values["layers"] = None
    values["tests"] = {name: {"source": source, "films": 5, "label_sets": sets} for name, source, sets in tests}
    found = compare.transfer_pairs(config.Study.model_validate(values))
    return [
        f"{in_domain[0]} {in_domain[1]} {out_of_domain[0]} {out_of_domain[1]}" for in_domain, out_of_domain in found
    ]


def test_no_test_set_with_the_same_labels_as_one_elsewhere_is_left_out_of_transfer():
    b, c = (("b1", "b", SCORED["b"]), ("b2", "b", SCORED["b"])), (("c1", "c", SCORED["c"]), ("c2", "c", SCORED["c"]))
    default = ["b1 shared9 c1 nih9", "b2 shared9 c2 nih9"]
    assert pairs(b[0], c[0], b[1], c[1]) == default == pairs(*b, *c)
    assert pairs(*c, *b) == default  # the source scored on more labels is in-domain, wherever it is in the file
    third = ("c3", "c", ["nih9"])
    assert pairs(*b, *c, third) == [*default, "b1 shared9 c3 nih9", "b2 shared9 c3 nih9"]
    assert pairs(b[0], *c, third) == ["b1 shared9 c1 nih9", "b1 shared9 c2 nih9", "b1 shared9 c3 nih9"]
    assert pairs(*b, c[0]) == ["b1 shared9 c1 nih9", "b2 shared9 c1 nih9"]
    elsewhere = ("d1", "d", ["nih9"])
    assert pairs(b[0], c[0], elsewhere) == ["b1 shared9 c1 nih9", "b1 shared9 d1 nih9", "c1 nih9 d1 nih9"]


def test_transfer_is_measured_on_whatever_labels_two_sources_have_in_common():
    both = ["chexpert14", "shared9"]
    assert pairs(("b1", "b", both), ("d1", "d", both)) == ["b1 shared9 d1 shared9"]  # the nine before all fourteen
    assert pairs(("b1", "b", ["competition5", "chexpert14"]), ("d1", "d", ["chexpert14", "competition5"])) == [
        "b1 chexpert14 d1 chexpert14"
    ]
    mine = {"mine": ["Edema", "Fracture"], "same": ["Fracture", "Edema"]}
    assert pairs(("b1", "b", ["mine"]), ("d1", "d", ["same"]), **mine) == ["b1 mine d1 same"]
    assert pairs(("b1", "b", both), ("b2", "b", both)) == []  # one source
    assert pairs(("b1", "b", ["chexpert14"]), ("c1", "c", ["nih9"])) == []  # other labels


def test_a_label_set_of_the_params_file_is_scored_and_its_transfer_measured(tmp_path):
    given = made_up(tmp_path)
    sets = {"mine": ["Edema", "Cardiomegaly"]}
    tests = {name: test.model_copy(update={"label_sets": ["mine"]}) for name, test in given.tests.items()}
    study = given.model_copy(update={"label_sets": sets, "tests": tests})
    tables = compare.compare(study)
    rows = tables["scores"].query("label_set == 'mine'")
    assert set(rows["label"]) == {"Edema", "Cardiomegaly"} and set(rows["dataset"]) == {"b-test", "c-test"}
    assert set(tables["transfer"]["label_set"]) == {"mine"} and len(tables["transfer"]) == 7
    assert " from b-test to c-test on mine: " in report.transfer_lines(tables["transfer"])[-1]


def test_the_words_about_the_way_follow_its_interval():
    row = {
        "model": "m/grpo/hard",
        "seed": 0,
        "in_domain": "b",
        "out_of_domain": "c",
        "label_set": "shared9",
        "in_domain_macro_f1": 0.4,
        "out_of_domain_macro_f1": 0.3,
    }
    row |= {"change": -0.1, "relative": -0.25, "relative_low": -0.4, "relative_high": -0.1}
    bounds = [(-0.15, -0.05), (-0.2, 0.1), (0.01, 0.1)]
    rows = pd.DataFrame([row | {"change_low": low, "change_high": high} for low, high in bounds])
    lost, unclear, gained = report.transfer_lines(rows)
    assert lost == (
        "m/grpo/hard, seed 0, from b to c: macro-F1 0.400 to 0.300 (-25%, 95 % interval -40% to -10%), loss."
    )
    assert unclear.endswith("no clear difference.") and gained.endswith("gain.")
    nothing = rows.head(1).assign(in_domain_macro_f1=0.0, relative=np.nan)
    assert "0.000 to 0.300 (from nothing)" in report.transfer_lines(nothing)[0]
    assert report.transfer_lines(rows.assign(change=np.nan)) == [report.ALONE]


def test_more_is_lost_only_where_the_interval_of_the_difference_says_so():
    row = {
        "in_domain": "b",
        "out_of_domain": "c",
        "seed": 0,
        "first": "m/sft/x",
        "second": "m/grpo/hard",
        "metric": "change",
    }
    row |= {"label_set": "shared9"}
    rows = pd.DataFrame(
        [row | {"difference": (low + high) / 2, "low": low, "high": high} for low, high in [(-0.2, -0.1), (-0.1, 0.1)]]
    )
    more, unclear = report.gap_lines(rows)
    assert "m/grpo/hard (seed 0) loses more than m/sft/x: -0.150 macro-F1" in more
    assert "shows no clear difference from m/sft/x: +0.000 macro-F1" in unclear
    assert report.gap_lines(rows.head(0)) == [report.UNTRAINED]


def test_each_step_is_tested_label_by_label_and_adjusted_within_its_data_set(compared):
    _, tables = compared
    keys = ["dataset", "label_set", "seed", "first", "second"]
    for (_, label_set, *_), rows in tables["mcnemar"].groupby(keys):
        assert list(rows["label"]) == list(LABEL_SETS[label_set])
        np.testing.assert_array_equal(rows["p_holm"], metrics.holm(rows["p"].to_numpy()))
    gained = tables["mcnemar"].query("second.str.contains('/sft/')")
    assert (gained["first_only"] == 0).all()  # SFT is always right
    support = tables["scores"].query("model.str.endswith('untuned')").set_index(["dataset", "label_set", "label"])
    for row in gained.itertuples():  # and the untuned model just where there is nothing
        assert row.second_only == support.loc[(row.dataset, row.label_set, row.label), "support"]


def test_discordant_counts_the_labels_on_either_side():
    tests = pd.DataFrame({"first_only": [9, 0, 3], "second_only": [0, 9, 3], "p_holm": [0.01, 0.02, 0.9]})
    said = report.mcnemar_summary(tests)
    assert "Of 3 tests, 2 have p below 0.05 after Holm's adjustment: 1 in favor of the later checkpoint, 1 in" in said
    assert "films as independent" in said
    assert report.mcnemar_summary(tests.head(0)) == report.UNTRAINED


def test_clearly_different_labels_are_listed_on_the_side_they_are_better_on():
    names = {"dataset": "b", "seed": 0, "first": "m/sft/x", "second": "m/grpo/hard"}
    rows = [("Edema", 1, 9, 0.01), ("Fracture", 9, 1, 0.02), ("Pneumonia", 2, 8, 0.04), ("Atelectasis", 1, 9, 0.2)]
    tests = pd.DataFrame(rows, columns=["label", "first_only", "second_only", "p_holm"]).assign(**names)
    other = tests.tail(1).assign(dataset="c")
    table = report.different_labels(pd.concat([tests, other], ignore_index=True))
    assert table.to_dict("records") == [
        names | {"better": "Edema, Pneumonia", "worse": "Fracture"},
        names | {"dataset": "c", "better": "–", "worse": "–"},
    ]


def test_sensitivity_settles_by_every_policy_and_closes_where_that_can_change_a_label(compared):
    study, tables = compared
    table = compare.sensitivity(study)
    assert set(zip(table["dataset"], table["policy"], table["closed"], strict=True)) == {
        *(("b-test", policy, closed) for policy in POLICIES for closed in (False, True)),
        *(("c-test", policy, False) for policy in POLICIES),
    }
    assert len(table) == 7 * 9
    keys = ["model", "seed", "dataset", "label_set"]
    as_studied = table[(table["policy"] == study.curate.policy) & ~table["closed"]].set_index(keys)
    columns = ["macro_f1", "macro_f1_low", "macro_f1_high"]
    expected = tables["overall"].set_index(keys).loc[as_studied.index, columns]
    pd.testing.assert_frame_equal(as_studied[columns], expected)
    sft = table[table["model"].str.contains("/sft/") & ~table["closed"]].groupby("policy")["macro_f1"].first()
    assert sft["u_zeros"] == sft["u_ignore"] == 1 and sft["u_ones"] < 1  # it knew the certain positives only
    told = report.sensitivity_table(table)
    assert len(told) == 14 and told.loc[told["dataset"] == "c-test", "u_ones, closed"].isna().all()


def test_closing_changes_truth_and_answers_alike(study):
    answers = records.load(study.paths.answers(at("sft/free_reasoning")))
    judged = compare.align_predictions(study, compare.labeled_films(study), answers, "b-test")
    closed = compare.with_parent_labels(judged)
    assert (closed.truth == closed.given).all(axis=None) and (judged.truth == judged.given).all(axis=None)
    assert closed.truth["Lung Opacity"].sum() > judged.truth["Lung Opacity"].sum()


def test_a_study_without_a_step_of_training_or_a_far_hospital_has_empty_records(study):
    alone = study.model_copy(
        update={
            "tests": {"b-test": study.tests["b-test"]},
            "sft": study.sft.model_copy(update={"runs": {}}),
            "grpo": study.grpo.model_copy(update={"runs": {}}),
        }
    )
    tables = compare.compare(alone)
    assert {name: len(tables[name]) for name in ("paired", "mcnemar", "transfer", "transfer_paired")} == dict.fromkeys(
        ("paired", "mcnemar", "transfer", "transfer_paired"), 0
    )
    for name in ("paired", "mcnemar", "transfer", "transfer_paired"):
        records.save(tables[name], study.folder / f"{name}.parquet", records.provenance(study))
        assert records.load(study.folder / f"{name}.parquet").dtypes.equals(tables[name].dtypes)


def test_the_spread_over_seeds_stands_beside_the_interval_over_patients():
    rows = [("m/sft/x", seed, "b", "shared9", value) for seed, value in ((0, 0.2), (1, 0.5), (2, 0.35))]
    rows += [("m/untuned", 0, "b", "shared9", 0.1), ("m/untuned", 0, "b", "chexpert14", 0.9)]
    overall = pd.DataFrame(rows, columns=["model", "seed", "dataset", "label_set", "macro_f1"])
    overall = overall.assign(macro_f1_low=overall["macro_f1"] - 0.05, macro_f1_high=overall["macro_f1"] + 0.05)
    table = report.seeds(overall)
    assert table["seeds"].tolist() == [3, 1]
    assert table.loc[0, ["macro_f1", "lowest", "highest", "sd"]].tolist() == pytest.approx([0.2, 0.2, 0.5, 0.15])
    assert table.loc[1, ["lowest", "highest"]].tolist() == [0.1, 0.1] and np.isnan(table.loc[1, "sd"])
    assert "m/sft/x on b: 0.200 to 0.500 with 3 seeds" in report.seed_summary(table)
    assert report.seed_summary(report.seeds(overall[overall["seed"] == 0])).startswith("Every run has one")


def test_a_label_without_a_positive_film_is_named():
    scores = pd.DataFrame({"dataset": ["b", "b", "c"], "label": ["Edema", "Fracture", "Edema"], "support": [3, 0, 0]})
    assert report.without_positive(scores).endswith("left out of the macro mean: Fracture on b, Edema on c.")
    assert report.without_positive(scores.head(1)).startswith("Every label has a positive film")


def test_a_note_stands_beside_its_models_name_and_is_no_markup(study):
    assert report.notes(study) == []
    noted = study.models["medgemma"].model_copy(update={"note": "Seen <b>before</b>"})
    (line,) = report.notes(study.model_copy(update={"models": {"medgemma": noted}}))
    assert line == r"stand\-in\-medgemma: Seen \<b\>before\<\/b\>"


def test_f1_by_label_ends_with_the_macro_mean_of_each_test_set(compared):
    study, tables = compared
    table = report.f1_table(study, tables)
    assert list(zip(table["dataset"], table["label"], strict=True)) == [
        *(("b-test", label) for label in (*CHEXPERT14, "Macro F1")),
        *(("c-test", label) for label in (*NIH9, "Macro F1")),
    ]
    checkpoints = ("untuned", "sft/free_reasoning", "grpo/hard", "grpo/hard-best")
    assert list(table.columns[2:]) == [f"stand-in-medgemma/{name}" for name in checkpoints]
    for _, rows in table.groupby("dataset"):
        np.testing.assert_allclose(rows.iloc[-1, 2:].astype(float), rows.iloc[:-1, 2:].mean())


def test_comparing_twice_gives_the_same_records(compared):
    study, tables = compared
    for name, again in compare.compare(study).items():
        pd.testing.assert_frame_equal(again, tables[name])


def test_films_without_a_single_positive_are_compared_without_a_score(study):
    path = study.folder / "curate" / "manifest.parquet"
    manifest = records.load(path)
    manifest[list(CHEXPERT14)] = 0.0
    records.save(manifest, path, records.provenance(study))
    tables = compare.compare(study)
    assert tables["overall"]["macro_f1"].isna().all() and tables["scores"]["f1"].isna().all()
    assert set(tables["paired"]["metric"]) == {"reward"}
    assert report.gain_lines(report.gains(tables["paired"])) == [report.UNTRAINED]
    for name, one in tables.items():
        records.save(one, study.folder / f"{name}.parquet", records.provenance(study))
        assert records.load(study.folder / f"{name}.parquet").dtypes.equals(one.dtypes)


def test_answers_about_other_films_are_refused(study):
    path = study.paths.answers(at("untuned"))
    records.save(records.load(path).iloc[1:], path, records.provenance(study))
    with pytest.raises(ValueError, match="a-validation: predictions cover 59 films, the manifest lists 60"):
        compare.compare(study)


def test_a_checkpoint_not_asked_yet_is_named(study):
    study.paths.answers(at("grpo/hard", seed=1)).unlink()
    with pytest.raises(records.RecordError, match=r"grpo/hard/seed1/answers\.parquet: no such record"):
        compare.compare(study)


def test_results_are_json_with_the_promised_keys(study):
    compare.save(study, compare.compare(study))
    rows = json.loads(json.dumps(compare.results(study), allow_nan=False))
    assert all(list(row) == RESULT_KEYS for row in rows)
    assert len(rows) == 7 * sum(map(len, compare.datasets(study).values()))
    assert all(row["phantom"] is True and row["params_hash"] == study.hash and row["n"] == 60 for row in rows)
    inputs = records.load(study.folder / "compare" / "paired.parquet").attrs["provenance"]["inputs"]
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
    path = study.paths.answers(at("untuned"))
    answers = records.load(path)
    answers["labels"], answers["failed"] = [["Edema", "Cardiomegaly"]] * len(answers), False
    records.save(answers, path, records.provenance(study))
    films = compare.labeled_films(study)
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
