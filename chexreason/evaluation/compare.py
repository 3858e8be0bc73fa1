"""The comparison of a study: the scores of every checkpoint, and the paired differences between them.

The records `compare/*.parquet` are written here and read by the later chapters.  `metrics` defines the scores. A
checkpoint has the name `<name>/<checkpoint>` in the column `model` (or `first` and `second`, before and after a step of
training) and its seed in a column.  Scores at two hospitals are compared on the labels that both have.
"""

import zlib
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import records
from chexreason.config import Checkpoint, Study
from chexreason.data import curate, sampling
from chexreason.evaluation import metrics
from chexreason.labels import CHEXPERT14, CLOSURES, NIH9, POLICIES, add_parent_labels

_STEP = {"seed": int, "first": "str", "second": "str"}
_DIFFERENCE = {"metric": "str", "difference": float, "low": float, "high": float}
_TESTED = {"label": "str", "n": int, "first_only": int, "second_only": int, "p": float, "p_holm": float}
_WHERE, _ENDS = {"dataset": "str", "label_set": "str"}, {"in_domain": "str", "out_of_domain": "str"}
_GAP = [
    name + end
    for name in ("in_domain_macro_f1", "out_of_domain_macro_f1", "change", "relative")
    for end in ("", "_low", "_high")
]
COLUMNS = {
    "paired": _WHERE | _STEP | _DIFFERENCE,
    "mcnemar": _WHERE | _STEP | _TESTED,
    "transfer": {"model": "str", "seed": int} | _ENDS | dict.fromkeys(_GAP, float) | {"label_set": "str"},
    "transfer_paired": _ENDS | _STEP | _DIFFERENCE | {"label_set": "str"},
    "sensitivity": {"model": "str", "seed": int, "dataset": "str", "label_set": "str", "policy": "str", "closed": bool}
    | dict.fromkeys(("macro_f1", "macro_f1_low", "macro_f1_high"), float),
}
"""Columns and types of the records that are empty in a study without training or without test sets."""


class Aligned(NamedTuple):
    """One checkpoint's answers on one data set, aligned with the truth, on all fourteen labels.

    `truth` (films x 14) has 1, 0 or NaN, `given` true or false.  `patients` has the patient of each film, `means` the
    values that are averaged over films (failed, refused, reward), `read` whether the reply could be read, and
    `protocol` the hash of the protocol.
    """

    truth: pd.DataFrame
    given: pd.DataFrame
    patients: pd.Series
    means: pd.DataFrame
    read: pd.Series
    protocol: str


def datasets(study: Study) -> dict[str, list[str]]:
    """Every data set of the study, with the label sets on which it is scored."""
    return {study.validation: study.curate.label_sets} | {name: test.label_sets for name, test in study.tests.items()}


def generator(study: Study, dataset: str) -> np.random.Generator:
    """The bootstrap's random stream for a data set: the same for every model and label set."""
    return np.random.default_rng([study.compare.seed, zlib.crc32(dataset.encode())])


def labeled_films(study: Study, policy: str | None = None) -> pd.DataFrame:
    """The manifest's films by id: `dataset`, `patient` and the fourteen labels under an uncertainty policy.

    `policy` is one of `labels.POLICIES`; by default that of the study.
    """
    manifest = records.load(study.folder / curate.MANIFEST).set_index("film").sort_index()
    settled = sampling.apply_policy(manifest, policy or study.curate.policy)
    return manifest[["split", "patient"]].rename(columns={"split": "dataset"}).join(settled)


def align_predictions(study: Study, films: pd.DataFrame, answers: pd.DataFrame, dataset: str) -> Aligned:
    """Align one checkpoint's record of answers on a data set with the truth.

    `films` comes from `labeled_films`.  Parent labels are added to the answers if the test set requires it.
    Raises ValueError if the answers do not cover exactly the films of the manifest, or have more than one protocol.
    """
    films = films[films["dataset"] == dataset]
    answers = answers[answers["dataset"] == dataset].set_index("film").sort_index()
    if not answers.index.equals(films.index):
        raise ValueError(
            f"{dataset}: predictions cover {len(answers)} films, the manifest lists {len(films)} (or other ones); "
            "run 5_predict again"
        )
    protocols = answers["protocol"].unique()
    if len(protocols) > 1:
        raise ValueError(
            f"{dataset}: these predictions have several protocols, {', '.join(protocols)}; run 5_predict again"
        )
    given = [[name in reply for name in CHEXPERT14] for reply in replies(answers)]
    given = pd.DataFrame(given, index=films.index, columns=list(CHEXPERT14))
    if dataset in study.tests and study.tests[dataset].close_predictions:
        given = add_parent_labels(given)
    means = {"fail_rate": answers["failed"], "refusal_rate": answers["refused"], "reward": answers["reward"]}
    means, read = pd.DataFrame(means).astype(float), ~answers["failed"].astype(bool)
    return Aligned(films[list(CHEXPERT14)], given, films["patient"], means, read, protocols[0])


