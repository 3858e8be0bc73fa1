"""Two CSV files of anyone's: scored like a study's answers, or refused with file, row, column and value."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest

from chexreason.cli import main
from chexreason.labels import COMPETITION5, LABEL_SETS
from chexreason.score_files import ScoreError, score_files, told

HEADING = "id," + ",".join(COMPETITION5)
TRUTH = f"""{HEADING},patient
a,1,0,0,1,1,p
b,1,1,0,0,1,p
c,0,,0,0,0,q
d,0,1,0,1,,q
"""
PREDICTIONS = f"""{HEADING}
d,0,0,0,,1
c,1,1,1,0,0
b,0,1,0,0,1
a,1,0,0,1,0
"""
KEYS = ["label", "support", "tp", "fp", "fn", "tn", "precision", "recall", "f1", "f1_low", "f1_high"]


@pytest.fixture
def files(tmp_path):
    """Writes truth and predictions, and scores them."""

    def scored(truth=TRUTH, predictions=PREDICTIONS, label_set="competition5", patient=None, draws=50, seed=0):
        for name, text in (("truth.csv", truth), ("pred.csv", predictions)):
            (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return score_files(tmp_path / "truth.csv", tmp_path / "pred.csv", label_set, patient, draws, seed)

    return scored


def test_a_case_worked_by_hand(files):
    scored = files()
    assert [list(row) for row in scored["labels"]] == [KEYS] * 5
    assert [list(row.values())[:6] for row in scored["labels"]] == [
        ["Cardiomegaly", 2, 1, 1, 1, 1],
        ["Edema", 2, 1, 0, 1, 1],  # film c is unknown, and what was said of it counts nowhere
        ["Consolidation", 0, 0, 1, 0, 3],
        ["Atelectasis", 1, 1, 0, 0, 2],  # nothing was said of film d
        ["Pleural Effusion", 2, 1, 0, 1, 1],
    ]
    rates = [[row[name] for name in ("precision", "recall", "f1")] for row in scored["labels"]]
    assert rates == [[0.5, 0.5, 0.5], [1, 0.5, 2 / 3], [0, None, None], [1, 1, 1], [1, 0.5, 2 / 3]]
    overall = scored["overall"]
    assert overall["n"] == 4
    assert [overall[f"micro_{rate}"] for rate in ("precision", "recall", "f1")] == pytest.approx([4 / 6, 4 / 7, 8 / 13])
    assert [overall[f"macro_{rate}"] for rate in ("precision", "recall", "f1")] == pytest.approx(
        [7 / 8, 5 / 8, 17 / 24]
    )
    assert scored["left_out"] == {"truth": 2, "predictions": 1}
    assert (scored["label_set"], scored["draws"], scored["seed"], scored["clustered_by"]) == (
        "competition5",
        50,
        0,
        "id",
    )


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_scores_agree_with_scikit_learn_on_the_known_films(files, label_set):
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    random, names = np.random.default_rng(len(label_set)), list(LABEL_SETS[label_set])
    truth = pd.DataFrame((random.random((90, len(names))) < 0.4).astype(float), columns=names)
    truth = truth.mask(random.random(truth.shape) < 0.1).rename_axis("id")
    given = (truth.fillna(0.0) == 1) ^ (random.random(truth.shape) < 0.3)
    shuffled = given.astype(int).sample(frac=1, random_state=0)[names[::-1]]
    scored = files(truth.to_csv(), shuffled.assign(remark="x").to_csv(), label_set)
    expected = []
    for row, name in zip(scored["labels"], names, strict=True):
        known = truth[name].notna()
        theirs = precision_recall_fscore_support(truth.loc[known, name], given.loc[known, name], average="binary")[:3]
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(theirs, abs=1e-12)
        expected.append(theirs[2])
    assert scored["overall"]["macro_f1"] == pytest.approx(np.mean(expected), abs=1e-12)
    known = truth.notna().to_numpy()
    pooled = f1_score(truth.to_numpy()[known], given.to_numpy()[known])
    assert scored["overall"]["micro_f1"] == pytest.approx(pooled, abs=1e-12)


def test_what_spreadsheets_do_to_a_file_changes_nothing(files):
    truth = TRUTH.replace(",1", ",1.0").replace(",0", ",0.0").replace("id,", " id ,").replace("Edema", " Edema")
    assert files("\ufeff" + truth.replace("\n", "\r\n") + "\r\n,,,,,,\r\n") == files()


def test_patients_are_drawn_whole(files):
    truth = pd.read_csv(StringIO(TRUTH), dtype=str)
    rows = pd.concat([truth.assign(id=truth["id"] + str(k), patient=truth["id"]) for k in range(25)])
    predictions = pd.read_csv(StringIO(PREDICTIONS), dtype=str)
    given = pd.concat([predictions.assign(id=predictions["id"] + str(k)) for k in range(25)])
    texts = rows.to_csv(index=False), given.to_csv(index=False)
    films, patients = (files(*texts, patient=owner, draws=2000)["overall"] for owner in (None, "patient"))
    assert films["micro_f1"] == patients["micro_f1"]
    widths = [one["micro_f1_high"] - one["micro_f1_low"] for one in (films, patients)]
    assert widths[1] > 3 * widths[0]  # in theory 5 times; four patients are few
    assert files(*texts, patient="patient")["clustered_by"] == "patient"


def swap(old, new, text=TRUTH):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": swap("b,1,1", "b,1,2")}, r"truth\.csv, row 3, column Edema: '2'; write 1 or 0, or nothing where"),
        ({"truth": swap("b,1,1", "b,1,-1")}, r"truth\.csv, row 3, column Edema: '-1'; write 1 or 0"),
        ({"truth": swap("b,1,1", "b,1,nan")}, r"truth\.csv, row 3, column Edema: 'nan'; write 1 or 0"),
        ({"predictions": swap("c,1", "c,0.7", PREDICTIONS)}, r"pred\.csv, row 3, column Cardiomegaly: '0\.7'; write 1"),
        ({"truth": swap("b,", "a,")}, r"truth\.csv, row 3, column id: 'a'; this film stands in a row above"),
        ({"truth": swap("b,", ",")}, r"truth\.csv, row 3, column id: ''; every film needs one"),
        ({"predictions": swap("c,", "e,", PREDICTIONS)}, r"pred\.csv: no row for 'c', which the other file has"),
        ({"predictions": PREDICTIONS + "e,0,0,0,0,0\n"}, r"truth\.csv: no row for 'e', which the other file has"),
        ({"predictions": HEADING + "\nx,0,0,0,0,0\n"}, r"pred\.csv: no row for 'a', 'b', 'c' and 1 more, which"),
        ({"truth": swap("Edema", "Oedema")}, r"truth\.csv: no column 'Edema'; there are id, Cardiomegaly, Oedema, "),
        ({"predictions": swap("id,", "film,", PREDICTIONS)}, r"pred\.csv: no column 'id'; there are film, "),
        ({"truth": swap("patient", "Edema")}, r"truth\.csv: two columns 'Edema'; there are "),
        ({"patient": "owner"}, r"truth\.csv: no column 'owner'; there are .*patient"),
        (
            {"patient": "patient", "truth": swap("1,p", "1,")},
            r"truth\.csv, row 2, column patient: ''; every film needs",
        ),
        ({"truth": swap("0,q", "0")}, r"truth\.csv, row 4: 6 cells, and the heading has 7"),
        ({"truth": ""}, r"truth\.csv: holds no film; it needs a heading \(id, then the labels\)"),
        ({"truth": HEADING + "\n"}, r"truth\.csv: holds no film"),
        ({"truth": TRUTH.encode("utf-16")}, r"truth\.csv: cannot be read as CSV in UTF-8"),
        ({"label_set": "nih"}, "unknown label set 'nih'; choose one of chexpert14, nih9, nih10, shared9, competition5"),
        ({"draws": 0}, "draws must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_scored_is_told(files, changed, message):
    with pytest.raises(ScoreError, match=message):
        files(**changed)


def call(folder, *more):
    for name, text in (("truth.csv", TRUTH), ("pred.csv", PREDICTIONS)):
        (folder / name).write_text(text)
    given = ["--truth", str(folder / "truth.csv"), "--pred", str(folder / "pred.csv"), "--label-set", "competition5"]
    return main(["score", *given, "--draws", "50", *more])


def test_the_command_prints_the_same_scores_as_json(tmp_path, capsys, files):
    assert call(tmp_path, "--json", "--patient", "patient") == 0
    assert json.loads(capsys.readouterr().out) == files(patient="patient")


def test_the_command_prints_a_row_a_label_with_a_dash_for_undefined(tmp_path, capsys, files):
    assert call(tmp_path) == 0
    said = capsys.readouterr().out
    assert said == told(files()) + "\n"
    (row,) = [line.split() for line in said.splitlines() if "Consolidation" in line]
    assert row == ["Consolidation", "0", "0", "1", "0", "3", "0.000", "-", "-", "-", "-"]
    assert "macro f1: 0.708 (" in said and "2 in the truth, 1 in the predictions" in said


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, capsys):
    assert call(tmp_path, "--patient", "owner") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("chexreason: ") and "no column 'owner'" in line
    assert call(tmp_path, "--truth", str(tmp_path / "none.csv")) == 2
    assert capsys.readouterr().err == f"chexreason: {tmp_path / 'none.csv'}: No such file or directory\n"
