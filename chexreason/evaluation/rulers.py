"""Two rulers: the labels of a hospital, and the truth, which only phantoms have.

Every other score of a study is by labels.  Here the same answers are scored by what was drawn, and the truth itself is
scored by the labels: no reader can be expected to score more at a hospital than one who is always right.
"""

import pandas as pd

from chexreason import records
from chexreason.config import BEST, Study
from chexreason.data import curate
from chexreason.data.phantom import hospitals
from chexreason.display import tables
from chexreason.evaluation import compare, metrics, report

PERFECT = "perfect reader"
"""The name in tables of a reader that answers the truth."""

METRICS = ("macro_f1", "micro_f1")


def true_films(study: Study) -> pd.DataFrame:
    """The phantoms of the manifest by name: `dataset`, `patient` and the truth of the fourteen labels (1.0 or 0.0).

    No rows if the study has no phantoms.
    """
    manifest = records.load(study.folder / curate.MANIFEST).set_index("film").sort_index()
    drawn = manifest[manifest["recipe"] != ""]
    truth = hospitals.truth(drawn).astype(float)
    return drawn[["split", "patient"]].rename(columns={"split": "dataset"}).join(truth)


def by_truth(study: Study) -> dict[str, pd.DataFrame]:
    """The records of the second ruler, for every data set of phantoms.

    - `truth`: the scores of every checkpoint by the truth, and of a perfect reader by the labels (`ruler`), with the
      columns of `compare`'s `overall`
    - `truth_paired`: the difference `second` minus `first` for every step of training by both rulers, and how much
      larger it is by the labels than by the truth (`labels - truth`)

    Labels that a hospital does not have are left out by both rulers.
    """
    films, labeled = true_films(study), compare.labeled_films(study)
    phantom = set(films["dataset"])
    sets = [(name, each) for name, chosen in compare.datasets(study).items() if name in phantom for each in chosen]
    rows, differences = [], []
    for dataset, label_set in sets:
        names = list(study.labels(label_set))
        known = labeled[labeled["dataset"] == dataset][names]
        truth = films[films["dataset"] == dataset]
        rulers = {"labels": known, "truth": truth[names].where(known.notna())}
        judged = {
            one: compare.align_predictions(study, labeled, records.load(study.paths.answers(one)), dataset)
            for one in study.checkpoints()
            if dataset in study.datasets(one)
        }
        scored = {
            (one, ruler): metrics.score(
                by, each.given[names], each.patients, study.compare.n_resamples, compare.generator(study, dataset)
            )
            for one, each in judged.items()
            for ruler, by in rulers.items()
        }
        where = {"dataset": dataset, "label_set": label_set}
        rows += [
            {"model": compare.model_name(study, one), "seed": one.seed, "ruler": ruler}
            | where
            | found.overall
            | {"protocol": judged[one].protocol, "fail_rate": judged[one].means["fail_rate"].mean()}
            | {"refusal_rate": judged[one].means["refusal_rate"].mean()}
            for (one, ruler), found in scored.items()
            if ruler == "truth"
        ]
        perfect = metrics.score(
            known, truth[names] == 1, truth["patient"], study.compare.n_resamples, compare.generator(study, dataset)
        )
        rows.append({"model": PERFECT, "seed": study.seeds[0], "ruler": "labels"} | where | perfect.overall)
        for first, second in compare.training_steps(study):
            if (first, "truth") in scored and (second, "truth") in scored:
                step = {"seed": second.seed, "first": compare.model_name(study, first)}
                step |= {"second": compare.model_name(study, second)} | where
                pairs = {ruler: (scored[first, ruler], scored[second, ruler]) for ruler in rulers}
                differences += [step | row for row in _differences(pairs)]
    marks = {"params_hash": study.hash, "phantom": True}
    return {"truth": pd.DataFrame(rows).assign(**marks), "truth_paired": pd.DataFrame(differences)}


def _differences(pairs: dict[str, tuple[metrics.Scores, metrics.Scores]]) -> list[dict]:
    """The change of each metric by each ruler, and the change by labels minus that by the truth."""
    rows = []
    for metric in METRICS:
        plain = {ruler: after.overall[metric] - before.overall[metric] for ruler, (before, after) in pairs.items()}
        drawn = {
            ruler: (after.samples[metric] - before.samples[metric]).to_numpy()
            for ruler, (before, after) in pairs.items()
        }
        plain["labels - truth"] = plain["labels"] - plain["truth"]
        drawn["labels - truth"] = drawn["labels"] - drawn["truth"]
        for ruler, value in plain.items():
            named = metrics.with_interval("difference", value, drawn[ruler])
            rows.append({"metric": metric, "ruler": ruler} | named)
    return rows


def ceiling(table: pd.DataFrame) -> pd.DataFrame:
    """The perfect reader's macro-F1 by the labels of each data set, with its interval: rows of the record `truth`."""
    columns = ["dataset", "label_set", "n", "macro_f1", "macro_f1_low", "macro_f1_high"]
    return table.loc[table["model"] == PERFECT, columns].reset_index(drop=True)


def summary(study: Study, found: dict[str, pd.DataFrame]) -> list[str]:
    """What the last step of training gained by both rulers on each test set, a sentence each."""
    best = ceiling(found["truth"]).set_index(["dataset", "label_set"])["macro_f1"]
    rows = report.on_shared_labels(found["truth_paired"].query("metric == 'macro_f1'"))
    lines = []
    for (dataset, label_set), mine in rows[rows["dataset"].isin(list(study.tests))].groupby(
        ["dataset", "label_set"], sort=False
    ):
        mine = mine[~mine["second"].str.endswith(BEST)]
        last = mine[mine["second"] == mine["second"].iloc[-1]].drop_duplicates("ruler").set_index("ruler")
        by = {ruler: _told(last.loc[ruler]) for ruler in ("labels", "truth", "labels - truth")}
        lines.append(
            f"On {dataset}, from {last['first'].iloc[0]} to {last['second'].iloc[0]}, macro-F1 changes by "
            f"{by['labels']} by the labels and by {by['truth']} by the truth; the difference is "
            f"{by['labels - truth']}. A perfect reader would score {best[dataset, label_set]:.3f} by the labels."
        )
    return lines


def _told(row: pd.Series) -> str:
    return tables.estimate_text(row["difference"], row["difference_low"], row["difference_high"], sign="+")