def with_parent_labels(judged: Aligned) -> Aligned:
    """The same with parent labels added to truth and answers (`labels.add_parent_labels`)."""
    return judged._replace(truth=add_parent_labels(judged.truth), given=add_parent_labels(judged.given))


def score_answers(
    study: Study, films: pd.DataFrame, answers: pd.DataFrame, dataset: str, label_set: str
) -> metrics.Scores:
    """Score one checkpoint's answers on one data set and label set; arguments and errors as in `align_predictions`."""
    return score_aligned(study, align_predictions(study, films, answers, dataset), dataset, label_set)


def score_aligned(study: Study, judged: Aligned, dataset: str, label_set: str) -> metrics.Scores:
    """Score aligned answers on one label set.

    A failed reply counts as an empty answer.  `overall` also has `n_answered`, `micro_f1_answered` and
    `macro_f1_answered`, over the films whose reply could be read.
    """
    truth, given = (table[list(study.labels(label_set))] for table in (judged.truth, judged.given))
    scored = metrics.score(
        truth, given, judged.patients, study.compare.n_resamples, generator(study, dataset), judged.means
    )
    counts = metrics.tally(truth[judged.read], given[judged.read]).sum(axis=0)
    answered = {
        "n_answered": int(judged.read.sum()),
        "micro_f1_answered": float(metrics.micro(counts)[2]),
        "macro_f1_answered": float(metrics.macro(counts)[2]),
    }
    return scored._replace(overall=scored.overall | answered)


def prompts(study: Study, answers: pd.DataFrame) -> pd.DataFrame:
    """The scores of `predict.try_prompts` over all labels of validation: one row per prompt, as in Table 1."""
    label_set = study.curate.label_sets[0]
    films = labeled_films(study)
    films = films[films.index.isin(answers["film"])]
    columns = ["micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high", "fail_rate"]
    rows = [
        {"prompt": name} | score_answers(study, films, rows, study.validation, label_set).overall
        for name, rows in answers.groupby("prompt", sort=False)
    ]
    return pd.DataFrame(rows)[["prompt", *columns]]


def replies(answers: pd.DataFrame) -> list[set[str]]:
    """The labels of each answer; none for a failed one."""
    given = zip(answers["labels"], answers["failed"], strict=True)
    return [set() if failed else set(labels) for labels, failed in given]


def training_steps(study: Study) -> list[tuple[Checkpoint, Checkpoint]]:
    """The steps of training as pairs of checkpoints: untuned to SFT, and SFT to GRPO."""
    fine_tuned = [(study.start(each), each) for each in study.runs("sft")]
    rewarded = [(study.start(last), each) for last in study.runs("grpo") for each in (last, last.best)]
    return fine_tuned + rewarded


def compare(study: Study) -> dict[str, pd.DataFrame]:
    """The records of `compare/`, for every checkpoint and every data set that it was asked about.

    - `scores`: one row per label, see `metrics.Scores.labels`
    - `overall`: one row per label set, see `score_aligned`
    - `paired`: the difference `second` minus `first` on the same films, for every step of training; the reward uses all
      fourteen labels, so only `chexpert14` has it
    - `mcnemar`: the same steps for each label, see `metrics.mcnemar`; Holm's adjustment is over the labels of a set
    - `transfer`: macro-F1 on an `in_domain` and an `out_of_domain` test set (`transfer_pairs`) and the transfer gap
      (`metrics.TransferGap`); `label_set` has the in-domain name of the labels
    - `transfer_paired`: the difference `second` minus `first` of `change` and `relative` (the `metric`), for every step

    Reads `curate/manifest.parquet` and the answers of every checkpoint of the study.
    """
    films = labeled_films(study)
    sets = [(dataset, label_set) for dataset, label_sets in datasets(study).items() for label_set in label_sets]
    judged: dict[tuple, Aligned] = {}
    scored: dict[tuple, metrics.Scores] = {}
    for one in study.checkpoints():
        answers = records.load(study.paths.answers(one))
        scored_on = [dataset for dataset in study.datasets(one) if dataset in datasets(study)]
        judged |= {(one, dataset): align_predictions(study, films, answers, dataset) for dataset in scored_on}
        asked = [where for where in sets if (one, where[0]) in judged]
        scored |= {(one, *where): score_aligned(study, judged[one, where[0]], *where) for where in asked}
    label_rows = [_named(study, key, one.labels, judged) for key, one in scored.items()]
    marks = {"params_hash": study.hash, "phantom": study.phantom}
    overall_rows = [_named(study, key, pd.DataFrame([one.overall | marks]), judged) for key, one in scored.items()]
    made = [
        (pair, where)
        for where in sets
        for pair in training_steps(study)
        if all((one, *where) in scored for one in pair)
    ]
    return {
        "scores": pd.concat(label_rows, ignore_index=True),
        "overall": pd.concat(overall_rows, ignore_index=True),
        "paired": _record("paired", [_paired(study, pair, where, scored) for pair, where in made]),
        "mcnemar": _record("mcnemar", [_mcnemar(study, pair, where, judged) for pair, where in made]),
        **_transfer(study, scored),
    }


