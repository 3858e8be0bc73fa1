"""The study's comparison: every checkpoint's answers scored, set against each other, and told in words.

What is written here as `compare/*.parquet` is what the chapters after it read; `score` says how a score is made.
"""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason import curate, predict, records, score
from chexreason.labels import CHEXPERT14, LABEL_SETS, NIH9, close_upwards


def datasets(study) -> dict[str, list[str]]:
    """Every data set the models are asked about, with the label sets it is scored on."""
    return {study.home: study.curate.label_sets} | {name: test.label_sets for name, test in study.tests.items()}


def shared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `compare` record over just the nine labels every hospital has, which compare like with like."""
    sets = [label_set for label_set, names in LABEL_SETS.items() if names == NIH9]
    return table[table["label_set"].isin(sets)].reset_index(drop=True)


def generator(study, dataset: str) -> np.random.Generator:
    """The bootstrap's random stream for a data set: the same for every model and label set asked there."""
    return np.random.default_rng([study.compare.seed, zlib.crc32(dataset.encode())])


def answers_path(study, model: str, checkpoint: str, seed: int) -> Path:
    """Where the answers of a checkpoint lie."""
    return predict.folder(study, model, checkpoint, seed) / "answers.parquet"


def settled_films(study) -> pd.DataFrame:
    """The manifest's films by id, in order: `dataset`, `patient` and the fourteen labels settled by the policy."""
    manifest = records.load(study.folder / curate.MANIFEST).set_index("film").sort_index()
    settled = curate.settle(manifest, study.curate.policy)
    return manifest[["split", "patient"]].rename(columns={"split": "dataset"}).join(settled)


def score_answers(study, films: pd.DataFrame, answers: pd.DataFrame, dataset: str, label_set: str) -> score.Scores:
    """Score one checkpoint's answers (its record) on one data set and label set; `films` as `settled_films` has them.

    Raises ValueError when the answers are not about just the films the manifest has for the data set.
    """
    films = films[films["dataset"] == dataset]
    answers = answers[answers["dataset"] == dataset].set_index("film").sort_index()
    if not answers.index.equals(films.index):
        raise ValueError(
            f"{dataset}: {len(answers)} films are answered and the manifest has {len(films)}, or others; "
            "run 5_predict again"
        )
    names = list(LABEL_SETS[label_set])
    given = pd.DataFrame([[name in reply for name in CHEXPERT14] for reply in _replies(answers)], columns=CHEXPERT14)
    if dataset in study.tests and study.tests[dataset].close_predictions:
        given = close_upwards(given.astype(float)).eq(1.0)
    means = pd.DataFrame({"fail_rate": answers["failed"].astype(float), "reward": answers["reward"].astype(float)})
    return score.score(
        films[names],
        given[names].set_axis(films.index),
        films["patient"],
        study.compare.draws,
        generator(study, dataset),
        means,
    )


def prompts(study, answers: pd.DataFrame) -> pd.DataFrame:
    """Scores of `predict.try_prompts` over all labels of validation: a row a prompt, as in Table 1, with intervals."""
    label_set = study.curate.label_sets[0]
    films = settled_films(study)
    films = films[films.index.isin(answers["film"])]
    columns = ["micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high", "fail_rate"]
    rows = [
        {"prompt": name} | score_answers(study, films, rows, study.home, label_set).overall
        for name, rows in answers.groupby("prompt", sort=False)
    ]
    return pd.DataFrame(rows)[["prompt", *columns]]


def spread(table: pd.DataFrame) -> str:
    """What the table of `prompts` shows, in two sentences."""
    best, worst = table.loc[table["macro_f1"].idxmax()], table.loc[table["macro_f1"].idxmin()]
    apart = "apart" if best["macro_f1_low"] > worst["macro_f1_high"] else "not clearly apart"
    return (
        f"Macro-F1 runs from {worst['macro_f1']:.3f} ({worst['prompt']}) to {best['macro_f1']:.3f} ({best['prompt']}), "
        f"and the intervals of the two lie {apart}.\n"
        f"Unreadable answers run from {table['fail_rate'].min():.1%} to {table['fail_rate'].max():.1%}."
    )


