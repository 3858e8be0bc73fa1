"""`chexreason films`: what a folder holds, as JSON and as tables, and mistakes in one line."""

import json

import pytest
import test_chexpert
import test_mimic
import test_nih

from chexreason.cli import main
from chexreason.data import film_table, mimic
from chexreason.labels import CHEXPERT14

nih_folder = pytest.fixture(name="nih_folder")(test_nih.make)
mimic_folder = pytest.fixture(name="mimic_folder")(test_mimic.make)
chexpert_folder = pytest.fixture(name="chexpert_folder")(test_chexpert.make)


def found(capsys, *arguments) -> dict:
    assert main(["films", *(str(each) for each in arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_films_of_nih_are_counted_by_view_split_and_label(nih_folder, capsys):
    films = found(capsys, "nih", nih_folder)
    assert (films["films"], films["patients"], films["studies"], films["images"]) == (7, 6, 7, 0)
    assert films["views"] == {"PA": 5, "AP": 2}
    assert films["splits"] == {"train_val": 4, "test": 3}
    assert list(films["positives"]) == list(films["uncertain"]) == list(CHEXPERT14)
    assert films["positives"]["Cardiomegaly"] == 2
    assert films["uncertain"]["Cardiomegaly"] == 0
    assert films["positives"]["Lung Opacity"] is None and films["uncertain"]["Lung Opacity"] is None
    assert films["native"]["Cardiomegaly"] == 2 and films["native"]["Infiltration"] == 1
    assert films["excluded"] == {}


def test_without_images_it_works_on_the_tables_and_says_so(nih_folder, capsys):
    assert "only the tables were read" in found(capsys, "nih", nih_folder)["note"]
    (nih_folder / "00000001_000.png").touch()
    films = found(capsys, "nih", nih_folder)
    assert (films["images"], films["note"]) == (1, "")


def test_what_is_excluded_is_reported_by_reason_with_the_first_films(nih_folder, capsys):
    (nih_folder / "test_list.txt").write_text("".join(f"0000100{number}_000.png\n" for number in range(5)))
    excluded = found(capsys, "nih", nih_folder)["excluded"]
    assert excluded["film in neither of the two lists"]["films"] == 3
    assert excluded["film of the lists without a row in Data_Entry_2017_v2020.csv"] == {
        "films": 5,
        "first": ["00001000_000", "00001001_000", "00001002_000"],
    }


def test_a_source_without_splits_says_unknown(nih_folder, capsys):
    for name in ("train_val_list.txt", "test_list.txt"):
        (nih_folder / name).unlink()
    assert found(capsys, "nih", nih_folder)["splits"] == {"unknown": 7}


def test_fibrosis_and_the_labels_of_mimic_can_be_chosen(nih_folder, mimic_folder, capsys):
    assert found(capsys, "nih", nih_folder)["positives"]["Pleural Other"] == 1
    assert found(capsys, "nih", nih_folder, "--fibrosis")["positives"]["Pleural Other"] == 2
    assert found(capsys, "mimic", mimic_folder)["films"] == 5
    assert found(capsys, "mimic", mimic_folder, "--labels", "radiologists")["films"] == 1


def test_films_of_mimic_and_chexpert_are_counted_too(mimic_folder, chexpert_folder, capsys):
    films = found(capsys, "mimic", mimic_folder)
    assert (films["films"], films["patients"], films["studies"], films["images"]) == (5, 3, 4, 1)
    assert films["views"] == {"lateral": 2, "PA": 1, "unknown": 1, "AP": 1}
    assert films["uncertain"]["Edema"] == 1
    assert films["native"] == {}
    films = found(capsys, "chexpert", chexpert_folder)
    assert films["splits"] == {"train": 4, "test": 3, "valid": 1}
    assert films["positives"]["Support Devices"] == 3


def test_a_person_reads_tables(nih_folder, capsys):
    (nih_folder / "00000009_000.png").touch()
    assert main(["films", "nih", str(nih_folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["films", "7"] in lines
    assert ["train_val", "4"] in lines
    assert ["Cardiomegaly", "2", "0"] in lines
    assert ["Lung", "Opacity", "unknown", "unknown"] in lines
    assert ["Infiltration", "1"] in lines
    assert lines[-3][0] == "excluded," and lines[-3][-1] == "(00000009_000)"
    assert " ".join(lines[-1]) == "no image of these films is in this folder: only the tables were read"


@pytest.mark.parametrize(
    "kind, name", [("nih", "Data_Entry"), ("mimic", "mimic-cxr-2.0.0-split"), ("chexpert", "train")]
)
def test_a_wrong_folder_is_reported_in_one_line(tmp_path, capsys, kind, name):
    assert main(["films", kind, str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chexreason: {tmp_path}: has no {name}")


def test_an_option_of_another_source_is_refused(nih_folder):
    with pytest.raises(SystemExit) as stopped:
        main(["films", "nih", str(nih_folder), "--labels", "negbio"])
    assert stopped.value.code == 2


def test_every_film_table_has_the_same_columns(nih_folder, mimic_folder, chexpert_folder):
    from chexreason.data import chexpert, mimic, nih

    tables = [nih.read(nih_folder).table, mimic.read(mimic_folder).table, chexpert.read(chexpert_folder).table]
    for table in tables:
        assert list(table.columns.drop("native", errors="ignore")) == film_table.COLUMNS
        assert table[["film", "path", "patient", "study", "view", "split"]].notna().all(axis=None)
        assert set(table["view"]) <= set(film_table.VIEWS)


def test_films_without_any_label_are_counted(mimic_folder, nih_folder, capsys):
    assert found(capsys, "nih", nih_folder)["unlabeled"] == 0
    table = mimic.read(mimic_folder).table
    expected = int(table[list(CHEXPERT14)].isna().all(axis=1).sum())
    assert found(capsys, "mimic", mimic_folder)["unlabeled"] == expected > 0


def test_the_images_of_each_split_and_view_are_counted(mimic_folder, capsys):
    films = found(capsys, "mimic", mimic_folder)
    assert {(row["split"], row["view"]): (row["films"], row["images"]) for row in films["on_disk"]} == {
        ("train", "PA"): (1, 1), ("train", "lateral"): (1, 0), ("train", "unknown"): (1, 0),
        ("validate", "AP"): (1, 0), ("test", "lateral"): (1, 0),
    }  # fmt: skip
    assert main(["films", "mimic", str(mimic_folder)]) == 0
    assert "  train, PA                          1         1" in capsys.readouterr().out.splitlines()


def test_a_row_that_is_cut_within_a_letter_is_refused_in_one_line(tmp_path, capfd):
    file = tmp_path / "table.csv"
    file.write_bytes(b"id,Edema\n" + b"".join(b"f%d,1\n" % number for number in range(20_000)) + b"b,1,\xc3\n")
    with pytest.raises(film_table.SourceError, match="row 20002: has 3 cells, and the rows before it have 2"):
        film_table.read_csv(file, ["id"], ["Edema"])
    assert capfd.readouterr().err == ""
