"""One's own films: the worked example of the book, and what is refused."""

import re

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from chexreason import config
from chexreason.data import own
from chexreason.data.film_table import SourceError
from chexreason.labels import CHEXPERT14

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
    return config.Own(**yaml.safe_load(snippet)["sources"]["home"] | changes)


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
    "no such table": ({"table": "exam.csv"}, r"films: has no exam.csv \(nor with .gz\)"),
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
def test_a_wrong_mapping_is_reported_by_key_and_name(root, changes, message):
    with pytest.raises(SourceError, match=message):
        films(root, **changes)


WRONG_ROWS = {
    "a label of 2": ("1,2,1", "1,-1,1", "exams.csv, row 3, column 'edema_read': 2 is not a label"),
    "a view of another name": (
        "portable",
        "ap",
        "exams.csv, row 3: view 'portable' is none of PA, AP, lateral, unknown",
    ),
    "a blank patient": ("3.dcm,,", "3.dcm,p2,", "exams.csv, row 4: the patient is blank"),
    "a file twice": (
        "2024/0001.png",
        "2024/0002.png",
        "exams.csv: film 2024/0001 is in row 2 and again in row 3",
    ),
}


@pytest.mark.parametrize("new, old, message", WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_a_wrong_row_is_reported_by_row_and_value(root, new, old, message):
    assert old in TABLE
    (root / "films" / "exams.csv").write_text(TABLE.replace(old, new))
    with pytest.raises(SourceError, match=message):
        films(root)


def test_a_patient_in_two_splits_is_reported(root):
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
        "my_hospital.py:read, row 2, column 'Cardiomegaly': 2 is not a label",
    ),
    "no paths": (
        "my_hospital.py:read",
        FUNCTION.replace('"path"', '"film"'),
        "my_hospital.py:read: nothing says which column is the path of a film",
    ),
}


@pytest.mark.parametrize("name, text, message", WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS.keys())
def test_a_wrong_function_is_reported(root, name, text, message):
    (root / "my_hospital.py").write_text(text)
    with pytest.raises(SourceError, match=message):
        films(root, CALLED, read=name)


# Tables as people make them.  What is read is written beside each; the rules are in the book, "How a table is read".

HEADING = "file,pid,projection,heart,edema"
SECTION = {"columns": {"path": "file", "patient": "pid", "view": "projection"}}
SECTION |= {"labels": {"Cardiomegaly": "heart", "Edema": "edema"}}


