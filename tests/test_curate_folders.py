"""Curating films that lie on disk: bad ones excluded, frozen manifests followed, credentialed films not shown.

The folder is laid out as NIH ChestX-ray14 is, with phantoms in place of its films.
"""

import re
import shutil
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from conftest import changed_study
from PIL import Image

from chexreason import config, records
from chexreason.data import convert, curate, describe, sampling
from chexreason.data.film_table import SourceError
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14

NIH_WORDS = {"Pleural Effusion": "Effusion", "Lung Lesion": "Mass", "Pleural Other": "Pleural_Thickening"}
FILMS = 260


def write_nih(folder):
    """A folder of NIH's layout: 200 films of its training list and 60 of its test list."""
    table = hospitals.film_table(FILMS, 5, "C")
    names = table["patient"].map({name: number for number, name in enumerate(table["patient"].unique(), 1)})
    films = [f"{names[row]:08d}_{row:03d}.png" for row in range(FILMS)]
    labels = [
        "|".join(NIH_WORDS.get(name, name) for name in CHEXPERT14 if film[name] == 1.0) or "Infiltration"
        for _, film in table.iterrows()
    ]
    rows = {"Image Index": films, "Finding Labels": labels, "Follow-up #": range(FILMS), "Patient ID": names}
    rows |= {"Patient Age": 50, "Patient Gender": "F", "View Position": table["view"]}
    (folder / "images").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "Data_Entry_2017_v2020.csv", index=False)
    cut = names.iloc[200]
    for file, chosen in (("train_val_list.txt", names < cut), ("test_list.txt", names >= cut)):
        (folder / file).write_text("".join(f"{film}\n" for film, there in zip(films, chosen, strict=True) if there))
    for film, recipe in zip(films, table["recipe"], strict=True):
        Image.fromarray(hospitals.draw(recipe, 160).image).save(folder / "images" / film)


