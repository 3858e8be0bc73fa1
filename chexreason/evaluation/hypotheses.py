"""The hypotheses of the controlled experiment, as `book/plan.md` states them, and what the released records show."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from chexreason.evaluation import dose, metrics, released
from chexreason.evaluation.released import START
from chexreason.labels import NIH9

MARGIN = 0.02
"""The smallest effect of interest, in macro-F1."""

N_RESAMPLES = 2000
HOME, AWAY = "home-test", "away-test"
LAST = -1
"""Stands for the last step of a run."""


class Hypothesis(NamedTuple):
    """A question, and the contrast that answers it: {(run, step): weight} by one ruler on one test set."""

    name: str
    question: str
    dataset: str
    ruler: str
    weights: dict[tuple[str, int], float]


def _gain(run: str) -> dict[tuple[str, int], float]:
    return {(run, LAST): 1.0, (START, 0): -1.0}


def _between(run: str, other: str) -> dict[tuple[str, int], float]:
    return {(run, LAST): 1.0, (other, LAST): -1.0}


HYPOTHESES = (
    Hypothesis("H1", "Does reward for A's labels make a better reader at C?", AWAY, "truth", _gain("labels-a")),
    Hypothesis("H2", "Does reward for A's labels raise agreement with them at A?", HOME, "labels", _gain("labels-a")),
    Hypothesis("H3", "Does reward for C's labels rather than A's raise agreement with C's labels?", AWAY, "labels",
               _between("labels-c", "labels-a")),
    Hypothesis("H4", "Does reward for C's labels rather than A's cost the truth at C?", AWAY, "truth",
               _between("labels-c", "labels-a")),
    Hypothesis("H5", "Do shuffled labels cost the truth at A, compared with A's labels?", HOME, "truth",
               _between("shuffled", "labels-a")),
    Hypothesis("H6", "Is the truth a better reward than A's labels, by the truth at C?", AWAY, "truth",
               _between("truth", "labels-a")),
    Hypothesis("H7", "Does reward for format alone change the truth at A?", HOME, "truth", _gain("format")),
)  # fmt: skip
"""The confirmatory contrasts; p-values are adjusted for their number (Holm)."""

SECONDARY = (
    Hypothesis("S1", "Does a pull to the start (beta 0.15) protect the truth at C from C's labels?", AWAY, "truth",
               _between("labels-c-kl", "labels-c")),
    Hypothesis("S2", "Does it take from the gain of A's labels at A, by the truth?", HOME, "truth",
               _between("labels-a-kl", "labels-a")),
)  # fmt: skip


def scored(tables: dict[str, pd.DataFrame]) -> dict[tuple[str, str], dose.Scored]:
    """Macro-F1 on the nine shared labels of every checkpoint, by data set and ruler, from released tables."""
    found = {}
    for dataset, films in tables["films"].groupby("dataset", sort=False):
        answers = tables["answers"][tables["answers"]["film"].isin(films["film"])]
        for ruler in ("labels", "truth"):
            found[dataset, ruler] = dose.score(films, answers, ruler, NIH9, N_RESAMPLES, 0)
    return found


def test(by: dict[tuple[str, str], dose.Scored], hypotheses: tuple[Hypothesis, ...] = HYPOTHESES) -> pd.DataFrame:
    """One row per hypothesis: name, question, dataset, ruler, the fields of `dose.Effect`, p_holm, verdict."""
    rows = []
    for each in hypotheses:
        scores = by[each.dataset, each.ruler]
        last = scores.names.groupby("run")["step"].max()
        weights = {(run, last[run] if step == LAST else step): weight for (run, step), weight in each.weights.items()}
        found = dose.contrast(scores, weights, seeds(scores))
        told = {"verdict": dose.verdict(found, MARGIN)}
        rows.append(each._asdict() | found._asdict() | told)
    table = pd.DataFrame(rows).drop(columns="weights")
    return table.assign(p_holm=metrics.holm(table["p"].to_numpy()))


def seeds(scores: dose.Scored) -> list[int]:
    """The seeds of an experiment."""
    return sorted(scores.names["seed"].unique())


def responses(by: dict[tuple[str, str], dose.Scored]) -> pd.DataFrame:
    """The dose-response of every run against its start, by data set and ruler (see `dose.dose_response`)."""
    tables = [
        dose.dose_response(scores, (START, 0), seeds(scores)).assign(dataset=dataset, ruler=ruler)
        for (dataset, ruler), scores in by.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[~table["run"].isin([START, "sft"])].reset_index(drop=True)


WORDS = {
    "gain": "better",
    "small gain": "a little better",
    "loss": "worse",
    "small loss": "a little worse",
    "no difference": "neither better nor worse",
    "open": "not clearly better or worse",
    "undefined": "not measurably better or worse",
}
"""What a verdict means, for sentences."""


def answer(table: pd.DataFrame) -> list[str]:
    """The front page's answer in two sentences, chosen by the intervals of H1, H3 and H4."""
    rows = table.set_index("name")
    first, own, true = (rows.loc[name] for name in ("H1", "H3", "H4"))
    return [
        f"Rewarded for the labels of hospital A, the stand-in becomes {WORDS[first.verdict]} as a reader of hospital "
        f"C's films, judged by what was drawn ({_told(first)} macro-F1).",
        f"Rewarded for C's labels instead, it agrees {_agrees(own.verdict)} with C's labels ({_told(own)}) and is "
        f"{WORDS[true.verdict]} by what was drawn ({_told(true)}).",
    ]


