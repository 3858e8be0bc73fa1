"""The study's comparison: every checkpoint's answers scored, set against each other, and told in words.

What is written here as `compare/*.parquet` is what the chapters after it read; `score` says how a score is made.
In all of them a checkpoint is called `<name>/<checkpoint>` under `model` (or `first` and `second`, before and after a
step of training), with its seed in a column, and scores at different hospitals stand on labels that both have.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import curate, predict, records, score
from chexreason.labels import CHEXPERT14, CLOSURES, LABEL_SETS, NIH9, POLICIES, close_upwards
from chexreason.markdown import escape

_STEP = {"seed": int, "first": "str", "second": "str"}
_DIFFERENCE = {"metric": "str", "difference": float, "low": float, "high": float}
_TESTED = {"label": "str", "n": int, "first_only": int, "second_only": int, "p": float, "p_holm": float}
_WHERE, _JOURNEY = {"dataset": "str", "label_set": "str"}, {"near": "str", "far": "str"}
_TRAVELLED = [
    name + end for name in ("near_macro_f1", "far_macro_f1", "change", "relative") for end in ("", "_low", "_high")
]
COLUMNS = {
    "paired": _WHERE | _STEP | _DIFFERENCE,
    "mcnemar": _WHERE | _STEP | _TESTED,
    "travel": {"model": "str", "seed": int} | _JOURNEY | dict.fromkeys(_TRAVELLED, float),
    "travel_paired": _JOURNEY | _STEP | _DIFFERENCE,
    "sensitivity": {"model": "str", "seed": int, "dataset": "str", "label_set": "str", "policy": "str", "closed": bool}
    | dict.fromkeys(("macro_f1", "macro_f1_low", "macro_f1_high"), float),
}
"""The columns, with their types, of the records that a study without training or without test sets leaves empty."""


class Judged(NamedTuple):
    """One checkpoint's answers about one data set beside the truth, on all fourteen labels.

    `truth` (films x 14) holds 1, 0 or NaN, `given` true or false; `patients` says whose film each is, `means`
    holds what is averaged over films (failed, refused, reward), `read` which replies could be read, `protocol` the hash
    of the protocol under which all were asked.
    """

    truth: pd.DataFrame
    given: pd.DataFrame
    patients: pd.Series
    means: pd.DataFrame
    read: pd.Series
    protocol: str


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


def settled_films(study, policy: str | None = None) -> pd.DataFrame:
    """The manifest's films by id, in order: `dataset`, `patient` and the fourteen labels, settled.

    `policy` is one of `labels.POLICIES`, the study's own where not given.
    """
    manifest = records.load(study.folder / curate.MANIFEST).set_index("film").sort_index()
    settled = curate.settle(manifest, policy or study.curate.policy)
    return manifest[["split", "patient"]].rename(columns={"split": "dataset"}).join(settled)


def judge(study, films: pd.DataFrame, answers: pd.DataFrame, dataset: str) -> Judged:
    """Hold one checkpoint's answers (its record) about a data set against the truth.

    `films` as `settled_films` has them.  Answers are closed upwards where the test set says so.
    Raises ValueError when the answers are not about just the films the manifest has for the data set, or were given
    under more than one protocol.
    """
    films = films[films["dataset"] == dataset]
    answers = answers[answers["dataset"] == dataset].set_index("film").sort_index()
    if not answers.index.equals(films.index):
        raise ValueError(
            f"{dataset}: {len(answers)} films are answered and the manifest has {len(films)}, or others; "
            "run 5_predict again"
        )
    protocols = answers["protocol"].unique()
    if len(protocols) > 1:
        raise ValueError(f"{dataset}: answers under the protocols {', '.join(protocols)}; run 5_predict again")
    given = [[name in reply for name in CHEXPERT14] for reply in _replies(answers)]
    given = pd.DataFrame(given, index=films.index, columns=list(CHEXPERT14))
    if dataset in study.tests and study.tests[dataset].close_predictions:
        given = close_upwards(given)
    means = {"fail_rate": answers["failed"], "refusal_rate": answers["refused"], "reward": answers["reward"]}
    means, read = pd.DataFrame(means).astype(float), ~answers["failed"].astype(bool)
    return Judged(films[list(CHEXPERT14)], given, films["patient"], means, read, protocols[0])


def close(judged: Judged) -> Judged:
    """The same with truth and answers closed upwards (`labels.close_upwards`)."""
    return judged._replace(truth=close_upwards(judged.truth), given=close_upwards(judged.given))


def score_answers(study, films: pd.DataFrame, answers: pd.DataFrame, dataset: str, label_set: str) -> score.Scores:
    """Score one checkpoint's answers on one data set and label set; arguments and errors as `judge` has them."""
    return score_judged(study, judge(study, films, answers, dataset), dataset, label_set)