def best_of(table: pd.DataFrame, kind: str) -> str:
    """Which row of `at_home` scores highest, and whether its interval stands clear of the next one's value."""
    if table["macro_f1"].isna().all():
        return f"- No {kind} was scored in this run."
    ranked = table.sort_values("macro_f1", ascending=False, kind="stable")
    first = ranked.iloc[0]
    told = f"- Highest macro-F1 of a {kind}: {first['model']}, {first['macro_f1']:.3f}"
    if len(ranked) == 1:
        return f"{told}, the only one in this run."
    second = ranked.iloc[1]
    clear = "clear of" if first["macro_f1_low"] > second["macro_f1"] else "not clear of"
    return f"{told}; its interval is {clear} the next, {second['model']} at {second['macro_f1']:.3f}."


def at_home(study, overall: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Rows of the `overall` record about validation films, over all labels, of one stage ("sft" or "grpo")."""
    rows = overall[(overall["dataset"] == study.home) & (overall["label_set"] == study.curate.label_sets[0])]
    rows = rows[rows["model"].str.contains(f"/{stage}/")]
    rates = [f"{mean}_{rate}" for mean in ("micro", "macro") for rate in score.RATES]
    return rows[["model", "seed", *rates, "macro_f1_low", "macro_f1_high", "fail_rate"]].reset_index(drop=True)


def _replies(answers: pd.DataFrame) -> list[set[str]]:
    """The labels of each answer; a failed one counts as empty."""
    given = zip(answers["labels"], answers["failed"], strict=True)
    return [set() if failed else set(labels) for labels, failed in given]


def steps(study) -> list[tuple[tuple, tuple]]:
    """The steps of training as pairs of (model, checkpoint, seed): untuned to SFT, and SFT to GRPO."""
    fine_tuned = [
        ((run.model, "untuned", study.seeds[0]), (run.model, f"sft/{run.format}", seed))
        for run, seed in study.runs("sft")
    ]
    rewarded = [
        ((run.model, f"sft/{run.format}", seed), (run.model, f"grpo/{run.reward}{which}", seed))
        for run, seed in study.runs("grpo")
        for which in ("", "-best")
    ]
    return fine_tuned + rewarded


def compare(study) -> dict[str, pd.DataFrame]:
    """The records of `compare/`: `scores` (a row a label), `overall` and `paired`, for every checkpoint and data set.

    Reads `curate/manifest.parquet` and the answers of every checkpoint of the study.  A checkpoint is called
    `<name>/<checkpoint>`, with its seed in a column.  In `paired`, `difference` is what `second` scores above `first`;
    the reward is over all fourteen labels, so it stands with `chexpert14` only.
    """
    films = settled_films(study)
    sets = [(dataset, label_set) for dataset, label_sets in datasets(study).items() for label_set in label_sets]
    scored = {}
    for checkpoint in study.checkpoints():
        answers, asked = records.load(answers_path(study, *checkpoint)), study.datasets(checkpoint[1])
        scored |= {
            (checkpoint, *where): score_answers(study, films, answers, *where) for where in sets if where[0] in asked
        }
    marks = {"params_hash": study.hash, "phantom": study.phantom}
    label_rows = [_named(study, key, one.labels) for key, one in scored.items()]
    overall_rows = [_named(study, key, pd.DataFrame([one.overall | marks])) for key, one in scored.items()]
    paired_rows = [
        _paired(study, pair, where, scored[pair[0], *where], scored[pair[1], *where])
        for where in sets
        for pair in steps(study)
        if all((one, *where) in scored for one in pair)
    ]
    tables = {"scores": label_rows, "overall": overall_rows, "paired": paired_rows or [_unpaired()]}
    return {name: pd.concat(rows, ignore_index=True) for name, rows in tables.items()}


def model_name(study, model: str, checkpoint: str) -> str:
    """What results call a checkpoint, such as `stand-in-medgemma/sft/free_reasoning`."""
    return f"{study.models[model].name}/{checkpoint}"


def _named(study, key: tuple, rows: pd.DataFrame) -> pd.DataFrame:
    (model, checkpoint, seed), dataset, label_set = key
    names = {"model": model_name(study, model, checkpoint), "seed": seed, "dataset": dataset, "label_set": label_set}
    return pd.DataFrame(names, index=rows.index).join(rows)


def _unpaired() -> pd.DataFrame:
    """The `paired` record of a study that trains nothing."""
    types = dict.fromkeys(("dataset", "label_set"), "str") | {"seed": int} | dict.fromkeys(("first", "second"), "str")
    types |= {"metric": "str"} | dict.fromkeys(("difference", "low", "high"), float)
    return pd.DataFrame(columns=list(types)).astype(types)


def _paired(study, pair: tuple, where: tuple, first: score.Scores, second: score.Scores) -> pd.DataFrame:
    metrics = score.PAIRED if where[1] == "chexpert14" else score.PAIRED[:-1]
    rows = score.difference(first, second, metrics)
    names = {"dataset": where[0], "label_set": where[1], "seed": pair[1][2]}
    names |= {which: model_name(study, *one[:2]) for which, one in zip(("first", "second"), pair, strict=True)}
    return pd.DataFrame(names, index=rows.index).join(rows)


RESULT = ("model", "seed", "dataset", "label_set", "n", "micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high")
RESULT += ("fail_rate", "params_hash", "phantom")


def results(study) -> list[dict]:
    """One JSON-able object per model, seed, data set and label set, read from `compare/overall.parquet`.

    An undefined score is None.  Raises RecordError before the study has been compared.
    """
    overall = records.load(study.folder / "compare" / "overall.parquet")[list(RESULT)]
    rows = overall.astype(object).where(overall.notna(), None)
    return rows.to_dict("records")


UNTRAINED = "This study trains no model, so there is no step to compare."


def gains(paired: pd.DataFrame) -> pd.DataFrame:
    """What each step gained in macro-F1 on the nine shared labels: rows of `paired`, with the step in words."""
    rows = shared(paired[paired["metric"] == "macro_f1"])
    return rows.assign(step=rows["first"] + " → " + rows["second"].str.split("/", n=1).str[1])


def changes(gains: pd.DataFrame) -> pd.DataFrame:
    """Rows of `gains` to be read: dataset, model, seed, change with its interval, and the verdict."""
    rows = [
        (row.dataset, row.second, row.seed, f"{row.difference:+.2f} ({row.low:+.2f} to {row.high:+.2f})", said)
        for row in gains.itertuples()
        for said in [score.verdict(row.low, row.high)]
    ]
    return pd.DataFrame(rows, columns=["dataset", "model", "seed", "change", "verdict"])


def in_short(gains: pd.DataFrame) -> list[str]:
    """For each step and seed, one line: on which data sets it gained, lost, or cannot be told apart."""
    said = gains.assign(said=[score.verdict(*row) for row in gains[["low", "high"]].to_numpy()])
    lines = []
    for (step, seed), rows in said.groupby(["step", "seed"], sort=False):
        parts = [f"{word} on {', '.join(where)}" for word, where in rows.groupby("said", sort=False)["dataset"]]
        lines.append(f"{step}, seed {seed}: {'; '.join(parts)}.")
    return lines or [UNTRAINED]


def found(paired: pd.DataFrame) -> list[str]:
    """A sentence for each row of the `paired` record, its words chosen by the interval."""
    return [_sentence(row) for row in paired.itertuples()]


def _sentence(row) -> str:
    said, metric = score.verdict(row.low, row.high), row.metric.replace("_f1", "-F1")
    where, bounds = f"On {row.dataset} ({row.label_set})", f"95 % interval {row.low:+.3f} to {row.high:+.3f}"
    if said == "cannot be told apart":
        return f"{where}, {row.second} and {row.first} {said}: {row.difference:+.3f} {metric} ({bounds})."
    against = {"gained": "over", "lost": "against"}[said]
    return f"{where}, {row.second} {said} {abs(row.difference):.3f} {metric} {against} {row.first} ({bounds})."


def save(study, tables: dict[str, pd.DataFrame]) -> None:
    """Write what `compare` returned as `compare/<name>.parquet`."""
    inputs = [study.folder / curate.MANIFEST]
    inputs += [answers_path(study, *checkpoint) for checkpoint in study.checkpoints()]
    origin = records.origin(study, study.compare.seed, inputs)
    for name, table in tables.items():
        records.save(table, study.folder / "compare" / f"{name}.parquet", origin)
