"""The review sheet shows film beside trace and gives nothing away; verdicts are read back, mistakes by their row."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import command, study_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from chexreason import config, records
from chexreason.cli import main
from chexreason.data import curate
from chexreason.teacher import check, review
from chexreason.teacher.review import ReviewError

NASTY = 'The <b>heart</b> & "vessels" <script>alert(1)</script>'


@pytest.fixture
def study(tmp_path, monkeypatch) -> config.Study:
    """A study with 130 traces, and their films in grey."""
    monkeypatch.chdir(study_folder(tmp_path))
    given = config.load("params/smoke.yaml")
    names = [f"a{number:04}" for number in range(130)]
    for number, name in enumerate(names):
        about, path = PngInfo(), given.folder / "curate" / "films" / f"{name}.png"
        about.add_text("patient", "p1000")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(path, pnginfo=about)
    manifest = pd.DataFrame({"film": names, "path": [f"curate/films/{name}.png" for name in names], "source": "a"})
    records.save(manifest[::-1], given.folder / curate.MANIFEST, records.provenance(given))
    traces = {"reasoning": NASTY, "labels": [["Cardiomegaly"]] * 130, "text": names}
    save(given, pd.DataFrame({"film": names, "format": "free_reasoning", **traces}))
    return given


def save(study, traces):
    records.save(traces, study.folder / check.TRACES, records.provenance(study))


class Page(HTMLParser):
    """What a browser makes of the sheet: tags with their attributes, and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_sheet_shows_each_film_beside_its_own_trace_and_nothing_of_the_patient(study):
    folder = review.write(study)
    page = Page((folder / "sheet.html").read_text(encoding="utf-8"))
    films = [attributes for tag, attributes in page.tags if tag == "img"]
    rows = pd.read_csv(folder / "verdicts.csv", dtype=str, keep_default_na=False)
    assert len(films) == len(rows) == len(set(rows["film"])) == 100
    for film, row in zip(films, rows.itertuples(), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(film["src"].removeprefix("data:image/png;base64,"))))
        assert f"a{image.getpixel((0, 0)):04}" == row.film == film["alt"].removeprefix("Film ")
        assert image.info == {}
        assert f"{row.number}. {row.film}" in page.text
    assert page.text.count(NASTY) == 100  # as text: nothing of it became a tag
    assert {tag for tag, _ in page.tags} <= {"html", "head", "meta", "title", "style", "body"} | {
        *("h1", "p", "section", "h2", "img", "div", "b")
    }
    assert not re.search(r"https?://|src=\"(?!data:)", (folder / "sheet.html").read_text(encoding="utf-8"))
    assert "100 traces of the format free_reasoning, drawn at random with seed 0." in page.text
    assert "phantoms: drawings, not images of patients" in page.text


def test_the_same_seed_draws_the_same_traces_in_a_random_order_and_another_seed_others(study):
    first = review.sampled_traces(study)
    assert review.sampled_traces(study).equals(first)
    assert first["film"].tolist() != sorted(first["film"])
    study.file.write_text(study.file.read_text() + "teacher: {seed: 1}\n")
    assert set(review.sampled_traces(config.load(study.file))["film"]) != set(first["film"])


def of_formats(study, *formats: str) -> config.Study:
    """The study with SFT of these formats, and traces that say which they are of."""
    written = records.load(study.folder / check.TRACES)
    each = [
        written.assign(format=format, reasoning=f"In {format}.", text=format + written["text"]) for format in formats
    ]
    save(study, pd.concat(each, ignore_index=True))
    runs = {format: config.SftRun(model="medgemma", format=format) for format in formats}
    return study.model_copy(update={"sft": study.sft.model_copy(update={"runs": runs})})


def test_a_sheet_shows_by_default_the_first_format_with_reasoning(study):
    several = of_formats(study, "only_label", "reasoning_a", "free_reasoning")
    for told, shown in ((None, "reasoning_a"), ("free_reasoning", "free_reasoning")):
        folder = review.write(several, format=told)
        assert folder == study.folder / "review" / shown
        page = Page((folder / "sheet.html").read_text(encoding="utf-8")).text
        assert page.count(f"In {shown}.") == 100
        assert f"100 traces of the format {shown}," in page
    assert review.sampled_traces(several)["film"].equals(
        review.sampled_traces(several, format="free_reasoning")["film"]
    )


def test_verdicts_are_read_whichever_format_their_sheet_shows(study):
    several = of_formats(study, "free_reasoning", "reasoning_a")
    for format in several.formats:
        path = review.write(several, format=format) / "verdicts.csv"
        pd.read_csv(path, dtype=str).assign(verdict="accept").to_csv(path, index=False)
        assert len(review.read(several, path)) == 100


def test_a_format_without_traces_or_without_reasoning_is_reported(study):
    with pytest.raises(ReviewError, match="no trace of reasoning_a; it has free_reasoning"):
        review.write(study, format="reasoning_a")
    with pytest.raises(ReviewError, match="all are only_label, so there is no reasoning"):
        review.write(of_formats(study, "only_label"))