@pytest.fixture(scope="session")
def nih(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nih")
    write_nih(folder)
    return folder


@pytest.fixture
def copy(nih, tmp_path):
    """A copy of the folder, to damage."""
    return shutil.copytree(nih, tmp_path / "nih")


def sample(folder, root, changes=()):
    """The NIH sample study on the films in `root`, its records under `folder`; `changes` are ("section.key", value)."""
    sizes = {"sources.home.root": str(root), "sources.away.root": str(root), "sources.home.size": 128}
    sizes |= {"curate.sft": 40, "curate.rl": 15, "curate.validation": 25, "tests.nih-test.films": 20}
    sizes |= {"curate.floor": 0.0, "curate.seed": 3}
    return changed_study(folder, "nih_sample", sizes | dict(changes))


def kept(study) -> pd.DataFrame:
    """The study's manifest, made and saved."""
    manifest = curate.manifest(study).films
    records.save(manifest, study.folder / curate.MANIFEST, records.provenance(study, study.curate.seed))
    return manifest


def test_films_become_small_grey_images_that_name_the_file_they_came_from(nih, tmp_path):
    study = sample(tmp_path, nih)
    manifest = kept(study)
    assert manifest["split"].value_counts().to_dict() == {
        "sft": 36, "sft-holdout": 4, "rl": 15, "home-validation": 25, "nih-test": 20
    }  # fmt: skip
    for film in manifest.itertuples():
        assert film.sha256 == records.sha256(nih / film.original)
        with Image.open(study.folder / film.path) as image:
            assert (image.mode, image.size) == (("L", (128, 128)) if film.source == "home" else ("L", (160, 160)))
    assert curate.dataset(study, "sft")[["Fracture", "Support Devices", "Lung Opacity"]].isna().all(axis=None)


def test_a_bad_film_is_excluded_with_its_reason_and_replaced(copy, tmp_path):
    first = curate.manifest(sample(tmp_path / "first", copy)).films
    blank, cut = first.loc[first["split"] == "rl", "original"].iloc[:2]
    Image.new("L", (160, 160), 128).save(copy / blank)
    (copy / cut).write_bytes((copy / cut).read_bytes()[:2000])
    manifest, excluded = curate.manifest(sample(tmp_path / "second", copy))
    assert manifest["split"].value_counts().to_dict() == first["split"].value_counts().to_dict()
    reasons = excluded.set_index("path")["reason"]
    assert "blank" in reasons[blank] and reasons[cut]
    assert not manifest["original"].isin([blank, cut]).any()
    untouched = first["split"] != "rl"
    assert manifest.loc[untouched, "film"].tolist() == first.loc[untouched, "film"].tolist()
    assert f"{reasons[blank]}: 1 films" in describe.exclusion_counts(excluded)


def test_more_bad_films_than_the_stated_share_stop_the_study(copy, tmp_path):
    for film in list((copy / "images").iterdir())[::3]:
        film.write_bytes(b"no film")
    with pytest.raises(sampling.CurateError, match=r"\d+ of the \d+ films looked at.*curate\.bad_share \(5\.0%\)"):
        curate.manifest(sample(tmp_path, copy))


def test_missing_images_are_bad_films_unless_the_folder_is_partial(copy, tmp_path):
    for film in sorted((copy / "images").iterdir())[::2]:
        film.unlink()
    manifest, excluded = curate.manifest(sample(tmp_path / "partial", copy))
    assert len(manifest) == 100 and excluded.empty
    whole = [("sources.home.partial", False), ("sources.away.partial", False)]
    with pytest.raises(sampling.CurateError, match="its image is not there"):
        curate.manifest(sample(tmp_path / "whole", copy, whole))


def test_a_frozen_manifest_leads_to_the_very_same_films(copy, tmp_path):
    study = sample(tmp_path / "one", copy)
    manifest = kept(study)
    frozen = [("curate.frozen", str(study.folder / curate.MANIFEST)), ("curate.seed", 9)]
    other = curate.manifest(sample(tmp_path / "other", copy, frozen)).films
    assert describe.digest(other) == describe.digest(manifest)
    assert other["film"].tolist() == manifest["film"].tolist()
    assert describe.digest(manifest.assign(split=manifest["split"].iloc[::-1].to_numpy())) != describe.digest(manifest)

    film = manifest["original"].iloc[7]
    shutil.copy(copy / manifest["original"].iloc[8], copy / film)
    with pytest.raises(sampling.CurateError, match=rf"1 of its films have another file.*{manifest['film'].iloc[7]}"):
        curate.manifest(sample(tmp_path / "changed", copy, frozen))
    (copy / film).unlink()
    with pytest.raises(sampling.CurateError, match=rf"1 of its 100 films are not usable.*{manifest['film'].iloc[7]}"):
        curate.manifest(sample(tmp_path / "gone", copy, frozen))


def test_a_patient_who_would_train_and_test_is_refused(nih, tmp_path):
    study = sample(tmp_path, nih, [("sources.away.splits", ["train_val"]), ("tests.nih-test.films", 150)])
    with pytest.raises(sampling.CurateError, match=r"patient nih-\d+ would be in \S+ and in nih-test"):
        curate.manifest(study)


def test_films_drawn_one_by_one_come_from_more_patients_than_whole_patients_do(nih, tmp_path):
    films = curate.manifest(sample(tmp_path / "films", nih)).films
    whole = curate.manifest(sample(tmp_path / "patients", nih, [("tests.nih-test.draw", "patients")])).films
    patients = [table.loc[table["split"] == "nih-test", "patient"].nunique() for table in (films, whole)]
    assert patients[0] > patients[1]


def test_an_unset_variable_or_a_missing_folder_is_named(nih, tmp_path, monkeypatch):
    monkeypatch.delenv("NIH_FOLDER", raising=False)
    with pytest.raises(config.ParamsError, match=r"\$NIH_FOLDER: set this environment variable"):
        curate.manifest(sample(tmp_path, "$NIH_FOLDER"))
    monkeypatch.setenv("NIH_FOLDER", str(nih))
    assert len(curate.candidates(sample(tmp_path, "$NIH_FOLDER"), "home").films) >= 190
    with pytest.raises(config.ParamsError, match="nowhere: no such folder"):
        curate.manifest(sample(tmp_path, tmp_path / "nowhere"))


def test_films_of_a_credentialed_source_are_never_shown(nih, tmp_path):
    columns = {"path": "Image Index", "patient": "Patient ID", "view": "View Position"}
    table = pd.read_csv(nih / "Data_Entry_2017_v2020.csv").assign(heart=lambda films: films["Patient ID"] % 2)
    table["Image Index"] = "images/" + table["Image Index"]
    (tmp_path / "mine").mkdir()
    shutil.copytree(nih / "images", tmp_path / "mine" / "images")
    table.to_csv(tmp_path / "mine" / "mine.csv", index=False)
    own = {"kind": "own", "root": str(tmp_path / "mine"), "table": "mine.csv", "columns": columns}
    own |= {"labels": {"Cardiomegaly": "heart"}}
    for credentialed, shown in ((True, 0), (False, 4)):
        changes = [("sources.home", own | {"credentialed": credentialed}), ("curate.label_sets", ["nih9"])]
        changes += [("sources.away.splits", ["test"]), ("tests.nih-test.films", 10)]
        study = sample(tmp_path / str(credentialed), nih, changes)
        kept(study)
        assert len(describe.gallery(study, ["sft"], each=4)) == shown
        assert len(describe.clearest_films(curate.dataset(study, "sft"))) == (shown > 0)


# One's own films, and the ways in which one patient came into two splits.


def own_study(folder, tables, names=("s{0:02}/{1}", "s{0:02}_{1}"), changes=()):
    """A study of two sources that read `tables` ({file: how the second film spells its patient}), 60 patients each."""
    rng = np.random.default_rng(0)
    films = folder / "films"
    films.mkdir(exist_ok=True)
    picture = hospitals.draw(hospitals.film_table(1, 8)["recipe"][0], 160).image
    for file, spell in tables.items():
        rows = ["film,file,pid,heart,fold"]
        for n in range(60):
            for k in (0, 1):
                name = f"{file}-{n:02}_{k}.png"
                Image.fromarray(picture - rng.integers(0, 2, picture.shape, dtype=np.uint8)).save(films / name)
                patient = spell(n) if k else f"P{n:03}"
                rows.append(f"{names[k].format(n, 0)},{name},{patient},{int(n % 5 > 0)},{'one' if n < 40 else 'two'}")
        (films / f"{file}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    own = {"kind": "own", "root": str(films), "size": 160, "credentialed": False, "labels": {"Cardiomegaly": "heart"}}
    own |= {"columns": {"film": "film", "path": "file", "patient": "pid", "split": "fold"}, "views": ["unknown"]}
    first, *_, last = [*tables, *tables]
    sizes = {"sources.home": own | {"table": f"{first}.csv", "splits": ["one"]}}
    sizes |= {"sources.away": deepcopy(own) | {"table": f"{last}.csv", "splits": ["two"]}}
    sizes |= {"curate.label_sets": ["nih9"], "curate.shares": {"validation": 0.3, "sft": 0.4, "rl": 0.3}}
    sizes |= {"curate.sft": 16, "curate.rl": 6, "curate.validation": 10, "curate.floor": 0.0, "curate.bad_share": 1.0}
    sizes |= {"tests.nih-test.films": 20, "tests.nih-test.draw": "films"}
    return changed_study(folder, "nih_sample", sizes | dict(changes))


PADDED = {"a blank": "P{:03} ", "an invisible character": "\ufeffP{:03}"}


@pytest.mark.parametrize("spelling", PADDED.values(), ids=PADDED)
def test_a_padded_patient_is_in_one_split_and_every_film_has_its_own_image(tmp_path, spelling):
    study = own_study(tmp_path, {"exams": spelling.format})
    manifest = curate.manifest(study).films
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    patient = manifest["original"].str.extract(r"-(\d+)_")[0]  # by the file, which nobody padded
    assert (manifest.groupby(patient)["split"].nunique() == 1).all()
    assert (manifest.groupby(patient)["patient"].nunique() == 1).all()
    assert manifest["path"].str.casefold().is_unique
    for film in manifest.itertuples():
        with Image.open(study.folder / film.path) as made, Image.open(tmp_path / "films" / film.original) as original:
            assert made.tobytes() == original.tobytes()


@pytest.mark.parametrize("spelling", ["p{:03}", "P{:d}"])
def test_another_spelling_of_a_patient_stops_the_study(tmp_path, spelling):
    with pytest.raises(SourceError, match=r"exams.csv: patient 'P000' and patient '\S+' differ only in"):
        curate.manifest(own_study(tmp_path, {"exams": spelling.format}))


@pytest.mark.parametrize("spelling", ["p{:03}", "P{:03} "])
def test_two_tables_of_one_folder_have_the_same_patients(tmp_path, spelling):
    tables = {"train": "P{:03}".format, "test": spelling.format}
    study = own_study(tmp_path, tables, changes={"sources.away.splits": ["one"], "tests.nih-test.films": 70})
    if spelling[0] == "p":  # written so in the whole table
        file = tmp_path / "films" / "test.csv"
        file.write_text(file.read_text().replace(",P", ",p"))
    with pytest.raises(sampling.CurateError, match=r"patient home-\w+ would be in \S+ and in nih-test"):
        curate.manifest(study)


@pytest.mark.parametrize("patient", ["{}", "{:08d}"])
def test_films_of_a_data_set_that_one_labels_again_have_its_patients(copy, tmp_path, patient):
    rows = pd.read_csv(copy / "Data_Entry_2017_v2020.csv").head(180)
    own = {"file": "images/" + rows["Image Index"], "pid": rows["Patient ID"].map(patient.format), "heart": 1}
    pd.DataFrame(own).to_csv(copy / "again.csv", index=False)
    again = {"kind": "own", "root": str(copy), "size": 160, "credentialed": False, "table": "again.csv"}
    again |= {"columns": {"path": "file", "patient": "pid"}, "labels": {"Cardiomegaly": "heart"}, "views": ["unknown"]}
    study = sample(tmp_path, copy, [("sources.away", again), ("tests.nih-test.films", 150)])
    with pytest.raises(sampling.CurateError, match=r"patient nih-\d+ would be in \S+ and in \S+"):
        curate.manifest(study)


def test_a_patient_of_mimic_is_the_same_by_folder_and_by_subject():
    chosen = pd.DataFrame({"patient": ["mimic-p10000032", "mimic-10000032"], "split": ["sft", "away"]})
    with pytest.raises(sampling.CurateError, match="patient mimic-p10000032 would be in sft and in away"):
        curate._refuse_shared(chosen, None)


def test_a_source_can_be_looked_at_where_the_folder_of_another_is_not_there(tmp_path):
    study = own_study(tmp_path, {"exams": "P{:03}".format}, changes={"sources.away.root": "$NOT_SET/films"})
    assert curate.source_films(study, "home").table["patient"][0] == "home-P000"


def test_a_split_that_no_film_has_is_named(tmp_path):
    study = own_study(tmp_path, {"exams": "P{:03}".format}, changes={"sources.home.splits": ["one", "thre"]})
    with pytest.raises(sampling.CurateError, match=r"sources.home.splits: no film is in split 'thre'; .* 'one', 'two'"):
        curate.candidates(study, "home")


def test_different_films_have_different_image_files_whatever_the_file_system():
    names = [
        "p/1",
        "p_1",
        "p 1",
        "P_1",
        "p:1",
        "..",
        ".",
        "p\\1",
        "\u00e9",
        "e",
        "p" * 400,
        "p" * 401,
        "胸" * 200,
        "con",
    ]
    files = [convert.file_name(f"own-{name}") for name in names]
    assert len({file.casefold() for file in files}) == len(names)
    assert max(len(file.encode()) for file in files) < 200
    assert all(re.fullmatch(r"own-[A-Za-z0-9._-]*(~[0-9a-f]{16})?\.png", file) for file in files)
    assert convert.file_name("nih-00000001_000") == "nih-00000001_000.png"
