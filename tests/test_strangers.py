"""A book read by strangers: nothing of a credentialed source, nothing of the machine, and a model's text as text only.

Phantoms stand in for credentialed films.  Every name of theirs says CANARY7, and every film bears a stamp of one grey.
"""

import base64
import functools
import html
import http.server
import io
import os
import re
import shutil
import socket
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soak
import yaml
from conftest import ROOT, at, changed_study, command
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from test_book import CHROMIUM, FLAGS, Quiet

from chexreason import records
from chexreason.data import curate
from chexreason.data.phantom import hospitals
from chexreason.labels import CHEXPERT14
from chexreason.teacher import check
from chexreason.workflow import book
from chexreason.workflow.notebook import execute

CANARY = b"canary7"
"""What every name of the source begins with, in lower case; no page of the book's own speaks of it."""

STAMP, SIDE = 137, 32
"""A square of this grey value and side, in pixels, stands in the corner of every film of 160 x 160."""

SMALL = {"curate.sft": 16, "curate.rl": 4, "curate.validation": 10, "curate.floor": 0.0, "curate.bad_share": 0.5}
SMALL |= {"tests": {"away": {"source": "away", "films": 8, "label_sets": ["nih9"], "draw": "films"}}}
COLUMNS = {"path": "file", "patient": "pid", "study": "exam", "view": "position"}


def write_hospital(folder: Path, name: str, films: int, seed: int) -> None:
    """A table `<name>.csv` of films of one hospital, with reports beside the labels, and the films."""
    drawn = hospitals.film_table(films, seed)
    number = [f"{name.upper()}{row:04}" for row in range(len(drawn))]
    table = pd.DataFrame({"file": [f"CANARY7FOLDER/CANARY7FILM{each}.png" for each in number]})
    table["pid"] = "CANARY7PATIENT" + name.upper() + drawn["patient"].str[-5:]
    table["exam"] = [f"CANARY7EXAM{each}" for each in number]
    table["position"] = drawn["view"]
    table["report"] = [f"CANARY7REPORT {each}: the heart is enlarged." for each in number]
    table.join(drawn[list(CHEXPERT14)]).to_csv(folder / f"{name}.csv", index=False)
    for file, recipe in zip(table["file"], drawn["recipe"], strict=True):
        pixels = hospitals.draw(recipe, 160).image.copy()
        pixels[-SIDE:, :SIDE] = STAMP
        (folder / file).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / file)


def hospital_study(folder: Path, credentialed: bool):
    """The NIH sample study, smaller, on the hospital's films."""
    model = {"name": "stand-in", "path": "stand-in:medgemma", "dtype": "float32"}
    section = {"kind": "own", "root": "$HOSPITAL", "size": 256, "credentialed": credentialed}
    tables = {
        name: section
        | {"table": f"{name}.csv", "columns": {**COLUMNS}, "labels": dict(zip(CHEXPERT14, CHEXPERT14, strict=True))}
        for name in ("home", "away")
    }
    return changed_study(folder, "nih_sample", SMALL | {"sources": tables, "models": {"medgemma": model}})


NASTY = (
    """<script>window.ran="script"</script><img src=x onerror='window.ran="image"'>"""
    """<svg onload='window.ran="svg"'></td></table><b>bold</b> **bold** [a](javascript:window.ran="link") """
    r"""$\href{javascript:window.ran="math"}{E=mc^2}$ \(x^2\) {{ 7*7 }} {% raw %} {abbr}`x` <!-- gone --> &lt;i&gt; """
    "\u202eright to left\u202c"
)
LINES = f'{NASTY}\n```{{raw}} html\n<script>window.ran="directive"</script>\n```\n'
CELLS = [
    """import getpass, os, socket, sys
import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib import pyplot as plt
from PIL import Image
from chexreason.display import figures, tables
from chexreason.inference import predict
given = open("nasty.txt", encoding="utf-8").read()
Image.new("L", (64, 64), 90).save("film.png")
row = {"film": given, "image": "film.png", "labels": [given], "text": given, "dataset": "away", "failed": False}
films = pd.DataFrame([row | {"refused": False, "reward": 0.5}])""",
    "print(os.getcwd(), sys.prefix, os.environ['HOME'], os.environ['FAKE_API_KEY'], getpass.getuser())\n"
    "print(socket.gethostname(), os.environ['HOSPITAL'] + '/home.csv')",
    "HTML(figures.film_beside_text(films, phantom=True))",
    "films[['film', 'text']]",
    "tables.styled_table(films[['film', 'text']].rename(columns={'film': given}), given, phantom=True)",
    "print(given)",
    "given",
    "Markdown(predict.summary(films, given))",
    "figures.style()\nfigures.contact_sheet(films.assign(caption=given), plt.gca(), phantom=True, title='$x^');",
]


