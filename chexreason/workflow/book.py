"""The book: pages and executed notebooks, assembled in the study's folder and built offline."""

import fnmatch
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from chexreason import config, records
from chexreason.workflow import choices, plan, resources

PAPER = Path(__file__).resolve().parents[2] / "params" / "paper.yaml"
"""The published study, whose cost is part of every book."""

PHANTOM = "A phantom study: films are drawn, models are stand-ins, and every result not called published is phantom."
"""The text at the top of every page of a study with phantoms that has no `notice`."""


class BookError(RuntimeError):
    """The book did not build without warnings."""


def build(study: config.Study, source: Path, chapters: list[Path]) -> Path:
    """Build the book of `study` from the pages in `source` and the executed notebooks `chapters`, in reading order.

    Returns the front page in `<study>/book`, which is replaced when the new book is complete. Raises BookError with
    Sphinx's messages if there is any warning.
    """
    place, log = study.folder / "book", study.folder / "book.log"
    with records.replacing(place) as folder:
        assemble(study, source, chapters, folder)
        command = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "-W", "-n", "--keep-going"]
        plain = {**os.environ, "NO_COLOR": "1"}
        with open(log, "w", encoding="utf-8") as said:
            built = subprocess.run(command, env=plain, stdout=said, stderr=subprocess.STDOUT, check=False)
        if built.returncode:
            lines = log.read_text(encoding="utf-8").splitlines()
            told = [line for line in lines if re.search(r"WARNING:|ERROR:|Exception|Error:", line)]
            raise BookError("\n".join([f"the book did not build; {log} says:", *told]))
        shutil.rmtree(folder / "_build" / ".doctrees")  # Sphinx's own store, with this machine's paths in it
    return place / "_build" / "html" / "index.html"


def assemble(study: config.Study, source: Path, chapters: list[Path], folder: Path) -> Path:
    """Write pages, executed notebooks, params file, table of contents and settings to `folder`; returns it."""
    shutil.copytree(source, folder)
    labels: set[str] = set()
    for chapter in chapters:
        _copy(chapter, folder, labels)
    _write_params(study.file, folder / "params.yaml")
    _fill(folder / "choices.md", choices.tables(study.file))
    costs = {name: plan.page(plan.plan(each)) for name, each in (("study", study), ("paper", config.load(PAPER)))}
    _fill(folder / "costs.md", costs | {"measured": resources.page(study)})
    contents = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    _write(folder / "_toc.yml", expand(contents, [chapter.stem for chapter in chapters]))
    settings = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    theme = settings["sphinx"]["config"]["html_theme_options"]
    theme["logo"] = {"text": html.escape(f"{settings['title']}: {study.title}")}
    if study.notice or study.phantom:
        theme["announcement"] = html.escape(study.notice or PHANTOM)
    _write(folder / "_config.yml", settings)
    return folder


def _write_params(file: Path, to: Path) -> None:
    """Copy a params file and those that it extends, as YAML documents in one file."""
    own, *extended = (layer.file for layer in config.layers(file))
    texts = [own.read_text(encoding="utf-8")]
    texts += [f"---\n# {each.name}, which is extended above\n{each.read_text(encoding='utf-8')}" for each in extended]
    to.write_text("\n".join(texts), encoding="utf-8")


def expand(contents: dict, chapters: list[str]) -> dict:
    """The table of contents with every `glob` entry replaced by the chapters that match it, in the given order.

    (jupyter-book would use alphabetical order: GRPO before SFT before untuned.)
    """
    parts = [
        {**part, "chapters": [entry for given in part["chapters"] for entry in _entries(given, chapters)]}
        for part in contents["parts"]
    ]
    return {**contents, "parts": parts}


def _entries(entry: dict, chapters: list[str]) -> list[dict]:
    if "glob" not in entry:
        return [entry]
    return [{"file": chapter} for chapter in chapters if fnmatch.fnmatch(chapter, entry["glob"])]


def _copy(chapter: Path, folder: Path, labels: set[str]) -> None:
    """Copy an executed notebook, with the parameters it was given in place of its own.

    Cells with the tag `conclusion` are moved to the top, because a notebook that trains cannot begin with them.  If a
    notebook has several runs, the run is added to its heading, and to figure labels that are already taken.
    """
    import nbformat

    try:
        notebook = nbformat.read(chapter, as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # whatever comes of what is none
        raise BookError(f"{chapter}: cannot be read as a notebook: {error}") from None
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    if any("injected-parameters" in each for each in tags):
        kept = zip(notebook.cells, tags, strict=True)
        notebook.cells = [cell for cell, each in kept if "parameters" not in each]
    heading, *rest = notebook.cells
    first = [cell for cell in rest if "conclusion" in cell.metadata.get("tags", [])]
    notebook.cells = [heading, *first, *(cell for cell in rest if cell not in first)]
    run = chapter.stem.partition("-")[2]
    if run:
        heading, *rest = notebook.cells[0].source.split("\n")
        notebook.cells[0].source = "\n".join([f"{heading} ({run.replace('-', ' · ')})", *rest])
    shown = [cell.metadata.get("mystnb", {}) for cell in notebook.cells]
    for figure in [how.figure for how in shown if "figure" in how]:
        if figure.get("name") in labels:
            figure.name += f"-{run}"
        labels.add(figure.get("name"))
    nbformat.write(notebook, folder / chapter.name)


def _fill(page: Path, parts: dict[str, str]) -> None:
    """Replace each comment with the name of a part, such as `<!-- ours -->`, by this part."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    page.write_text(text, encoding="utf-8")


def _write(path: Path, data: dict) -> None:
    path.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
