"""The four findings: which comparisons speak to each, and the words that their intervals choose."""

import pandas as pd
import pytest
import yaml
from conftest import at
from test_compare import make_up

from chexreason import config, records
from chexreason.display import figures
from chexreason.evaluation import compare
from chexreason.paper import findings, published


def study_of(folder, sft, grpo):
    """A study of 60 films a data set with made-up answers: untuned fails always, SFT knows all, GRPO a part."""
    values = yaml.safe_load(config.find("params/mini.yaml").read_text(encoding="utf-8"))
    values |= {"seeds": [0], "more_seeds": [], "compare": {"n_resamples": 100, "seed": 0}}
    values["tests"] = {name: values["tests"][name] for name in ("b-test", "c-test")}
    values["models"]["qwen"]["full"] = False
    values["sft"]["runs"] = {named(model, form): {"model": model, "format": form} for model, form in sft}
    values["grpo"]["runs"] = {reward: {"start": named(model, form), "reward": reward} for model, form, reward in grpo}
    file = folder / "params" / "made_up.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    study = config.load(file)
    make_up(study)
    return study


def named(model, form):
    return form if model == "medgemma" else f"{model}-{form}"


def silence(study, model, checkpoint):
    """Let a checkpoint have answered nothing."""
    path = study.paths.answers(at(checkpoint, model))
    answers = records.load(path)
    answers["labels"] = [[] for _ in range(len(answers))]
    records.save(answers, path, records.provenance(study))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that speaks to all four, and its comparisons."""
    formats = ("free_reasoning", "reasoning_a")
    sft = [(model, form) for model in ("medgemma", "qwen") for form in formats]
    grpo = [("medgemma", "free_reasoning", reward) for reward in ("hard", "nuanced")]
    study = study_of(tmp_path_factory.mktemp("study"), sft, grpo)
    silence(study, "qwen", "sft/qwen-free_reasoning")
    silence(study, "medgemma", "sft/reasoning_a")
    return study, findings.comparisons(study, compare.compare(study)["paired"])


def test_each_finding_has_its_comparisons(whole):
    _, table = whole
    keys = table[["finding", "second", "dataset", "expected"]].drop_duplicates().to_numpy().tolist()
    name = "stand-in-medgemma/{}".format
    grpo = [f"grpo/{reward}{which}" for reward in ("hard", "nuanced") for which in ("", "-best")]
    first = [[1, name(one), *where] for where in (["b-test", "gain"], ["c-test", "loss"]) for one in grpo]
    assert [key for key in keys if key[0] == 1] == first
    assert [2, name("sft/free_reasoning"), "c-test", "gain"] in keys
    assert [key for key in keys if key[0] >= 3] == [
        [3, name("sft/reasoning_a"), "a-validation", "no gain"],
        [3, "stand-in-qwen/sft/qwen-reasoning_a", "a-validation", "gain"],
        [4, name("grpo/hard"), "a-validation", "level"],
        [4, name("grpo/hard-best"), "a-validation", "level"],
    ]


def test_verdicts_follow_what_was_made_up(whole):
    _, table = whole
    grpo = table[table["finding"] == 1]
    assert set(grpo["difference"] < 0) == {True}  # GRPO knows less than SFT everywhere
    assert set(zip(grpo["expected"], grpo["verdict"], strict=True)) == {
        ("gain", "contradicts"),
        ("loss", "agrees"),
    }
    assert set(table.loc[table["finding"] == 3, "verdict"]) == {"agrees"}  # lost on one model, gained on the other
    assert table.loc[table["finding"] == 3, "difference"].tolist() == pytest.approx([-1, 1])
    assert set(table.loc[table["finding"] == 4, "verdict"]) == {"inconclusive"}  # equal answers: level is never shown


def test_a_comparison_is_reported_with_its_step_and_interval(whole):
    _, table = whole
    row = findings.comparison_table(table).set_index("finding").loc[2].iloc[0]
    assert row["step"] == "stand-in-medgemma/untuned → sft/free_reasoning" and row["verdict"] == "agrees"
    assert row["change"] == "+1.000 (+1.000\u00a0to\u00a0+1.000)"


def test_the_conclusions_count_verdicts_and_say_phantom(whole):
    study, table = whole
    first, second, third, fourth = findings.conclusions(study, table)
    assert "in some comparisons, and others speak against it (4 agrees, 4 contradicts, 0 inconclusive)" in first
    # Qwen after SFT was silenced, and so was Qwen untuned
    assert second == "Finding 2 appears in this phantom run in part (1 agrees, 0 contradicts, 1 inconclusive)."
    assert third == "Finding 3 appears in this phantom run (2 agrees, 0 contradicts, 0 inconclusive)."
    assert "can be neither seen nor ruled out" in fourth


def test_the_summary_keeps_published_and_phantom_under_headers_of_their_own(whole):
    study, table = whole
    summary = findings.summary(study, table)
    assert list(summary) == ["finding", "the paper, published", "this run (phantom films)", "how sure"]
    assert (
        "0.282 to 0.346" in summary["the paper, published"][0]
        and "0.299 to 0.243" in summary["the paper, published"][0]
    )
    assert summary.iloc[0, 2] == "of 4 expected gain: 4 loss; of 4 expected loss: 4 loss"
    assert "one training seed" in summary["how sure"][0]


def test_a_finding_without_a_comparison_is_marked(tmp_path):
    study = study_of(tmp_path, [("medgemma", "free_reasoning")], [])
    table = findings.comparisons(study, compare.compare(study)["paired"])
    assert set(table["finding"]) == {2}
    lines = findings.conclusions(study, table)
    assert [("cannot speak to" in line) for line in lines] == [True, False, True, True]
    assert findings.summary(study, table).iloc[0, 2] == "no comparison speaks to it"


@pytest.mark.parametrize(
    ("name", "left_to_full"), [("mini", [True] * 4), ("smoke", [True, True, False, False]), ("nih_sample", [False] * 4)]
)
def test_what_make_full_would_add_is_read_from_the_params_file(name, left_to_full):
    study = config.load(f"params/{name}.yaml", full=False)
    nothing = pd.DataFrame(columns=["finding", "expected", "result", "verdict"])
    shown = findings.summary(study, nothing).iloc[:, 2]
    assert [text.endswith("left to a full run") for text in shown] == left_to_full


def test_a_study_that_trains_nothing_is_reported_and_drawn(tmp_path):
    from matplotlib import pyplot as plt

    study = study_of(tmp_path, [], [])
    table = findings.comparisons(study, compare.compare(study)["paired"])
    assert findings.comparison_table(table).empty and all(
        "cannot speak to" in line for line in findings.conclusions(study, table)
    )
    ax = figures.findings(table, plt.figure().gca(), phantom=True)
    assert [text.get_text() for text in ax.texts] == ["no comparison"]
    plt.close("all")


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["inconclusive", "inconclusive"], "can be neither seen nor ruled out in this run"),
        (["agrees", "agrees"], "appears in this run ("),
        (["agrees", "inconclusive"], "appears in this run in part"),
        (["contradicts", "inconclusive"], "does not appear in this run, which speaks against it"),
        (["contradicts", "agrees"], "in some comparisons, and others speak against it"),
    ],
)
def test_the_word_for_a_finding_is_chosen_by_its_verdicts(verdicts, word):
    assert word in findings._conclusion(pd.DataFrame({"verdict": verdicts}), "this run")


def test_what_the_paper_says_is_what_its_tables_hold():
    texts = findings.paper()
    assert f"{published.printed_macro('NIH')['MedGemma-4B SFT']:.3f}" in texts[2]
    assert "0.208 against 0.131 on Qwen" in texts[3] and "0.139 against 0.253 on MedGemma" in texts[3]
    assert "0.258 and 0.257" in texts[4]
