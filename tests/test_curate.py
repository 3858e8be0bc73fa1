"""Curating: stable patient splits, the greedy sampler against a film-by-film reference, test sets, manifest, files."""

import hashlib
import json
from fractions import Fraction
from math import ceil

import numpy as np
import pandas as pd
import pytest
from conftest import changed_study
from PIL import Image

from chexreason import config, records
from chexreason.data import convert, curate, describe, sampling
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14

NAN = float("nan")


def tiny(folder, **changes):
    """A study of a few hundred films whose records lie under `folder`; `changes` are "section.key": value."""
    sizes = {
        "sources.a.films": 3000,
        "sources.b.films": 150,
        "sources.c.films": 60,
        "curate.sft": 100,
        "curate.rl": 50,
        "curate.validation": 40,
        "tests.b-test.films": 41,
        "tests.b-large.films": 100,
        "tests.c-test.films": 17,
        "tests.c-large.films": 40,
    }
    return changed_study(folder, "mini", sizes | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def manifest(study):
    """The manifest of the tiny study, its films written and its record saved."""
    written, excluded = curate.manifest(study)
    assert excluded.empty
    records.save(written, study.folder / curate.MANIFEST, records.provenance(study, study.curate.seed))
    return written


def test_curation_names_the_params_file_that_the_folder_belongs_to(manifest, study):
    assert (study.folder / config.OWNER).read_text() == f"params/{study.file.name}"


# --- patients ---------------------------------------------------------------------------------------------------------


def test_a_patient_keeps_its_share_when_rows_are_added_dropped_or_reordered():
    shares = {"validation": 0.1, "sft": 0.6, "rl": 0.3}
    patients = pd.Series([f"p{i // 3}" for i in range(3000)])
    before = dict(zip(patients, sampling.assign_shares(patients, shares, "salt"), strict=True))
    others = pd.concat([patients.iloc[::-2], pd.Series([f"new{i}" for i in range(500)])])
    after = dict(zip(others, sampling.assign_shares(others, shares, "salt"), strict=True))
    assert all(after[patient] == before[patient] for patient in set(before) & set(after))
    drawn = pd.Series(before).value_counts(normalize=True)
    assert all(abs(drawn[name] - share) < 0.05 for name, share in shares.items())
    assert dict(zip(patients, sampling.assign_shares(patients, shares, "other"), strict=True)) != before


def test_the_hash_is_the_same_on_every_machine():
    # worked out with another program: printf 'salt/p1' | b2sum -l 64
    assert sampling.hash_to_unit(["p1"], "salt")[0] == pytest.approx(0x7B9BD288583A4210 / 2**64, abs=1e-12)


def test_no_patient_is_in_two_shares_and_only_the_hold_out_is_cut_from_sft(manifest):
    train = manifest[manifest["source"] == "a"]
    assert (train.groupby("patient")["split"].nunique() == 1).all()
    assert train["split"].value_counts().to_dict() == {"sft": 90, "rl": 50, "a-validation": 40, "sft-holdout": 10}


def test_test_sets_of_one_source_share_no_patient_and_have_the_number_asked_for(manifest):
    for first, second in (("b-test", "b-large"), ("c-test", "c-large")):
        one, other = (set(manifest.loc[manifest["split"] == split, "patient"]) for split in (first, second))
        assert not one & other
    assert manifest["split"].value_counts()[["b-test", "b-large", "c-test", "c-large"]].tolist() == [41, 100, 17, 40]
    assert not manifest.duplicated("film").any()


def test_patients_shared_counts_patients_in_common():
    rows = [("a-p1", "sft"), ("a-p1", "sft"), ("a-p2", "sft"), ("a-p2", "rl"), ("b-p1", "b-test")]
    table = describe.patients_shared(pd.DataFrame(rows, columns=["patient", "split"]))
    assert table.loc["sft"].to_dict() == {"sft": 2, "rl": 1, "b-test": 0}
    assert table.loc["b-test", "b-test"] == 1 and table.loc["rl", "sft"] == 1


def test_whole_patients_are_taken_and_the_one_that_does_not_fit_is_skipped():
    sizes = {"p1": 4, "p2": 1, "p3": 5, "p4": 2, "p5": 1}
    films = pd.DataFrame({"patient": [name for name, size in sizes.items() for _ in range(size)]})
    for salt in range(20):
        drawn = sampling.whole_patients(films, 6, str(salt))["patient"].value_counts().to_dict()
        left = 6 - sum(drawn.values())
        assert all(count == sizes[name] for name, count in drawn.items())
        assert left >= 0 and all(sizes[name] > left for name in set(sizes) - set(drawn))


def test_where_no_patient_fits_one_patient_is_cut_and_used_nowhere_else(tmp_path):
    films = pd.DataFrame({"film": [f"f{i}" for i in range(40)], "patient": [f"p{i // 4}" for i in range(40)]})
    study = tiny(tmp_path, **{f"tests.{name}.films": 10 for name in ("b-test", "b-large", "c-test", "c-large")})
    drawn = curate.tests(study, {"b": films, "c": films})
    by_split = drawn.groupby("split")["patient"].agg(set)
    assert drawn["split"].value_counts().eq(10).all()
    assert not by_split["b-test"] & by_split["b-large"]


# --- the greedy sampler -----------------------------------------------------------------------------------------------


def reference(present, count, floor, ceiling, penalty, order):
    """The sampler film by film, in fractions: slow, and straight from the formula."""
    floor, ceiling, penalty = (Fraction(str(value)) for value in (floor, ceiling, penalty))
    need, limit = ceil(floor * count), ceiling * count
    films = {film: [name for name in present.columns if present.loc[film, name]] for film in present.index}
    rank = dict(zip(present.index, order, strict=True))
    seen = dict.fromkeys(present.columns, 0)
    picks = []
    for _ in range(count):
        deficit = {name: max(Fraction(0), 1 - Fraction(seen[name], need)) for name in seen}
        abundance = {name: seen[name] / limit if seen[name] >= limit else Fraction(0) for name in seen}
        worth = {film: sum(deficit[n] - penalty * abundance[n] for n in shown) for film, shown in films.items()}
        best = min(films, key=lambda film: (-worth[film], rank[film]))
        picks.append((best, [name for name in films[best] if deficit[name] > 0]))
        for name in films.pop(best):
            seen[name] += 1
    return picks


@pytest.mark.parametrize("seed", range(4))
def test_picks_are_those_of_the_film_by_film_reference(seed):
    rng = np.random.default_rng(seed)
    rates = [0.5, 0.4, 0.3, 0.1, 0.04]
    present = pd.DataFrame(rng.random((160, 5)) < rates, columns=list("vwxyz")).iloc[rng.permutation(160)]
    order = rng.random(160)
    picks = sampling.greedy(present, 70, 0.06, 0.25, 4.0, order)
    assert list(zip(picks.index, picks["lacking"], strict=True)) == reference(present, 70, 0.06, 0.25, 4.0, order)


def test_a_small_case_by_hand():
    # N = 4, floor 0.25 -> one of each is needed; ceiling 0.5 -> from 2 on a label is abundant and costs 4 * n / 2.
    present = pd.DataFrame(
        {"x": [1, 1, 1, 1, 0], "y": [0, 0, 0, 1, 0], "z": [0, 0, 0, 0, 1]},
        index=["x1", "x2", "x3", "xy", "z"],
        dtype=bool,
    )
    picks = sampling.greedy(present, 4, 0.25, 0.5, 4.0, np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    # xy scores 2, first.  Then z lacks (1), the x's score 0.  Then x1 before x2 by order (both 0); x is then abundant.
    assert picks.index.tolist() == ["xy", "z", "x1", "x2"]
    assert picks["lacking"].tolist() == [["x", "y"], ["z"], [], []]


def test_the_sampler_does_not_depend_on_the_order_of_the_rows(study):
    pool = curate.candidates(study, "a").films
    one = sampling.sample(pool, "sft", 60, study.curate)
    other = sampling.sample(pool.sample(frac=1, random_state=1), "sft", 60, study.curate)
    assert one["film"].tolist() == other["film"].tolist()


def test_three_hundred_thousand_films_take_seconds():
    rng = np.random.default_rng(0)
    present = pd.DataFrame(rng.random((300_000, 14)) < 0.15, columns=list(CHEXPERT14))
    picks = sampling.greedy(present, 500, 0.05, 0.25, 4.0, rng.random(300_000))
    assert present.loc[picks.index].mean().ge(0.05).all()
    assert picks.index.is_unique


def test_every_label_reaches_the_floor_in_sft_and_in_rl(study, manifest):
    for splits, count in ((["sft", "sft-holdout"], 100), (["rl"], 50)):
        films = manifest[manifest["split"].isin(splits)]
        assert (sampling.apply_policy(films, "u_zeros").sum() >= 0.05 * count).all()
    assert (films[list(CHEXPERT14)] == 1.0).any(axis=1).all(), "a film without any label teaches nothing"


def test_a_label_too_scarce_is_named_with_what_was_found_and_needed(tmp_path):
    study = tiny(tmp_path, **{"sources.a.films": 300, "curate.floor": 0.2})
    with pytest.raises(sampling.CurateError, match=r"curate\.floor.*sft.*Pleural Other: its patients have \d+, 20 are"):
        curate.training_splits(study, curate.candidates(study, "a").films)


def test_a_floor_the_picks_miss_is_refused_too(study):
    rare = pd.DataFrame(0.0, index=range(40), columns=list(CHEXPERT14))
    rare.loc[:, "Edema"] = 1.0
    rare.loc[:19, "No Finding"] = 1.0  # shares every film with an abundant label
    films = rare.assign(film=[f"f{i}" for i in rare.index], never_stated=[list(set(CHEXPERT14) - {"Edema"})] * 40)
    section = study.curate.model_copy(update={"floor": 0.05})
    assert len(sampling.sample(films, "sft", 20, section)) == 20
    with pytest.raises(sampling.CurateError, match=r"Fracture: its patients have 0, 1 are needed"):
        sampling.sample(films.assign(never_stated=[[]] * 40), "sft", 20, section)


def test_too_few_films_are_refused_by_key(tmp_path):
    for key, value, words in (
        ("curate.sft", 2900, r"curate\.sft: 2900 films.*sources\.a\.films"),
        ("curate.validation", 2900, r"curate\.validation: 2900 films.*sources\.a\.films"),
        ("tests.b-large.films", 110, r"tests\.b-large\.films: 110 films.*sources\.b\.films"),
        ("tests.b-test.source", "a", r"tests\.b-test\.source.*used for training"),
    ):
        with pytest.raises(sampling.CurateError, match=words):
            curate.manifest(tiny(tmp_path, **{key: value, "curate.floor": 0.0}))


# --- what stages read -------------------------------------------------------------------------------------------------


def test_why_names_the_deficit_that_the_pick_reduced(manifest):
    first = manifest[manifest["why"].str.startswith("sft: greedy pick 1,")].iloc[0]
    shown = [name for name in CHEXPERT14 if first[name] == 1.0]
    assert first["why"].removesuffix("; held out by patient") == f"sft: greedy pick 1, deficit of {', '.join(shown)}"
    assert manifest["why"].str.len().gt(0).all()
    assert manifest.loc[manifest["split"] == "sft-holdout", "why"].str.endswith("held out by patient").all()


def test_a_dataset_settles_by_policy_and_keeps_the_unknown_unknown(study, manifest):
    films = curate.dataset(study, "c-test")
    unstated = ["Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"]
    assert films[unstated].isna().all(axis=None)
    assert films.drop(columns=unstated)[[n for n in CHEXPERT14 if n not in unstated]].notna().all(axis=None)
    for split in ("sft", "rl", "b-test"):
        films, stated = curate.dataset(study, split), manifest[manifest["split"] == split]
        assert films["film"].tolist() == stated["film"].tolist()
        expected = [[name for name in CHEXPERT14 if row[name] == 1.0] for _, row in stated.iterrows()]
        assert films["labels"].tolist() == expected
        assert films[list(CHEXPERT14)].isin([0.0, 1.0]).all(axis=None)


def test_a_label_silent_throughout_a_small_split_is_negative_where_the_source_states_it():
    films = pd.DataFrame(NAN, index=[0, 1], columns=list(CHEXPERT14)).assign(never_stated=[["Fracture"], ["Fracture"]])
    settled = sampling.apply_policy(films, "u_zeros")
    assert settled["Edema"].tolist() == [0.0, 0.0] and settled["Fracture"].isna().all()


def test_an_unknown_split_is_refused_with_those_there_are(study, manifest):
    with pytest.raises(sampling.CurateError, match=r"b-tset.*b-test"):
        curate.dataset(study, "b-tset")


def test_films_are_the_phantoms_drawing_with_boxes_and_hashes(study, manifest):
    films = curate.dataset(study, "sft-holdout")
    for film in films.itertuples():
        drawn = hospitals.draw(film.recipe, 128)
        assert np.array_equal(np.asarray(Image.open(film.image)), drawn.image)
        assert [tuple(box) for box in film.boxes] == [tuple(box) for box in drawn.boxes]
        pixels = repr(drawn.image.shape).encode() + drawn.image.tobytes()
        assert film.sha256 == hashlib.sha256(pixels).hexdigest()
        assert "phantom" in Image.open(film.image).info["note"]


def test_writing_again_keeps_whole_files_and_redraws_stale_or_missing_ones(study, manifest, monkeypatch):
    drawn = []
    draw = hospitals.draw
    monkeypatch.setattr(hospitals, "draw", lambda recipe, size: drawn.append(recipe) or draw(recipe, size))
    again = manifest.drop(columns="sha256").head(3)
    (study.folder / again["path"].iloc[0]).unlink()
    other = manifest["recipe"].iloc[5]
    changed = again.assign(recipe=[again["recipe"].iloc[0], other, again["recipe"].iloc[2]])
    hashes = convert.images(changed, study)["sha256"]
    assert drawn == [again["recipe"].iloc[0], other]
    assert hashes.iloc[[0, 2]].tolist() == manifest["sha256"].iloc[[0, 2]].tolist()
    assert convert.images(again, study)["sha256"].tolist() == manifest["sha256"].head(3).tolist()


def test_prevalence_counts_what_the_manifest_holds(study, manifest):
    table = describe.prevalence(manifest, study).set_index(["stage", "label"])
    sft = manifest[manifest["split"].isin(["sft", "sft-holdout"])]
    for name in CHEXPERT14:
        assert table.loc[("sft", name), "share"] == pytest.approx((sft[name] == 1.0).mean())
    assert table.loc[("sft", "Edema"), "n"] == 100
    assert np.isnan(table.loc[("c-test", "Fracture"), "share"])
    assert table.loc[("pool", "Edema"), "n"] == len(curate.candidates(study, "a").films)


def test_the_same_study_gives_the_same_manifest_whatever_ran_before(study, manifest):
    pools = {source: curate.candidates(study, source).films for source in study.sources}
    pd.testing.assert_frame_equal(curate.choose(study, pools), manifest.drop(columns="sha256"))
    assert all(json.loads(boxes) is not None for boxes in manifest["boxes"])


# --- what the notebook shows ------------------------------------------------------------------------------------------


def test_cooccurrence_is_conditional_on_the_rows_label():
    films = pd.DataFrame(0.0, index=range(4), columns=list(CHEXPERT14))
    films.loc[[0, 1], "Edema"] = 1.0
    films.loc[[0, 1, 2, 3], "Cardiomegaly"] = 1.0
    shares = describe.cooccurrence(films)
    assert shares.loc["Edema", "Cardiomegaly"] == 1.0 and shares.loc["Cardiomegaly", "Edema"] == 0.5
    assert shares.loc["Fracture"].isna().all()


def test_the_clearest_film_of_a_finding_shows_little_else_and_then_most(study, manifest):
    films = curate.dataset(study, "sft")
    shown = describe.clearest_films(films)
    assert shown.index.tolist() == [name for name in CHEXPERT14[1:] if name in shown.index]
    for finding, (image, box) in shown.iterrows():
        showing = [boxes for boxes in films["boxes"] if finding in {each.finding for each in boxes}]
        fewest = min(len(boxes) for boxes in showing)
        alone = [each for boxes in showing if len(boxes) == fewest for each in boxes if each.finding == finding]
        assert box.finding == finding and box.strength == max(each.strength for each in alone)
        assert box in films.loc[films["image"] == image, "boxes"].item()


def test_the_gallery_takes_the_number_asked_for_from_each_split_and_always_the_same(study, manifest):
    films = describe.gallery(study, ["sft", "c-test"], each=5)
    assert films["caption"].str.partition(",")[0].tolist() == ["sft"] * 5 + ["c-test"] * 5
    pd.testing.assert_frame_equal(films, describe.gallery(study, ["sft", "c-test"], each=5))


def test_the_summary_counts_films_patients_and_overlap(study, manifest):
    shares = describe.prevalence(manifest, study)
    lines = describe.summary(manifest, shares).split("\n")
    assert lines[0] == f"sft: 90 films of {manifest.loc[manifest['split'] == 'sft', 'patient'].nunique()} patients."
    assert "Patients in more than one split: 0." in lines
    leaked = manifest.assign(patient=manifest["patient"].where(manifest.index != 0, manifest["patient"].iloc[-1]))
    assert "Patients in more than one split: 0." not in describe.summary(leaked, shares)