def test_the_sheet_of_films_under_an_agreement_says_so(study):
    own = study.sources["a"].model_copy(update={"credentialed": True})
    page = review._page(study.model_copy(update={"sources": {"a": own}}), review.sampled_traces(study, 1))
    assert "under an agreement" in page


def fill(study, change=lambda rows: None, **how):
    """A filled-in verdicts.csv: of a hundred, 80 accepted, 15 to revise, 5 rejected; `change` works on the rows."""
    path = review.write(study) / "verdicts.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows["verdict"] = ["accept"] * 80 + ["Revise "] * 15 + ["reject"] * 5
    rows.loc[99, "comment"] = "The left lung,\nnot the right; none"
    change(rows)
    rows.to_csv(path, index=False, **how)
    return path


@pytest.mark.parametrize(
    "how", [{}, {"sep": ";"}, {"sep": "\t"}, {"encoding": "utf-8-sig"}, {"lineterminator": "\r\n"}]
)
def test_verdicts_are_read_back_however_the_spreadsheet_saved_them(study, how):
    verdicts = review.read(study, fill(study, **how))
    assert verdicts["verdict"].value_counts().to_dict() == {"accept": 80, "revise": 15, "reject": 5}
    assert verdicts["comment"].iloc[-1].split() == ["The", "left", "lung,", "not", "the", "right;", "none"]


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_of_newcombes_table(count, of, low, high):
    """Newcombe, Statistics in Medicine 1998;17:857-872, table I, method 3."""
    verdicts = pd.DataFrame({"verdict": ["reject"] * count + ["accept"] * (of - count)})
    row = review.shares(verdicts).set_index("verdict").loc["reject"]
    assert (row["count"], row["share"]) == (count, count / of)
    assert (round(row["low"], 4), round(row["high"], 4)) == (low, high)


def put(row, **values):
    def change(rows):
        for name, value in values.items():
            rows.loc[row, name] = value

    return change


def again(rows):
    rows.loc[7] = rows.loc[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(4, verdict="fine"), "row 6: unknown verdict 'fine'; choose one of accept, revise, reject"),
        (put(0, film="b0001"), "row 2: no trace of film 'b0001'"),
        (put(98, trace="t123"), "row 100: the trace of film a.... is another one now"),
        (again, "row 9: film a.... has a verdict already"),
        (lambda rows: rows.pop("trace"), "no column trace"),
        (lambda rows: rows.__setitem__("verdict", ""), "holds no verdict yet"),
    ],
)
def test_a_mistake_among_the_verdicts_is_reported_by_its_row(study, change, said):
    with pytest.raises(ReviewError, match=r"verdicts\.csv.*" + said):
        review.read(study, fill(study, change))


def test_a_trace_written_anew_since_the_sheet_is_reported(study):
    path = fill(study)
    save(study, records.load(study.folder / check.TRACES).assign(text="new"))
    with pytest.raises(ReviewError, match=r"row 2: the trace of film a.... is another one now; draw a new sheet"):
        review.read(study, path)


def test_rows_without_a_verdict_are_left_out_and_do_not_shift_the_others(study):
    def half(rows):
        rows.loc[:49, "verdict"] = ""
        rows.loc[60, "verdict"] = "?"

    with pytest.raises(ReviewError, match=r"row 62: unknown verdict '\?'"):
        review.read(study, fill(study, half))
    (study.folder / "review" / "free_reasoning" / "verdicts.csv").unlink()
    assert len(review.read(study, fill(study, put(slice(0, 49), verdict="")))) == 50


def test_a_new_sheet_does_not_write_over_verdicts(study):
    path = fill(study)
    held = path.read_bytes()
    with pytest.raises(ReviewError, match="holds verdicts; move it away"):
        review.write(study)
    assert path.read_bytes() == held


def test_a_file_that_is_no_csv_in_utf_8_is_reported(study, tmp_path):
    (tmp_path / "latin.csv").write_bytes("film,trace,verdict,comment\na,t,accept,größer".encode("latin-1"))
    for name in ("latin.csv", "nowhere.csv"):
        with pytest.raises(ReviewError, match=f"{name}: cannot be read"):
            review.read(study, tmp_path / name)


def test_the_command_draws_the_sheet_and_prints_the_verdicts(study, capsys):
    assert main(["review", "params/smoke.yaml"]) == 0
    assert capsys.readouterr().out.strip() == str(study.folder / "review" / "free_reasoning")
    path = fill(study)
    assert main(["review", "params/smoke.yaml", "--verdicts", str(path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [
        "100 traces judged; shares with 95 % intervals",
        "accept: 80, 80% (71% to 87%)",
        "revise: 15, 15% (9% to 23%)",
        "reject: 5, 5% (2% to 11%)",
    ]
    assert "reject: The left lung" in told[-2]
    fill_again = pd.read_csv(path, dtype=str).assign(verdict="good")
    fill_again.to_csv(path, index=False)
    assert main(["review", "params/smoke.yaml", "--verdicts", str(path)]) == 2
    assert "row 2: unknown verdict 'good'" in capsys.readouterr().err


def test_a_study_without_traces_says_what_to_do(tmp_path):
    said = command(study_folder(tmp_path), "review", "params/smoke.yaml")
    assert said.returncode == 2
    assert "traces.parquet: no such record" in said.stderr
