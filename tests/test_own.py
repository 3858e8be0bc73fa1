"""One's own films: the worked example of the book, and what is refused."""

import re

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from chexreason import params
from chexreason.labels import CHEXPERT14
from chexreason.sources import SourceError, own

LABELS = list(CHEXPERT14)
PAGE = (ROOT / "book" / "your_own.md").read_text(encoding="utf-8")
TABLE, MAPPED, FUNCTION, CALLED = re.findall(r"```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
NAN = float("nan")


@pytest.fixture
def root(tmp_path):
    """The folder of the worked example: its table in films/, its function beside."""
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "exams.csv").write_text(TABLE)
    (tmp_path / "my_hospital.py").write_text(FUNCTION)
    return tmp_path


def section(snippet, **changes):
    return params.Own(**yaml.safe_load(snippet)["sources"]["home"] | changes)


def films(root, snippet=MAPPED, **changes):
    return own.read(root / "films", section(snippet, **changes), root)


def test_the_table_of_the_worked_example_is_read_by_its_mapping(root):
    found = films(root)
    assert found.table["film"].tolist() == ["0001", "0002", "0003"]
    assert found.table["path"].tolist() == ["2024/0001.png", "2024/0002.png", "2024/0003.dcm"]
    assert found.table["patient"].tolist() == ["p1", "p1", "p2"]
    assert found.table["study"].tolist() == ["e1", "e2", "e3"]
    assert found.table["view"].tolist() == ["PA", "AP", "unknown"]
    assert found.table["split"].tolist() == ["", "", ""]
    stated = found.table[["Cardiomegaly", "Edema", "Pleural Effusion"]].to_numpy().tolist()
    assert str(stated) == str([[1.0, 0.0, NAN], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    assert set(found.unknown) == set(LABELS) - {"Cardiomegaly", "Edema", "Pleural Effusion"}
    assert found.table[list(found.unknown)].isna().all(axis=None)


def test_the_function_of_the_worked_example_makes_the_same_films(root):
    found, mapped = films(root, CALLED), films(root)
    same = ["film", "path", "patient", "view", "split", "Cardiomegaly"]
    pd.testing.assert_frame_equal(found.table[same], mapped.table[same])
    assert found.table["No Finding"].tolist() == [0.0, 0.0, 1.0]
    assert found.table["study"].tolist() == found.table["film"].tolist()
    assert set(found.unknown) == set(LABELS) - {"Cardiomegaly", "No Finding"}


def test_a_table_may_name_films_and_splits_and_be_written_by_a_spreadsheet(root):
    text = "\ufefffile,pid,part,name\na/1.png,007,home,first\nb/1.png,008,away,second\n"
    (root / "films" / "exams.csv").write_text(text, encoding="utf-8")
    columns = {"path": "file", "patient": "pid", "split": "part", "film": "name"}
    table = films(root, columns=columns, labels={}).table
    assert table[["film", "patient", "split"]].to_numpy().tolist() == [
        ["first", "007", "home"],
        ["second", "008", "away"],
    ]


COLUMNS = {"path": "file", "patient": "pid"}
WRONG_PARAMS = {
    "no such table": ({"table": "exam.csv"}, r"films: holds no exam.csv \(nor with .gz\)"),
    "a column that is not there": (
        {"columns": COLUMNS | {"view": "position"}},
        r"exams.csv: has no column 'position'; its columns are file, pid, exam, ",
    ),
    "a label column that is not there": ({"labels": {"Edema": "oedema"}}, "exams.csv: has no column 'oedema'"),
    "a column of another name": (
        {"columns": COLUMNS | {"pateint": "pid"}},
        "columns of exams.csv: 'pateint' is none of film, path, patient, study, view, split",
    ),
    "a label of another name": (
        {"labels": {"Oedema": "edema_read"}},
        "labels of exams.csv: 'Oedema' is none of No Finding, ",
    ),
    "no patients": ({"columns": {"path": "file"}}, "exams.csv: nothing says which column is the patient of a film"),
}


@pytest.mark.parametrize("changes, message", WRONG_PARAMS.values(), ids=WRONG_PARAMS.keys())
def test_a_wrong_mapping_is_told_by_key_and_name(root, changes, message):
    with pytest.raises(SourceError, match=message):
        films(root, **changes)


WRONG_ROWS = {
    "a label of 2": ("1,2,1", "1,-1,1", "exams.csv, row 3, column 'edema_read': 2 is no label"),
    "a view of another name": (
        "portable",
        "ap",
        "exams.csv, row 3: view 'portable' is none of PA, AP, lateral, unknown",
    ),
    "a blank patient": ("3.dcm,,", "3.dcm,p2,", "exams.csv, row 4: the patient is blank"),
    "a film twice": ("2023/0001.png", "2024/0002.png", "exams.csv: film 0001 stands in row 2 and again in row 3"),
}


@pytest.mark.parametrize("new, old, message", WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_wrong_row_is_told_by_row_and_value(root, new, old, message):
    assert old in TABLE
    (root / "films" / "exams.csv").write_text(TABLE.replace(old, new))
    with pytest.raises(SourceError, match=message):
        films(root)


def test_a_patient_in_two_splits_is_told(root):
    with pytest.raises(SourceError, match="patient p1 is in two splits, e1 and e2"):
        films(root, columns=COLUMNS | {"split": "exam"})


WRONG_FUNCTIONS = {
    "no such file": (
        "other.py:read",
        FUNCTION,
        "other.py:read: give file.py:function, the file beside the params file",
    ),
    "no function named": ("my_hospital.py", FUNCTION, "my_hospital.py: give file.py:function"),
    "no such function": ("my_hospital.py:load", FUNCTION, "my_hospital.py has no function 'load'"),
    "no table": ("my_hospital.py:read", "def read(root): return [1]", "gave a list, not a film table"),
    "a label of another name": (
        "my_hospital.py:read",
        FUNCTION.replace('"Cardiomegaly"', '"Heart"'),
        "the film table: 'Heart' is none of film, path, ",
    ),
    "a label of 2": (
        "my_hospital.py:read",
        FUNCTION.replace('exams["heart"],', '2 * exams["heart"],'),
        "my_hospital.py:read, row 2, column 'Cardiomegaly': 2 is no label",
    ),
    "no paths": (
        "my_hospital.py:read",
        FUNCTION.replace('"path"', '"film"'),
        "my_hospital.py:read: nothing says which column is the path of a film",
    ),
}


@pytest.mark.parametrize("name, text, message", WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS.keys())
def test_a_wrong_function_is_told(root, name, text, message):
    (root / "my_hospital.py").write_text(text)
    with pytest.raises(SourceError, match=message):
        films(root, CALLED, read=name)
