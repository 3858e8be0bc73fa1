"""The project's files agree with each other, and notebooks are stored as they should be."""

import ast
import re
import tomllib
from importlib.metadata import version

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

NOTEBOOKS = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "book" / "index.ipynb"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EVERYWHERE = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
DECLARED = [requirement for requirement in EVERYWHERE if not requirement.marker or requirement.marker.evaluate()]


def locked() -> dict[str, str]:
    """The version the lock gives each package on this interpreter and system."""
    pins = [Requirement(line) for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in pins), "every line of the lock is one pin"
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in here}


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_the_lock_holds_what_pyproject_asks_for(requirement):
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_what_is_installed_is_what_the_lock_says(requirement):
    assert Version(version(requirement.name)).public == locked()[canonicalize_name(requirement.name)]


def test_the_lock_would_not_bring_cuda_to_a_cpu_machine():
    assert not [name for name in locked() if name.startswith(("nvidia-", "triton"))]


def test_environment_yml_defers_to_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    python = next(Requirement(name) for name in conda if name.startswith("python"))
    assert environment["name"] == PROJECT["name"]
    assert str(python.specifier) == PROJECT["requires-python"]
    assert {"pip", "make", "git"} <= set(conda)
    assert pip == {"pip": ["-c requirements.lock", "-e ."]}


def test_versions_and_licences_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == version("chexreason")
    assert citation["license"] == PROJECT["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def cells(path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def parameters(path) -> list[str]:
    """The names in a notebook's parameters cell."""
    (source,) = [cell.source for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    return [target.id for statement in ast.parse(source).body for target in statement.targets]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    assert not any(cell.outputs or cell.execution_count for cell in cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_one_parameters_cell_of_flat_literals(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        assert isinstance(ast.literal_eval(statement.value), str | int | float | bool)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_define_nothing_and_loop_over_nothing(path):
    code = ast.parse("\n".join(cell.source for cell in cells(path)))
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)
    assert not [ast.unparse(node) for node in ast.walk(code) if isinstance(node, logic)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_with_a_title_and_prose(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    heading, *prose = first.source.splitlines()
    assert heading.startswith("# ")
    assert "".join(prose).strip()


@pytest.mark.parametrize("path", NOTEBOOKS[:-1], ids=lambda path: path.stem)
def test_the_readme_prints_a_papermill_command_with_every_parameter(path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = [line for line in readme.splitlines() if f"papermill notebooks/{path.name} " in line]
    assert re.findall(r"-p (\w+) ", command) == parameters(path)


def test_no_file_of_this_machine_is_named():
    texts = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".md", ".ipynb", ".yaml", ".yml", ".toml"}]
    kept = [path for path in texts if not {".venv", "runs", ".snakemake"} & set(path.relative_to(ROOT).parts)]
    assert not [str(path) for path in kept if re.search(r"(^|[^\w./])/(root|home)/\w", path.read_text("utf-8"))]
