"""Named runs: each with its own values, films and labels, in a folder of its own."""

import pandas as pd
import pytest
import yaml
from conftest import ROOT, at, changed_study
from small import SMALL, curated, untrained_adapter

from chexreason import config, records
from chexreason.config import ParamsError
from chexreason.data import curate, sampling
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14
from chexreason.training import grpo

HARD = {"start": "free_reasoning", "reward": "hard"}
A = {"kind": "phantom", "hospital": "A", "films": 300, "seed": 101}


def study_with(folder, changes: dict | None = None, **runs: dict) -> config.Study:
    return changed_study(folder, "smoke", SMALL | {"grpo.runs": runs} | (changes or {}))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    """The small study with GRPO on films of another hospital, on other labels, and on both hospitals'."""
    sources = {
        "a": A,
        "a-truth": A | {"labels": "truth"},
        "a-as-c": A | {"labels": "C"},
        "a-shuffled": A | {"shuffled": True},
        "b": {"kind": "phantom", "hospital": "B", "films": 20, "seed": 102},
        "more": {"kind": "phantom", "hospital": "C", "films": 60, "seed": 7},
    }
    runs = {
        "hard": HARD,
        "truth": HARD | {"labels": {"a": "a-truth"}},
        "as-c": HARD | {"labels": {"a": "a-as-c"}, "set": {"beta": 0.0}},
        "shuffled": HARD | {"labels": {"a": "a-shuffled"}},
        "elsewhere": HARD | {"films": ["more"]},
        "two-sites": HARD | {"films": ["a", "more"], "labels": {"a": "a-truth"}},
    }
    folder = tmp_path_factory.mktemp("runs")
    study = curated(folder, {"sources": sources, "grpo.runs": runs})
    manifest = records.load(study.folder / curate.MANIFEST)
    records.save(curate.relabeled(study, manifest), study.folder / curate.RELABELED, records.provenance(study))
    return study


# Values.


def test_a_run_has_the_values_of_its_section_and_those_that_it_sets(tmp_path):
    own = {"beta": 0.0, "trl": {"loss_type": "grpo"}, "reward": {"length_penalty": 0.2, "nuanced": {"match": 50}}}
    free = HARD | {"set": own, "seeds": [4, 5]}
    study = study_with(tmp_path, {"more_seeds": [4, 5]}, hard=HARD, free=free)
    plain, free = study.grpo.of("hard"), study.grpo.of("free")
    assert (plain.beta, free.beta) == (0.15, 0.0)
    assert plain.reward.length_penalty == 0.1 and free.reward.length_penalty == 0.2
    assert free.reward.nuanced.match == 50 and free.reward.nuanced.recall == plain.reward.nuanced.recall == 30
    assert free.trl == {"loss_type": "grpo"} and plain.trl == {}
    assert free.learning_rate == plain.learning_rate == study.grpo.learning_rate
    assert [(each.run, each.seed) for each in study.runs("grpo")] == [
        ("hard", 0),
        ("hard", 4),
        ("hard", 5),
        ("free", 4),
        ("free", 5),
    ]


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ({"a-best": HARD}, "grpo: runs.a-best: a name must not end with -best"),
        ({"a/b": HARD}, "a name is made of letters"),
        ({"hard": HARD, "Hard": dict(HARD)}, "has this name but for capitals, and would share its folder"),
        ({"hard": HARD | {"beta": 0.0}}, "unknown key 'grpo.runs.hard.beta'; write it under `set`, as in `set: {beta:"),
        ({"hard": HARD | {"set": {"bta": 0.0}}}, "grpo: runs.hard.set: unknown key 'bta'; did you mean 'beta'?"),
        ({"hard": HARD | {"set": {"beta": "0"}}}, "grpo: runs.hard.set: beta: Input should be a valid number, got '0'"),
        ({"hard": HARD | {"set": {"save_steps": 3}}}, "grpo: runs.hard.set: save_steps (3) must be a multiple"),
        ({"hard": HARD | {"set": {"runs": {}}}}, "a run has no runs of its own"),
        ({"hard": HARD | {"set": {"trl": {"seed": 1}}}}, "runs.hard.set: trl: seed: the study sets it"),
        ({"hard": HARD | {"start": "hard"}}, "grpo.runs.hard.start: 'hard' is not defined in this file; choose one of"),
        ({"hard": HARD | {"seeds": [9]}}, "grpo.runs.hard.seeds: sft.runs.free_reasoning is not trained with 9"),
        ({"hard": HARD | {"films": ["z"]}}, "grpo.runs.hard: 'z' is not defined in this file"),
        ({"hard": HARD | {"labels": {"b": "a"}}}, "grpo.runs.hard.labels: 'b' is not defined in this file; choose one"),
        ({"hard": HARD | {"labels": {"a": "b"}}}, "grpo.runs.hard.labels: 'b' does not have these films"),
        ([{"model": "medgemma", "format": "free_reasoning", "reward": "hard"}], "runs have names now: write `hard: "),
    ],
)
def test_a_run_that_is_wrong_is_refused_with_its_name(tmp_path, runs, told):
    values = config.read(ROOT / "params" / "mini.yaml")
    values["grpo"]["runs"] = runs
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    with pytest.raises(ParamsError) as raised:
        config.load(file)
    assert told in str(raised.value), raised.value