def score_judged(study, judged: Judged, dataset: str, label_set: str) -> score.Scores:
    """Score what `judge` returned on one label set.

    A failed reply counts as an empty answer; beside that, `overall` holds `n_answered`, `micro_f1_answered` and
    `macro_f1_answered`, over just the films whose reply could be read.
    """
    truth, given = (table[list(LABEL_SETS[label_set])] for table in (judged.truth, judged.given))
    scored = score.score(truth, given, judged.patients, study.compare.draws, generator(study, dataset), judged.means)
    counts = score.tally(truth[judged.read], given[judged.read]).sum(axis=0)
    answered = {
        "n_answered": int(judged.read.sum()),
        "micro_f1_answered": float(score.micro(counts)[2]),
        "macro_f1_answered": float(score.macro(counts)[2]),
    }
    return scored._replace(overall=scored.overall | answered)


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
    """Which row of `at_home` scores highest, and whether its interval stands clear of the next one's value.

    Of each model the first seed only, since the best of several seeds would flatter it.
    """
    if table["macro_f1"].isna().all():
        return f"- No {kind} was scored in this run."
    ranked = table.drop_duplicates("model").sort_values("macro_f1", ascending=False, kind="stable")
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
    """The records of `compare/`, for every checkpoint and every data set that it was asked about.

    - `scores`: a row a label, as `score.Scores.labels` has it
    - `overall`: a row a label set, as `score_judged` has it
    - `paired`: what `second` scores above `first` on the same films, for every step of training; the reward is over all
      fourteen labels, so it stands with `chexpert14` only
    - `mcnemar`: the same steps label by label, as `score.mcnemar` has them; Holm over the labels of the set
    - `travel`: macro-F1 at a `near` and a `far` test set (`journeys`), and what changed, as `score.Travel` has it
    - `travel_paired`: what `second` has above `first` in `change` and `relative` (the `metric`), for every step

    Reads `curate/manifest.parquet` and the answers of every checkpoint of the study.
    """
    films = settled_films(study)
    sets = [(dataset, label_set) for dataset, label_sets in datasets(study).items() for label_set in label_sets]
    judged, scored = {}, {}
    for one in study.checkpoints():
        answers = records.load(answers_path(study, *one))
        judged |= {(one, dataset): judge(study, films, answers, dataset) for dataset in study.datasets(one[1])}
        asked = [where for where in sets if (one, where[0]) in judged]
        scored |= {(one, *where): score_judged(study, judged[one, where[0]], *where) for where in asked}
    label_rows = [_named(study, key, one.labels, judged) for key, one in scored.items()]
    marks = {"params_hash": study.hash, "phantom": study.phantom}
    overall_rows = [_named(study, key, pd.DataFrame([one.overall | marks]), judged) for key, one in scored.items()]
    made = [(pair, where) for where in sets for pair in steps(study) if all((one, *where) in scored for one in pair)]
    return {
        "scores": pd.concat(label_rows, ignore_index=True),
        "overall": pd.concat(overall_rows, ignore_index=True),
        "paired": _record("paired", [_paired(study, pair, where, scored) for pair, where in made]),
        "mcnemar": _record("mcnemar", [_mcnemar(study, pair, where, judged) for pair, where in made]),
        **_travel(study, scored),
    }


def model_name(study, model: str, checkpoint: str) -> str:
    """What results call a checkpoint, such as `stand-in-medgemma/sft/free_reasoning`."""
    return f"{study.models[model].name}/{checkpoint}"


def _named(study, key: tuple, rows: pd.DataFrame, judged: dict[tuple, Judged]) -> pd.DataFrame:
    one, dataset, label_set = key
    names = _model(study, one) | {"dataset": dataset, "label_set": label_set}
    return pd.DataFrame(names, index=rows.index).join(rows).assign(protocol=judged[one, dataset].protocol)


def _model(study, one: tuple) -> dict:
    return {"model": model_name(study, *one[:2]), "seed": one[2]}


def _step(study, pair: tuple) -> dict:
    first, second = (model_name(study, *one[:2]) for one in pair)
    return {"seed": pair[1][2], "first": first, "second": second}