def write_page(folder: Path) -> Path:
    """A notebook that shows `LINES`, as a reply, a film's name, a label and a caption, in every way notebooks do."""
    (folder / "nasty.txt").write_text(LINES, encoding="utf-8")
    cells = [new_markdown_cell("# A page\n\nMathJax comes with a formula: $a^2$."), new_code_cell("n = 1")]
    cells[1].metadata.tags = ["parameters"]
    cells += [new_code_cell(cell) for cell in CELLS]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=about), folder / "page.ipynb")
    return folder / "page.ipynb"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """A folder of two tables and their films, named by an environment in which much is to be kept to oneself."""
    folder = tmp_path_factory.mktemp("CANARY7ROOT")
    write_hospital(folder, "home", films=200, seed=8)
    write_hospital(folder, "away", films=40, seed=9)
    (folder / "CANARY7HOME").mkdir()
    private = {"HOSPITAL": str(folder), "HOME": str(folder / "CANARY7HOME"), "USER": "canary7user"}
    private |= {"LOGNAME": "canary7user", "FAKE_API_KEY": "sk-canary7-0123456789", "MPLCONFIGDIR": cache("matplotlib")}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in private.items():
            patched.setenv(name, value)
        yield folder


def cache(name: str) -> str:
    """Where the library `name` keeps its cache, which an empty home folder would have it make anew."""
    return str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / name)


def executed(folder: Path, credentialed: bool):
    """The study of the hospital after curation and prediction; the executed notebooks lie in its `notebooks/`."""
    study = hospital_study(folder, credentialed)
    given = {"params": "params/nih_sample.yaml"}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for name, more in (("1_curate", {}), ("5_predict", {"model": "medgemma", "checkpoint": "untuned"})):
            execute(ROOT / "notebooks" / f"{name}.ipynb", study.folder / "notebooks" / f"{name}.ipynb", given | more)
    return study


@pytest.fixture(scope="module")
def study(hospital, tmp_path_factory):
    """The credentialed study, and its book with a page of nasty text; the book's own pages are left out."""
    folder = tmp_path_factory.mktemp("CANARY7STUDY")
    study = executed(folder, credentialed=True)
    chapters = [study.folder / "notebooks" / f"{name}.ipynb" for name in ("1_curate", "5_predict", "page")]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        execute(write_page(folder), chapters[-1], {})
    source = shutil.copytree(ROOT / "book", folder / "pages")
    (source / "front.md").write_text("# A book\n")
    contents = {"format": "jb-book", "root": "front", "parts": [{"caption": "Chapters", "chapters": [{"glob": "*"}]}]}
    (source / "_toc.yml").write_text(yaml.safe_dump(contents))
    nasty = study.model_copy(update={"title": NASTY, "notice": NASTY})
    nasty._file = study.file
    book.build(nasty, source, chapters)
    return study


