"""CheXpert as it lies on disk: full size or small, with one test table or the other, or in part."""

import pandas as pd
import pytest

from chexreason.data import chexpert, film_table
from chexreason.data.film_table import SourceError
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)
HEADING = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(LABELS)
TRAIN = f"""{HEADING}
CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0
CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,
CheXpert-v1.0/train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,
CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,Female,83,Frontal,LL,,,,,,,,,,,,,,
"""
VALID = f"""{HEADING}
CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,\
0.0,0.0,0.0
"""
REVERSED = ",".join(reversed(LABELS))
TEST_FILMS = f"""Path,{REVERSED}
test/patient64741/study1/view1_frontal.jpg,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,1.0,1.0,0.0
test/patient64741/study1/view2_lateral.jpg,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,1.0,1.0,0.0
test/patient64742/study1/view1_frontal.jpg,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0
"""
TEST_STUDIES = f"""Study,Reader,{",".join(LABELS)}
CheXpert-v1.0/test/patient64741/study1,a,0,1,1,1,0,0,0,0,0,0,0,0,0,1
CheXpert-v1.0/test/patient64742/study1,a,1,0,0,0,0,0,0,0,0,0,0,0,0,0
CheXpert-v1.0/test/patient64743/study1,b,1,0,0,0,0,0,0,0,0,0,0,0,0,0
"""
TEST_IMAGES = ("patient64741/study1/view1_frontal.jpg", "patient64741/study1/view2_lateral.jpg")
TEST_IMAGES += ("patient64742/study1/view1_frontal.jpg",)


def write(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)


def touch(folder, *images):
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()


def make(tmp_path):
    write(tmp_path, train=TRAIN, valid=VALID, test_labels=TEST_FILMS)
    touch(tmp_path, "train/patient00001/study1/view1_frontal.jpg")
    return tmp_path


root = pytest.fixture(name="root")(make)


def test_patient_and_study_come_from_the_path_and_the_prefix_goes(root):
    table = chexpert.read(root).table
    first = table.iloc[0]
    assert (first["film"], first["study"]) == ("patient00001_study1_view1_frontal", "patient00001_study1")
    assert (first["patient"], first["path"]) == ("patient00001", "train/patient00001/study1/view1_frontal.jpg")
    assert table["split"].tolist() == ["train"] * 4 + ["valid"] + ["test"] * 3
    assert table["study"].nunique() == 6 and table["patient"].nunique() == 5


def test_a_frontal_is_ap_pa_or_unknown_and_a_lateral_is_lateral(root):
    table = chexpert.read(root).table
    assert table["view"].tolist()[:5] == ["AP", "PA", "lateral", "unknown", "AP"]


def test_the_views_of_test_films_come_from_their_names(root):
    table = chexpert.read(root).table
    assert table["view"].tolist()[5:] == ["unknown", "lateral", "unknown"]


def test_blank_is_not_mentioned_and_minus_one_is_uncertain(root):
    films = chexpert.read(root)
    labels = films.table[LABELS]
    assert films.unknown == ()
    assert labels.iloc[0].dropna().to_dict() == {"No Finding": 1.0, "Pneumothorax": 0.0, "Support Devices": 1.0}
    assert labels.iloc[1]["Cardiomegaly"] == -1.0
    assert labels.iloc[3].isna().all()


def test_test_labels_are_read_by_name_whatever_their_order(root):
    labels = chexpert.read(root).table[LABELS].iloc[5]
    present = ["Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Support Devices"]
    assert labels.index[labels == 1].tolist() == present


