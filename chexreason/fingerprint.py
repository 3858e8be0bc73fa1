"""Is this still valid? Digests of code, libraries, notebooks and records.

A result is valid as long as four things are the same: the code that made it (without docstrings and comments), the
versions of the libraries it uses, its params, and the content it read. Times, commits and provenance do not count. The
graph checks whole notebooks; training, prediction and images check the modules in `ROOMS`.
"""

import ast
import hashlib
import json
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

ROOMS = {
    "phantom": ("data/phantom/drawing.py", "data/phantom/hospitals.py"),
    "images": ("data/images.py", "data/dicom.py"),
    "sft": ("training/sft.py", "training/common.py", "models.py", "runtime.py"),
    "grpo": (
        *("training/grpo.py", "training/common.py", "models.py", "runtime.py", "rewards.py", "answers.py"),
        *("inference/predict.py", "evaluation/metrics.py", "labels.py"),  # these choose the best checkpoint
    ),
    "predict": ("inference/predict.py", "models.py", "runtime.py"),
    "path": ("inference/path.py", "inference/predict.py", "models.py", "runtime.py"),
    "scores": ("evaluation/metrics.py",),
}
"""The modules that each of these results depends on. A notebook that imports the first module may make such a
result.
"""

LIBRARIES = {
    "phantom": ("numpy", "pillow", "scipy"),
    "images": ("numpy", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls"),
    "sft": ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "pillow"),
    "grpo": ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "pillow"),
    "predict": ("torch", "transformers", "peft", "tokenizers", "pillow"),
    "path": ("torch", "transformers", "peft", "tokenizers", "pillow"),
    "scores": ("numpy", "pandas", "scipy", "scikit-learn"),
}
"""The libraries whose versions it depends on."""


def digest(*parts) -> str:
    """Sixteen hexadecimal digits for values that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def room(name: str) -> str:
    """The digest of a room's modules and of the versions of its libraries."""
    return digest(
        code(tuple(PACKAGE / file for file in ROOMS[name])), {each: _version(each) for each in LIBRARIES[name]}
    )


@cache
def code(files: tuple[Path, ...]) -> str:
    """The digest of source files without docstrings and comments; for other files, of their bytes."""
    return digest([_plain(file) if file.suffix == ".py" else file.read_bytes().hex() for file in files])


def rows(table) -> str:
    """The digest of a table's rows, in order; its provenance does not count."""
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()[:16]


def pixels(image: str | Path) -> str:
    """Sixty-four hexadecimal digits for the pixels of an image file as 8-bit gray; its metadata do not count."""
    import numpy as np
    from PIL import Image

    with Image.open(image) as opened:
        gray = np.asarray(opened.convert("L"))
    return hashlib.sha256(repr(gray.shape).encode() + gray.tobytes()).hexdigest()


def notebook(path: Path) -> str:
    """The digest of a notebook's cells, the code they use, and the versions of the libraries.

    Outputs and execution counts do not count.
    """
    cells, files = (
        [(cell["cell_type"], cell["source"], _shown(cell["metadata"])) for cell in _cells(path)],
        modules(path),
    )
    rooms = [name for name, (main, *_) in ROOMS.items() if PACKAGE / main in files]
    return digest(cells, code(tuple(files)), {each: _version(each) for name in rooms for each in LIBRARIES[name]})


def modules(notebook: Path) -> list[Path]:
    """The package's files that the code of `notebook` imports, directly or indirectly, with tables and templates."""
    source = "\n".join(cell["source"] for cell in _cells(notebook) if cell["cell_type"] == "code")
    return imported_files(re.sub(r"(?m)^[%!].*$", "", source))


def imported_files(source: str) -> list[Path]:
    """The package's files that `source` imports, directly or indirectly, with the tables and templates next to them.

    Left out are the schema of params (its values are compared one by one), prompts (their text is part of each
    protocol), and this module.
    """
    found: set[Path] = set()
    waiting = _imported(source)
    while waiting:
        found |= waiting
        waiting = {path for file in waiting for path in _imported_by(file)} - found
    folders = {file.parent for file in found} - {PACKAGE, PACKAGE / "stand_ins"}
    data = {file for folder in folders for file in folder.glob("*") if file.suffix in {".csv", ".json", ".md", ".html"}}
    return sorted((found | data) - {*(PACKAGE / "config").glob("*.py"), Path(__file__)})


@cache
def _plain(file: Path) -> str:
    """The syntax tree of a module without its docstrings, as text."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            vars(node)["body"] = [each for each in body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is only a text: a docstring, or the text below a constant."""
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)


def _cells(path: Path) -> list[dict]:
    """The cells of a notebook (format 4), each source as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def _shown(metadata: dict) -> dict:
    """The part of a cell's metadata that changes the book."""
    return {name: metadata[name] for name in ("tags", "mystnb") if metadata.get(name)}


@cache
def _version(library: str) -> str:
    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return ""


@cache
def _imported_by(file: Path) -> set[Path]:
    return _imported(file.read_text(encoding="utf-8"))


def _imported(source: str) -> set[Path]:
    """The files of this package that `source` imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = [PACKAGE.parent.joinpath(*name.split(".")) for name in names if name.split(".")[0] == PACKAGE.name]
    files = {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")}
    return {file for file in files if file.is_file()}
