"""Two CSV files of anyone's: scored like a study's answers, or refused with file, row, column and value."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest

from chexreason.cli import main
from chexreason.evaluation.csv_files import ScoreError, report_text, score_files
from chexreason.labels import COMPETITION5, LABEL_SETS

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
KEYS += ["specificity", "specificity_low", "specificity_high"]
PROBABILITIES = f"""{HEADING}
d,0.1,0.4,0.2,,0.7
c,0.8,0.9,0.6,0.1,0.2
b,0.3,0.6,0.1,0.0,0.9
a,0.9,0.2,0.1,1.0,0.4
"""


@pytest.fixture
def files(tmp_path):
    """Writes truth and predictions, and scores them."""

    def scored(
        truth=TRUTH, predictions=PREDICTIONS, label_set="competition5", patient=None, n_resamples=50, seed=0, **options
    ):
        for name, text in (("truth.csv", truth), ("pred.csv", predictions)):
            (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return score_files(
            tmp_path / "truth.csv", tmp_path / "pred.csv", label_set, patient, n_resamples, seed, **options
        )

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
    assert [row["specificity"] for row in scored["labels"]] == [0.5, 1, 0.75, 1, 1]
    overall = scored["overall"]
    assert overall["n"] == 4
    assert [overall[f"micro_{rate}"] for rate in ("precision", "recall", "f1")] == pytest.approx([4 / 6, 4 / 7, 8 / 13])
    assert [overall[f"macro_{rate}"] for rate in ("precision", "recall", "f1")] == pytest.approx(
        [7 / 8, 5 / 8, 17 / 24]
    )
    assert scored["left_out"] == {"truth": 2, "predictions": 1}
    assert (scored["label_set"], scored["n_resamples"], scored["seed"], scored["clustered_by"]) == (
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


def areas(films):
    """scikit-learn's AUROC and AUPRC of a table with the columns truth and probability, of the rows that have both."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    films = films.dropna()
    return [measure(films["truth"], films["probability"]) for measure in (roc_auc_score, average_precision_score)]


def known(truth, probability, name="Edema"):
    return pd.DataFrame({"truth": truth[name], "probability": probability[name]})


def made_up(seed, names, films=80):
    """Truth and probabilities of made-up films, both with blanks, by id; `patient` has three films each."""
    random, ids = np.random.default_rng(seed), pd.Index([f"f{k}" for k in range(films)], name="id")
    truth = pd.DataFrame((random.random((films, len(names))) < 0.4).astype(float), ids, names)
    truth = truth.mask(random.random(truth.shape) < 0.1)
    probability = (random.random(truth.shape) * 0.6 + 0.4 * truth.fillna(0)).round(2)
    return truth.assign(patient=[f"p{k // 3}" for k in range(films)]), probability.mask(
        random.random(probability.shape) < 0.05
    )


def test_probabilities_agree_with_scikit_learn_on_the_known_films(files):
    truth, probability = made_up(1, list(COMPETITION5))
    scored = files(truth.to_csv(), probability.sample(frac=1, random_state=0).to_csv(), patient="patient")
    expected = [areas(known(truth, probability, name)) for name in COMPETITION5]
    assert [row["label"] for row in scored["labels"]] == list(COMPETITION5)
    ours = [[row["auroc"], row["auprc"]] for row in scored["labels"]]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    overall = scored["overall"]
    assert [overall["macro_auroc"], overall["macro_auprc"]] == pytest.approx(np.mean(expected, axis=0), abs=1e-12)
    assert overall["macro_auroc_low"] < overall["macro_auroc"] < overall["macro_auroc_high"]
    assert "f1" not in scored["labels"][0] and "macro_f1" not in overall
    assert (
        "AUROC" not in report_text(scored)
        and "macro auroc: " in report_text(scored)
        and "f1" not in report_text(scored)
    )