def test_a_file_that_extends_another_adds_a_run_or_sets_a_value_of_one(tmp_path):
    for name in ("mini", "smoke"):
        (tmp_path / f"{name}.yaml").write_text((ROOT / "params" / f"{name}.yaml").read_text())
    run = "{start: free_reasoning, reward: hard, set: {beta: 0.0}}"
    text = f"extends: smoke.yaml\nstudy: two\ngrpo: {{runs: {{hard-beta0: {run}}}}}\n"
    (tmp_path / "two.yaml").write_text(text)
    study = config.load(tmp_path / "two.yaml")
    assert list(study.grpo.runs) == ["hard", "hard-beta0"]
    one, other = (study.grpo.of(name).model_dump() for name in study.grpo.runs)
    assert one | {"beta": 0.0} == other and one["beta"] == 0.15


# Names and places.


@pytest.mark.parametrize("name", ["untuned", "sft/free_reasoning", "grpo/hard", "grpo/hard-best", "sft/a-best"])
def test_a_checkpoints_name_reads_back(name):
    assert config.Checkpoint.parse("medgemma", name, 3).name == name


@pytest.mark.parametrize("name", ["", "sft", "untuned/x", "dpo/x", "sft/"])
def test_a_name_of_no_checkpoint_is_refused(name):
    with pytest.raises(ValueError, match="is no checkpoint; write untuned, sft/RUN, grpo/RUN or grpo/RUN-best"):
        config.Checkpoint.parse("medgemma", name, 0)


def test_no_two_records_of_a_study_share_a_path():
    study = config.load(ROOT / "params" / "paper.yaml")
    there = study.checkpoints()
    places = [study.paths.answers(each) for each in there] + [study.paths.notebook("5_predict", each) for each in there]
    weights = [study.paths.adapter(each) for each in there if each.stage != "untuned"]
    assert len({*places, *weights}) == len(places) + len(weights)
    assert study.paths.weights(at("untuned")) is None
    assert study.paths.adapter(at("grpo/hard-best")) == study.folder / "grpo/medgemma/hard/seed0/best"
    assert study.paths.notebook("4_grpo", at("grpo/hard")).name == "4_grpo-medgemma-hard-seed0.ipynb"


# Films and labels.


def test_a_run_learns_from_the_same_films_with_the_labels_of_another_source(study):
    own, truth, as_c, shuffled = (grpo.films(study, run) for run in ("hard", "truth", "as-c", "shuffled"))
    for other in (truth, as_c, shuffled):
        pd.testing.assert_frame_equal(own[["film", "image", "sha256"]], other[["film", "image", "sha256"]])
    names = list(CHEXPERT14)
    assert (truth[names].to_numpy() == hospitals.truth(own).to_numpy()).all()
    table = hospitals.film_table(300, 101, "A", "C")
    said = table.assign(film="a" + table["film"].str.removeprefix("a")).set_index("film").loc[own["film"]]
    unknown = [name for name in names if as_c[name].isna().all()]
    known = [name for name in names if name not in unknown]
    assert unknown and ((as_c[known].to_numpy() == 1) == (said[known].to_numpy() == 1)).all()
    assert (shuffled[names].fillna(0).to_numpy() != own[names].fillna(0).to_numpy()).any()
    pool = [
        sampling.apply_policy(curate.candidates(study, name).films, "u_zeros").sum() for name in ("a", "a-shuffled")
    ]
    pd.testing.assert_series_equal(*pool)  # as often as before, on other films


def test_a_run_learns_from_the_films_of_another_source_which_no_test_set_has(study):
    manifest = records.load(study.folder / curate.MANIFEST)
    assert manifest["split"].value_counts()[["rl", "rl@more"]].tolist() == [8, 8]
    elsewhere, both = grpo.films(study, "elsewhere"), grpo.films(study, "two-sites")
    assert set(elsewhere["source"]) == {"more"} and both["source"].value_counts().to_dict() == {"a": 8, "more": 8}
    truth = grpo.films(study, "truth").set_index("film")["labels"]
    assert both.set_index("film").loc[truth.index, "labels"].equals(truth)
    with pytest.raises(sampling.CurateError, match=r"tests.b-test.source: 'b' is used for training"):
        curate.manifest(study_with(study.file.parent.parent / "other", hard=HARD | {"films": ["b"]}))


def test_films_that_the_other_source_does_not_have_are_reported(study):
    manifest = records.load(study.folder / curate.MANIFEST)
    strange = manifest.assign(film=manifest["film"].where(manifest["split"] != "rl", "x" + manifest["film"]))
    with pytest.raises(sampling.CurateError, match=r"a-as-c does not describe 8 of the 8 films of a"):
        curate.relabeled(study, strange)


def test_the_labels_a_run_is_rewarded_for_reach_the_trainer_and_its_validity(study):
    untrained_adapter(study)
    runner = grpo.trainer(study, "as-c", 0)
    films = grpo.films(study, "as-c").set_index("film")["labels"]
    assert runner.args.beta == 0.0 and runner.ref_model is None
    assert {row["film"]: row["truth"] for row in runner.train_dataset} == films.to_dict()
    places = {grpo.work_folder(study, study.checkpoint("grpo", run, 0)) for run in study.grpo.runs}
    assert len({place.name for place in places}) == len(study.grpo.runs)