def read(folder, text, **columns):
    """The film table of a table of one's own; `columns` are further ones, such as `film="name"`."""
    (folder / "exams.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    columns = {"columns": SECTION["columns"] | columns, "labels": SECTION["labels"]}
    return own.read(folder, config.Own(kind="own", root=str(folder), table="exams.csv", **columns), folder).table


PADDED = {
    "a blank": " P1 ",
    "a non-breaking blank": "P1\u00a0",
    "a tab": "P1\t",
    "an ideographic blank": "\u3000P1",
    "a byte order mark": "\ufeffP1",
    "a zero-width blank": "P1\u200b",
    "a NUL, as DICOM pads identifiers": "P1\0",
}


@pytest.mark.parametrize("padded", PADDED.values(), ids=PADDED)
def test_what_pads_an_identifier_is_no_part_of_it(tmp_path, padded):
    table = read(tmp_path, f"{HEADING}\na.png,P1,PA,1,0\n{padded},{padded}, pa ,1,0\n")
    assert table["patient"].tolist() == ["P1", "P1"]
    assert table["path"].tolist() == ["a.png", "P1"] and table["view"].tolist() == ["PA", "PA"]


def test_composed_letters_and_whole_numbers_have_one_spelling(tmp_path):
    rows = "a.png,Andre\u0301,PA,1,0\nb.png,Andr\u00e9,PA,1,0\nc.png,7.0,PA,1,0\nd.png,7,PA,1,0\n"
    assert read(tmp_path, f"{HEADING}\n{rows}")["patient"].tolist() == ["Andr\u00e9"] * 2 + ["7"] * 2


ALIKE = {
    "case": ("P1", "p1"),
    "leading zeros": ("007", "7"),
    "leading zeros after a letter": ("P01", "P1"),
    "width": ("P\uff11", "P1"),
    "a blank inside": ("P 1", "P1"),
    "a non-breaking blank inside": ("P\u00a01", "P 1"),
    "an invisible character inside": ("P\u200b1", "P1"),
    "a dash": ("P\u20131", "P-1"),
    "a mark for a blank": ("P_1", "P 1"),
    "a mark between digits": ("10-1", "10_01"),
    "what spreadsheets put before a number": ("'007", "7"),
    "other digits": ("\u0661\u0662", "12"),
    "sharp s": ("Stra\u00dfe", "STRASSE"),
}


@pytest.mark.parametrize("first, second", ALIKE.values(), ids=ALIKE)
def test_two_spellings_of_a_patient_or_a_split_are_refused(tmp_path, first, second):
    text = f"{HEADING},fold\na.png,{first},PA,1,0,x\nb.png,{second},PA,0,1,x\n"
    message = f"{first!r} and patient {second!r} differ only in case"
    with pytest.raises(SourceError, match=re.escape(f"exams.csv: patient {message}")):
        read(tmp_path, text)
    text = f"{HEADING},fold\na.png,p,PA,1,0,{first}\nb.png,q,PA,0,1,{second}\n"
    with pytest.raises(SourceError, match=re.escape(f"split {message}".replace("patient", "split"))):
        read(tmp_path, text, split="fold")


def test_different_patients_are_not_taken_for_spellings_of_one(tmp_path):
    names = ["P1", "P10", "P100", "1P", "10", "1-0", "1.10", "1.1", "11.0x", "1-1-0", "a", "\u0430", "山田", "山本"]
    rows = "".join(f"{number}.png,{name},PA,1,0\n" for number, name in enumerate(names))
    assert read(tmp_path, f"{HEADING}\n{rows}")["patient"].tolist() == names


NAMES = {
    "DICOM UIDs without an ending": ([f"1.2.826.0.1.3680043.8.498.{n}" for n in (101, 102)], None),
    "a point in the name": (["scan.v1.png", "scan.v2.PNG"], ["scan.v1", "scan.v2"]),
    "one name in every folder": (["p1/s1/IM-0001.dcm", "p2/s1/IM-0001.dcm"], ["p1/s1/IM-0001", "p2/s1/IM-0001"]),
    "folders of UIDs": (["/".join([f"1.2.840.{n}" + "1" * 55] * 3) for n in (1, 2)], "last"),
    "Windows": (["2024\\a.png", "2024\\b.png"], ["a", "b"]),
    "Chinese": (["胸片一.png", "胸片二.png"], ["胸片一", "胸片二"]),
}


@pytest.mark.parametrize("paths, names", NAMES.values(), ids=NAMES)
def test_films_are_named_by_their_files(tmp_path, paths, names):
    table = read(tmp_path, f"{HEADING}\n" + "".join(f"{path},p,PA,1,0\n" for path in paths))
    names = [path.split("/")[-1] for path in paths] if names == "last" else names or paths
    assert table["film"].tolist() == names
    assert table["path"].tolist() == [path.replace("\\", "/") for path in paths]


def test_a_path_may_be_absolute_and_in_the_folder_and_has_one_spelling(tmp_path):
    rows = f"{tmp_path / 'a.png'},p,PA,1,0\n./x/../b.png,q,PA,1,0\n"
    assert read(tmp_path, f"{HEADING}\n{rows}")["path"].tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "path", ["/etc/a.png", "../a.png", "x/../../a.png", "..", "C:\\films\\a.png", "//server/a.png"]
)
def test_a_path_outside_the_folder_is_refused(tmp_path, path):
    with pytest.raises(SourceError, match=r"exams.csv, row 3: path '.*' is not in the folder"):
        read(tmp_path, f"{HEADING}\nb.png,p,PA,1,0\n{path},p,PA,1,0\n")


def test_rows_that_are_equal_are_one_film_as_in_a_table_with_a_row_for_each_box(tmp_path):
    text = f"{HEADING},x\na.png,p1,PA,1,,10\na.png,p1,PA,1,,20\nb.png,p2,AP,0,0,\n"
    assert read(tmp_path, text)["film"].tolist() == ["a", "b"]
    with pytest.raises(SourceError, match="film a is in row 2 and again in row 3"):
        read(tmp_path, text.replace("PA,1,,20", "PA,0,,20"))


def test_one_file_is_not_two_films(tmp_path):
    text = f"name,{HEADING}\nf1,a.png,p1,PA,1,0\nf2,./a.png,p2,PA,0,0\n"
    with pytest.raises(SourceError, match=r"exams.csv: path a\.png is in row 2 and again in row 3"):
        read(tmp_path, text, film="name")


@pytest.mark.parametrize("word", ["", " ", "NA", "N/A", "nan", "NaN", "NULL", "None", "<NA>", "#N/A", "na"])
def test_one_rule_says_what_is_missing(tmp_path, word):
    table = read(tmp_path, f"{HEADING},fold,exam\na.png,p,{word},{word},1,{word},{word}\n", split="fold", study="exam")
    film = table.iloc[0]
    assert (film["view"], film["split"], film["study"]) == ("unknown", "", "a")
    assert pd.isna(film["Cardiomegaly"]) and film["Edema"] == 1.0
    for row, column in ((f"a.png,{word},PA,1,0", "patient"), (f"{word},p,PA,1,0", "path")):
        with pytest.raises(SourceError, match=f"exams.csv, row 2: the {column} is blank"):
            read(tmp_path, f"{HEADING}\n{row}\n")


STATES = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "-1.00": -1, " 0 ": 0, "1.000e+00": 1, "True": 1, "FALSE": 0, "-0.0": 0}


