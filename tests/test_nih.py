"""NIH ChestX-ray14 as it lies on disk, in its several copies; and the real table, lists and films where they are."""

import gzip
import re

import pandas as pd
import pytest
from conftest import ROOT

from chexreason.data import film_table, nih
from chexreason.data.film_table import SourceError
from chexreason.labels import CHEXPERT14, NIH10

REAL = ROOT.parent / "shared" / "real_cxr"
FACTS = ROOT.parent / "shared" / "facts" / "prevalence"
LABELS = list(CHEXPERT14)
UNKNOWN = ["Enlarged Cardiomediastinum", "Lung Opacity", "Fracture", "Support Devices"]

OLD = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,
00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,AP,2894,2729,0.143,0.143,
00000002_000.png,No Finding,0,2,081Y,M,PA,2500,2048,0.171,0.171,
00000003_000.png,Hernia,0,3,081Y,F,PA,2582,2991,0.143,0.143,
00000004_000.png,Mass|Nodule|Effusion,0,4,082Y,M,AP,2500,2048,0.168,0.168,
00000005_000.png,Fibrosis|Infiltration,0,5,069Y,F,PA,2048,2500,0.168,0.168,
00000006_000.png,Pleural_Thickening,0,6,081Y,M,PA,2992,2991,0.143,0.143,
"""
TRAIN_VAL = "".join(f"0000000{name}.png\n" for name in ("1_000", "1_001", "2_000", "3_000"))
TEST = "".join(f"0000000{name}.png\n" for name in ("4_000", "5_000", "6_000"))
COPIES = {
    "the first": OLD,
    "ages in years": re.sub(r",0(\d\d)Y,", r",\1,", OLD),
    "Patient Sex": OLD.replace("Gender", "Sex"),
    "no comma at the end": OLD.replace(",\n", "\n"),
    "a comma at the end of the heading only": OLD.replace("143,\n", "143\n")
    .replace("1,\n", "1\n")
    .replace("8,\n", "8\n"),
    "a comma at the end of the rows only": OLD.replace("[x,y],", "[x,y]"),
    "a heading of plain names": OLD.replace("OriginalImage[Width,Height]", "OriginalImageWidth,OriginalImageHeight"),
}
IMAGES = ["00000001_000", "00000001_001", "00000004_000"]
PLACES = {
    "twelve folders": [
        f"images_0{number:02}/images/{film}.png" for number, film in zip((1, 1, 12), IMAGES, strict=True)
    ],
    "one folder": [f"images/{film}.png" for film in IMAGES],
    "the root": [f"{film}.png" for film in IMAGES],
    "another format": [f"small/{film}.jpg" for film in IMAGES],
}


def make(tmp_path):
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(OLD)
    (tmp_path / "train_val_list.txt").write_text(TRAIN_VAL)
    (tmp_path / "test_list.txt").write_text(TEST)
    return tmp_path


root = pytest.fixture(name="root")(make)


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip("the real NIH table is not beside the project, in ../shared/real_cxr")
    return nih.read(REAL)


def rewrite(file, new, old):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("text", COPIES.values(), ids=COPIES.keys())
def test_every_copy_of_the_table_reads_alike(root, text):
    expected = nih.read(root)
    (root / "Data_Entry_2017_v2020.csv").unlink()
    (root / "Data_Entry_2017.csv.gz").write_bytes(gzip.compress(text.encode()))
    films = nih.read(root)
    pd.testing.assert_frame_equal(films.table, expected.table)
    assert films.table["film"].tolist()[:2] == ["00000001_000", "00000001_001"]


def test_a_film_has_the_patient_study_and_view_of_its_row(root):
    film = nih.read(root).table.iloc[1]
    assert (film["patient"], film["study"], film["view"]) == ("00000001", "00000001_001", "AP")


def test_findings_become_chexperts_labels_and_the_others_are_unknown(root):
    films = nih.read(root)
    table = films.table.set_index("film")
    assert set(films.unknown) == set(UNKNOWN) == set(LABELS) - set(NIH10)
    assert table[UNKNOWN].isna().all(axis=None)
    assert table[list(NIH10)].isin([0.0, 1.0]).all(axis=None)
    positive = {film: [label for label in LABELS if row[label] == 1] for film, row in table.iterrows()}
    assert positive == {
        "00000001_000": ["Cardiomegaly"],
        "00000001_001": ["Cardiomegaly"],
        "00000002_000": ["No Finding"],
        "00000003_000": [],  # Hernia has no counterpart, and is a finding
        "00000004_000": ["Lung Lesion", "Pleural Effusion"],
        "00000005_000": [],
        "00000006_000": ["Pleural Other"],
    }
    assert table["native"]["00000004_000"] == "Mass|Nodule|Effusion"


def test_fibrosis_is_pleural_other_when_asked_for(root):
    table = nih.read(root, fibrosis=True).table.set_index("film")
    assert table.index[table["Pleural Other"] == 1].tolist() == ["00000005_000", "00000006_000"]


@pytest.mark.parametrize(
    "names", [("train_val_list.txt", "test_list.txt"), ("train_val_list_NIH.txt", "test_list_NIH.txt")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_official_lists_give_the_splits_under_either_name(root, names, packed):
    for old, name in zip(("train_val_list.txt", "test_list.txt"), names, strict=True):
        text = (root / old).read_bytes()
        (root / old).unlink()
        (root / (name + ".gz" * packed)).write_bytes(gzip.compress(text) if packed else text)
    films = nih.read(root)
    assert films.table["split"].tolist() == ["train_val"] * 4 + ["test"] * 3
    assert films.excluded.empty


def test_without_the_lists_there_is_no_split(root):
    (root / "train_val_list.txt").unlink()
    (root / "test_list.txt").unlink()
    assert set(nih.read(root).table["split"]) == {""}


def test_one_list_without_the_other_is_refused(root):
    (root / "test_list.txt").unlink()
    with pytest.raises(SourceError, match=r"but no test_list.txt or test_list_NIH.txt; splits need both"):
        nih.read(root)


@pytest.mark.parametrize("images", PLACES.values(), ids=PLACES.keys())
def test_images_are_found_wherever_they_lie(root, images):
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    films = nih.read(root)
    assert films.table["path"].tolist() == [images[0], images[1], "", "", images[2], "", ""]
    assert film_table.present(films, root).tolist() == [True, True, False, False, True, False, False]


def test_images_are_found_behind_a_link_and_a_circle_of_links_ends(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "00000001_000.png").touch()
    (elsewhere / "back").symlink_to(root)
    (root / "images").symlink_to(elsewhere)
    assert nih.read(root).table["path"].iloc[0] == "images/00000001_000.png"


def test_two_images_of_one_film_are_refused(root):
    for image in ("full/00000001_000.png", "small/00000001_000.jpg"):
        (root / image).parent.mkdir()
        (root / image).touch()
    message = "film 00000001_000 has two images, full/00000001_000.png and small/00000001_000.jpg"
    with pytest.raises(SourceError, match=message):
        nih.read(root)


def test_what_one_table_has_and_another_has_not_is_excluded(root):
    rewrite(root / "test_list.txt", "00000007_000", "00000006_000")
    (root / "00000008_000.png").touch()
    (root / "lung.png").touch()  # no name of a film, no concern of ours
    films = nih.read(root)
    assert films.excluded.set_index("film")["reason"].to_dict() == {
        "00000006_000": "film in neither of the two lists",
        "00000007_000": "film of the lists without a row in Data_Entry_2017_v2020.csv",
        "00000008_000": "image without a row in Data_Entry_2017_v2020.csv",
    }
    assert "00000006_000" not in films.table["film"].tolist()


WRONG = {
    "a missing column": (
        ("Data_Entry_2017_v2020.csv", "Findings", "Finding Labels"),
        "Data_Entry_2017_v2020.csv: has no column 'Finding Labels'; its columns are Image Index, Findings, ",
    ),
    "an unknown finding": (
        ("Data_Entry_2017_v2020.csv", "Hernias", "Hernia"),
        "row 5, column 'Finding Labels': 'Hernias' holds what is none of No Finding, Cardiomegaly, ",
    ),
    "a blank finding": (
        ("Data_Entry_2017_v2020.csv", "_000.png,,0", "_000.png,Hernia,0"),
        "row 5, column 'Finding Labels': '' holds what is none of",
    ),
    "a film twice": (
        ("Data_Entry_2017_v2020.csv", "00000001_000", "00000001_001"),
        "Data_Entry_2017_v2020.csv: film 00000001_000 is in row 2 and again in row 3",
    ),
    "a film in both lists": (
        ("test_list.txt", "00000001_000", "00000004_000"),
        "film 00000001_000 is in both train_val_list.txt and test_list.txt",
    ),
    "a patient in two splits": (
        ("Data_Entry_2017_v2020.csv", ",0,1,082Y", ",0,4,082Y"),
        "patient 00000001 is in two splits, train_val and test",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_table_is_reported_by_file_row_and_value(root, change, message):
    name, new, old = change
    rewrite(root / name, new, old)
    with pytest.raises(SourceError, match=message):
        nih.read(root)


def test_a_wrong_folder_names_the_files_looked_for(tmp_path):
    message = rf"{tmp_path}: has no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv \(nor with .gz\)"
    with pytest.raises(SourceError, match=message):
        nih.read(tmp_path)


def test_the_real_table_has_the_published_size(real):
    table = real.table
    assert (len(table), table["patient"].nunique()) == (112_120, 30_805)
    assert table["split"].value_counts().to_dict() == {"train_val": 86_524, "test": 25_596}
    assert table.groupby("split")["patient"].nunique().to_dict() == {"train_val": 28_008, "test": 2_797}
    assert real.excluded.empty


def test_the_real_films_are_found_whatever_their_ending(real):
    assert film_table.present(real, REAL).sum() == len(list((REAL / "nih").iterdir())) == 217


def shares(table, column):
    """Percent of films with a finding, a column for each group of films, as the published tables have them."""
    groups = {"NIH train_val": table["split"] == "train_val", "NIH official test": table["split"] == "test"}
    groups |= {f"NIH {view}": table["view"] == view for view in ("PA", "AP")} | {"NIH all": table["view"] != ""}
    return pd.DataFrame({name: 100 * column[group].mean() for name, group in groups.items()})


def test_the_real_native_labels_have_the_shares_counted_elsewhere(real):
    said = shares(real.table, real.table["native"].str.get_dummies("|"))
    facts = pd.read_csv(FACTS / "nih_prevalence.csv", index_col=0).loc[said.index, said.columns]
    assert (said - facts).abs().max(axis=None) <= 0.005 + 1e-9


def test_the_real_mapped_labels_have_the_shares_counted_elsewhere(real):
    said = shares(real.table, real.table[list(NIH10)])
    facts = pd.read_csv(FACTS / "nih_mapped_to_chexpert_prevalence.csv", index_col=0).loc[said.index, said.columns]
    assert (said - facts).abs().max(axis=None) <= 0.005 + 1e-9


def test_the_real_counts_are_those_of_torchxrayvision(real):
    facts = pd.read_csv(FACTS / "torchxrayvision_dataset_totals.csv")
    counts = facts[facts["source"] == "d_nih"].set_index("label")["pos"]
    native = film_table.overview(real, REAL)["native"]
    assert {label: native[label] for label in counts.index} == counts.to_dict()


def test_real_films_that_another_hand_mapped_are_mapped_alike(real):
    rows = pd.read_csv(REAL / "metadata.csv")
    rows = rows[rows["image"].str.startswith("nih/")].set_index("image")[LABELS]
    films = real.table.set_index("path").loc[rows.index, LABELS]
    known = [label for label in NIH10 if label != "Pleural Other"]  # there, Fibrosis is left open
    pd.testing.assert_frame_equal(films[known], rows[known].astype(float), check_names=False)


def test_masks_with_the_names_of_films_are_not_films(root):
    for image in ("images_001/images/00000001_000.png", "masks/00000001_000.png", "masks/00000001_001.png"):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    films = nih.read(root)
    assert films.table["path"].tolist()[:3] == ["images_001/images/00000001_000.png", "", ""]


def test_a_folder_images_within_another_says_nothing_about_what_is_a_film(root):
    for image in ("masks/images/00000001_000.png", "films/00000001_000.png"):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    with pytest.raises(SourceError, match=r"film 00000001_000 has two images, films/.* and masks/images/"):
        nih.read(root)
    (root / "images").mkdir()
    (root / "images" / "00000001_000.png").touch()
    assert nih.read(root).table["path"][0] == "images/00000001_000.png"


def test_what_macos_leaves_beside_a_film_is_not_a_film(root):
    for image in ("images/00000001_000.png", "images/._00000001_000.png", "__MACOSX/images/._00000001_001.png"):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    films = nih.read(root)
    assert films.table["path"].tolist()[:2] == ["images/00000001_000.png", ""] and films.excluded.empty


def test_kaggles_sample_is_read_without_splits(root):
    for name in ("train_val_list.txt", "test_list.txt"):
        (root / name).unlink()
    (root / "Data_Entry_2017_v2020.csv").rename(root / "sample_labels.csv")
    assert nih.read(root).table["split"].tolist() == [""] * 7


def test_padded_numbers_and_lists_of_windows_read_alike(root):
    expected = nih.read(root)
    text = OLD.replace(",0,1,", ", 0.0 ,1.0,").replace(",1,1,", ",1,00000001,").replace(",PA,", ", pa\u00a0,")
    (root / "Data_Entry_2017_v2020.csv").write_text(text, encoding="utf-8")
    (root / "train_val_list.txt").write_bytes(b"\xef\xbb\xbf" + TRAIN_VAL.replace("\n", " \r\n").encode() + b"\r\n")
    films = nih.read(root)
    pd.testing.assert_frame_equal(films.table, expected.table)
    assert films.excluded.empty


def test_a_finding_in_the_column_of_the_next_is_refused(root):
    rewrite(root / "Data_Entry_2017_v2020.csv", "x,00000002_000.png,No Finding", "00000002_000.png,No Finding")
    with pytest.raises(SourceError, match="row 4: has 13 cells, and the rows before it have 12"):
        nih.read(root)
