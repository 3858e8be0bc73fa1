"""The curation notebook takes MIMIC-CXR-JPG, CheXpert and NIH as they lie on disk, and shows nothing of the first two.

Folders are laid out as each set is; phantoms stand in for their films, and the study is `params/paper.yaml`, smaller.
"""

import base64
import io
import re

import mimic_tables
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, changed_study
from PIL import Image
from test_curate_folders import write_nih

from chexreason import records
from chexreason.data import curate, describe, mimic
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14
from chexreason.teacher import check
from chexreason.workflow.notebook import execute

SMALLER = {"curate.sft": 40, "curate.rl": 20, "curate.validation": 20, "curate.floor": 0.0}
SMALLER |= {"tests.chexpert-test.films": 30, "tests.nih-test.films": 20, "teacher": {"kind": "rules", "seed": 0}}


@pytest.fixture(scope="module")
def pictures():
    """A dozen phantom films, uint8 (160, 160)."""
    return [hospitals.draw(recipe, 160).image for recipe in hospitals.film_table(12, 8)["recipe"]]


def write_mimic(folder, pictures):
    mimic_tables.write(folder, films=420, studies=300, patients=150)
    for number, path in enumerate(mimic.read(folder).table["path"]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[number % 12]).save(folder / path)


def write_chexpert(folder, pictures):
    """The test set of 30 patients: a frontal each, and a lateral of every third."""
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        views = ["view1_frontal.jpg", "view2_lateral.jpg"] if number % 3 == 0 else ["view1_frontal.jpg"]
        for view in views:
            path = f"test/patient{64741 + number}/study1/{view}"
            rows.append({"Path": path} | dict(zip(CHEXPERT14, map(int, rng.random(14) < 0.3), strict=True)))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures[number % 12]).save(folder / path)
    pd.DataFrame(rows).to_csv(folder / "test_labels.csv", index=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory, pictures):
    """`params/paper.yaml` with small splits and rules for a teacher, and its folders in the environment."""
    folder = tmp_path_factory.mktemp("paper")
    for name in ("mimic", "chexpert"):
        (folder / name).mkdir()
    write_mimic(folder / "mimic", pictures)
    write_chexpert(folder / "chexpert", pictures)
    write_nih(folder / "nih")
    study = changed_study(folder, "paper", SMALLER)
    with pytest.MonkeyPatch.context() as patched:
        for variable, name in (("MIMIC_CXR_JPG", "mimic"), ("CHEXPERT", "chexpert"), ("NIH_CXR14", "nih")):
            patched.setenv(variable, str(folder / name))
        patched.chdir(folder)
        execute(ROOT / "notebooks" / "1_curate.ipynb", folder / "out.ipynb", {"params": "params/paper.yaml"})
        yield study


def test_every_split_is_filled_from_the_set_it_belongs_to(study):
    manifest = records.load(study.folder / curate.MANIFEST)
    assert manifest.groupby("split", sort=False)["source"].first().to_dict() == {
        "sft": "mimic", "sft-holdout": "mimic", "rl": "mimic", "mimic-validation": "mimic",
        "chexpert-test": "chexpert", "nih-test": "nih",
    }  # fmt: skip
    assert manifest["split"].replace("sft-holdout", "sft").value_counts().to_dict() == {
        "sft": 40, "rl": 20, "mimic-validation": 20, "chexpert-test": 30, "nih-test": 20
    }  # fmt: skip
    tables = mimic.read(study.sources["mimic"].folder).table.assign(film=lambda table: "mimic-" + table["film"])
    own = tables.set_index("film").loc[manifest.loc[manifest["source"] == "mimic", "film"]]
    assert set(own["split"]) <= {"train", "validate"} and set(own["view"]) <= {"PA", "AP"}
    assert (manifest.loc[manifest["source"] == "chexpert", "original"].str.contains("frontal")).all()


def test_every_format_of_the_paper_has_its_traces(study):
    traces = records.load(study.folder / check.TRACES)
    assert traces.groupby("format")["film"].nunique().to_dict() == dict.fromkeys(study.formats, 40)


def test_the_executed_notebook_shows_nothing_of_a_credentialed_film(study):
    manifest = records.load(study.folder / curate.MANIFEST)
    page = (study.folder.parents[1] / "out.ipynb").read_text(encoding="utf-8")
    secret = manifest[manifest["source"] != "nih"]
    for column in ("film", "patient", "study", "original"):
        assert not [name for name in secret[column] if name in page or name.split("-", 1)[-1] in page]
    traces = records.load(study.folder / check.TRACES)["reasoning"]
    assert not [text for text in traces if text and text in page]


def test_the_contact_sheet_holds_the_films_that_may_be_shown_and_no_others(study, pictures):
    shown = describe.gallery(study, ["sft", "chexpert-test", "nih-test"], each=4)
    assert shown["caption"].str.startswith("nih-test").all() and len(shown) == 4
    cells = nbformat.read(study.folder.parents[1] / "out.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert all(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).size for output in outputs)
    assert not re.search(r"data:image/png", "".join(str(cell) for cell in cells))  # `beside` embeds films so