def output(study) -> dict[Path, bytes]:
    """Every file a stranger may be handed: the executed notebooks and the built book."""
    places = study.folder / "notebooks", study.folder / "book" / "_build" / "html"
    return {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


def embedded(files: dict[Path, bytes]) -> list[bytes]:
    """What stands in base64 in texts, as pictures do in notebooks and pages."""
    texts = [content for path, content in files.items() if path.suffix in {".html", ".ipynb", ".js"}]
    found = [each for text in texts for each in re.findall(rb"[A-Za-z0-9+/=]{200,}", text)]
    return [base64.b64decode(each[: len(each) // 4 * 4]) for each in found]


def stamped(content: bytes) -> bool:
    """Whether a picture shows a film's stamp, at whatever size."""
    try:
        grey = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except OSError:
        return False
    return bool((grey == STAMP).all(axis=-1).sum() > 100)


def shown(study) -> list[str]:
    """The canaries in what a stranger may be handed: bytes, pictures, and the words of traces and replies."""
    files = output(study)
    parts = [*files.items(), *((Path("embedded"), each) for each in embedded(files))]
    found = [f"{path.name}: canary" for path, content in parts if CANARY in content.lower()]
    found += [f"{path.name}: film" for path, content in parts if stamped(content)]
    words = [text for text in records.load(study.folder / check.TRACES)["reasoning"] if len(text) > 50]
    answers = records.load(study.paths.answers(at("untuned")))
    words += [text for text in answers["text"] if len(text) > 50]
    pages = b" ".join(files.values())
    return found + [text for text in words if text[:50].encode() in pages]


def test_nothing_of_a_credentialed_source_is_in_the_notebooks_or_the_book(study):
    assert len(records.load(study.folder / curate.MANIFEST)) > 30
    assert len(output(study)) > 50
    assert shown(study) == []


@pytest.mark.soak
def test_the_same_films_are_seen_where_they_may_be_shown(hospital, tmp_path):
    """The control: without it the search above might look for what no book could ever hold."""
    found = shown(executed(tmp_path, credentialed=False))
    assert {"1_curate.ipynb: canary", "5_predict.ipynb: canary", "embedded: film"} <= set(found)
    assert len(found) > 10


def test_no_path_user_host_or_key_of_this_machine_is_in_the_notebooks_or_the_book(study):
    paths = [str(ROOT), str(study.folder.parents[1]), sys.prefix, os.environ["HOME"]]
    for path, content in output(study).items():
        assert not [each for each in paths if re.search(rf"{re.escape(each)}(?!\w)".encode(), content)], path
        if path.suffix == ".ipynb":  # in a style sheet the name of a host may be that of a class
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b".encode(), content), path
    page = nbformat.read(study.folder / "notebooks" / "page.ipynb", as_version=4)
    told = page.cells[3].outputs[0].text
    assert told == ". $VIRTUAL_ENV ~ $FAKE_API_KEY $USER\n$HOSTNAME $HOSPITAL/home.csv\n"


@pytest.fixture(scope="module")
def page(study):
    """The page of nasty text in a browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: `apt-get install chromium` lets this test open the page")
    from playwright.sync_api import sync_playwright

    handler = functools.partial(Quiet, directory=study.folder / "book" / "_build" / "html")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/page.html", wait_until="networkidle")
        yield page
        browser.close()
    server.shutdown()


def test_text_of_a_model_runs_nothing_in_a_browser(page):
    for link in page.query_selector_all("a[href^='javascript:']"):
        link.click()
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('article script, article [onerror], article [onload]').length") == 0


def test_text_of_a_model_is_shown_letter_by_letter(page):
    """In the sheet, the table with its heading and caption, and print; pandas cuts its own tables short."""
    seen = " ".join(page.inner_text("article").split())
    assert seen.count(" ".join(NASTY.split())) >= 6
    assert page.evaluate("document.querySelectorAll('article mjx-container').length") == 1  # the page's own formula
    assert NASTY.split("\u202e")[0].strip() in page.inner_text("body").replace("\n", " ")
    assert "49" not in html.unescape(page.inner_text("article"))


@pytest.mark.soak
def test_a_whole_book_of_a_credentialed_source_shows_nothing_of_it(hospital, tmp_path):
    study = hospital_study(tmp_path, credentialed=True)
    said = command(tmp_path, "run", "params/nih_sample.yaml")
    assert said.returncode == 0, said.stderr[-3000:]
    files, found = output(study), shown(study)
    soak.row("files of a credentialed study's book, searched for canaries", len(files), len(files) - len(found))
    assert len(files) > 100
    assert found == []