def test_a_threshold_adds_the_scores_of_the_labels_it_makes(files):
    truth, probability = made_up(2, list(COMPETITION5))
    probability.iloc[0, 0] = 0.5  # at the threshold counts as present
    labels = (probability >= 0.5).astype(float).mask(probability.isna())
    both = files(truth.to_csv(), probability.to_csv(), patient="patient", threshold=0.5)
    hard, soft = (files(truth.to_csv(), each.to_csv(), patient="patient") for each in (labels, probability))
    for row, *parts in zip(both["labels"], soft["labels"], hard["labels"], strict=True):
        assert row == parts[0] | parts[1]
    assert both["overall"] == soft["overall"] | hard["overall"]
    assert (both["threshold"], soft["threshold"]) == (0.5, None)
    assert "With a probability of at least 0.5 as present:" in report_text(both) and "macro f1: " in report_text(both)


def test_a_label_without_a_variation_may_stand_among_probabilities(files):
    truth, probability = made_up(4, ["Edema", "Fracture"])
    scored = files(truth.to_csv(), probability.assign(Fracture=0).to_csv(), None)
    assert [row["auroc"] for row in scored["labels"]] == [pytest.approx(areas(known(truth, probability))[0]), 0.5]


def test_the_labels_are_those_both_files_have_unless_chosen(files):
    truth, _ = made_up(3, ["Nodule", "Edema", "Mass", "age"])
    truth["remark"] = "a"
    pred = truth.fillna(0)[["Edema", "Nodule", "patient", "age", "remark"]].assign(Hernia=1)
    common, chosen = (files(truth.to_csv(), pred.to_csv(), None, labels=labels) for labels in (None, ["Edema"]))
    assert [row["label"] for row in common["labels"]] == ["Nodule", "Edema"] and common["label_set"] is None
    assert common["not_scored"] == {
        "truth": ["Mass", "age", "patient", "remark"],
        "predictions": ["patient", "age", "remark", "Hernia"],
    }
    assert "Not scored, in the truth: Mass, age, patient, remark." in report_text(common)
    assert [row["label"] for row in chosen["labels"]] == ["Edema"] and chosen["labels"][0] == common["labels"][1]
    named = files(truth.to_csv(), pred.to_csv(), None, labels=["age"])  # asked for, it is scored
    assert named["labels"][0]["label"] == "age"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"truth": "id,edema\na,1\n", "predictions": "id,Edema\na,1\n"},
            r"pred.csv: column 'Edema' is 'edema' in .*truth",
        ),
        (
            {"truth": "id,Mass,Pleural Effusion\na,1,1\n", "predictions": "id,Mass,Pleural_Effusion\na,1,1\n"},
            r"column 'Pleural.Effusion' is 'Pleural.Effusion' in .*; write one name",
        ),
        (
            {"truth": "id,Mass\na,1\n", "predictions": "id,Edema\na,1\n"},
            r"no label is a column of both files: .*truth.csv has",
        ),
        (
            {"truth": "id,Edema\na,yes\n", "predictions": "id,Edema\na,no\n"},
            r"row 2, column Edema: 'yes'; write 1 or 0",
        ),
        ({"labels": ["Edema", "Edema"]}, "labels 'Edema, Edema': give the names of columns, each of them once"),
        ({"labels": ["Edema", ""]}, "labels 'Edema, ': give the names of columns"),
        ({"labels": []}, "labels '': give the names of columns"),
        ({"labels": ["Nodule"]}, r"truth\.csv: no column 'Nodule'; there are id, Cardiomegaly"),
        ({"labels": ["Edema"], "label_set": "competition5"}, "give a label set or labels, not both"),
        (
            {"labels": ["Cardiomegaly"], "patient": "Cardiomegaly"},
            "column 'Cardiomegaly' cannot be both the patient and a label",
        ),
    ],
)
def test_labels_that_cannot_be_chosen_are_reported(files, changed, message):
    with pytest.raises(ScoreError, match=message):
        files(**({"label_set": None} | changed))


def test_names_are_trimmed_and_true_and_false_are_labels(files):
    plain = files(patient="patient")
    padded = TRUTH.replace("b,", "b\u00a0,").replace("\na,", "\n a\u3000,").replace(",p\n", ",\u00a0p \n", 1)
    assert files(padded, patient="patient") == plain
    words = PREDICTIONS.replace(",1", ",TRUE").replace(",0", ",False")
    assert files(TRUTH.replace(",1", ",true"), words, patient="patient") == plain


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_cells_too(files, separator):
    assert files(TRUTH.replace(",", separator), PREDICTIONS) == files()
    with pytest.raises(ScoreError, match=r"row 2, column Cardiomegaly: '0,5'; write 1 or 0, or a probability"):
        files(predictions=PREDICTIONS.replace(",", ";").replace("d;0", "d;0,5"))


