"""A reward of one's own is one function: found and checked at load, trained with, logged, and part of the run's key."""

import json

import pytest
from conftest import at, changed_study
from small import SMALL, curated, untrained_adapter

from chexreason import config, models, records, rewards
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.training import common, grpo

REPLY = "<think>The heart is large.</think>\n<solution>Cardiomegaly</solution>"
FILE = '''
"""Rewards of a user's own."""
from dataclasses import dataclass

from chexreason import answers


def recall(completions, truth, log_metric, weight=1.0):
    """The share of the film's labels that the reply names, times `weight`."""
    named = [set(answers.read(each[0]["content"]).labels) for each in completions]
    log_metric("recall/labels", sum(map(len, named)) / len(named))
    return [weight * len(set(true) & labels) / max(1, len(true)) for true, labels in zip(truth, named)]


@dataclass
class Novelty:
    """1 for a reply that was not given before."""

    seen: int = 0

    def __call__(self, completions, **_):
        self.seen += len(completions)
        return [float(self.seen)] * len(completions)

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


class Half:
    def __call__(self, completions):
        return [0.0] * len(completions)

    def state(self):
        return None


async def later(completions):
    return [0.0] * len(completions)


def needs(completions, solution):
    return [0.0] * len(completions)


NUMBER = 3
'''


def run(reward: str, **keys) -> dict:
    return {"start": "free_reasoning", "reward": reward, **keys}


def study_with(folder, changes: dict | None = None, **runs: dict) -> config.Study:
    (folder / "params").mkdir(exist_ok=True)
    (folder / "params" / "mine.py").write_text(FILE, encoding="utf-8")
    return changed_study(folder, "smoke", SMALL | {"grpo.runs": runs} | (changes or {}))


