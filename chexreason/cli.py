"""The command line: `chexreason plan`, `run`, `results`, `score`, `predict`, `reward`, `films`, `review`, `release`,
`notebook` and `book`.

Heavy libraries are imported in the commands that need them, so that `chexreason --help` is fast.
"""

# PYTHON_ARGCOMPLETE_OK

import argparse
import csv
import difflib
import json
import os
import re
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chexreason import __version__

if TYPE_CHECKING:
    from chexreason.config import Study

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, with the Snakefile, notebooks/ and book/."""

DEFAULT = "params/mini.yaml"

RUN_HELP = """\
Targets are the stages curate, prompts, sft, grpo, predict, path, compare, chapters and book (the default), and
files, such as runs/mini/sft/medgemma/free_reasoning/seed0/log.parquet for a single run.

Every other option after the params file goes to Snakemake; what follows -- goes there as it is:
  chexreason run params/mini.yaml grpo --cores 4
  chexreason run params/mini.yaml -- --forcerun compare"""

REWARD_USAGE = "chexreason reward NAME_OR_PATH [params] [--arg NAME VALUE ...] [--json]"

COLLECTIONS = {
    "nih": "Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), train_val_list.txt and test_list.txt",
    "mimic": "mimic-cxr-2.0.0-split.csv, mimic-cxr-2.0.0-metadata.csv and the labels, mimic-cxr-2.0.0-chexpert.csv",
    "chexpert": "train.csv, valid.csv, and test_labels.csv or groundtruth.csv",
}
"""The files that `chexreason films` needs in the folder of each data set."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 with an error message for the user.

    `plan` returns 1 if something is missing, `predict` if it could not read every film.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell that asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = "; put Snakemake's options after the params file" if given.command is run else ""
        hint = "; put options after the params file" if given.command is reward else hint
        parser.error(f"unknown arguments: {' '.join(unknown)}{hint}")
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
    """The errors that the user can correct from the message alone, without a traceback."""
    from chexreason.config import ParamsError
    from chexreason.data.film_table import SourceError
    from chexreason.data.images import FilmError
    from chexreason.data.sampling import CurateError
    from chexreason.evaluation.csv_files import ScoreError
    from chexreason.models import ModelError
    from chexreason.records import DiskFullError, RecordError
    from chexreason.rewards import RewardError
    from chexreason.teacher.clients import TeacherError
    from chexreason.teacher.review import ReviewError
    from chexreason.workflow.book import BookError
    from chexreason.workflow.notebook import NotebookError

    ours = (
        ParamsError,
        RewardError,
        RecordError,
        SourceError,
        FilmError,
        ModelError,
        ReviewError,
        NotebookError,
        BookError,
    )
    return RunError, DiskFullError, CurateError, TeacherError, ScoreError, *ours


def plan(given: argparse.Namespace) -> int:
    """Print every run of a study, what is missing, and approximate costs; returns 1 if something is missing.

    With `--measure`, a few steps of each kind are run first (see `measure.measure`).
    """
    from chexreason.workflow import plan

    study = _study(given.params)
    if given.measure:
        from chexreason.workflow import measure

        measure.measure(study)
    found = plan.plan(study)
    print(json.dumps(found, indent=1) if given.json else plan.table(found))
    return int(bool(found["missing"]))