@pytest.mark.parametrize(("patients", "width"), [(["p"] * 4, None), (["p", "p", "q", "q"], 0)])
def test_fewer_than_two_patients_have_no_interval(files, patients, width):
    truth = "id,owner,Edema\n" + "".join(f"{k},{owner},{k % 2}\n" for k, owner in enumerate(patients))
    pred = "id,Edema\n0,1\n1,1\n2,0\n3,0\n"
    scored = files(truth, pred, None, "owner")
    row = scored["labels"][0]
    assert (row["f1"], row["tp"], scored["patients"]) == (0.5, 1, len(set(patients)))
    assert (row["f1_low"] is None, row["f1_high"] is None) == (width is None, width is None)
    text = report_text(scored)
    if width is None:
        assert "0.500 (no interval)" in text and "No interval, since it has too few patients" in text
    else:
        assert "The intervals rest on 2 patients: with fewer than 20, they are too narrow." in text
    assert json.dumps(scored, allow_nan=False)


def test_an_interval_without_width_is_explained(files):
    text = report_text(files(TRUTH, TRUTH.replace(",patient", ",x").replace("c,0,,", "c,0,0,")))
    assert "Every resample gives the same value, so the interval has no width" in text


def test_films_resampled_where_patients_are_known_are_reported(files):
    assert "names repeat in patient of the truth: name it with --patient" in report_text(files())
    assert "--patient" not in report_text(files(patient="patient"))


def test_a_column_without_a_number_in_either_file_is_not_a_label(files):
    truth = TRUTH.replace(",patient", ",patient,error,Mass").replace(",p\n", ",p,,yes\n").replace(",q\n", ",q,,\n")
    pred = (
        PREDICTIONS.replace("0\n", "0,,no\n")
        .replace("1\n", "1,late,no\n")
        .replace("Effusion\n", "Effusion,error,Mass\n")
    )
    assert [row["label"] for row in files(truth, pred, None)["labels"]] == list(COMPETITION5)


def test_what_a_normal_film_is_without_a_label_for_it_is_reported(files):
    note = "a normal film is one without any of these labels (which may have others)"
    assert note in report_text(files(label_set=None, labels=["Edema"]))
    assert note not in report_text(files(TRUTH, PROBABILITIES))
    named = TRUTH.replace("Edema", "No_Finding"), PREDICTIONS.replace("Edema", "No_Finding")
    assert note not in report_text(files(*named, None))


def test_one_film_of_one_patient_is_reported_in_the_singular(files):
    one = "id,owner,Edema\na,p,1\n"
    assert report_text(files(one, one, None, "owner")).startswith(
        "1 film of 1 patient, 1 label; 95 % intervals from 50 res"
    )


def test_blank_lines_before_the_heading_change_nothing(files):
    assert files("\n \n" + TRUTH, "\n,,\n" + PREDICTIONS) == files()


def test_false_alarms_are_counted_on_the_normal_films(files):
    truth = "id,No Finding,Edema\na,1,0\nb,1,0\nc,0,1\nd,1,\ne,0,0\n"
    pred = "id,No Finding,Edema\na,1,1\nb,1,0\nc,1,1\nd,0,1\ne,0,1\n"
    scored = files(truth, pred, None)
    assert (scored["overall"]["n_normal"], scored["overall"]["false_alarm_rate"]) == (2, 0.5)
    assert "of 2 normal films" in report_text(scored)
    unsaid = files(truth, pred.replace("b,1,0", "b,1,"), None)  # nothing was said of film b, so it is no good answer
    assert (unsaid["overall"]["n_normal"], unsaid["overall"]["false_alarm_rate"]) == (1, 1)


def test_what_spreadsheets_do_to_a_file_changes_nothing(files):
    truth = TRUTH.replace(",1", ",1.0").replace(",0", ",0.0").replace("id,", " id ,").replace("Edema", " Edema")
    assert files("\ufeff" + truth.replace("\n", "\r\n") + "\r\n,,,,,,\r\n") == files()


