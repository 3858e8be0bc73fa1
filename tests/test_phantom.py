"""The phantom hospitals: published rates come back, layers cross cleanly, and every finding can be seen where it is."""

import json

import numpy as np
import pandas as pd
import pytest

from chexreason.data.phantom import hospitals
from chexreason.data.phantom.hospitals import FINDINGS, HOSPITALS, PATHOLOGIES
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)
ONE_SIDED = [finding for finding in FINDINGS if finding not in hospitals.WHOLE]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {hospital: hospitals.film_table(30_000, seed=7, hospital=hospital) for hospital in "ABC"}


def clustered_error(value: pd.Series, patient: pd.Series) -> float:
    """Standard error of a mean whose films come in patients."""
    return float(np.sqrt(np.square((value - value.mean()).groupby(patient).sum()).sum()) / len(value))


def plain(findings: list[dict], pixels: str = "C", view: str = "PA") -> str:
    """A recipe of one average patient with the given findings."""
    body = {"midline": 0.5, "half": 0.4, "apex": 0.108, "angle_right": 0.814, "angle_left": 0.842, "gap": 0.092}
    body |= {"ctr": 0.43, "dome": 0.065, "girth": 1.0, "tilt": 0.0, "seed": 11}
    recipe = {"pixels": pixels, "view": view, "seed": 5, "shift": [0.0, 0.0], "body": body, "findings": findings}
    return json.dumps(recipe)


def finding(name: str, side: str = "left", strength: float = 0.7) -> dict:
    shares = hospitals.ZONE_SHARES.get(name, (1, 0, 0))
    zone = "" if name in hospitals.WHOLE else hospitals.ZONES[int(np.argmax(shares))]
    side = hospitals.WHOLE.get(name, side)
    return {"finding": name, "side": side, "zone": zone, "at": [0.45, 0.4], "strength": strength}


@pytest.mark.parametrize("hospital", list("ABC"))
def test_label_rates_match_the_published_ones(tables, hospital):
    films, cases = tables[hospital], HOSPITALS["hospitals"][hospital]["cases"]
    targets = {"No Finding": cases["no_finding"]} | cases["positive"]
    for label in [name for name in targets if films[name].notna().any()]:
        positive = (films[label] == 1).astype(float)
        error = clustered_error(positive, films["patient"])
        assert abs(positive.mean() - targets[label]) < 4 * error + 0.01 * targets[label], label


def test_findings_go_together_as_in_the_published_joint_table(tables):
    table = HOSPITALS["joints"]["chexpert"]
    positive = (tables["B"][table["findings"]] == 1).to_numpy(float)
    joint = positive.T @ positive / len(positive)
    assert np.abs(joint - np.array(table["joint"])).max() < 0.015
    independent = np.outer(positive.mean(axis=0), positive.mean(axis=0))
    pairs = ~np.eye(len(joint), dtype=bool)
    assert np.abs((joint - table["joint"])[pairs]).sum() < 0.4 * np.abs((independent - table["joint"])[pairs]).sum()


@pytest.mark.parametrize("hospital", list("ABC"))
def test_no_finding_excludes_every_pathology(tables, hospital):
    films = tables[hospital]
    there = hospitals.truth(films)
    assert (there["No Finding"] == ~there[list(FINDINGS[:PATHOLOGIES])].any(axis=1)).all()
    normal = films[films["No Finding"] == 1]
    assert not normal[list(FINDINGS[:PATHOLOGIES])].isin([1.0, -1.0]).any(axis=None)
    assert (there["No Finding"] & there["Support Devices"]).any()


def test_what_the_third_hospital_never_labels_is_unknown_and_the_rest_is_settled(tables):
    unknown = ["Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"]
    assert tables["C"][unknown].isna().all(axis=None)
    assert tables["C"][[label for label in LABELS if label not in unknown]].isin([0.0, 1.0]).all(axis=None)
    assert hospitals.truth(tables["C"])[unknown].any().all()


def test_uncertain_and_denied_rates_match_mimic(tables):
    channel = HOSPITALS["channels"]["attentive"]
    for state, rates in ((-1.0, channel["uncertain"]), (0.0, channel["negative"])):
        for label, rate in rates.items():
            said = (tables["A"][label] == state).astype(float)
            assert abs(said.mean() - rate) < 4 * clustered_error(said, tables["A"]["patient"]) + 0.002, (label, state)


def test_upward_closure_is_an_option_of_the_channel(monkeypatch):
    open_labels = hospitals.film_table(2_000, seed=3)
    monkeypatch.setitem(HOSPITALS["channels"]["attentive"], "closed", True)
    closed = hospitals.film_table(2_000, seed=3)
    for parent, children in hospitals.CLOSURES.items():
        child = (closed[list(children)] == 1).any(axis=1)
        assert (closed[parent][child] == 1).all()
        assert not (open_labels[parent][child] == 1).all()