def run(given: argparse.Namespace) -> None:
    """Run the study with Snakemake, in the folder of its `params/` and `runs/`; it replaces this process."""
    ours, theirs = given.arguments, []
    if "--" in ours:
        ours, theirs = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    if {"-h", "--help"} & {*ours}:
        return given.print_help()
    full = given.full or "--full" in ours
    words = [*(["--dry-run"] if given.dry_run else []), *(["--cores", given.cores] if given.cores else [])]
    words += [word for word in ours if word != "--full"] + theirs
    from chexreason import runtime

    study = _study(given.params, full)
    if not (ROOT / "Snakefile").is_file():
        raise RunError(f"{ROOT} holds no Snakefile: a study runs from a checkout, installed with `make setup`")
    options = _snakemake_options(words)
    _refuse_unknown_targets(options.targets, study)
    if not options.dryrun:
        _hold(study)
    directory = study.folder.parent.parent
    file = os.path.relpath(study.file, directory)
    if not re.fullmatch(r"[\w./-]+", file):  # Snakemake takes the value for YAML, after it has stripped quotes
        file = f" {json.dumps(file, ensure_ascii=False)} "
    shown = "plan" if options.dryrun else "findings" if {*options.targets} <= {"book"} else "progress"
    command = [sys.executable, "-m", "chexreason.workflow.terminal", study.file.resolve()]
    command += ["full" if full else "short", shown, "--config", f"params={file}"]
    command += [*(["full=1"] if full else []), *(["dry=1"] if options.dryrun else [])]
    there = runtime.gpus()
    if there:  # as many jobs at once as there are GPUs, each with one
        command += [f"gpus={len(there)}", "--resources", f"gpu={len(there)}"]
    command += ["--snakefile", ROOT / "Snakefile", "--directory", directory]
    if not any(word.startswith("--profile") for word in words):  # a cluster's profile says how many jobs
        command += ["--cores", os.cpu_count() if there else 2]
    command += words
    here = str(Path(sys.executable).parent)  # where the jobs find `chexreason`
    os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("PYTHONUTF8", "1")  # whatever the locale: several libraries take every path for UTF-8
    os.execv(sys.executable, [str(part) for part in command])


def _snakemake_options(words: list[str]) -> argparse.Namespace:
    """Snakemake's options in `words`; raises RunError for invalid ones."""
    if not any(word.startswith("-") for word in words):  # its parser takes a second or two to load
        return argparse.Namespace(targets=words, dryrun=False)
    from snakemake.cli import get_argument_parser
    from snakemake.exceptions import CliException

    def refuse(message: str):
        raise RunError(f"run: {message}; `chexreason run --help` lists the options, `snakemake --help` further ones")

    parser = get_argument_parser()
    parser.error = refuse
    try:
        options = parser.parse_args(words)
    except CliException as error:
        refuse(str(error))
    for name in ("config", "snakefile", "directory"):  # ours would not count any more
        if getattr(options, name):
            raise RunError(f"run: --{name} cannot be given: the study is what its params file says")
    return options


def _refuse_unknown_targets(targets: list[str], study: "Study") -> None:
    """Raise RunError for a target that is neither a rule of the Snakefile nor a file (with a slash)."""
    rules = re.findall(r"^(?:rule|checkpoint) (\w+):", (ROOT / "Snakefile").read_text(encoding="utf-8"), re.MULTILINE)
    stages = [name for name in rules if not name.endswith("_run")]
    for target in targets:
        if target not in stages and "/" not in target:
            near = difflib.get_close_matches(target, stages, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            record = f"runs/{study.study}/compare/overall.parquet"
            raise RunError(
                f"run: no target {target!r}; {hint}The targets are {', '.join(stages)}, or a file such as {record}"
            )


def results(given: argparse.Namespace) -> None:
    """Print the study's scores, one row per model, dataset and label set."""
    from chexreason import records
    from chexreason.evaluation import compare

    study = _study(given.params)
    try:
        rows = compare.results(study)
    except records.RecordError as error:
        raise RunError(f"{error}: {shlex.join(['chexreason', 'run', os.path.relpath(study.file)])}") from None
    if given.json:
        print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    else:
        import pandas as pd

        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))


def score(given: argparse.Namespace) -> None:
    """Print the scores of one CSV file against another."""
    from chexreason.evaluation import csv_files

    labels = None if given.labels is None else [name.strip() for name in given.labels.split(",")]
    options = {"n_resamples": given.n_resamples, "seed": given.seed, "labels": labels, "threshold": given.threshold}
    scored = csv_files.score_files(given.truth, given.pred, given.label_set, given.patient, **options)
    print(json.dumps(scored, indent=1, allow_nan=False) if given.json else csv_files.report_text(scored))


