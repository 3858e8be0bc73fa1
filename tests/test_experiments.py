"""The experiments on a study's own checkpoints: two rulers, three layers, the reasoning and the plain baseline."""

import numpy as np
import pandas as pd
import pytest
from conftest import at
from sklearn.metrics import f1_score, roc_auc_score

from chexreason import models, records
from chexreason.data import curate
from chexreason.data.phantom import hospitals
from chexreason.evaluation import baseline, compare, layers, rulers


def truth_of(study, dataset: str) -> pd.DataFrame:
    films = curate.dataset(study, dataset)
    return hospitals.truth(films).set_axis(films["film"])


def test_the_second_ruler_is_what_was_drawn(smoke):
    names = list(smoke.labels("nih9"))
    answers = records.load(smoke.paths.answers(at("sft/free_reasoning"))).query("dataset == 'c-test'").set_index("film")
    truth = truth_of(smoke, "c-test").loc[answers.index, names]
    given = np.array([[name in labels for name in names] for labels in answers["labels"]])
    there = truth.any().to_numpy()
    expected = f1_score(truth.to_numpy()[:, there], given[:, there], average="macro", zero_division=0)
    rows = pd.DataFrame(compare.results(smoke)).query(
        "dataset == 'c-test' and label_set == 'nih9' and ruler == 'truth'"
    )
    (found,) = rows.loc[rows["model"] == "stand-in-medgemma/sft/free_reasoning", "macro_f1"]
    assert found == pytest.approx(expected)


def test_a_perfect_reader_is_scored_by_the_labels(smoke):
    names = list(smoke.labels("chexpert14"))
    films = compare.labeled_films(smoke).query("dataset == 'b-large'")
    truth = truth_of(smoke, "b-large").loc[films.index, names]
    there = (films[names] == 1).any().to_numpy()
    expected = f1_score(
        (films[names] == 1).to_numpy()[:, there], truth.to_numpy()[:, there], average="macro", zero_division=0
    )
    table = rulers.ceiling(records.load(smoke.paths.compared("10_rulers/truth")))
    (found,) = table.query("dataset == 'b-large' and label_set == 'chexpert14'")["macro_f1"]
    assert found == pytest.approx(expected)


def test_crossed_films_show_the_same_patients_with_other_pixels(smoke):
    manifest = records.load(smoke.folder / curate.MANIFEST)
    for source in ("home", "away"):
        a, c = (manifest[manifest["split"] == f"{source}@{pixels}"].reset_index(drop=True) for pixels in "AC")
        assert len(a) == smoke.layers.films
        assert (a["patient"] == c["patient"]).all() and (a["boxes"] == c["boxes"]).all()
        assert (a["sha256"] != c["sha256"]).all()
        assert a["film"].str.removesuffix("@A").equals(c["film"].str.removesuffix("@C"))
    plain = hospitals.read(smoke.sources["home"], "home").table.set_index("film")
    home = manifest[manifest["split"] == "home@A"].set_index("film")
    assert home["recipe"].tolist() == plain.loc[home.index.str.removesuffix("@A"), "recipe"].tolist()


def test_the_cells_of_the_two_hospitals_are_scored_by_their_own_labels(smoke):
    films = layers.relabeled(smoke)
    manifest = records.load(smoke.folder / curate.MANIFEST).set_index("film")
    for dataset, end in (("home@A", "home"), ("away@C", "away")):
        mine = films[films["dataset"] == dataset]
        own = curate.dataset(smoke, dataset).set_index("film").loc[mine.index]
        for name in smoke.labels("nih9"):
            assert (mine[end, name] == own[name]).all()
        assert (mine["patient"] == manifest.loc[mine.index, "patient"]).all()


def test_the_recorded_shares_add_up_to_the_recorded_fall(smoke):
    table = records.load(smoke.paths.compared("11_layers/layers"))
    for _, rows in table.groupby("model"):
        share = rows.set_index("layer")["share"]
        assert share[list(layers.LAYERS)].sum() == pytest.approx(share["fall"])
    cells = records.load(smoke.paths.compared("11_layers/cells")).set_index(["model", "pixels", "labels", "cases"])
    model = "stand-in-medgemma/untuned"
    (fall,) = table.query("model == @model and layer == 'fall'")["share"]
    ends = (cells.loc[(model, end, end, end), "macro_f1"] for end in ("home", "away"))
    assert fall == pytest.approx(next(ends) - next(ends))


def test_the_baseline_is_logistic_regression_on_what_the_encoder_sees(smoke):
    table = records.load(smoke.paths.compared("16_baseline/baseline"))
    assert {"labels", "truth"} == set(table["ruler"]) and set(table["dataset"]) == set(compare.datasets(smoke))
    films = curate.dataset(smoke, "b-large")
    seen = baseline.features(smoke, "medgemma", films["image"])
    assert seen.shape == (len(films), 2 * models.load_base(smoke.models["medgemma"]).config.vision_config.hidden_size)
    assert len(np.unique(seen.round(4), axis=0)) == len(films)


def test_the_baseline_learns_what_can_be_learnt():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(400, 6))
    truth = (seen[:, 0] + 0.3 * rng.normal(size=400) > 1).astype(float)
    fitted = baseline.fit(seen, truth)
    assert roc_auc_score(truth, fitted.predict_proba(seen)[:, 1]) > 0.95
    assert f1_score(truth, fitted.predict(seen)) > 0.8
    assert baseline.fit(seen, np.zeros(400)) is None


def test_the_baseline_of_qwen_sees_each_film_apart(smoke):
    study = smoke.model_copy(
        update={"models": {"qwen": smoke.models["medgemma"].model_copy(update={"path": "stand-in:qwen"})}}
    )
    images = curate.dataset(smoke, "b-large")["image"].head(3)
    together = baseline.features(study, "qwen", images)
    alone = np.concatenate([baseline.features(study, "qwen", images.iloc[[number]]) for number in range(3)])
    assert together == pytest.approx(alone, abs=1e-4)