@pytest.mark.parametrize(
    ("reward", "arguments", "parts"),
    [
        ("hrad", {}, ["no reward 'hrad'", "did you mean 'hard'?", "file.py:function"]),
        ("hard", {"min_length": 3}, ["no argument 'min_length'", "it takes none"]),
        ("mine.py:recal", {}, ["mine.py has no 'recal'", "did you mean 'recall'?"]),
        ("mine.py:recall", {"wieght": 2}, ["no argument 'wieght'", "did you mean 'weight'?"]),
        ("mine.py:recall", {"truth": 2}, ["no argument 'truth'", "it takes weight"]),
        ("mine.py:NUMBER", {}, ["is a int", "give a function"]),
        ("mine.py:Half", {}, ["one of the methods state and restore"]),
        ("mine.py:later", {}, ["async"]),
        ("mine.py:needs", {}, ["takes 'solution'", "reward_args"]),
        ("sys:exit", {}, ["takes no completions"]),
        ("other.py:recall", {}, ["no file other.py"]),
        ("broken.py:recall", {}, ["cannot be imported", "ZeroDivisionError", "broken.py, line 2"]),
        ("syntax.py:recall", {}, ["cannot be imported", "SyntaxError"]),
        ("no_such_package.rewards:f1", {}, ["cannot be imported", "No module named 'no_such_package'", "install it"]),
        (":", {}, ["no reward ':'"]),
        ("..:f", {}, ["cannot be imported"]),
    ],
)
def test_a_reward_that_cannot_be_called_is_refused_when_the_params_file_is_loaded(tmp_path, reward, arguments, parts):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "broken.py").write_text("import math\n1 / 0\n", encoding="utf-8")
    (tmp_path / "params" / "syntax.py").write_text("def recall(:\n", encoding="utf-8")
    with pytest.raises(config.ParamsError) as raised:
        study_with(tmp_path, first=run("hard"), second=run(reward, reward_args=arguments))
    assert "smoke.yaml: grpo.runs.second.reward: " in str(raised.value)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_a_dotted_path_to_an_installed_package_is_a_reward(tmp_path):
    study = study_with(tmp_path, own=run("chexreason.rewards:hard_reward"))
    made = rewards.make_reward(study.grpo.runs["own"].reward, study.file.parent, {}, study.grpo.reward)
    completions = [[{"role": "assistant", "content": REPLY}]]
    assert made(completions=completions, truth=[["Cardiomegaly"]], completion_ids=[[1]]) == [
        0.9
    ]  # 1 - 0.1: it is short
    files = [file.name for file in rewards.code_files("chexreason.rewards:hard_reward", study.file.parent)]
    assert {"rewards.py", "schema.py"} <= set(files)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small study after two real steps under a reward by dotted path, and its log."""
    folder = tmp_path_factory.mktemp("own")
    settings = {"grpo.runs": {"own": run("mine.py:recall", reward_args={"weight": 2.0})}, "grpo.save_steps": 2}
    (folder / "params").mkdir()
    (folder / "params" / "mine.py").write_text(FILE, encoding="utf-8")
    study = curated(folder, settings)
    untrained_adapter(study)
    return study, grpo.train(study, "own", 0)


def test_a_reward_by_dotted_path_trains_and_its_metrics_are_in_the_log(trained):
    study, log = trained
    assert list(log["step"]) == [1, 2]
    assert log["recall_labels"].notna().sum() == log["reward"].notna().sum() > 0
    assert log["format_failures"].notna().any() and log["commonest_label"].notna().any()
    place = study.paths.run(at("grpo/own"))
    assert place.name == "seed0" and place.parent.name == "own"
    assert (place / "adapter" / models.ADAPTER[1]).is_file()
    card = (place / "best" / "README.md").read_text(encoding="utf-8")
    assert "reward: mine.py:recall" in card and "weight: 2.0" in card
    assert "recall_labels" in records.load(place / common.LOG)


def test_an_edited_reward_is_trained_again(trained):
    study, _ = trained
    before = grpo.work_folder(study, at("grpo/own"))
    assert common.finished(before)
    file = study.file.parent / "mine.py"
    file.write_text(FILE.replace("weight=1.0", "weight=1.5"), encoding="utf-8")
    assert grpo.work_folder(study, at("grpo/own")) != before
    file.write_text(FILE, encoding="utf-8")
    assert grpo.work_folder(study, at("grpo/own")) == before


def test_predictions_keep_the_hard_reward_and_record_that_of_their_own_run(trained):
    study, _ = trained
    films = predict.curate.dataset(study, study.validation)
    texts, processor = [REPLY] * len(films), models.load_processor(study.models["medgemma"])
    protocol = Protocol.of(study, "free_reasoning", study.validation)
    table = predict.read(study, study.validation, films, texts, processor, protocol, "own")
    hits = ["Cardiomegaly" in truth for truth in films["labels"]]
    assert list(table["own_reward"]) == [
        2.0 / len(truth) if hit else 0.0 for truth, hit in zip(films["labels"], hits, strict=True)
    ]
    plain = predict.read(study, study.validation, films, texts, processor, protocol)
    assert list(plain["reward"]) == list(table["reward"]) and "own_reward" not in plain


def test_the_state_of_an_own_reward_is_in_every_checkpoint(tmp_path):
    from transformers import TrainerState

    study = study_with(tmp_path, own=run("mine.py:Novelty"))
    before, after = (rewards.make_reward("mine.py:Novelty", study.file.parent, {}, study.grpo.reward) for _ in range(2))
    assert before(completions=[1, 2]) == [2.0, 2.0]
    TrainerState(stateful_callbacks=grpo.reward_state(before)).save_to_json(str(tmp_path / "trainer_state.json"))
    state = TrainerState.load_from_json(str(tmp_path / "trainer_state.json"))
    (callback,) = grpo.reward_state(after)
    callback.on_train_begin(None, state, None)
    assert after(completions=[3]) == [3.0]
    assert grpo.reward_state(rewards.make_reward("hard", study.file.parent, {}, study.grpo.reward)) == []


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        ([1.0], "returned 1 rewards for 2 replies"),
        ([1.0, None], "returned None"),
        ([1.0, float("nan")], "returned nan"),
        ([1.0, "2"], "returned '2'"),
        (None, "returned a NoneType"),
        ({0: 1.0, 1: 0.5}, "returned a dict"),
        ({1.0, 0.5}, "returned a set"),
        ("10", "returned a str"),
        ([[1.0, 2.0], 1.0], "returned [1.0, 2.0]"),
        ([10**400, 1.0], "return a finite number"),
        (1.0, "returned a float"),
    ],
)
def test_what_is_not_one_finite_number_per_reply_is_refused(returned, part):
    with pytest.raises(rewards.RewardError, match="mine: ") as raised:
        rewards.scores(lambda completions: returned, "mine", completions=[1, 2])
    assert part in str(raised.value)


@pytest.mark.parametrize("metric", ["kl", "reward", "collapse", "validation_f1"])
def test_a_metric_cannot_take_a_column_of_the_log(metric):
    def reward(completions, log_metric):
        log_metric(metric, 1.0)
        return [0.0]

    score = grpo.reward_function(reward, "mine")
    with pytest.raises(rewards.RewardError, match=f"the log has a column '{metric}'"):
        score(completions=[[{"content": REPLY}]], completion_ids=[[1]], log_metric=lambda *_: None)


def test_a_reward_sees_whole_replies_and_their_tokens_without_those_that_end_one():
    seen = {}

    def reward(**given):
        seen.update(given)
        return [0, 1]

    score = grpo.reward_function(reward, "mine", "<think>", [9])
    completions = [[{"content": "a"}], [{"content": "b"}]]
    ids = [[1, 9], [1, 2]]
    assert score(completions=completions, completion_ids=ids, log_metric=lambda *_: None, truth=[[], []]) == [0, 1]
    assert rewards.texts(seen["completions"]) == ["<think>a", "<think>b"]
    assert seen["completion_ids"] == [[1], [1, 2]] and seen["cut_off"] == [False, True]
    assert json.dumps(seen["truth"]) == "[[], []]"