def predict(given: argparse.Namespace) -> int:
    """Print the answers of a checkpoint to the user's films; returns 1 if some cannot be read, 2 if all.

    JSON is one object: `study`, `params_hash`, `model`, `checkpoint`, `seed`, `caution`, and `films`, a list with one
    object per film (see `predict.answer_row`). CSV has one row per film, in the form that `chexreason score` reads: id
    (the file), 1 or 0 for each label (blank if no labels can be read), error, reply, caution.
    """
    import warnings

    from chexreason.inference import predict
    from chexreason.labels import CHEXPERT14

    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell each other of names to come
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and replies may hold what the locale cannot write
    study = _study(given.params)
    asked = predict.choose_checkpoint(study, given.model, given.checkpoint, given.seed)
    paths = predict.find_films(given.films)
    replies = predict.answer_own_films(study, asked, paths)
    rows = [predict.answer_row(path, reply) for path, reply in zip(paths, replies, strict=True)]
    caution = predict.caution(study, asked.model)
    if given.json:
        about = {"model": asked.model, "checkpoint": asked.name, "seed": asked.seed}
        about = {"study": study.study, "params_hash": study.hash, **about, "caution": caution, "films": rows}
        print(json.dumps(about, indent=1))
    elif given.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["id", *CHEXPERT14, "error", "reply", "caution"])
        for row in rows:
            states = ["" if row["labels"] is None else int(label in row["labels"]) for label in CHEXPERT14]
            table.writerow([_printable(row["film"]), *states, row["error"], _printable(row["reply"]), caution])
    else:
        for row in rows:
            answer = f"Not read: {row['error']}" if row["error"] else predict.format_reply(row["reply"])
            print(f"{_printable(row['film'])}\n\n{_printable(answer)}\n")
        print(caution)
    faults = [row for row in rows if row["error"]]
    for row in faults:
        print(f"chexreason: {_printable(row['film'])}: {row['error']}", file=sys.stderr)
    return 2 if len(faults) == len(rows) else int(bool(faults))


def reward(given: argparse.Namespace) -> None:
    """Print what a reward gives the recorded replies of a study (see `reward_report.report`)."""
    from chexreason.config import ParamsError, read_value
    from chexreason.evaluation import reward_report

    arguments = {}
    for name, value in given.arguments:
        try:
            arguments[name] = read_value(value)
        except ParamsError as error:
            raise RunError(f"--arg {name}: {error}") from None
    found = reward_report.report(_study(given.params), given.reward, arguments)
    print(json.dumps(found, indent=1, allow_nan=False) if given.json else _printable(reward_report.text(found)))


def films(given: argparse.Namespace) -> None:
    """Print a summary of a folder of films."""
    from importlib import import_module

    from chexreason.data import film_table

    options = {name: vars(given)[name] for name in ("labels", "fibrosis") if name in given}
    read = import_module(f"chexreason.data.{given.source}").read
    found = film_table.overview(read(Path(given.folder), **options), Path(given.folder))
    print(json.dumps(found, indent=1) if given.json else film_table.overview_text(found))


def review(given: argparse.Namespace) -> None:
    """Make a review page of traces for a radiologist, or print a summary of the verdicts."""
    from chexreason.teacher import review

    study = _study(given.params)
    print(review.verdict_summary(review.read(study, given.verdicts)) if given.verdicts else review.write(study))


def notebook(given: argparse.Namespace) -> None:
    """Run one notebook as in the graph."""
    from chexreason.workflow.notebook import execute

    parameters = _parameters(given.notebook, given.parameters)
    print(f"{Path(given.output).stem}: running", file=sys.stderr, flush=True)
    execute(given.notebook, given.output, parameters, [kind.__name__ for kind in _mendable()], bool(given.gpus))


def release(given: argparse.Namespace) -> None:
    """Write the small records of an experiment to `released/<study>` of the checkout."""
    from chexreason.evaluation import release

    print(release.save(_study(given.params), ROOT))


