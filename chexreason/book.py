"""The book: prose pages and executed notebooks, assembled under the study's folder and built offline."""

import fnmatch
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PHANTOM = "A phantom study: films are drawn, models are stand-ins, and every result not called published is phantom."


class BookError(RuntimeError):
    """The book did not build without warnings."""


def build(study, source: Path, chapters: list[Path]) -> Path:
    """Build the book of `study` from the pages in `source` and the executed notebooks `chapters`, in reading order.

    Returns the front page.  Raises BookError with what Sphinx said when there was any warning.
    """
    folder = assemble(study, source, chapters)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "-W", "-n", "--keep-going"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    (folder / "build.log").write_text(said.stdout, encoding="utf-8")
    if said.returncode:
        raise BookError(f"the book did not build; {folder / 'build.log'} ends:\n{said.stdout[-4000:]}")
    return folder / "_build" / "html" / "index.html"


def assemble(study, source: Path, chapters: list[Path]) -> Path:
    """Put the pages, the executed notebooks, the params file, the contents and the settings in `<study>/book`."""
    folder = study.folder / "book"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    for chapter in chapters:
        _copy(chapter, folder)
    shutil.copy(study.file, folder / "params.yaml")
    contents = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    _write(folder / "_toc.yml", expand(contents, [chapter.stem for chapter in chapters]))
    settings = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    settings["title"] = f"{settings['title']}: {study.title}"
    if study.phantom:
        settings["html"]["announcement"] = PHANTOM
    _write(folder / "_config.yml", settings)
    return folder


def expand(contents: dict, chapters: list[str]) -> dict:
    """The table of contents with every `glob` entry replaced by the chapters it matches, in the order given.

    jupyter-book could do so by itself, but in alphabetical order: GRPO before SFT before untuned.
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


def _copy(chapter: Path, folder: Path) -> None:
    """Copy an executed notebook; one of several runs of a notebook names its run in its heading."""
    import nbformat

    notebook = nbformat.read(chapter, as_version=4)
    run = chapter.stem.partition("-")[2].replace("-", " · ")
    if run:
        heading, *rest = notebook.cells[0].source.split("\n")
        notebook.cells[0].source = "\n".join([f"{heading} ({run})", *rest])
    nbformat.write(notebook, folder / chapter.name)


def _write(path: Path, data: dict) -> None:
    path.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
