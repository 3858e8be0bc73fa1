"""Which files of the package a notebook's code reaches."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def modules(notebook: Path) -> list[Path]:
    """The package's files that the code of `notebook` reaches through imports, with the data files beside them."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return imported_files(re.sub(r"(?m)^[%!].*$", "", code))


def imported_files(code: str) -> list[Path]:
    """The package's files that `code` reaches through imports, with the data files beside them.

    The schema of params is left out: what it hands on is values, and those the DAG compares one by one.  So is this
    module, which runs notebooks and has no part in what they find.
    """
    found: set[Path] = set()
    waiting = _imported(code)
    while waiting:
        found |= waiting
        waiting = {path for file in waiting for path in _imported(file.read_text(encoding="utf-8"))} - found
    folders = {file.parent for file in found} - {PACKAGE}
    data = {file for folder in folders for file in folder.rglob("*") if file.suffix in {".csv", ".json", ".txt"}}
    return sorted((found | data) - {*(PACKAGE / "config").glob("*.py"), Path(__file__)})


def _imported(code: str) -> set[Path]:
    """The files of this package that `code` imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = [PACKAGE.parent.joinpath(*name.split(".")) for name in names if name.split(".")[0] == PACKAGE.name]
    files = {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")}
    return {file for file in files if file.is_file()}