def _agrees(verdict: str) -> str:
    words = {"better": "more", "a little better": "a little more", "worse": "less", "a little worse": "a little less"}
    return words.get(WORDS[verdict], {"no difference": "neither more nor less"}.get(verdict, "not clearly more"))


def _told(row: pd.Series) -> str:
    return f"{row.effect:+.3f}, 95 % interval {row.low:+.3f} to {row.high:+.3f}, {row.seeds} seeds"


def sentences(table: pd.DataFrame) -> list[str]:
    """Each hypothesis in a sentence: the question, the verdict, and the effect with its interval."""
    return [
        f"{row.name}: {row.question} {row.verdict.capitalize()}: {row.effect:+.3f} (95 % interval {row.low:+.3f} to "
        f"{row.high:+.3f}; p {row.p_holm:.3f} after Holm's adjustment)."
        for _, row in table.iterrows()
        for row in [row.rename(row["name"])]
    ]


def path(tables: dict[str, pd.DataFrame], by: dict[tuple[str, str], dose.Scored]) -> pd.DataFrame:
    """Mean KL from the start and mean macro-F1 over seeds, by run and step, for every data set and ruler.

    Columns: dataset, ruler, run, step, kl (nats per reply), macro_f1.  A GRPO run begins at its SFT checkpoint (KL 0).
    """
    answers = tables["answers"].merge(tables["films"][["film", "dataset"]], on="film", validate="many_to_one")
    far = answers.groupby(["dataset", "run", "step"])["kl"].mean()
    rows = []
    for (dataset, ruler), scores in by.items():
        values = scores.names.assign(macro_f1=scores.plain).groupby(["run", "step"])["macro_f1"].mean()
        start = values.loc[START, 0]
        for (run, step), value in values.items():
            if run == START:
                continue
            if run != "sft" and step == values.loc[run].index.min():
                rows.append((dataset, ruler, run, 0, 0.0, start))
            rows.append((dataset, ruler, run, step, far.loc[dataset, run, step], value))
    return pd.DataFrame(rows, columns=["dataset", "ruler", "run", "step", "kl", "macro_f1"])


def peaks(table: pd.DataFrame) -> pd.DataFrame:
    """For every data set, ruler and run, the step with the highest mean macro-F1, and the last step."""
    rows = []
    for key, mine in table.groupby(["dataset", "ruler", "run"], sort=False):
        best, last = mine.loc[mine["macro_f1"].idxmax()], mine.iloc[-1]
        found = {"peak": best.step, "kl_at_peak": best.kl, "macro_f1_at_peak": best.macro_f1}
        rows.append(dict(zip(("dataset", "ruler", "run"), key, strict=True)) | found | {"at_last_step": last.macro_f1})
    return pd.DataFrame(rows)


def peak_sentences(table: pd.DataFrame) -> list[str]:
    """For SFT and for GRPO on A's labels, where the path is highest by the truth on each data set, a sentence each."""
    rows = table[(table["ruler"] == "truth") & table["run"].isin(["sft", "labels-a"])]
    return [
        f"{row.run} on {row.dataset}: the highest mean macro-F1 by the truth is {row.macro_f1_at_peak:.3f}, at step "
        f"{row.peak:.0f} and {row.kl_at_peak:.2f} nats from the start; at the last step it is {row.at_last_step:.3f}."
        for row in rows.itertuples()
    ]


def tested(folder: Path) -> pd.DataFrame | None:
    """The tests of a released experiment (see `test`); None if the folder has none."""
    return test(scored(released.load(folder))) if (folder / "answers.parquet").is_file() else None


def beside_findings(table: pd.DataFrame) -> list[str]:
    """What the experiment adds to each of the paper's four findings, a sentence each."""
    told = {row["name"]: f"{WORDS[row.verdict]} ({_told(row)})" for _, row in table.iterrows()}
    return [
        f"1. RL gains at home and loses away: rewarded for A's labels, the model is {told['H2']} by A's labels at A, "
        f"and {told['H1']} by the truth at C. With C's labels instead of A's it is {told['H3']} by C's labels and "
        f"{told['H4']} by the truth at C.",
        "2. SFT generalizes: the experiment begins at SFT and does not test it; [the path](13_path.ipynb) shows SFT's "
        "own checkpoints.",
        "3. Structured reasoning helps general models only: not part of the experiment.",
        f"4. The kind of reward matters little: what is rewarded was varied instead. Shuffled labels make the model "
        f"{told['H5']} than A's labels by the truth at A, the truth {told['H6']} at C, and format alone leaves it "
        f"{told['H7']} at A.",
    ]