@pytest.mark.parametrize("text, value", STATES.items())
@pytest.mark.parametrize("other", ["", "0"])
def test_a_label_is_read_alike_whatever_stands_in_the_rows_below(tmp_path, text, value, other):
    assert read(tmp_path, f"{HEADING}\na.png,p,PA,{text},0\nb.png,q,PA,{other},0\n")["Cardiomegaly"][0] == value


@pytest.mark.parametrize(
    "text", ["Y", "no", "2", "0.5", "1_0", "0_1", "0x1", "\u0661", "\u22121", "-", "?", "+", "1 0", "inf"]
)
def test_what_is_no_label_is_refused(tmp_path, text):
    with pytest.raises(SourceError, match=r"exams.csv, row 2, column 'heart': .* is not a label"):
        read(tmp_path, f"{HEADING}\na.png,p,PA,{text},0\n")


UNEVEN = {
    "R's write.table": (f'{HEADING}\n"1","a.png","p1","PA",1,0\n', "row 2: has 6 cells, and the heading has 5"),
    "R's write.table, all numbers": (f"{HEADING}\n1,2,3,,1,0\n", "row 2: has 6 cells, and the heading has 5"),
    "a later row too long": (f"{HEADING}\na.png,p,PA,1,0\nb.png,p,PA,1,0,1\n", "row 3: has 6 cells, and"),
    "a comma in a cell": (f"{HEADING}\na.png,p,PA,1,0\nb,c.png,p,PA,1,0\n", "row 3: has 6 cells, and"),
    "cut off": (f"{HEADING}\na.png,p,PA,1,0\nb.png,p,P", "row 3: has 3 cells, and the rows before it have 5"),
    "a first row too short": (f"{HEADING}\na.png,p,PA,1\n", "row 2: has 4 cells, and the heading has 5"),
    "a quote left open": (f'{HEADING}\na.png,p,PA,1,0\n"b.png,p,PA,1,0\nc.png,p,PA,1,0\n', "exams.csv"),
    "a semicolon for a comma": (HEADING.replace(",", ";"), "separated by ';': save it with commas"),
}  # fmt: skip


@pytest.mark.parametrize("text, message", UNEVEN.values(), ids=UNEVEN)
def test_rows_that_do_not_fit_the_heading_are_refused(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        read(tmp_path, text)


def test_a_spreadsheets_table_is_read(tmp_path):
    text = '\ufefffile , pid,projection,report,heart,edema,,\r\na.png,0012,PA,"heart\r\nenlarged, mild",1.0,0,,\r\n'
    film = read(tmp_path, text + "\r\n").iloc[0]
    assert (film["film"], film["patient"], film["Cardiomegaly"], film["Edema"]) == ("a", "0012", 1.0, 0.0)


@pytest.mark.parametrize("name", ["a\tb", "a\x00b", "a\x85b", "a\u2028b", "a\ufffdb", "a" * 501, "1.23E+12", "1.2e+16"])
@pytest.mark.parametrize("column", ["name", "pid", "file", "fold", "exam"])
def test_a_name_that_cannot_be_written_is_refused(tmp_path, column, name):
    row = {
        "file": "a.png",
        "pid": "p",
        "projection": "PA",
        "heart": 1,
        "edema": 0,
        "name": "x",
        "fold": "f",
        "exam": "e",
    }
    text = ",".join(row) + "\n" + ",".join(map(str, (row | {column: name}).values())) + "\n"
    with pytest.raises(SourceError, match=r"exams.csv, row 2: \w+ '.*' cannot name a file"):
        read(tmp_path, text, film="name", split="fold", study="exam")


def test_a_function_and_a_table_are_read_by_the_same_rules(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pandas as pd\n"
        "def read(root):\n"
        "    return pd.DataFrame({'path': ['a.png ', 'b.png', 'c.png'], 'patient': [7.0, 7.0, 8.0],\n"
        "        'view': ['PA ', None, 'NA'], 'Edema': [True, None, False]})\n"
        "def nobody(root):\n"
        "    return read(root).assign(patient=[1, None, 2])\n"
        "def twice(root):\n"
        "    table = read(root)\n"
        "    return pd.concat([table, table[['patient']]], axis=1)\n"
        "def surrogate(root):\n"
        "    return read(root).assign(patient=pd.Series(['a', 'b', chr(0xd800)], dtype=object))\n"
    )
    section = config.Own(kind="own", root=str(tmp_path), read="mine.py:read")
    table = own.read(tmp_path, section, tmp_path).table
    assert table["patient"].tolist() == ["7", "7", "8"] and table["path"].tolist() == ["a.png", "b.png", "c.png"]
    assert table["view"].tolist() == ["PA", "unknown", "unknown"]
    assert str(table["Edema"].tolist()) == "[1.0, nan, 0.0]"
    wrong = {"nobody": "row 3: the patient is blank", "twice": "has column 'patient' twice", "surrogate": "UTF-8"}
    for name, message in wrong.items():
        with pytest.raises(SourceError, match=message):
            own.read(tmp_path, section.model_copy(update={"read": f"mine.py:{name}"}), tmp_path)
