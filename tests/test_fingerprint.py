"""What makes a stage run again: code, notebooks and content, and not their wording, outputs or provenance."""

import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from chexreason import fingerprint, records

NOTEBOOKS = sorted((fingerprint.PACKAGE.parent / "notebooks").glob("*.ipynb"))

CODE = """
import math

NOTEBOOKS = sorted((fingerprint.PACKAGE.parent / "notebooks").glob("*.ipynb"))


def area(radius: float) -> float:
    \"\"\"The area of a circle.\"\"\"
    return math.pi * radius**2


UNIT = 1.0
\"\"\"In meters.\"\"\"
"""


@pytest.fixture
def digest_of(tmp_path):
    """The digest of a module with this source; each has a file of its own, as digests are kept by file."""

    def digest(source: str) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        file.write_text(source, encoding="utf-8")
        return fingerprint.code((file,))

    return digest


@pytest.mark.parametrize(
    "change",
    [
        ("The area of a circle.", "The area in square meters."),
        ("In meters.", "In feet."),
        ("    return", "    # as Archimedes has it\n    return"),
        ("radius**2", "radius ** 2"),
        ("def area(radius: float) -> float:", "def area(\n    radius: float,\n) -> float:"),
    ],
    ids=["docstring", "text below a constant", "comment", "spacing", "line breaks"],
)
def test_wording_and_layout_change_no_digest(digest_of, change):
    assert change[0] in CODE
    assert digest_of(CODE.replace(*change)) == digest_of(CODE)


@pytest.mark.parametrize(
    "change",
    [("radius**2", "radius**3"), ("UNIT = 1.0", "UNIT = 2.0"), ("import math", "import cmath as math")],
    ids=["expression", "constant", "import"],
)
def test_code_changes_the_digest(digest_of, change):
    assert digest_of(CODE.replace(*change)) != digest_of(CODE)


def write(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return fingerprint.notebook(path)


def test_an_executed_notebook_that_is_saved_makes_nothing_stale(tmp_path):
    stored = write(tmp_path / "n.ipynb", new_markdown_cell("# Why"), new_code_cell("1 + 1"))
    cell = new_code_cell("1 + 1", execution_count=3, outputs=[new_output("stream", text="2")])
    cell.metadata["execution"] = {"iopub.execute_input": "2026-11-26T03:00:00"}
    assert write(tmp_path / "n.ipynb", new_markdown_cell("# Why"), cell) == stored


def test_a_changed_cell_its_tags_and_its_alternative_text_make_a_chapter_stale(tmp_path):
    cell = new_code_cell("1 + 1")
    stored = write(tmp_path / "n.ipynb", new_markdown_cell("# Why"), cell)
    tagged = new_code_cell("1 + 1", metadata={"mystnb": {"image": {"alt": "Two bars."}}})
    others = [
        write(tmp_path / "n.ipynb", new_markdown_cell("# How"), cell),
        write(tmp_path / "n.ipynb", new_markdown_cell("# Why"), new_code_cell("1 + 2")),
        write(tmp_path / "n.ipynb", new_markdown_cell("# Why"), tagged),
    ]
    assert len({stored, *others}) == 4


def test_rows_count_and_provenance_does_not(tmp_path):
    table = pd.DataFrame({"film": ["a", "b"], "labels": [["Edema"], []]})
    for name, provenance in (("one", {"commit": "1"}), ("two", {"commit": "2"})):
        records.save(table, tmp_path / f"{name}.parquet", provenance)
    one, two = (records.load(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.attrs != two.attrs and fingerprint.rows(one) == fingerprint.rows(two)
    assert fingerprint.rows(one.iloc[::-1]) != fingerprint.rows(one)
    assert fingerprint.rows(one.assign(film=["a", "c"])) != fingerprint.rows(one)


def test_every_room_names_files_that_exist():
    assert all((fingerprint.PACKAGE / file).is_file() for files in fingerprint.ROOMS.values() for file in files)
    assert len({fingerprint.room(name) for name in fingerprint.ROOMS}) == len(fingerprint.ROOMS)


CHAPTERS = {path.stem for path in NOTEBOOKS if re.match(r"[6-9]_|1\d_", path.stem)}


@pytest.mark.parametrize(
    ("library", "stale"),
    [
        ("peft", {"0_stand_ins", "2_prompts", "3_sft", "4_grpo", "5_path", "5_predict", "7_variants"}),
        ("trl", {"0_stand_ins", "3_sft", "4_grpo", "7_variants"}),
        ("pydicom", {name.stem for name in NOTEBOOKS} - {"8_reanalysis", "resampling", "12_reward", "13_path"}),
        ("scikit-learn", {"2_prompts", "4_grpo", "resampling", *CHAPTERS}),
        ("seaborn", set()),
    ],
)
def test_another_version_of_a_library_makes_the_notebooks_stale_that_compute_with_it(monkeypatch, library, stale):
    before = {path.stem: fingerprint.notebook(path) for path in NOTEBOOKS}
    known = fingerprint._version.__wrapped__
    monkeypatch.setattr(fingerprint, "_version", lambda name: "99.0" if name == library else known(name))
    assert {path.stem for path in NOTEBOOKS if fingerprint.notebook(path) != before[path.stem]} == stale
