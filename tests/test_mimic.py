"""MIMIC-CXR-JPG as it lies on disk: tables at the root, labels by study, views by film."""

import gzip

import mimic_tables
import pandas as pd
import pytest

from chexreason.data import film_table, mimic
from chexreason.data.film_table import SourceError
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)
IDS = ["02aa804e-bde0afdd-112c0b34-7bc16630-4e384014", "174413ec-4ec4c1f7-34ea26b7-c5f994f8-79ef1962"]
IDS += ["2a2277a9-b0ded155-c0de8eb9-c124d10e-82c5caab", "e084de3b-be89b11e-20fe3f9f-9c8d8dfe-4cfd202c"]
IDS += ["68b5c4b1-227d0485-9cc38c3f-7b84ab51-4b472714"]

SPLIT = f"""dicom_id,study_id,subject_id,split
{IDS[0]},50414267,10000032,train
{IDS[1]},50414267,10000032,train
{IDS[2]},53189527,10000032,train
{IDS[3]},53911762,10000764,validate
{IDS[4]},57375967,11000898,test
"""
METADATA_COLUMNS = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
METADATA = f"""{METADATA_COLUMNS}
{IDS[4]},11000898,57375967,CHEST (PORTABLE AP),LL,2544,3056,21800506,213014.53,CHEST (PORTABLE AP),lateral,
{IDS[0]},10000032,50414267,CHEST (PA AND LAT),PA,3056,2544,21800506,213014.531,"CHEST, PA",postero-anterior,Erect
{IDS[1]},10000032,50414267,CHEST (PA AND LAT),LATERAL,3056,2544,21800506,213014.531,CHEST (PA AND LAT),lateral,Erect
{IDS[2]},10000032,53189527,,,3056,2544,21800626,165500.312,CHEST (PA AND LAT),,
{IDS[3]},10000764,53911762,CHEST (PORTABLE AP),AP,2544,3056,21800723,80556.875,CHEST (PORTABLE AP),antero-posterior,
"""
CHEXPERT = """subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,\
Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices
10000032,50414267,,,,,,,,,1.0,,,,,
10000032,53189527,1.0,,,-1.0,,,,1.0,,0.0,,,,1.0
10000764,53911762,,,,,,,,,,,,,,
"""
RADIOLOGISTS = """study_id,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Airspace Opacity,Lung Lesion,Edema,\
Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices
57375967,0,0,1,1,0,0,-1,0,0,0,0,0,0,1
"""
TABLES = {"2.0.0-split": SPLIT, "2.0.0-metadata": METADATA, "2.0.0-chexpert": CHEXPERT, "2.0.0-negbio": CHEXPERT}