def test_patients_are_drawn_whole(files):
    truth = pd.read_csv(StringIO(TRUTH), dtype=str)
    rows = pd.concat([truth.assign(id=truth["id"] + str(k), patient=truth["id"]) for k in range(25)])
    predictions = pd.read_csv(StringIO(PREDICTIONS), dtype=str)
    given = pd.concat([predictions.assign(id=predictions["id"] + str(k)) for k in range(25)])
    texts = rows.to_csv(index=False), given.to_csv(index=False)
    films, patients = (files(*texts, patient=owner, n_resamples=2000)["overall"] for owner in (None, "patient"))
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
        ({"truth": swap("b,", "a,")}, r"truth\.csv, row 3, column id: 'a'; an earlier row has this film"),
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
        ({"truth": TRUTH.encode("utf-16")}, r"truth\.csv: not a text file in UTF-8; save it as CSV in UTF-8$"),
        ({"truth": (TRUTH + "é").encode("latin-1")}, r"truth\.csv: not a text file in UTF-8; save it as CSV in UTF-8$"),
        (
            {"truth": swap("b,1,1", "b,1,NA")},
            r"truth\.csv, row 3, column Edema: 'NA'; write 1 or 0, or nothing where unk",
        ),
        (
            {"truth": swap("b,1,1", "b,1,-1")},
            r"'-1'; write 1 or 0, .*; -1 \(uncertain\) has no score: your uncertainty",
        ),
        ({"truth": swap("b,1,1", "b,1,0.8")}, r"'0\.8'; write 1 or 0, .*; the truth cannot be a probability: are the"),
        ({"truth": swap("b,", "a\u00a0,")}, r"truth\.csv, row 3, column id: 'a'; an earlier row has this film"),
        (
            {"truth": swap("b,", "NaN,")},
            r"truth\.csv, row 3, column id: 'NaN'; every film needs one, and words for a missing value",
        ),
        ({"truth": swap("b,", "b\u200b,")}, r"row 3, column id: 'b\\u200b'; an invisible character is in this name"),
        (
            {"truth": swap(",q", ",n/a"), "patient": "patient"},
            r"row 4, column patient: 'n/a'; every film needs one, and words",
        ),
        (
            {"truth": swap(",q", ",P"), "patient": "patient"},
            r"row 4, column patient: 'P'; an earlier row has it otherwise",
        ),
        (
            {"truth": swap(",q", ",07").replace(",q", ",7.0"), "patient": "patient"},
            r"row 5, column patient: '7\.0'; an earlier row has it otherwise",
        ),
        (
            {"truth": swap("\na,", "\n07,").replace("b,", "7,")},
            r"row 3, column id: '7'; an earlier row has it otherwise",
        ),
        (
            {"truth": swap("\na,", "\n007,"), "predictions": swap("\na,", "\n7,", PREDICTIONS)},
            r"pred\.csv: no row for '007', which the other file has; ids are compared as text, so 007, 7 and 7",
        ),
        (
            {"predictions": swap("0.7", "1.2", PROBABILITIES)},
            r"pred\.csv, row 2, column Pleural Effusion: '1\.2'; write 1",
        ),
        ({"predictions": swap("0.7", "70", PROBABILITIES)}, r"'70'; write 1 or 0, or a probability from 0 to 1 \(70 %"),
        (
            {"predictions": swap("0.7", "-1", PROBABILITIES)},
            r"row 2, column Pleural Effusion: '-1'; write 1 or 0, or a",
        ),
        (
            {"predictions": swap("0.7", "inf", PROBABILITIES)},
            r"row 2, column Pleural Effusion: 'inf'; write 1 or 0, or a",
        ),
        (
            {"predictions": swap("0.7", "NA", PROBABILITIES)},
            r"row 2, column Pleural Effusion: 'NA'; write 1 or 0, or a",
        ),
        ({"predictions": swap("0.7", "true", PROBABILITIES)}, r"row 2, column Pleural Effusion: 'true'; write 1 or 0"),
        (
            {"predictions": swap("d,0,0", "d,0,0.4", PREDICTIONS)},
            r"row 2, column Edema: '0\.4'; write 1 or 0 in all columns or .* only 1 and 0 are in Cardiomegaly, Cons",
        ),
        ({"threshold": 0.5}, r"pred\.csv: holds labels, not probabilities; leave out the threshold 0\.5"),
        ({"predictions": PROBABILITIES, "threshold": 0}, "threshold must be above 0 and at most 1, not 0"),
        ({"predictions": PROBABILITIES, "threshold": float("nan")}, "threshold must be above 0 and at most 1, not nan"),
        (
            {"truth": swap("id,", "", TRUTH)},
            r"truth\.csv, row 2: 7 cells, and the heading has 6; .*row.names = FALSE",
        ),
        (
            {"predictions": PREDICTIONS + 'e,0,"0,0,0,0\n'},
            r"pred\.csv: cannot be read as CSV: unexpected end of",
        ),
        ({"label_set": "nih"}, "unknown label set 'nih'; choose one of chexpert14, nih9, nih10, shared9, competition5"),
        ({"patient": ""}, "patient '': give the name of a column, or leave it out to resample films"),
        ({"n_resamples": 39}, "resamples must be from 40 to 1,000,000, not 39"),
        ({"n_resamples": 10**9}, "resamples must be from 40 to 1,000,000, not 1000000000"),
        (
            {"truth": swap(",q", ",1.23E+12"), "patient": "patient"},
            r"row 4, column patient: '1\.23E\+12'; a spreadsheet has dropped digits",
        ),
        ({"truth": swap("\nb,", "\n1,2E+15,").replace("\n1,2E+15", '\n"1,2E+15"')}, r"id: '1,2E\+15'; a spreadsheet"),
        (
            {"truth": swap(",q", ",p-1").replace(",q", ",P01"), "patient": "patient"},
            r"row 5, column patient: 'P01'; an earlier row has it otherwise",
        ),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_scored_is_reported(files, changed, message):
    with pytest.raises(ScoreError, match=message):
        files(**changed)


