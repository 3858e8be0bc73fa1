"""The review of traces by a radiologist: a page with random traces and their films, and the table of verdicts."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason import answers, config, records
from chexreason.data import curate, sampling
from chexreason.teacher import check, clients

TEMPLATE = Path(__file__).with_suffix(".html")
COUNT = 100
"""Traces on a sheet, as in the paper."""

VERDICTS = ("accept", "revise", "reject")
COLUMNS = ["number", "film", "trace", "verdict", "comment"]
HEADING = 2
"""Row number of the first verdict: people and spreadsheets count from 1, and the heading is row 1."""


class ReviewError(ValueError):
    """Verdicts cannot be read, or would be lost; the message names the file, the row and what would be right."""


def sampled_traces(study: config.Study, count: int = COUNT, format: str | None = None) -> pd.DataFrame:
    """Random traces for the review, with the teacher's seed: number, film, labels, reasoning, trace, image.

    They have one format, by default the study's first with a reasoning. `trace` is a hash of film and text, which shows
    whether a trace has changed; `image` is a path. Raises ReviewError if there is no trace of that format.
    """
    written, format = _traces(study), _format(study, format)
    traces = written[written["format"] == format]
    if traces.empty:
        there = ", ".join(written["format"].unique())
        raise ReviewError(f"{check.TRACES} holds no trace of {format}; it has {there}")
    order = np.argsort(sampling.hash_to_unit(traces["film"], f"{study.teacher.seed}/review"))[:count]
    films = records.load(study.folder / curate.MANIFEST)[["film", "path", "source"]]
    some = traces.iloc[order].merge(films, on="film", validate="one_to_one")
    return some.assign(number=range(1, len(some) + 1), image=[study.folder / path for path in some["path"]])


def write(study: config.Study, count: int = COUNT, format: str | None = None) -> Path:
    """Write `sheet.html` and `verdicts.csv` (to be filled in) to `runs/<study>/review/<format>`; return that folder.

    The format is as in `sampled_traces`.  The page contains its images.  It is not part of the book, because its
    films may be restricted.
    Raises ReviewError rather than write over verdicts.
    """
    folder, some = study.folder / "review" / _format(study, format), sampled_traces(study, count, format)
    sheet, verdicts = folder / "sheet.html", folder / "verdicts.csv"
    if verdicts.exists() and (_rows(verdicts)[["verdict", "comment"]] != "").any(axis=None):
        raise ReviewError(f"{verdicts}: holds verdicts; move it away before a new sheet is drawn")
    with records.replacing(sheet) as temporary:
        temporary.write_text(_page(study, some), encoding="utf-8")
    with records.replacing(verdicts) as temporary:
        some.reindex(columns=COLUMNS).to_csv(temporary, index=False, encoding="utf-8-sig")  # spreadsheets need the BOM
    return folder


def read(study: config.Study, file: str | Path) -> pd.DataFrame:
    """The verdicts in a filled-in `verdicts.csv`: film, verdict, comment; rows without a verdict are left out.

    The file may be for any format, because each trace has a hash. Raises ReviewError for a missing column, an unknown
    verdict or film, a film that occurs twice, a trace that has changed since, or no verdict at all.
    """
    rows = _rows(Path(file))
    rows = rows[rows["verdict"] != ""]
    if rows.empty:
        raise ReviewError(f"{file}: holds no verdict yet; write {', '.join(VERDICTS)} into the column verdict")
    traces = _traces(study).groupby("film")["trace"].agg(set)
    judged = rows["film"].duplicated()
    for row in rows.assign(again=judged).itertuples():
        where = f"{file}, row {row.Index + HEADING}"
        if row.verdict not in VERDICTS:
            raise ReviewError(f"{where}: unknown verdict {row.verdict!r}; choose one of {', '.join(VERDICTS)}")
        if row.film not in traces.index:
            raise ReviewError(f"{where}: no trace of film {row.film!r} in {check.TRACES}")
        if row.trace not in traces[row.film]:
            raise ReviewError(f"{where}: the trace of film {row.film} is another one now; draw a new sheet")
        if row.again:
            raise ReviewError(f"{where}: film {row.film} has a verdict already, in a row above")
    return rows[["film", "verdict", "comment"]].reset_index(drop=True)


def shares(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The number of each verdict: verdict, count, share, low, high (the 95 % interval of Wilson's score)."""
    from scipy.stats import binomtest

    counts = verdicts["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    intervals = [binomtest(int(count), len(verdicts)).proportion_ci(0.95, "wilson") for count in counts]
    return pd.DataFrame(
        {
            "verdict": VERDICTS,
            "count": counts.to_numpy(),
            "share": counts.to_numpy() / len(verdicts),
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
        }
    )


def verdict_summary(verdicts: pd.DataFrame) -> str:
    """The shares of verdicts, and the comments on traces that were not accepted, as text."""
    table = shares(verdicts).itertuples()
    lines = [f"{row.verdict}: {row.count}, {row.share:.0%} ({row.low:.0%} to {row.high:.0%})" for row in table]
    others = verdicts[verdicts["verdict"] != "accept"]
    comments = [f"- {row.film}, {row.verdict}: {row.comment or 'no comment'}" for row in others.itertuples()]
    return "\n".join([f"{len(verdicts)} traces judged; shares with 95 % intervals", *lines, *comments])


def _format(study: config.Study, format: str | None) -> str:
    """`format`, or the study's first with a reasoning; raises ReviewError if there is none."""
    format = format or next((each for each in study.formats if each != answers.ONLY_LABEL), None)
    if format is None:
        raise ReviewError(f"{study.file.name}: sft.runs: all are {answers.ONLY_LABEL}, so there is no reasoning")
    return format


def _traces(study: config.Study) -> pd.DataFrame:
    """The traces of all formats with `trace`, a hash after a letter (spreadsheets read some hashes as numbers)."""
    traces = records.load(study.folder / check.TRACES)
    told = [f"{film}\n{text}".encode() for film, text in zip(traces["film"], traces["text"], strict=True)]
    return traces.assign(trace=["t" + hashlib.sha256(each).hexdigest()[:12] for each in told])


def _rows(file: Path) -> pd.DataFrame:
    """The rows of a CSV file as text, with any separator that spreadsheets write; empty cells are ""."""
    as_text = {"dtype": str, "encoding": "utf-8-sig", "keep_default_na": False, "skip_blank_lines": False}
    try:
        heading = file.read_text(encoding="utf-8-sig").partition("\n")[0]
        rows = pd.read_csv(file, sep=max(",;\t", key=heading.count), **as_text)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, empty, or quotes that never close
        raise ReviewError(f"{file}: cannot be read as CSV in UTF-8: {error}") from None
    missing = [name for name in COLUMNS[1:] if name not in rows]
    if missing:
        raise ReviewError(f"{file}: no column {', '.join(missing)}; there are {', '.join(rows.columns[:30])}")
    rows = rows.fillna("").apply(lambda column: column.str.strip())
    return rows.assign(verdict=rows["verdict"].str.lower())


def _page(study: config.Study, some: pd.DataFrame) -> str:
    """The sheet as HTML; it loads nothing from elsewhere and runs no script."""
    from jinja2 import Template

    seed, sources = study.teacher.seed, [study.sources[name] for name in some["source"].unique()]
    provenance = records.provenance(study, seed, [study.folder / check.TRACES])
    return Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        study=study,
        provenance=json.dumps(provenance, sort_keys=True),
        format=some["format"].iloc[0],
        seed=seed,
        verdicts=f"{', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}",
        phantom=any(source.kind == "phantom" for source in sources),
        credentialed=any(source.credentialed for source in sources),
        films=[
            film | {"pixels": base64.b64encode(clients.png(film["image"])).decode()} for film in some.to_dict("records")
        ],
    )