def make(tmp_path):
    """Version 2.1.0, its four packed tables named 2.0.0, with the image of the first film."""
    for name, text in TABLES.items():
        (tmp_path / f"mimic-cxr-{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text(RADIOLOGISTS)
    image = tmp_path / "files" / "p10" / "p10000032" / "s50414267" / f"{IDS[0]}.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    return tmp_path


root = pytest.fixture(name="root")(make)


def rewrite(root, name, new, old):
    """Replace the packed table by a plain one with `new` for `old`."""
    packed = root / f"mimic-cxr-{name}.csv.gz"
    text = gzip.decompress(packed.read_bytes()).decode()
    assert old in text
    packed.unlink()
    (root / f"mimic-cxr-{name}.csv").write_text(text.replace(old, new))


def test_a_film_has_the_path_patient_study_and_split_of_its_row(root):
    table = mimic.read(root).table
    first = table.iloc[0]
    assert list(table["film"]) == IDS
    assert first["path"] == f"files/p10/p10000032/s50414267/{IDS[0]}.jpg"
    assert (first["patient"], first["study"], first["split"]) == ("p10000032", "s50414267", "train")
    assert table["path"].iloc[4].startswith("files/p11/p11000898/s57375967/")


def test_views_come_from_the_metadata_whatever_its_order_and_ll_is_lateral(root):
    assert list(mimic.read(root).table["view"]) == ["PA", "lateral", "unknown", "AP", "lateral"]


def test_labels_belong_to_the_study_and_are_read_by_name(root):
    films = mimic.read(root)
    assert films.unknown == ()
    table = films.table.set_index("film")[LABELS]
    assert table.loc[IDS[0]].equals(table.loc[IDS[1]])
    assert table.loc[IDS[0]].dropna().to_dict() == {"No Finding": 1.0}
    stated = {"Atelectasis": 1.0, "Edema": -1.0, "Lung Opacity": 1.0, "Pleural Effusion": 0.0, "Support Devices": 1.0}
    assert table.loc[IDS[2]].dropna().to_dict() == stated


def test_a_study_without_any_label_or_without_a_row_keeps_its_films(root):
    table = mimic.read(root).table.set_index("film")[LABELS]
    assert table.loc[[IDS[3], IDS[4]]].isna().all(axis=None)


def test_unpacked_tables_and_negbio_labels_are_read_too(root):
    packed = mimic.read(root)
    rewrite(root, "2.0.0-split", "train", "train")
    rewrite(root, "2.0.0-negbio", "10000032,53189527,0.0", "10000032,53189527,1.0")
    pd.testing.assert_frame_equal(mimic.read(root).table, packed.table)
    assert mimic.read(root, labels="negbio").table["Atelectasis"].tolist()[2] == 0.0


def test_the_radiologists_labels_have_a_study_id_only_and_say_airspace_opacity(root):
    (film,) = mimic.read(root, labels="radiologists").table.to_dict("records")
    assert (film["film"], film["patient"], film["split"]) == (IDS[4], "p11000898", "test")
    assert (film["Lung Opacity"], film["Consolidation"], film["No Finding"]) == (1.0, -1.0, 0.0)


def test_a_labelled_study_without_a_film_is_excluded(root):
    rewrite(root, "2.0.0-chexpert", "10000764,59999999", "10000764,53911762")
    (row,) = mimic.read(root).excluded.to_dict("records")
    assert row["film"] == "s59999999"
    assert row["reason"] == "study of mimic-cxr-2.0.0-chexpert.csv without a film in mimic-cxr-2.0.0-split.csv.gz"


def test_which_images_are_there_is_reported(root):
    films = mimic.read(root)
    assert film_table.present(films, root).tolist() == [True, False, False, False, False]
    assert film_table.present(films.table.iloc[3:], root).index.tolist() == [3, 4]


def test_a_wrong_folder_names_the_file_looked_for_and_the_folder(tmp_path):
    with pytest.raises(SourceError, match=rf"{tmp_path}: has no mimic-cxr-2.0.0-split.csv \(nor with .gz\)"):
        mimic.read(tmp_path)
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        mimic.read(tmp_path / "nowhere")


WRONG = {
    "a missing column": (
        ("2.0.0-chexpert", "Effusion", "Pleural Effusion"),
        r"chexpert.csv: has no column 'Pleural Effusion'; its columns are subject_id, study_id, .*, Effusion, ",
    ),
    "a label of 2": (
        ("2.0.0-chexpert", "10000032,53189527,2.0", "10000032,53189527,1.0"),
        r"chexpert.csv, row 3, column 'Atelectasis': 2.0 is not a label; a label is 1 \(present\), 0 \(absent\), -1",
    ),
    "a label that is a word": (
        ("2.0.0-chexpert", "10000032,53189527,yes", "10000032,53189527,1.0"),
        "chexpert.csv, row 3, column 'Atelectasis': yes is not a label",
    ),
    "a film twice": (
        ("2.0.0-split", IDS[0], IDS[2]),
        rf"mimic-cxr-2.0.0-split.csv: dicom_id {IDS[0]} is in row 2 and again in row 4",
    ),
    "a film twice in the metadata": (
        ("2.0.0-metadata", IDS[0], IDS[1]),
        rf"metadata.csv: dicom_id {IDS[0]} is in row 3 and again in row 4",
    ),
    "a study twice": (
        ("2.0.0-chexpert", "50414267", "53189527"),
        "chexpert.csv: study_id 50414267 is in row 2 and again in row 3",
    ),
    "a patient in two splits": (
        ("2.0.0-split", "10000032", "10000764"),
        "split.csv: patient p10000032 is in two splits, train and validate",
    ),
    "a film without metadata": (
        ("2.0.0-split", "00000000-4ec4c1f7", "174413ec-4ec4c1f7"),
        r"metadata.csv.gz: film 00000000-4ec4c1f7-\S+ of mimic-cxr-2.0.0-split.csv has no row here \(1 such films\)",
    ),
    "a film in the metadata only": (
        ("2.0.0-split", "", f"{IDS[4]},57375967,11000898,test\n"),
        rf"mimic-cxr-2.0.0-split.csv: film {IDS[4]} of mimic-cxr-2.0.0-metadata.csv.gz has no row here",
    ),
    "a film without a patient": (
        ("2.0.0-split", "57375967,,test", "57375967,11000898,test"),
        rf"split.csv: film {IDS[4]} has no patient",
    ),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_table_is_reported_by_file_row_and_value(root, change, message):
    rewrite(root, *change)
    with pytest.raises(SourceError, match=message):
        mimic.read(root)


def test_a_table_cut_off_in_the_middle_is_reported(root):
    packed = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"mimic-cxr-2.0.0-metadata.csv.gz: cannot be read as a table"):
        mimic.read(root)


def test_synthetic_tables_have_the_sizes_asked_for_and_come_out_the_same_again(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        mimic_tables.write(folder, films=600, studies=400, patients=120, seed=7)
    for one in folders[0].iterdir():
        assert one.read_bytes() == (folders[1] / one.name).read_bytes()
    table = mimic.read(folders[0]).table
    assert (len(table), table["study"].nunique(), table["patient"].nunique()) == (600, 400, 120)


@pytest.mark.parametrize("ending", [".png", ".dcm", ".JPG"])
def test_converted_films_are_found_by_the_ending_they_have(root, ending):
    image = root / mimic.read(root).table["path"][0]
    (image.parent / f"._{image.name}").touch()  # macOS
    image.rename(image.with_suffix(ending))
    table = mimic.read(root).table
    assert table["path"].str.endswith(ending).all()
    assert film_table.present(table, root).sum() == 1


def test_padded_and_decimal_identifiers_read_alike(root):
    expected = mimic.read(root)
    rewrite(root, "2.0.0-split", f"{IDS[0]} ,50414267.0,\u00a010000032,train ", f"{IDS[0]},50414267,10000032,train")
    rewrite(root, "2.0.0-chexpert", "10000032,50414267.0,", "10000032,50414267,")
    pd.testing.assert_frame_equal(mimic.read(root).table, expected.table)


@pytest.mark.parametrize("study", ["5.04e7", "050414267", "../../../etc", "5041426"])
def test_an_identifier_of_another_shape_is_refused(root, study):
    rewrite(root, "2.0.0-chexpert", f"10000032,{study},", "10000032,50414267,")
    with pytest.raises(
        SourceError, match=r"chexpert.csv, row 2, column 'study_id': .* is not an identifier of MIMIC-CXR"
    ):
        mimic.read(root)
