"""The command line: `chexreason plan`, `run`, `results`, `score`, `predict`, `films`, `review`, `notebook` and `book`.

Everything heavy is imported by the command that needs it, so that `chexreason --help` answers at once.
"""

import argparse
import fcntl
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the Snakefile, notebooks/ and book/ lie here, beside the package."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 with a message for what the caller can mend."""
    given = _parser().parse_args(arguments)
    try:
        return given.command(given) or 0
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # a file that the caller named, or the study's folder
            print(f"chexreason: {error.filename}: {error.strerror}", file=sys.stderr)
        elif isinstance(error, _mendable()):
            print(f"chexreason: {error}", file=sys.stderr)
        else:
            raise
        return 2


class RunError(RuntimeError):
    """A study cannot be run here, or not now."""


def _mendable() -> tuple[type[Exception], ...]:
    """What the caller can mend from the message alone, without a traceback."""
    from chexreason.asked import TeacherError
    from chexreason.book import BookError
    from chexreason.curate import CurateError
    from chexreason.execute import NotebookError
    from chexreason.films import FilmError
    from chexreason.models import ModelError
    from chexreason.params import ParamsError
    from chexreason.records import DiskFullError, RecordError
    from chexreason.review import ReviewError
    from chexreason.score_files import ScoreError
    from chexreason.sources import SourceError

    ours = ParamsError, RecordError, SourceError, FilmError, ModelError, ReviewError, NotebookError, BookError
    return RunError, DiskFullError, CurateError, TeacherError, ScoreError, *ours


def plan(given: argparse.Namespace) -> int:
    """Print every run of a study, what is missing here and what it would cost; 1 when something is missing."""
    from chexreason import plan

    found = plan.plan(_study(given.params))
    print(json.dumps(found, indent=1) if given.json else plan.table(found))
    return int(bool(found["missing"]))


def run(given: argparse.Namespace) -> None:
    """Hand the study to Snakemake, in place of this process, from the folder that holds its `params/` and `runs/`."""
    study = _study(given.params)
    if not (ROOT / "Snakefile").is_file():
        raise RunError(f"{ROOT} holds no Snakefile: a study runs from a checkout, installed with `make setup`")
    _hold(study.folder)
    directory = study.folder.parent.parent
    command = [sys.executable, "-m", "snakemake", "--quiet", "host", "reason", "rules", "--rerun-incomplete"]
    command += ["--nolock", "--keep-going", "--scheduler", "greedy"]
    command += ["--config", f"params={os.path.relpath(study.file, directory)}", *(["full=1"] if given.full else [])]
    command += ["--snakefile", ROOT / "Snakefile"]
    command += ["--directory", directory, "--cores", "2", *given.arguments]
    os.environ.setdefault("PYTHONUTF8", "1")  # whatever the locale: several libraries take every path for UTF-8
    os.execv(sys.executable, [str(part) for part in command])


def results(given: argparse.Namespace) -> None:
    """Print the study's scores, one row per model, dataset and label set."""
    from chexreason import compare

    rows = compare.results(_study(given.params))
    if given.json:
        print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    else:
        import pandas as pd

        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))


def score(given: argparse.Namespace) -> None:
    """Print how one CSV file's labels score against another's."""
    from chexreason import score_files

    labels = None if given.labels is None else [name.strip() for name in given.labels.split(",")]
    options = {"draws": given.draws, "seed": given.seed, "labels": labels, "threshold": given.threshold}
    scored = score_files.score_files(given.truth, given.pred, given.label_set, given.patient, **options)
    print(json.dumps(scored, indent=1, allow_nan=False) if given.json else score_files.told(scored))


def predict(given: argparse.Namespace) -> None:
    """Print what a checkpoint of a study says about films of the caller's own."""
    import warnings

    from chexreason import predict

    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell each other of names to come
    study = _study(given.params)
    seed = study.seeds[0] if given.seed is None else given.seed
    replies = predict.own(study, given.model, given.checkpoint, seed, given.films)
    for film, reply in zip(given.films, replies, strict=True):
        print(f"{film}\n\n{_printable(predict.told(reply))}\n")
    print(predict.caution(study, given.model))


def films(given: argparse.Namespace) -> None:
    """Print what a folder of films holds."""
    from importlib import import_module

    from chexreason import sources

    options = {name: vars(given)[name] for name in ("labels", "fibrosis") if name in given}
    read = import_module(f"chexreason.sources.{given.source}").read
    found = sources.overview(read(Path(given.folder), **options), Path(given.folder))
    print(json.dumps(found, indent=1) if given.json else sources.told(found))


def review(given: argparse.Namespace) -> None:
    """Draw a sheet of traces for a radiologist, or print what the radiologist's verdicts come to."""
    from chexreason import review

    study = _study(given.params)
    print(review.told(review.read(study, given.verdicts)) if given.verdicts else review.write(study))


def notebook(given: argparse.Namespace) -> None:
    """Run one notebook as the DAG does."""
    from chexreason.execute import execute

    parameters = {name: _value(name, text) for name, text in given.parameters}
    print(f"{Path(given.output).stem}: running", file=sys.stderr, flush=True)
    execute(given.notebook, given.output, parameters)