def book(given: argparse.Namespace) -> None:
    """Build the book from its pages and the executed notebooks."""
    from chexreason.workflow.book import build

    print(build(_study(given.params), ROOT / "book", [Path(each) for each in given.chapters]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chexreason", description="Run and read a ChexReason study.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=lambda given: parser.print_help())
    commands = parser.add_subparsers(metavar="command")

    command = commands.add_parser("plan", help="print a study's runs, what is missing here, and approximate costs")
    command.add_argument("params", nargs="?", help=f"the study's params file, such as params/paper.yaml ({DEFAULT})")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.add_argument("--measure", action="store_true", help="first run a few steps of each kind on this machine")
    command.set_defaults(command=plan)

    command = commands.add_parser(
        "run",
        help="run the missing or outdated parts of a study, and build its book",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="chexreason run [--full] [-n] [--cores N] params [target ...] [Snakemake's options]",
        epilog=RUN_HELP,
    )
    command.add_argument("--full", action="store_true", help="with the runs that the params file marks `full`")
    command.add_argument("-n", "--dry-run", action="store_true", help="print what would run, and write nothing")
    command.add_argument("-c", "--cores", metavar="N", help="how many stages may run side by side (2)")
    command.add_argument("params", help="the study's params file, such as params/mini.yaml")
    targets = command.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="target", help="a stage, a single run or a file"
    )
    targets.required = False  # argparse would name it as missing where the params file is
    command.set_defaults(command=run, print_help=command.print_help)

    command = commands.add_parser("results", help="print the scores of a study that has run")
    command.add_argument("params", nargs="?", help=f"the study's params file ({DEFAULT})")
    command.add_argument("--json", action="store_true", help="a JSON array, one object a line")
    command.set_defaults(command=results)

    command = commands.add_parser("score", help="score labels in a CSV file against the truth in another")
    command.add_argument("--truth", required=True, help="a CSV file: id, and a column of 1, 0 or blank for each label")
    command.add_argument("--pred", required=True, help="a CSV file of the same films; 1, 0, blank, or probabilities")
    command.add_argument("--label-set", metavar="SET", help="such as chexpert14, nih9 or competition5")
    command.add_argument("--labels", metavar="A,B", help="the label columns (all columns that both files have)")
    command.add_argument(
        "--threshold", type=float, metavar="P", help="also F1: a probability of at least P counts as present"
    )
    command.add_argument(
        "--patient", metavar="COLUMN", help="the column of the truth with the patient; patients are then resampled"
    )
    command.add_argument(
        "--resamples",
        dest="n_resamples",
        type=int,
        default=10_000,
        help="bootstrap resamples, 40 or more (10000)",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (0)")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.set_defaults(command=score)

    command = commands.add_parser("predict", help="predict the labels of your own films with a checkpoint of a study")
    command.add_argument("--params", help=f"the study's params file ({DEFAULT})")
    command.add_argument("--model", help="a model of the params file (its first)")
    command.add_argument("--checkpoint", help="untuned, sft/RUN, grpo/RUN or grpo/RUN-best (the last that `run` makes)")
    command.add_argument("--seed", type=int, help="the run's seed (the study's first)")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object, with a list of the films")
    form.add_argument("--csv", action="store_true", help="one row per film, with 1 or 0 for each label")
    command.add_argument("films", nargs="+", metavar="FILM", help="PNG, JPEG or DICOM files, or folders of them")
    command.set_defaults(command=predict)

    command = commands.add_parser(
        "reward", help="score recorded replies with a reward, before training", usage=REWARD_USAGE
    )
    command.add_argument("reward", help="hard, nuanced, a run's name, file.py:function or package.module:function")
    command.add_argument("params", nargs="?", help=f"the study's params file ({DEFAULT})")
    command.add_argument(
        "--arg", dest="arguments", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a constant"
    )
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.set_defaults(command=reward)

    command = commands.add_parser("films", help="print a summary of a folder of films")
    kinds = command.add_subparsers(required=True, dest="source", metavar="{nih,mimic,chexpert}")
    for name, files in COLLECTIONS.items():
        kind = kinds.add_parser(name, help=files, description=f"The folder has {files}.  Images may be missing.")
        kind.add_argument("folder", help="the folder with the tables")
        kind.add_argument("--json", action="store_true", help="one JSON object")
        if name == "mimic":
            labels = ["chexpert", "negbio", "radiologists"]
            kind.add_argument("--labels", choices=labels, default="chexpert", help="whose labels (default: chexpert)")
        if name == "nih":
            kind.add_argument("--fibrosis", action="store_true", help="count Fibrosis as Pleural Other")
    command.set_defaults(command=films)

    command = commands.add_parser("review", help="make a review page of traces for a radiologist, or read the verdicts")
    command.add_argument("params", help="the study's params file")
    command.add_argument("--verdicts", metavar="FILE", help="the sheet's verdicts.csv, filled in")
    command.set_defaults(command=review)

    command = commands.add_parser("release", help="write the small records of an experiment to released/")
    command.add_argument("params", help="such as params/reward.yaml; its paths have been asked")
    command.set_defaults(command=release)

    command = commands.add_parser("notebook", help="check the parameters of one notebook and run it")
    command.add_argument("notebook", help="such as notebooks/3_sft.ipynb")
    command.add_argument("output", help="the path of the executed notebook")
    command.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter"
    )
    command.add_argument(
        "--gpus", type=int, choices=(0, 1), default=1, help="GPUs for the kernel, of those there are (1)"
    )
    command.set_defaults(command=notebook)

    command = commands.add_parser("book", help="build the book from executed notebooks")
    command.add_argument("params", help="the study's params file")
    command.add_argument("chapters", nargs="+", help="the executed notebooks, in reading order")
    command.set_defaults(command=book)
    return parser