def model_name(study: Study, checkpoint: Checkpoint) -> str:
    """The name of a checkpoint in tables, such as `stand-in-medgemma/sft/free_reasoning`."""
    return f"{study.models[checkpoint.model].name}/{checkpoint.name}"


def _named(study: Study, key: tuple, rows: pd.DataFrame, judged: dict[tuple, Aligned]) -> pd.DataFrame:
    one, dataset, label_set = key
    names = _model(study, one) | {"dataset": dataset, "label_set": label_set}
    return pd.DataFrame(names, index=rows.index).join(rows).assign(protocol=judged[one, dataset].protocol)


def _model(study: Study, one: Checkpoint) -> dict:
    return {"model": model_name(study, one), "seed": one.seed}


def _step(study: Study, pair: tuple[Checkpoint, Checkpoint]) -> dict:
    first, second = (model_name(study, one) for one in pair)
    return {"seed": pair[1].seed, "first": first, "second": second}


def _record(name: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of `tables` with the columns of the record `name`, also if there are no rows."""
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return rows.reindex(columns=list(COLUMNS[name])).astype(COLUMNS[name])


def _paired(study: Study, pair: tuple, where: tuple, scored: dict) -> pd.DataFrame:
    reported = metrics.PAIRED if where[1] == "chexpert14" else metrics.PAIRED[:-1]
    first, second = (scored[one, *where] for one in pair)
    rows = metrics.difference(first, second, reported)
    return rows.assign(dataset=where[0], label_set=where[1], **_step(study, pair))


def _mcnemar(study: Study, pair: tuple, where: tuple, judged: dict) -> pd.DataFrame:
    names, (first, second) = list(study.labels(where[1])), (judged[one, where[0]] for one in pair)
    rows = metrics.mcnemar(first.truth[names], first.given[names], second.given[names])
    return rows.assign(dataset=where[0], label_set=where[1], **_step(study, pair))


def transfer_pairs(study: Study) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of test sets of two sources that are scored on the same labels, each as (data set, label set).

    The first of a pair is in-domain: its source is scored on more labels or, if both have the same number, comes first
    in the params file.  The first test sets of both sources form a pair, then the second ones; any remaining test set
    is paired with each one of the other source.  If two test sets have several label sets in common, NIH's nine labels
    are used, or else the largest set.
    """
    sets: dict[str, list[tuple[str, str]]] = {}
    for name, test in study.tests.items():
        sets.setdefault(test.source, []).extend((name, label_set) for label_set in test.label_sets)
    pairs = []
    for ends in combinations(sets.values(), 2):
        in_domain, out_of_domain = sorted(
            ends, key=lambda end: -len({name for _, each in end for name in study.labels(each)})
        )
        pairs += _pairs_between(study, in_domain, out_of_domain)
    return pairs


def _pairs_between(study: Study, in_domain: list[tuple[str, str]], out_of_domain: list[tuple[str, str]]) -> list[tuple]:
    """The pairs of `transfer_pairs` between two sources, each given as its (data set, label set)."""
    pairs: dict[tuple[str, str], tuple] = {}
    nine = frozenset(NIH9)
    common = dict.fromkeys(frozenset(study.labels(label_set)) for _, label_set in in_domain)
    for labels in sorted(common, key=lambda each: (each != nine, -len(each))):
        first, second = (
            list({name: (name, each) for name, each in end if set(study.labels(each)) == labels}.values())
            for end in (in_domain, out_of_domain)
        )
        both = min(len(first), len(second))
        left_over = [*product(first[both:], second), *product(first, second[both:])]
        for one, other in [*zip(first[:both], second[:both], strict=True), *left_over]:
            pairs.setdefault((one[0], other[0]), (one, other))
    return list(pairs.values())


def _transfer(study: Study, scored: dict) -> dict[str, pd.DataFrame]:
    """The records `transfer` and `transfer_paired`."""
    gaps = {
        (one, in_domain, out_of_domain): metrics.transfer_gap(scored[one, *in_domain], scored[one, *out_of_domain])
        for in_domain, out_of_domain in transfer_pairs(study)
        for one in study.checkpoints()
        if (one, *in_domain) in scored and (one, *out_of_domain) in scored
    }
    rows = [
        pd.DataFrame(
            [
                _model(study, one)
                | {"in_domain": in_domain[0], "out_of_domain": out_of_domain[0], "label_set": in_domain[1]}
                | transfer.overall
            ]
        )
        for (one, in_domain, out_of_domain), transfer in gaps.items()
    ]
    paired = [
        metrics.difference(gaps[first, *ends], gaps[second, *ends], ("change", "relative")).assign(
            in_domain=ends[0][0], out_of_domain=ends[1][0], label_set=ends[0][1], **_step(study, (first, second))
        )
        for ends in transfer_pairs(study)
        for first, second in training_steps(study)
        if (first, *ends) in gaps and (second, *ends) in gaps
    ]
    return {"transfer": _record("transfer", rows), "transfer_paired": _record("transfer_paired", paired)}


def sensitivity(study: Study) -> pd.DataFrame:
    """Macro-F1 of every checkpoint on the test sets, under each uncertainty policy, with and without parent labels.

    One row per checkpoint, test set, `policy` (`labels.POLICIES`) and `closed` (whether parent labels were added to
    truth and answers).  The labels are the first label set of the test set.  If no label of it has a parent label,
    there are no rows with `closed`.
    """
    settled, rows = {policy: labeled_films(study, policy) for policy in POLICIES}, []
    for one in study.checkpoints():
        answers = records.load(study.paths.answers(one))
        for dataset in [name for name in study.tests if name in study.datasets(one)]:
            label_set = study.tests[dataset].label_sets[0]
            where = _model(study, one) | {"dataset": dataset, "label_set": label_set}
            for policy, films in settled.items():
                judged = align_predictions(study, films, answers, dataset)
                rows.append(where | {"policy": policy, "closed": False} | _macro(study, judged, dataset, label_set))
                if set(CLOSURES) & set(study.labels(label_set)):
                    macro = _macro(study, with_parent_labels(judged), dataset, label_set)
                    rows.append(where | {"policy": policy, "closed": True} | macro)
    return _record("sensitivity", [pd.DataFrame(rows)])


def _macro(study: Study, judged: Aligned, dataset: str, label_set: str) -> dict[str, float]:
    overall = score_aligned(study, judged, dataset, label_set).overall
    return {name: overall[name] for name in ("macro_f1", "macro_f1_low", "macro_f1_high")}


RESULT = (
    *("model", "seed", "dataset", "label_set", "ruler", "n", "micro_f1", "macro_f1", "macro_f1_low", "macro_f1_high"),
    *("fail_rate", "params_hash", "phantom", "refusal_rate", "protocol"),
)
SPECIFIC = tuple(name + end for name in ("macro_specificity", "false_alarm_rate") for end in ("", "_low", "_high"))


def results(study: Study) -> list[dict]:
    """One JSON-able object per model, seed, data set, label set and ruler, read from the records of the comparison.

    `ruler` is "labels" or, on phantoms, also "truth" (see `rulers`). A perfect reader, by the labels, and the plain
    baseline (see `baseline`) have rows, too.
    An undefined score is None.  Raises RecordError if the study has not been compared.
    """
    by_labels = records.load(study.paths.compared("overall")).assign(ruler="labels")
    others = [study.paths.compared(name) for name in ("10_rulers/truth", "16_baseline/baseline")]
    overall = pd.concat([by_labels, *(records.load(each) for each in others if each.is_file())], ignore_index=True)
    overall = overall[[*RESULT, *overall.columns.intersection(SPECIFIC, sort=False)]]  # an earlier record lacks them
    rows = overall.astype(object).where(overall.notna(), None)
    return rows.to_dict("records")


def _bounds(low: float, high: float, form: str, name: str = "") -> str:
    """The bounds of an interval as text; they are NaN if there are too few patients (see `metrics.score`)."""
    return "no interval: too few patients" if np.isnan(low) else f"{name}{low:{form}} to {high:{form}}"


def save(study: Study, tables: dict[str, pd.DataFrame]) -> None:
    """Write the tables of `compare` as `compare/<name>.parquet`."""
    inputs = [study.folder / curate.MANIFEST]
    inputs += [study.paths.answers(checkpoint) for checkpoint in study.checkpoints()]
    provenance = records.provenance(study, study.compare.seed, inputs)
    for name, table in tables.items():
        records.save(table, study.folder / "compare" / f"{name}.parquet", provenance)