def test_the_same_seed_gives_the_same_films_and_more_films_begin_alike():
    few, many = hospitals.film_table(60, seed=4, hospital="B"), hospitals.film_table(2_500, seed=4, hospital="B")
    pd.testing.assert_frame_equal(few, many[:60])
    assert many["film"].is_unique
    assert not few["recipe"].equals(hospitals.film_table(60, seed=5, hospital="B")["recipe"])
    first, again = (hospitals.draw(few["recipe"][0]) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()


def test_crossing_labels_or_pixels_leaves_the_truth_alone():
    home = hospitals.film_table(2_000, seed=6, hospital="A")
    pixels = hospitals.film_table(2_000, seed=6, hospital="A", pixels="C")
    labels = hospitals.film_table(2_000, seed=6, hospital="A", labels="C")
    for crossed in (pixels, labels):
        pd.testing.assert_frame_equal(hospitals.truth(crossed), hospitals.truth(home))
        assert (crossed[["film", "view"]] == home[["film", "view"]]).all(axis=None)
    pd.testing.assert_frame_equal(pixels[LABELS], home[LABELS])
    assert labels["recipe"].equals(home["recipe"]) and labels["Lung Opacity"].isna().all()
    recipes = pd.concat([home["recipe"].map(json.loads), pixels["recipe"].map(json.loads)], axis=1)
    assert all(a | {"pixels": "C"} == b for a, b in recipes.itertuples(index=False))


def test_patients_return_and_their_findings_persist(tables):
    films = tables["A"].drop_duplicates("study")
    assert films.groupby("patient").size().mean() == pytest.approx(3.45, rel=0.05)
    normal = hospitals.truth(films)["No Finding"]
    again = films["patient"].eq(films["patient"].shift())
    assert (normal == normal.shift())[again].mean() > 0.75


@pytest.mark.parametrize("hospital", list("ABC"))
def test_boxes_come_without_drawing_and_lie_on_the_film(hospital):
    for recipe in hospitals.film_table(60, seed=2, hospital=hospital)["recipe"]:
        found = hospitals.boxes(recipe)
        assert found == hospitals.draw(recipe).boxes
        assert [box.finding for box in found] == [item["finding"] for item in json.loads(recipe)["findings"]]
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in found)


@pytest.mark.parametrize("pixels", list("ABC"))
@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_shows_inside_its_box_and_nowhere_else(name, pixels):
    film = hospitals.draw(plain([finding(name, strength=0.5)], pixels))
    change = np.abs(film.image.astype(float) - hospitals.draw(plain([], pixels)).image)
    box = film.boxes[0]
    inside = np.zeros(change.shape, bool)
    rows, columns = (
        slice(int(128 * low) - 2, int(128 * high) + 3) for low, high in ((box.y0, box.y1), (box.x0, box.x1))
    )
    inside[max(rows.start, 0) : rows.stop, max(columns.start, 0) : columns.stop] = True
    strongest = np.sort(change[inside])[-40:].mean()
    assert strongest > 20
    if pixels != "A":  # equalisation moves the whole film's tones a little
        assert change[~inside].mean() < 0.3
    assert change[~inside].mean() < 0.1 * strongest


@pytest.mark.parametrize("name", ONE_SIDED)
def test_the_patients_left_is_the_image_right(name):
    left, right = (hospitals.boxes(plain([finding(name, side)]))[0] for side in ("left", "right"))
    assert left.x0 + left.x1 > 1 > right.x0 + right.x1
    assert (left.side, right.side) == ("left", "right")


@pytest.mark.parametrize("hospital", list("ABC"))
def test_a_film_is_grey_and_its_lungs_are_darker_than_the_mediastinum(hospital):
    films = [hospitals.draw(plain([], hospital, view)).image for view in ("PA", "AP")]
    for image in films:
        assert image.dtype == np.uint8 and image.shape == (128, 128)
        assert image[40:80, 25:45].mean() < image[40:80, 60:68].mean() - 50
        assert image[40:80, 84:100].mean() < image[40:80, 60:68].mean() - 50
    assert not np.array_equal(*films)


def test_each_hospital_has_its_own_tones():
    shares = {}
    for pixels in "ABC":
        recipes = hospitals.film_table(40, seed=8, hospital="A", pixels=pixels)["recipe"]
        grey = np.concatenate([hospitals.draw(recipe).image.ravel() for recipe in recipes])
        shares[pixels] = np.histogram(grey, bins=16, range=(0, 256))[0] / grey.size
    distance = {pair: np.abs(shares[pair[0]] - shares[pair[1]]).sum() / 2 for pair in ("AB", "AC", "BC")}
    assert min(distance.values()) > 0.15, distance


def test_a_film_is_drawn_at_the_size_asked_for():
    recipe = plain([finding("Pleural Effusion")])
    small, large = hospitals.draw(recipe, 64), hospitals.draw(recipe, 256)
    assert small.image.shape == (64, 64) and large.image.shape == (256, 256)
    assert small.boxes == large.boxes
    shrunk = large.image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 12


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.5])
def test_noise_multiplies_misses_and_false_reports_and_leaves_the_truth(noise):
    plain, noisy = (hospitals.film_table(6000, 9, "A", "C", noise=level) for level in (1.0, noise))
    truth = hospitals.truth(plain)
    assert plain["recipe"].equals(noisy["recipe"])
    for label in ("Pleural Effusion", "Atelectasis", "Lung Lesion"):
        there, place = truth[label], FINDINGS.index(label)
        missed = 1 - hospitals._channel("nih").sensitivity[place]
        assert (noisy[label] != 1)[there].mean() == pytest.approx(noise * missed, abs=0.05)
        invented = [(table[label] == 1)[~there].mean() for table in (plain, noisy)]
        assert invented[1] == pytest.approx(noise * invented[0], abs=0.01)