def _record(name: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of `tables`, in the columns of the record `name`, which are there even when no row is."""
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return rows.reindex(columns=list(COLUMNS[name])).astype(COLUMNS[name])


def _paired(study, pair: tuple, where: tuple, scored: dict) -> pd.DataFrame:
    reported = score.PAIRED if where[1] == "chexpert14" else score.PAIRED[:-1]
    rows = score.difference(*(scored[one, *where] for one in pair), reported)
    return rows.assign(dataset=where[0], label_set=where[1], **_step(study, pair))


def _mcnemar(study, pair: tuple, where: tuple, judged: dict) -> pd.DataFrame:
    names, (first, second) = list(LABEL_SETS[where[1]]), (judged[one, where[0]] for one in pair)
    rows = score.mcnemar(first.truth[names], first.given[names], second.given[names])
    return rows.assign(dataset=where[0], label_set=where[1], **_step(study, pair))


def journeys(study) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of (data set, label set) on the same nine labels: a test set with all fourteen, and one with NIH's words.

    The first `shared9` of the params file goes with its first `nih9`, the second with the second, and so on.
    """
    near, far = (
        [(name, label_set) for name, test in study.tests.items() if label_set in test.label_sets]
        for label_set in ("shared9", "nih9")
    )
    return list(zip(near, far, strict=False))


def _travel(study, scored: dict) -> dict[str, pd.DataFrame]:
    """The records `travel` and `travel_paired`."""
    travelled = {
        (one, near, far): score.travel(scored[one, *near], scored[one, *far])
        for near, far in journeys(study)
        for one in study.checkpoints()
        if (one, *near) in scored and (one, *far) in scored
    }
    rows = [
        pd.DataFrame([_model(study, one) | {"near": near[0], "far": far[0]} | travel.overall])
        for (one, near, far), travel in travelled.items()
    ]
    paired = [
        score.difference(travelled[first, *ends], travelled[second, *ends], ("change", "relative")).assign(
            near=ends[0][0], far=ends[1][0], **_step(study, (first, second))
        )
        for ends in journeys(study)
        for first, second in steps(study)
        if (first, *ends) in travelled and (second, *ends) in travelled
    ]
    return {"travel": _record("travel", rows), "travel_paired": _record("travel_paired", paired)}


def sensitivity(study) -> pd.DataFrame:
    """Macro-F1 of every checkpoint on the test sets under each way to settle labels and to close them upwards.

    A row a checkpoint, test set, `policy` (`labels.POLICIES`) and `closed`: whether truth and answers were both closed.
    The labels are the first label set of the test set; where closing could change none of them, no row is closed.
    """
    settled, rows = {policy: settled_films(study, policy) for policy in POLICIES}, []
    for one in study.checkpoints():
        answers = records.load(answers_path(study, *one))
        for dataset in [name for name in study.tests if name in study.datasets(one[1])]:
            label_set = study.tests[dataset].label_sets[0]
            where = _model(study, one) | {"dataset": dataset, "label_set": label_set}
            for policy, films in settled.items():
                judged = judge(study, films, answers, dataset)
                rows.append(where | {"policy": policy, "closed": False} | _macro(study, judged, dataset, label_set))
                if set(CLOSURES) & set(LABEL_SETS[label_set]):
                    macro = _macro(study, close(judged), dataset, label_set)
                    rows.append(where | {"policy": policy, "closed": True} | macro)
    return _record("sensitivity", [pd.DataFrame(rows)])


def _macro(study, judged: Judged, dataset: str, label_set: str) -> dict[str, float]:
    overall = score_judged(study, judged, dataset, label_set).overall
    return {name: overall[name] for name in ("macro_f1", "macro_f1_low", "macro_f1_high")}


RESULT = ("model", "seed", "dataset", "label_set", "n", "micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high")
RESULT += ("fail_rate", "params_hash", "phantom", "refusal_rate", "protocol")
SPECIFIC = tuple(name + end for name in ("macro_specificity", "false_alarm_rate") for end in ("", "_low", "_high"))


def results(study) -> list[dict]:
    """One JSON-able object per model, seed, data set and label set, read from `compare/overall.parquet`.

    An undefined score is None.  Raises RecordError before the study has been compared.
    """
    overall = records.load(study.folder / "compare" / "overall.parquet")
    overall = overall[[*RESULT, *overall.columns.intersection(SPECIFIC, sort=False)]]  # an earlier record lacks them
    rows = overall.astype(object).where(overall.notna(), None)
    return rows.to_dict("records")


ALONE = "No two test sets of this study are scored on the same nine labels, so no score travels."
UNTRAINED = "This study trains no model, so there is no step to compare."


def gains(paired: pd.DataFrame) -> pd.DataFrame:
    """What each step gained in macro-F1 on the nine shared labels: rows of `paired`, with the step in words."""
    rows = shared(paired[paired["metric"] == "macro_f1"])
    return rows.assign(step=rows["first"] + " → " + rows["second"].str.split("/", n=1).str[1])


def changes(gains: pd.DataFrame) -> pd.DataFrame:
    """Rows of `gains` to be read: dataset, model, seed, change with its interval, and the verdict."""
    rows = [
        (row.dataset, row.second, row.seed, f"{row.difference:+.2f} ({_bounds(row.low, row.high, '+.2f')})", said)
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
    where = f"On {row.dataset} ({row.label_set}), seed {row.seed}"
    bounds = _bounds(row.low, row.high, "+.3f", "95 % interval ")
    if said == "cannot be told apart":
        return f"{where}, {row.second} and {row.first} {said}: {row.difference:+.3f} {metric} ({bounds})."
    against = {"gained": "over", "lost": "against"}[said]
    return f"{where}, {row.second} {said} {abs(row.difference):.3f} {metric} {against} {row.first} ({bounds})."


def _bounds(low: float, high: float, form: str, name: str = "") -> str:
    """The ends of an interval as text; NaN where too few patients give one (see `score`)."""
    return "no interval: too few patients" if np.isnan(low) else f"{name}{low:{form}} to {high:{form}}"


def without_positive(scores: pd.DataFrame) -> str:
    """Which labels of the `scores` record have no film that shows them, and so no part in any macro mean."""
    rows = scores.loc[scores["support"] == 0, ["dataset", "label"]].drop_duplicates()
    if rows.empty:
        return "Every label that is scored has a positive film on every data set, so none is left out of a macro mean."
    named = ", ".join(f"{row.label} on {row.dataset}" for row in rows.itertuples())
    return f"Without a positive film, and so without F1 and in no macro mean: {named}."


def seeds(overall: pd.DataFrame) -> pd.DataFrame:
    """Macro-F1 on the nine shared labels over training seeds, beside the interval that films and patients leave.

    A row a model and data set: model, dataset, seeds (how many), macro_f1 with `_low` and `_high` (of the first seed,
    over patients), lowest, highest and sd (over seeds; sd is NaN for one seed).
    """
    groups = shared(overall).groupby(["model", "dataset"], sort=False, as_index=False)
    first = {name: (name, "first") for name in ("macro_f1", "macro_f1_low", "macro_f1_high")}
    over = {name: ("macro_f1", how) for name, how in (("lowest", "min"), ("highest", "max"), ("sd", "std"))}
    return groups.agg(seeds=("seed", "nunique"), **first, **over)


def seeds_told(table: pd.DataFrame) -> str:
    """What the table of `seeds` says about luck in training, in a sentence or two."""
    repeated = table[table["seeds"] > 1]
    if repeated.empty:
        return (
            "Every run was made with one seed, so the intervals hold for just these weights: "
            "where another seed would have landed is not known from this run."
        )
    widest = repeated.loc[(repeated["highest"] - repeated["lowest"]).idxmax()]
    return (
        f"Over seeds, macro-F1 spreads most for {widest['model']} on {widest['dataset']}: {widest['lowest']:.3f} to "
        f"{widest['highest']:.3f} with {widest['seeds']} seeds, where the interval over patients runs from "
        f"{widest['macro_f1_low']:.3f} to {widest['macro_f1_high']:.3f}."
    )


def f1_table(study, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """F1 by label on every test set, a column a model, as tables 5 and 6 have it; macro-F1 in each set's last row.

    On the first label set of each test set, of the study's first seed; `tables` as `compare` returns them.
    """
    macro = tables["overall"].rename(columns={"macro_f1": "f1"}).assign(label="Macro F1")
    rows = pd.concat([tables["scores"], macro], ignore_index=True)
    wanted = rows["dataset"].map({name: test.label_sets[0] for name, test in study.tests.items()}) == rows["label_set"]
    rows = rows[wanted & (rows["seed"] == study.seeds[0])]
    in_order = pd.concat([rows[rows["dataset"] == name] for name in study.tests])
    f1 = in_order.set_index(["dataset", "label", "model"])["f1"].unstack(sort=False)
    return f1.rename_axis(columns=None).reset_index()


def notes(study) -> list[str]:
    """What must be said beside the scores of a model, a line of Markdown for each whose entry has a `note`."""
    return [f"{escape(model.name)}: {escape(model.note)}" for model in study.models.values() if model.note]


def sensitivity_table(table: pd.DataFrame) -> pd.DataFrame:
    """The `sensitivity` record to be read: a row a checkpoint and test set, a column a policy, macro-F1 (interval)."""
    told = [
        f"{row.macro_f1:.2f}"
        + ("" if np.isnan(row.macro_f1_low) else f" ({row.macro_f1_low:.2f}–{row.macro_f1_high:.2f})")
        for row in table.itertuples()
    ]
    column = table["policy"] + table["closed"].map({False: "", True: ", closed"})
    rows = table.assign(told=told, column=column).set_index(["model", "seed", "dataset", "label_set", "column"])["told"]
    return rows.unstack(sort=False).rename_axis(columns=None).reset_index()


def discordant(mcnemar: pd.DataFrame, level: float = 0.05) -> str:
    """How many of the tests in the `mcnemar` record stay below `level` after Holm's adjustment, and in whose favour."""
    if mcnemar.empty:
        return UNTRAINED
    told = mcnemar[mcnemar["p_holm"] < level]
    better = (told["second_only"] > told["first_only"]).sum()
    return (
        f"Of {len(mcnemar)} tests, {len(told)} stay below {level} after Holm's adjustment: "
        f"{better} in favour of the later checkpoint, {len(told) - better} of the earlier.\n"
        "The test counts films as independent, which films of one patient are not: its p-values tend to be too small."
    )


def told_apart(mcnemar: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """The labels on which each step of the `mcnemar` record is told apart, at `level` after Holm's adjustment.

    A row a data set and step: dataset, seed, first, second, better and worse (labels that `second` has right more or
    less often, joined by commas).
    """
    apart = mcnemar["p_holm"] < level
    named = mcnemar.assign(
        better=mcnemar["label"].where(apart & (mcnemar["second_only"] > mcnemar["first_only"])),
        worse=mcnemar["label"].where(apart & (mcnemar["second_only"] < mcnemar["first_only"])),
    )
    steps = named.groupby(["dataset", "seed", "first", "second"], sort=False, as_index=False)
    return steps[["better", "worse"]].agg(lambda labels: ", ".join(labels.dropna()) or "–")


def travelled(travel: pd.DataFrame) -> list[str]:
    """A sentence for each row of the `travel` record that has a score at both ends: what is left of it on the way."""
    return [_journey(row) for row in travel.dropna(subset=["change"]).itertuples()] or [ALONE]


def _journey(row) -> str:
    verdict = score.verdict(row.change_low, row.change_high)
    said = {"gained": "a gain", "lost": "a loss"}.get(verdict, "which cannot be told from no change")
    share = f"{row.relative:+.0%}, {_bounds(row.relative_low, row.relative_high, '+.0%', '95 % interval ')}"
    return (
        f"{row.model}, seed {row.seed}, from {row.near} to {row.far}: macro-F1 {row.near_macro_f1:.3f} to "
        f"{row.far_macro_f1:.3f} ({'from nothing' if np.isnan(row.relative) else share}), {said}."
    )


def loses_more(paired: pd.DataFrame) -> list[str]:
    """A sentence for each step in the `travel_paired` record: does the later checkpoint lose more on the way?"""
    return [_lost(row) for row in paired[paired["metric"] == "change"].itertuples()] or [UNTRAINED]


def _lost(row) -> str:
    word = score.verdict(row.low, row.high)
    said = {"gained": "travels better than", "lost": "loses more than"}.get(word, "cannot be told apart from")
    return (
        f"From {row.near} to {row.far}, {row.second} (seed {row.seed}) {said} {row.first}: "
        f"{row.difference:+.3f} macro-F1 ({_bounds(row.low, row.high, '+.3f', '95 % interval ')})."
    )


def save(study, tables: dict[str, pd.DataFrame]) -> None:
    """Write what `compare` returned as `compare/<name>.parquet`."""
    inputs = [study.folder / curate.MANIFEST]
    inputs += [answers_path(study, *checkpoint) for checkpoint in study.checkpoints()]
    origin = records.origin(study, study.compare.seed, inputs)
    for name, table in tables.items():
        records.save(table, study.folder / "compare" / f"{name}.parquet", origin)