def call(folder, *more):
    for name, text in (("truth.csv", TRUTH), ("pred.csv", PREDICTIONS)):
        (folder / name).write_text(text)
    given = ["--truth", str(folder / "truth.csv"), "--pred", str(folder / "pred.csv"), "--label-set", "competition5"]
    return main(["score", *given, "--resamples", "50", *more])


def test_the_command_prints_the_same_scores_as_json(tmp_path, capsys, files):
    assert call(tmp_path, "--json", "--patient", "patient") == 0
    assert json.loads(capsys.readouterr().out) == files(patient="patient")


def test_the_command_prints_a_row_a_label_with_a_dash_for_undefined(tmp_path, capsys, files):
    assert call(tmp_path) == 0
    said = capsys.readouterr().out
    assert said == report_text(files()) + "\n"
    (row,) = [line.split() for line in said.splitlines() if "Consolidation" in line]
    assert row[:9] == ["Consolidation", "0", "0", "1", "0", "3", "0.000", "-", "-"] and row[9] == "0.750"
    assert "macro f1: 0.708 (" in said and "2 in the truth, 1 in the predictions" in said


def test_the_command_takes_labels_and_a_threshold(tmp_path, capsys, files):
    for name, text in (("truth.csv", TRUTH), ("pred.csv", PROBABILITIES)):
        (tmp_path / name).write_text(text)
    where = [
        "--truth",
        str(tmp_path / "truth.csv"),
        "--pred",
        str(tmp_path / "pred.csv"),
        "--resamples",
        "50",
        "--json",
    ]
    assert main(["score", *where, "--labels", "Edema, Atelectasis", "--threshold", "0.5"]) == 0
    labels = {"labels": ["Edema", "Atelectasis"], "threshold": 0.5}
    assert json.loads(capsys.readouterr().out) == files(TRUTH, PROBABILITIES, None, **labels)
    assert main(["score", *where]) == 0
    assert [row["label"] for row in json.loads(capsys.readouterr().out)["labels"]] == list(COMPETITION5)


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, capsys):
    assert call(tmp_path, "--patient", "owner") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("chexreason: ") and "no column 'owner'" in line
    assert call(tmp_path, "--truth", str(tmp_path / "none.csv")) == 2
    assert capsys.readouterr().err == f"chexreason: {tmp_path / 'none.csv'}: No such file or directory\n"