def book(given: argparse.Namespace) -> None:
    """Assemble the book's pages and the executed notebooks, and build it."""
    from chexreason.book import build

    print(build(_study(given.params), ROOT / "book", [Path(each) for each in given.chapters]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chexreason", description="Run and read a ChexReason study.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("plan", help="print a study's runs, what is missing here, and about what they cost")
    command.add_argument("params", help="the study's params file, such as params/paper.yaml")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.set_defaults(command=plan)

    command = commands.add_parser("run", help="run what is missing or stale of a study, and build its book")
    command.add_argument("--full", action="store_true", help="with the runs that the params file marks `full`")
    command.add_argument("params", help="the study's params file, such as params/mini.yaml")
    command.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="for Snakemake: rules or files to make, --cores (2), --dry-run, ..."
    )
    command.set_defaults(command=run)

    command = commands.add_parser("results", help="print the scores of a study that has run")
    command.add_argument("params", help="the study's params file")
    command.add_argument("--json", action="store_true", help="a JSON array, one object a line")
    command.set_defaults(command=results)

    command = commands.add_parser("score", help="score labels in a CSV file against the truth in another")
    command.add_argument("--truth", required=True, help="a CSV file: id, and a column of 1, 0 or blank for each label")
    command.add_argument("--pred", required=True, help="a CSV file of the same films; 1, 0, blank, or probabilities")
    command.add_argument("--label-set", metavar="SET", help="such as chexpert14, nih9 or competition5")
    command.add_argument("--labels", metavar="A,B", help="the label columns (all columns that both files have)")
    command.add_argument("--threshold", type=float, metavar="P", help="F1 too: a probability of at least P is present")
    command.add_argument("--patient", metavar="COLUMN", help="whose film it is, in the truth: patients are resampled")
    command.add_argument("--draws", type=int, default=10_000, help="bootstrap resamples (10000)")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (0)")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.set_defaults(command=score)

    command = commands.add_parser("predict", help="ask a checkpoint of a study about your own films")
    command.add_argument("--params", default="params/mini.yaml", help="the study's params file (params/mini.yaml)")
    command.add_argument("--model", required=True, help="a model of the params file, such as medgemma")
    command.add_argument("--checkpoint", required=True, help="untuned, sft/FORMAT, grpo/REWARD or grpo/REWARD-best")
    command.add_argument("--seed", type=int, help="the run's seed (the study's first)")
    command.add_argument("films", nargs="+", metavar="FILM", help="PNG, JPEG or DICOM files")
    command.set_defaults(command=predict)

    command = commands.add_parser("films", help="read a folder of films as it lies on disk, and tell what it holds")
    kinds = command.add_subparsers(required=True, dest="source", metavar="{nih,mimic,chexpert}")
    for name in ("nih", "mimic", "chexpert"):
        kind = kinds.add_parser(name, help=f"chexreason/sources/{name}.py says which files it looks for")
        kind.add_argument("folder", help="the folder with the tables; the images need not be there")
        kind.add_argument("--json", action="store_true", help="one JSON object")
        if name == "mimic":
            labels = ["chexpert", "negbio", "radiologists"]
            kind.add_argument("--labels", choices=labels, default="chexpert", help="whose labels (default: chexpert)")
        if name == "nih":
            kind.add_argument("--fibrosis", action="store_true", help="count Fibrosis as Pleural Other")
    command.set_defaults(command=films)

    command = commands.add_parser("review", help="draw a sheet of traces for a radiologist, or read the verdicts back")
    command.add_argument("params", help="the study's params file")
    command.add_argument("--verdicts", metavar="FILE", help="the sheet's verdicts.csv, filled in")
    command.set_defaults(command=review)

    command = commands.add_parser("notebook", help="run one notebook, its parameters checked first")
    command.add_argument("notebook", help="such as notebooks/3_sft.ipynb")
    command.add_argument("output", help="where the executed notebook goes")
    command.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter"
    )
    command.set_defaults(command=notebook)

    command = commands.add_parser("book", help="build the book from executed notebooks")
    command.add_argument("params", help="the study's params file")
    command.add_argument("chapters", nargs="+", help="the executed notebooks, in reading order")
    command.set_defaults(command=book)
    return parser


def _value(name: str, text: str):
    """A notebook parameter as the command line gives it, written as in YAML: 3, true, free_reasoning."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RunError(f"-p {name}: {text[:100]!r} is no value; write a number, true, false or a text") from None


def _printable(text: str) -> str:
    """`text` for a terminal: what a model wrote must not move the cursor or turn the reading direction around."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)


def _study(path: str):
    from chexreason.params import load

    return load(path)


def _hold(folder: Path) -> None:
    """Keep a lock on the study for as long as this process lives, and raise RunError when another process has it.

    It takes the place of Snakemake's own lock, which a killed run leaves behind; what the file says of its holder
    counts only while the lock is held.
    """
    from chexreason import records

    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 1000).decode() or "another process"
        raise RunError(f"{folder}: this study is being run by {holder}; wait for it, or stop it first") from None
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with records.telling_full(folder / ".lock"):
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    records.sweep(folder)


if __name__ == "__main__":
    sys.exit(main())
