"""The built book in a real browser over 127.0.0.1: every page, every picture, the search box, and no other host."""

import functools
import http.server
import shutil
import threading
from urllib.parse import urldefrag, urlsplit

import nbformat
import pytest
import yaml
from conftest import ROOT, study_folder
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from chexreason import config
from chexreason.workflow import book

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PICTURES = "pictures => pictures.map(one => [one.src, one.naturalWidth, one.alt])"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing of every request."""


@pytest.fixture(scope="module")
def site(smoke):
    """The address of the built smoke book on this machine."""
    handler = functools.partial(Quiet, directory=smoke.folder / "book" / "_build" / "html")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here: `apt-get install chromium` lets this test open the built book")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser, site):
    """Every page reached from the front page, with its text and pictures; and what went wrong on the way."""
    page, wrong = browser.new_page(), []
    page.on("console", lambda message: message.type == "error" and wrong.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"{page.url}: failed {request.url}"))
    page.on("request", lambda request: outside(request.url, site) and wrong.append(f"{page.url}: asked {request.url}"))
    pages, waiting = {}, [f"{site}/index.html"]
    while waiting:
        address = waiting.pop()
        if address in pages:
            continue
        page.goto(address, wait_until="networkidle")
        pages[address] = page.inner_text("body"), page.eval_on_selector_all("article img", PICTURES)
        links = page.eval_on_selector_all("a[href]", "links => links.map(one => one.href)")
        waiting += [urldefrag(link).url for link in links if not outside(link, site) and ".html" in link]
    page.close()
    return pages, wrong


def outside(address: str, site: str) -> bool:
    return not address.startswith((site, "data:", "blob:"))


def test_every_page_opens_without_an_error_or_a_request_elsewhere(visit):
    assert visit[1] == []


def test_every_page_of_the_contents_is_reached(visit, smoke):
    contents = yaml.safe_load((smoke.folder / "book" / "_toc.yml").read_text(encoding="utf-8"))
    listed = {entry["file"] for part in contents["parts"] for entry in part["chapters"]} | {contents["root"]}
    reached = {urlsplit(address).path.strip("/").removesuffix(".html") for address in visit[0]}
    assert len(listed) > 12
    assert listed <= reached


def test_no_picture_is_broken_or_without_words_for_it(visit):
    pictures = [picture for _, found in visit[0].values() for picture in found]
    assert pictures
    assert [source for source, width, _ in pictures if not width] == []
    assert [source for source, _, words in pictures if not words or words.endswith(".png")] == []


def test_every_page_says_that_the_study_is_a_phantom(visit):
    assert [address for address, (text, _) in visit[0].items() if book.PHANTOM not in text] == []


def test_a_word_typed_into_the_search_box_finds_its_page(browser, site):
    page = browser.new_page()
    page.goto(f"{site}/index.html", wait_until="networkidle")
    page.click("button.search-button-field")
    page.fill("dialog input[type=search], .search-button__search-container input[type=search]", "equalized")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(one => one.href)")
    assert any("phantoms.html" in link for link in found)
    page.close()


def test_runs_of_a_notebook_stand_in_the_order_they_were_made_not_by_name():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    chapters = ["1_curate", "5_predict-m-untuned-seed0", "5_predict-m-sft-f-seed0", "5_predict-m-grpo-hard-seed0"]
    study = book.expand(contents, ["index", *chapters])["parts"][1]["chapters"]
    assert [entry["file"] for entry in study] == chapters


def test_runs_of_a_notebook_have_their_own_heading_and_labels_and_show_what_they_were_given(tmp_path):
    study = config.load(study_folder(tmp_path) / "params" / "smoke.yaml")
    figure = {"mystnb": {"figure": {"name": "fig-answers"}}}
    chapters = [tmp_path / f"5_predict-m-{run}-seed0.ipynb" for run in ("untuned", "sft-f")]
    for chapter in chapters:
        cells = [
            new_markdown_cell("# Asking\n\nHow?"),
            new_code_cell('checkpoint = "default"', metadata={"tags": ["parameters"]}),
            new_code_cell('checkpoint = "given"', metadata={"tags": ["injected-parameters"]}),
            new_code_cell("draw()", metadata=figure),
        ]
        nbformat.write(new_notebook(cells=cells), chapter)
    folder = book.assemble(study, ROOT / "book", chapters, tmp_path / "book")
    pages = [nbformat.read(folder / chapter.name, as_version=4).cells for chapter in chapters]
    assert [page[0].source.split("\n")[0] for page in pages] == [
        "# Asking (m · untuned · seed0)",
        "# Asking (m · sft · f · seed0)",
    ]
    assert [page[1].source for page in pages] == ['checkpoint = "given"'] * 2
    assert [page[2].metadata.mystnb.figure.name for page in pages] == ["fig-answers", "fig-answers-m-sft-f-seed0"]


@pytest.mark.soak
def test_a_book_with_a_broken_link_does_not_build_and_says_which(tmp_path):
    source = tmp_path / "pages"
    shutil.copytree(ROOT / "book", source)
    contents = {
        "format": "jb-book",
        "root": "paper",
        "parts": [{"caption": "More", "chapters": [{"file": "references"}]}],
    }
    (source / "_toc.yml").write_text(yaml.safe_dump(contents), encoding="utf-8")
    (source / "paper.md").write_text("# A page\n\n[somewhere](nowhere.md)\n", encoding="utf-8")
    study = config.load(study_folder(tmp_path) / "params" / "smoke.yaml")
    with pytest.raises(book.BookError, match=r"nowhere\.md"):
        book.build(study, source, [])