def _parameters(notebook: str, given: list[tuple[str, str]]) -> dict:
    """The values of `-p NAME VALUE`, written as in a params file, with the types of the notebook's defaults.

    A value for a text is not changed: `001` or `true` may be a name.
    """
    from chexreason.config import ParamsError, read_value
    from chexreason.workflow.notebook import defaults

    values = {}
    for name, text in given:
        try:
            values[name] = read_value(text)
        except ParamsError as error:
            raise RunError(f"-p {name}: {error}") from None
    known = defaults(notebook, values)
    for name, text in given:
        default = known[name]
        if isinstance(default, str):
            values[name] = text
        elif type(values[name]) not in ({float, int} if isinstance(default, float) else {type(default)}):
            raise RunError(f"-p {name}: {text!r} is not a value like its default, {default!r}")
    return values


def _printable(text: str) -> str:
    """`text` for a terminal, without characters that move the cursor or change the reading direction."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)


def _study(path: str | Path | None, full: bool = True):
    """The study of a params file; by default the default study, of this folder or else of the checkout."""
    from chexreason.config import ParamsError, find, load

    if path is None:
        try:
            path = find(DEFAULT)
        except ParamsError:
            path = ROOT / DEFAULT
    return load(path, full=full)


def _hold(study: "Study") -> None:
    """Keep a lock on the study until this process ends; raises RunError if another process has it.

    It replaces Snakemake's own lock, which a killed run leaves behind. The information about its holder counts only
    while the lock is held.
    """
    from chexreason import records

    study.claim()
    path = study.folder / ".lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    try:
        locked = records.lock(path, lock)
    except BlockingIOError:
        holder = os.read(lock, 1000).decode() or "another process"
        raise RunError(f"{study.folder}: this study is being run by {holder}; wait for it, or stop it first") from None
    if not locked:  # what is half written may be that of a process on another machine
        return
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with records.disk_full_errors(path):
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    records.sweep(study.folder)


if __name__ == "__main__":
    sys.exit(main())
