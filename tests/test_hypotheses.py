"""The confirmatory analysis on a made-up experiment whose answer is known, and the chapters that show it."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from chexreason.evaluation import hypotheses, released
from chexreason.labels import CHEXPERT14, bits
from chexreason.records import save
from chexreason.training import grpo
from chexreason.workflow.notebook import execute

FILMS, SEEDS, STEPS = 1200, range(5), (56, 112)


def pack(present: np.ndarray) -> list[int]:
    return [bits([name for name, there in zip(CHEXPERT14, row, strict=True) if there]) for row in present]


@pytest.fixture(scope="module")
def tables():
    """C's labels are learnt by whoever is rewarded for them, shuffled ones make noise, all others change nothing."""
    rng = np.random.default_rng(0)
    truth = rng.random((2 * FILMS, 14)) < 0.3
    missed, found = rng.random(truth.shape) < 0.5, rng.random(truth.shape) < 0.02
    channel = (truth & ~missed) | found
    place = np.arange(2 * FILMS)
    away = place >= FILMS
    told = np.where(away[:, None], channel, truth)
    films = pd.DataFrame({"film": place, "dataset": np.where(away, "away-test", "home-test"), "patient": place // 2})
    films = films.assign(view="PA", labels=pack(told), truth=pack(truth))

    def wrong(labels: np.ndarray, share: float) -> np.ndarray:
        return labels ^ (rng.random(labels.shape) < share)

    start = {seed: wrong(truth, 0.1) for seed in SEEDS}
    rows = []
    for seed in SEEDS:
        answers = {(released.START, 0): start[seed], ("sft", 0): wrong(truth, 0.3), ("sft", 10): start[seed]}
        for step in STEPS:
            learnt = rng.random(truth.shape) < step / max(STEPS)
            answers |= {
                (run, step): start[seed] for run in ("labels-a", "truth", "format", "labels-a-kl", "labels-c-kl")
            }
            answers["labels-c", step] = np.where(learnt, channel, start[seed])
            answers["shuffled", step] = wrong(start[seed], 0.3 * step / max(STEPS))
        for (run, step), given in answers.items():
            made = {"run": run, "seed": seed, "step": step, "film": place, "labels": pack(given)}
            rows.append(pd.DataFrame(made | {"failed": False, "cut_off": False, "kl": step / 100}))
    logs = pd.DataFrame([{"run": "labels-a", "seed": 0} | dict.fromkeys([*grpo.LOGGED.values(), "collapse"], 0)])
    return {"films": films, "answers": pd.concat(rows, ignore_index=True), "logs": logs}


@pytest.fixture(scope="module")
def tested(tables):
    return hypotheses.test(hypotheses.scored(tables)).set_index("name")


def test_the_verdicts_are_those_of_the_world(tested):
    assert tested["verdict"].to_dict() == {
        "H1": "no difference",
        "H2": "no difference",
        "H3": "gain",
        "H4": "loss",
        "H5": "loss",
        "H6": "no difference",
        "H7": "no difference",
    }
    assert (tested.loc[["H3", "H4", "H5"], "p_holm"] < 0.001).all()


def test_the_answer_is_chosen_by_the_verdicts(tested):
    first, second = hypotheses.answer(tested.reset_index())
    assert "neither better nor worse as a reader of hospital C's films" in first
    assert "agrees more with C's labels" in second and "is worse by what was drawn" in second


def test_the_dose_response_grows_with_the_dose(tables):
    found = hypotheses.responses(hypotheses.scored(tables)).query("dataset == 'away-test'")
    for run, ruler, sign in (("labels-c", "labels", 1), ("labels-c", "truth", -1), ("shuffled", "truth", -1)):
        mine = found[(found["run"] == run) & (found["ruler"] == ruler)].sort_values("step")
        assert (sign * mine["effect"] > 0).all() and (sign * mine["effect"]).is_monotonic_increasing


def test_a_path_begins_at_its_start_and_its_peak_is_found(tables):
    by = hypotheses.scored(tables)
    table = hypotheses.path(tables, by)
    mine = table.query("dataset == 'away-test' and ruler == 'truth' and run == 'labels-c'")
    assert mine["step"].tolist() == [0, *STEPS] and mine["kl"].tolist() == pytest.approx([0, 0.56, 1.12])
    peaks = hypotheses.peaks(table).query("dataset == 'away-test' and ruler == 'truth'").set_index("run")
    assert peaks.loc["labels-c", "peak"] == 0 and peaks.loc["sft", "peak"] == 10


def test_the_chapters_of_the_experiment_run_from_its_records(tables, tested, tmp_path):
    provenance = {"commit": "0" * 40, "params_hash": "0" * 12, "plan": "0" * 64}
    for name, table in tables.items():
        save(table, tmp_path / "released" / f"{name}.parquet", provenance)
    for name in ("12_reward", "13_path"):
        output = tmp_path / f"{name}.ipynb"
        execute(ROOT / "notebooks" / f"{name}.ipynb", output, {"released": str(tmp_path / "released")})
        shown = json.dumps(json.loads(output.read_text(encoding="utf-8")))
        assert ("neither better nor worse" in shown) == (name == "12_reward")
        assert "image/png" in shown or "image/svg+xml" in shown


RELEASED = ROOT / "released" / "reward"


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the experiment has not been run")
def test_the_released_records_name_the_plan_and_the_params_that_are_here():
    from chexreason.config import load
    from chexreason.records import sha256

    for name, table in released.load(RELEASED).items():
        made = table.attrs["provenance"]
        assert made["plan"] == sha256(ROOT / released.PLAN), name
        assert made["params_hash"] == load(ROOT / "params" / "reward.yaml").hash, name
