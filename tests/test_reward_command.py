"""`chexreason reward` judges a reward on the replies that a study has recorded."""

import json

import pandas as pd
import pytest
from conftest import at
from scipy.stats import spearmanr
from small import curated
from test_own_rewards import FILE, run

from chexreason import config, models, records
from chexreason.cli import main
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol

WRITTEN = ("Cardiomegaly", "Edema, Pleural Effusion", "No Finding")
FAULTY = """
def fails(completions):
    return [1 / (0 if "Edema" in each[0]["content"] else 1) for each in completions]


def none(completions):
    return [None if "Edema" in each[0]["content"] else 1.0 for each in completions]


def constant(completions):
    return [1.0] * len(completions)


def together(completions):
    return [1.0] if len(completions) == 1 else []
"""


def reply(names: str, thought: str = "I look at the film.") -> str:
    return f"<think>{thought}</think>\n<solution>{names}</solution>"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    """The small study with recorded answers of three checkpoints on validation, written by hand."""
    folder = tmp_path_factory.mktemp("replies")
    (folder / "params").mkdir()
    (folder / "params" / "mine.py").write_text(FILE, encoding="utf-8")
    (folder / "params" / "faulty.py").write_text(FAULTY, encoding="utf-8")
    study = curated(folder, {"grpo.runs": {"own": run("mine.py:recall", reward_args={"weight": 2.0})}})
    films, processor = curate.dataset(study, study.validation), models.load_processor(study.models["medgemma"])
    asked = [at(name) for name in ("untuned", "sft/free_reasoning", "grpo/own")]
    for checkpoint, names in zip(asked, WRITTEN, strict=True):
        protocol = Protocol.of(study, study.prompt(checkpoint), study.validation)
        table = predict.read(study, study.validation, films, [reply(names)] * len(films), processor, protocol)
        records.save(table, study.paths.answers(checkpoint), records.provenance(study))
    return study


def printed(capsys, study: config.Study, *arguments: str) -> dict:
    assert main(["reward", arguments[0], str(study.file), *arguments[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_rewards_distribution_contrast_and_agreement_by_hand(study, capsys):
    found = printed(capsys, study, "mine.py:recall")
    films = curate.dataset(study, study.validation)
    truth = [set(labels) for labels in films["labels"]]
    values = pd.DataFrame(
        [[2.0 * len(true & set(names.split(", "))) / max(1, len(true)) for true in truth] for names in WRITTEN]
    )  # one row per checkpoint
    every = values.to_numpy().ravel()
    assert found["reward_args"] == {"weight": 2.0}  # the run's own
    assert (found["replies"], found["films"]) == (3 * len(films), len(films))
    assert found["mean"] == pytest.approx(every.mean()) and found["std"] == pytest.approx(every.std())
    assert found["zeros"] == pytest.approx((every == 0).mean())
    assert found["quantiles"]["0.5"] == pytest.approx(pd.Series(every).median())
    assert found["contrast"]["mean_std"] == pytest.approx(values.std().mean())
    assert found["contrast"]["none"] == pytest.approx((values.std() == 0).mean())
    ranked = pd.concat([records.load(study.paths.answers(at(each["checkpoint"]))) for each in found["checkpoints"]])
    assert found["rank_correlation"] == pytest.approx(spearmanr(every, ranked["reward"]).statistic)
    assert [each["checkpoint"] for each in found["checkpoints"]] == ["untuned", "sft/free_reasoning", "grpo/own"]
    assert found["best"][0]["value"] == every.max() and found["worst"][0]["value"] == every.min()
    assert found["metrics"] == {"recall/labels": pytest.approx(4 / 3)}


def test_the_hard_reward_is_what_the_study_recorded(study, capsys):
    found = printed(capsys, study, "hard")
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert all(each["mean"] == pytest.approx(each["hard_reward"]) for each in found["checkpoints"])


@pytest.mark.parametrize(("weight", "expected"), [("1", 1.0), ("0.5", 0.5)])
def test_constants_are_given_on_the_command_line(study, capsys, weight, expected):
    whole = printed(capsys, study, "own")["mean"]
    assert printed(capsys, study, "own", "--arg", "weight", weight)["mean"] == pytest.approx(whole * expected / 2)


@pytest.mark.parametrize(
    ("reward", "parts"),
    [
        ("faulty.py:fails", ["ZeroDivisionError", "faulty.py, line 3", "film ", "Edema, Pleural"]),
        ("faulty.py:none", ["returned None for a reply", "film ", "<think>I look at the film."]),
        ("faulty.py:together", ["returned 0 rewards", "together", "on none alone"]),
        ("faulty.py:gone", ["faulty.py has no 'gone'"]),
        ("hrad", ["no reward 'hrad'", "did you mean 'hard'?"]),
    ],
)
def test_a_reward_that_fails_is_reported_with_the_film_and_the_reply(study, capsys, reward, parts):
    assert main(["reward", reward, str(study.file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and all(part in said.err for part in parts), said.err


def test_a_constant_reward_has_no_rank_correlation_and_no_contrast(study, capsys):
    found = printed(capsys, study, "faulty.py:constant")
    assert found["rank_correlation"] is None and found["contrast"]["none"] == 1.0
    assert main(["reward", "faulty.py:constant", str(study.file)]) == 0
    said = capsys.readouterr().out
    assert "undefined, as one of the two is constant" in said and "phantom films" in said.splitlines()[0]


def test_no_reply_about_a_credentialed_film_is_shown(study, capsys, monkeypatch):
    films = curate.dataset
    monkeypatch.setattr(curate, "dataset", lambda *given: films(*given).assign(credentialed=True))
    assert main(["reward", "own", str(study.file)]) == 0
    said = capsys.readouterr().out
    assert "none is shown" in said and "I look at the film" not in said
    assert printed(capsys, study, "own")["best"] == []
    for reward in ("faulty.py:fails", "faulty.py:none", "faulty.py:together"):
        assert main(["reward", reward, str(study.file)]) == 2
        assert "Edema" not in (told := capsys.readouterr().err) and "look" not in told


def test_without_recorded_replies_the_command_says_what_makes_them(tmp_path, capsys):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mine.py").write_text(FILE, encoding="utf-8")
    assert main(["reward", "hard", str(curated(tmp_path).file)]) == 2
    assert "no replies are recorded; `chexreason run" in capsys.readouterr().err
