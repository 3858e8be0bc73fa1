"""Running one notebook: names checked, progress shown, result replaced whole; and the code a notebook depends on."""

import fcntl
import io
import socket
import threading

import nbformat
import pytest
from conftest import ROOT
from jupyter_client.provisioning.local_provisioner import LocalPortCache
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from chexreason.fingerprint import PACKAGE, modules
from chexreason.workflow.notebook import NotebookError, Relay, _scrub, execute

BODY = """import os, sys, time
print("a bar", end="", file=sys.stderr)
sys.stderr.write("\\r 50%\\r100%\\n")
print(name, count + 1, os.environ["HF_HUB_OFFLINE"], sys.prefix)
object()"""


def write(folder, *sources: str):
    """A notebook with parameters `name` and `count` and a code cell for each source."""
    given = new_code_cell('name = "a"\ncount = 1', id="given", metadata={"tags": ["parameters", "remove-cell"]})
    cells = [new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
    path = folder / "notebook.ipynb"
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_markdown_cell("# A notebook", id="title"), given, *cells]
    nbformat.write(new_notebook(cells=cells, metadata=about), path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder in which a notebook ran twice with the same parameters, and what it said on standard error."""
    folder = tmp_path_factory.mktemp("executed")
    with pytest.MonkeyPatch.context() as patch:
        said = io.StringIO()
        patch.setattr("sys.stderr", said)
        for output in ("first", "second"):
            execute(write(folder, BODY), folder / f"{output}.ipynb", {"name": "b", "count": 41})
    return folder, said.getvalue()


def test_parameters_reach_the_cells_and_the_kernel_is_this_environment(executed):
    notebook = nbformat.read(executed[0] / "first.ipynb", as_version=4)
    assert notebook.cells[-1].outputs[0].text == "b 42 1 $VIRTUAL_ENV\n"  # which stands for this interpreter's folder


def test_progress_is_relayed_under_the_name_of_the_output(executed):
    assert "first: 100%\n" in executed[1]


def test_the_kernel_starts_without_a_warning(executed):
    assert "TCP" not in executed[1]


def test_the_same_parameters_give_the_same_bytes(executed):
    folder, _ = executed
    assert (folder / "first.ipynb").read_bytes() == (folder / "second.ipynb").read_bytes()


def test_nothing_of_the_run_but_its_results_is_kept(executed):
    notebook = nbformat.read(executed[0] / "first.ipynb", as_version=4)
    assert "papermill" not in notebook.metadata
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in notebook.cells)
    printed, value = notebook.cells[-1].outputs
    assert printed.name == "stdout"
    assert value.data["text/plain"] == "<object>"


def test_given_parameters_are_hidden_where_the_defaults_are(executed):
    notebook = nbformat.read(executed[0] / "first.ipynb", as_version=4)
    (given,) = [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert given.metadata.tags == ["injected-parameters", "remove-cell"]


@pytest.mark.parametrize(("parameter", "told"), [("cuont", "did you mean 'count'?"), ("zzz", "it has name, count")])
def test_a_parameter_the_notebook_does_not_have_is_refused_before_it_runs(tmp_path, parameter, told):
    notebook = write(tmp_path, "raise SystemError")
    with pytest.raises(NotebookError, match="no parameter") as caught:
        execute(notebook, tmp_path / "out.ipynb", {parameter: 1})
    assert told in str(caught.value)


def test_a_notebook_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotebookError, match=r"missing\.ipynb: no such notebook"):
        execute(tmp_path / "missing.ipynb", tmp_path / "out.ipynb", {})


def test_a_failed_cell_keeps_the_partly_run_notebook_and_the_old_result(tmp_path, capsys):
    output = tmp_path / "out.ipynb"
    output.write_text("an earlier result")
    with pytest.raises(NotebookError, match="ZeroDivisionError: division by zero") as caught:
        execute(write(tmp_path, "print('so far')", "1 / 0"), output, {})
    assert output.read_text() == "an earlier result"
    assert "out.failed.ipynb" in str(caught.value)
    assert "so far" in (tmp_path / "out.failed.ipynb").read_text()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_run_waits_for_one_that_is_still_writing_the_same_output(tmp_path, capsys):
    output = tmp_path / "out.ipynb"
    notebook = write(tmp_path, "print(count)")
    with open(tmp_path / ".out.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = threading.Thread(target=execute, args=(notebook, output, {}))
        run.start()
        run.join(timeout=4)
        assert run.is_alive()
        assert not output.exists()
    run.join(timeout=60)
    assert output.exists()
    assert "waiting for an earlier run" in capsys.readouterr().err


def test_a_kernel_whose_port_was_taken_meanwhile_is_started_once_more(tmp_path, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        free = LocalPortCache.find_available_port
        monkeypatch.setattr(LocalPortCache, "find_available_port", lambda self, ip: next(ports, None) or free(self, ip))
        execute(write(tmp_path, BODY), tmp_path / "output.ipynb", {"name": "b"})
    assert "its kernel did not start and is started once more" in capfd.readouterr().err
    assert nbformat.read(tmp_path / "output.ipynb", as_version=4).cells[-1].outputs[0].text.startswith("b 2 1")


def test_a_self_explanatory_error_is_shown_without_a_traceback(tmp_path, monkeypatch, capsys):
    class Stopped(Exception):
        ename, evalue, exec_count, traceback = (
            "ParamsError",
            "no model 'x'",
            3,
            ["the traceback"],
        )  # as papermill has it

    def run(*arguments, **options):
        raise Stopped

    monkeypatch.setattr("papermill.execute_notebook", run)
    for expected, shown in ((["ParamsError"], False), (["RecordError"], True)):
        with pytest.raises(NotebookError, match="cell 3 stopped with ParamsError: no model 'x'"):
            execute(write(tmp_path, "1"), tmp_path / "out.ipynb", {}, expected)
        assert ("the traceback" in capsys.readouterr().err) == shown


def test_what_a_cell_prints_is_one_output_however_often_the_kernel_flushes(tmp_path):
    pieces = [("stdout", "one\n"), ("stderr", "a bar"), ("stdout", "two\n"), ("stdout", "three\n")]
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    outputs.append(nbformat.v4.new_output("display_data", {"text/plain": "a figure"}))
    cell = nbformat.v4.new_code_cell("print()", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "part.ipynb")
    _scrub(tmp_path / "part.ipynb", tmp_path / "whole.ipynb", str)
    text, figure = nbformat.read(tmp_path / "whole.ipynb", 4).cells[0].outputs
    assert text.text == "one\ntwo\nthree\n" and figure.data["text/plain"] == "a figure"


def test_a_bar_that_redraws_itself_is_shown_now_and_then():
    shown = io.StringIO()
    relay = Relay("name", shown, every=3600)
    for text in ("\r 0%", "\r 10%", "\r 20%\r", "\n", "done", "\n"):
        relay.write(text)
    assert shown.getvalue().splitlines() == ["name: 0%", "name: done"]


def test_code_is_followed_through_imports_at_any_depth(tmp_path):
    notebook = write(tmp_path, "%matplotlib inline\nfrom chexreason import prompts\nimport pandas, os.path")
    found = {path.relative_to(PACKAGE).as_posix() for path in modules(notebook)}
    assert found == {"__init__.py", "prompts/__init__.py"}  # the texts are content, part of each protocol


def test_a_stage_depends_on_the_modules_it_uses_and_on_no_schema():
    found = {path.name for path in modules(ROOT / "notebooks" / "6_compare.ipynb")}
    assert {"compare.py", "metrics.py", "records.py", "labels.py"} <= found
    assert not {"schema.py", "cli.py", "sft.py"} & found