@pytest.mark.parametrize("name", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
def test_the_folder_above_is_as_good_and_paths_start_there(tmp_path, name):
    write(tmp_path / name, train=TRAIN.replace("CheXpert-v1.0/", f"{name}/"), valid=VALID)
    touch(tmp_path / name, "train/patient00001/study1/view1_frontal.jpg")
    films, direct = chexpert.read(tmp_path), chexpert.read(tmp_path / name)
    assert films.table["path"].iloc[0] == f"{name}/train/patient00001/study1/view1_frontal.jpg"
    assert direct.table["path"].iloc[0] == "train/patient00001/study1/view1_frontal.jpg"
    pd.testing.assert_frame_equal(films.table.drop(columns="path"), direct.table.drop(columns="path"))
    assert film_table.present(films, tmp_path).sum() == film_table.present(direct, tmp_path / name).sum() == 1


@pytest.mark.parametrize(
    "tables, splits",
    [
        ({"train": TRAIN}, ["train"]),
        ({"valid": VALID}, ["valid"]),
        ({"test_labels": TEST_FILMS}, ["test"]),
        ({"train": TRAIN, "test_labels": TEST_FILMS}, ["train", "test"]),
    ],
)
def test_any_of_the_three_splits_may_be_missing(tmp_path, tables, splits):
    write(tmp_path, **tables)
    assert chexpert.read(tmp_path).table["split"].unique().tolist() == splits


@pytest.mark.parametrize(
    "table, images",
    [
        ("test_labels.csv", "test"),
        ("CheXpert/test_labels.csv", "CheXpert/test"),
        ("test/test_labels.csv", "test"),
        ("test_labels.csv", "CheXpert/test"),
        ("CheXpert-v1.0/test_labels.csv", "CheXpert-v1.0/test"),
    ],
)
@pytest.mark.parametrize("home", ["", "CheXpert-v1.0"])
def test_the_test_set_is_found_in_each_place_it_is_unpacked_to(tmp_path, table, images, home):
    write(tmp_path / home, train=TRAIN)
    (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / table).write_text(TEST_FILMS)
    touch(tmp_path / images, *TEST_IMAGES)
    films = chexpert.read(tmp_path)
    test = films.table[films.table["split"] == "test"]
    assert test["path"].tolist() == [f"{images}/{image}" for image in TEST_IMAGES]
    assert film_table.present(test, tmp_path).all()


@pytest.mark.parametrize("folder", ["", "test", "CheXpert"])
def test_with_labels_by_study_the_films_are_those_in_the_folder(tmp_path, folder):
    write(tmp_path / folder, groundtruth=TEST_STUDIES)
    images = tmp_path / ("CheXpert/test" if folder == "CheXpert" else "test")
    touch(images, *TEST_IMAGES, "patient64742/study1/.view1_frontal.jpg.part", "patient69999/study1/view1_frontal.jpg")
    films = chexpert.read(tmp_path)
    assert films.table["view"].tolist() == ["unknown", "lateral", "unknown"]
    assert films.table["Cardiomegaly"].tolist() == [1.0, 1.0, 0.0]
    assert film_table.present(films, tmp_path).all()
    excluded = films.excluded.set_index("film")["reason"]
    assert excluded.to_dict() == {
        "patient69999_study1_view1_frontal": "film of a study without a row in groundtruth.csv",
        "patient64743_study1": "study of groundtruth.csv without a film in test/",
    }


def test_labels_by_study_without_any_image_give_no_film_and_say_so(tmp_path):
    write(tmp_path, train=TRAIN, groundtruth=TEST_STUDIES)
    films = chexpert.read(tmp_path)
    assert films.table["split"].unique().tolist() == ["train"]
    assert len(films.excluded) == 3


def test_labels_by_film_are_preferred_to_labels_by_study(root):
    write(root, groundtruth=TEST_STUDIES)
    assert (chexpert.read(root).table["split"] == "test").sum() == 3


def test_a_folder_without_any_table_names_all_that_were_looked_for(tmp_path):
    with pytest.raises(
        SourceError, match=rf"{tmp_path}: has no train.csv, valid.csv, test_labels.csv or groundtruth.csv"
    ):
        chexpert.read(tmp_path)
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        chexpert.read(tmp_path / "nowhere")


def test_of_two_copies_one_must_be_named(tmp_path):
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        write(tmp_path / name, train=TRAIN)
    with pytest.raises(SourceError, match=r"holds CheXpert-v1.0 and CheXpert-v1.0-small; name the one that is meant"):
        chexpert.read(tmp_path)


WRONG = {
    "a missing column": (
        ("train", "Pleural_Other", "Pleural Other"),
        "train.csv: has no column 'Pleural Other'; its columns are Path, Sex, ",
    ),
    "a label of 2": (
        ("train", "Frontal,PA,,,2.0", "Frontal,PA,,,-1.0"),
        "train.csv, row 3, column 'Cardiomegaly': 2.0 is not a label",
    ),
    "a film twice": (
        ("train", "patient00002/study2/view1_frontal", "patient00002/study2/view2_lateral"),
        "train.csv: film patient00002_study2_view1_frontal is in row 3 and again in row 4",
    ),
    "a patient in two splits": (
        ("valid", "patient00002", "patient64541"),
        "patient patient00002 is in two splits, train and valid",
    ),
    "a path of another set": (
        ("train", "CheXpert-v1.0/train/p00001.jpg", "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"),
        "train.csv, row 2, column 'Path': CheXpert-v1.0/train/p00001.jpg is no path of a CheXpert film",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_table_is_reported_by_file_row_and_value(root, change, message):
    name, new, old = change
    text = (root / f"{name}.csv").read_text()
    assert old in text
    (root / f"{name}.csv").write_text(text.replace(old, new))
    with pytest.raises(SourceError, match=message):
        chexpert.read(root)


def test_a_study_labelled_twice_is_reported(tmp_path):
    write(tmp_path, groundtruth=TEST_STUDIES.replace("patient64742", "patient64741"))
    with pytest.raises(SourceError, match="study patient64741_study1 is in row 2 and again in row 3"):
        chexpert.read(tmp_path)


FRONTAL = "study1/view1_frontal.jpg"
BATCHES = {
    "CheXpert-v1.0 batch 2 (train 1)": [f"patient00001/{FRONTAL}"],
    "CheXpert-v1.0 batch 3 (train 2)": [f"patient00002/{FRONTAL}", f"patient00002/{FRONTAL.replace('1', '2', 1)}"],
}
FIRST = "CheXpert-v1.0 batch 1 (validate & csv)"


@pytest.fixture
def batches(tmp_path):
    """The set as it is handed out since 2021; of batch 3 one film is missing, and batch 4 is."""
    write(tmp_path / FIRST, train=TRAIN, valid=VALID)
    touch(tmp_path / FIRST, "valid/patient64541/study1/view1_frontal.jpg")
    for name, images in BATCHES.items():
        touch(tmp_path / name, *images)
    return tmp_path


@pytest.mark.parametrize("inner", [None, "train"])
def test_films_are_found_in_the_four_batches(batches, inner):
    for name in BATCHES if inner else ():
        (batches / name / inner).mkdir()
        for folder in (batches / name).glob("patient*"):
            folder.rename(batches / name / inner / folder.name)
    films = chexpert.read(batches)
    there = film_table.present(films, batches)
    assert there.tolist() == [True, True, False, True, True]
    first = next(iter(BATCHES)) + (f"/{inner}" if inner else "")
    assert films.table["path"][0] == f"{first}/patient00001/study1/view1_frontal.jpg"
    assert film_table.images_on_disk(films.table, batches) == [
        {"split": "train", "view": "AP", "films": 1, "images": 1},
        {"split": "train", "view": "PA", "films": 1, "images": 1},
        {"split": "train", "view": "lateral", "films": 1, "images": 0},
        {"split": "train", "view": "unknown", "films": 1, "images": 1},
        {"split": "valid", "view": "AP", "films": 1, "images": 1},
    ]


def test_without_any_film_of_the_other_batches_their_films_are_not_there(batches):
    for number, name in enumerate(BATCHES):
        (batches / name).rename(batches / f"elsewhere{number}")
    films = chexpert.read(batches)
    assert films.table["path"].tolist()[:-1] == [""] * (len(films.table) - 1)
    assert film_table.present(films, batches).sum() == 1


def test_one_batch_or_a_patient_in_two_is_refused(batches):
    with pytest.raises(SourceError, match="is one of the batches; give the folder above it"):
        chexpert.read(batches / FIRST)
    touch(batches / "CheXpert-v1.0 batch 4 (train 3)", "patient00001/study1/view1_frontal.jpg")
    with pytest.raises(SourceError, match=r"patient patient00001 has two folders, .*batch 2 .*batch 4"):
        chexpert.read(batches)


@pytest.mark.parametrize("inside", ["", "CheXpert"])
def test_chexlocalize_has_validation_and_test_films(tmp_path, inside):
    home = tmp_path / "CheXpert"
    write(
        home, test_labels=TEST_FILMS, val_labels=TEST_FILMS.replace("test/patient647", "CheXpert-v1.0/valid/patient645")
    )
    touch(home, *(f"test/{image}" for image in TEST_IMAGES), "val/patient64541/study1/view1_frontal.jpg")
    films = chexpert.read(tmp_path / inside)
    assert films.table["split"].tolist() == ["valid"] * 3 + ["test"] * 3
    assert films.table["view"].tolist() == ["unknown", "lateral", "unknown"] * 2
    assert film_table.present(films, tmp_path / inside).tolist() == [True, False, False, True, True, True]


def test_valid_csv_is_preferred_to_the_table_without_views(root):
    write(root, val_labels=TEST_FILMS)
    assert (chexpert.read(root).table["split"] == "valid").sum() == 1


def test_chexpert_plus_is_refused_by_name(tmp_path):
    write(tmp_path, df_chexpert_plus_240401="path_to_image\n")
    with pytest.raises(SourceError, match="CheXpert Plus has no table of labels: give the folder of CheXpert itself"):
        chexpert.read(tmp_path)


def test_converted_films_are_found_by_the_ending_they_have(root):
    (root / "train/patient00001/study1/view1_frontal.jpg").rename(root / "train/patient00001/study1/view1_frontal.png")
    assert film_table.present(chexpert.read(root), root).sum() == 1


def test_a_lateral_is_never_taken_for_a_frontal(root):
    text = TRAIN.replace("87,Lateral,", "87,lateral ,").replace("Frontal,AP", "Frontal, ap")
    write(root, train=text)
    assert chexpert.read(root).table["view"].tolist()[:4] == ["AP", "PA", "lateral", "unknown"]
    write(root, train=TRAIN.replace("87,Lateral,", "87,,"))
    assert chexpert.read(root).table["view"].tolist()[:4] == ["AP", "PA", "lateral", "unknown"]


def test_a_film_of_another_split_is_no_film_of_this_table(root):
    write(root, train=TRAIN.replace("train/patient00001", "valid/patient00001"))
    with pytest.raises(
        SourceError, match=r"train.csv, row 2, column 'Path': .*valid/patient00001/\S+ is no path of a Che"
    ):
        chexpert.read(root)
