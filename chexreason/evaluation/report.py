"""Tables and sentences about the records of a comparison."""

import re
from typing import Any

import numpy as np
import pandas as pd

from chexreason.config import UNTUNED, Study
from chexreason.display.markdown import escape
from chexreason.evaluation import compare, metrics
from chexreason.labels import LABEL_SETS, NIH9


def checkpoint_labels(study: Study) -> dict[str, str]:
    """The name of each checkpoint for readers, by its name in records: "SFT", "GRPO (best)".

    A run has its own name in the label if the stage has several, and so has a model.
    """
    checkpoints = study.checkpoints()
    runs = {stage: {each.run for each in checkpoints if each.stage == stage} for stage in ("sft", "grpo")}
    labels = {}
    for each in checkpoints:
        words = ["untuned" if each.stage == UNTUNED else each.stage.upper()]
        words += [each.run] if len(runs.get(each.stage, ())) > 1 else []
        words += [f"({each.which})"] if each.stage == "grpo" else []
        model = f"{study.models[each.model].name}: " if len({each.model for each in checkpoints}) > 1 else ""
        labels[compare.model_name(study, each)] = model + " ".join(words)
    return labels


def with_labels(study: Study, shown: Any) -> Any:
    """A table or a list of sentences with `checkpoint_labels` instead of the names in records."""
    labels = checkpoint_labels(study)
    names = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(labels, key=len, reverse=True)))})(?![\w-])")

    def rename(value):
        return names.sub(lambda match: labels[match[0]], value) if isinstance(value, str) else value

    if isinstance(shown, pd.DataFrame):
        return shown.map(rename).rename(columns=rename)
    return [rename(each) for each in shown]


def on_shared_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `compare` record on the nine labels that all hospitals have."""
    sets = [label_set for label_set, names in LABEL_SETS.items() if names == NIH9]
    return table[table["label_set"].isin(sets)].reset_index(drop=True)


def prompt_summary(table: pd.DataFrame) -> str:
    """Two sentences about the table of `compare.prompts`: best and worst prompt, and unreadable answers."""
    best, worst = table.loc[table["macro_f1"].idxmax()], table.loc[table["macro_f1"].idxmin()]
    apart = "apart" if best["macro_f1_low"] > worst["macro_f1_high"] else "not clearly apart"
    return (
        f"Macro-F1 runs from {worst['macro_f1']:.3f} ({worst['prompt']}) to {best['macro_f1']:.3f} ({best['prompt']}), "
        f"and their intervals are {apart}.\n"
        f"Unreadable answers run from {table['fail_rate'].min():.1%} to {table['fail_rate'].max():.1%}."
    )


def best_of(table: pd.DataFrame, kind: str) -> str:
    """A sentence about the row of `in_domain` with the highest score, and whether its interval excludes the next one.

    It uses the first seed of each model, because the best of several seeds would be too high.
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


def in_domain(study: Study, overall: pd.DataFrame, stage: str) -> pd.DataFrame:
    """The rows of the `overall` record for validation films and all labels, of one stage ("sft" or "grpo")."""
    rows = overall[(overall["dataset"] == study.validation) & (overall["label_set"] == study.curate.label_sets[0])]
    rows = rows[rows["model"].str.contains(f"/{stage}/")]
    rates = [f"{mean}_{rate}" for mean in ("micro", "macro") for rate in metrics.RATES]
    return rows[["model", "seed", *rates, "macro_f1_low", "macro_f1_high", "fail_rate"]].reset_index(drop=True)


ALONE = "No test sets of two sources are scored on the same labels, so there is no transfer gap."
UNTRAINED = "This study trains no model, so there is no step to compare."


def gains(paired: pd.DataFrame) -> pd.DataFrame:
    """The change of macro-F1 on the nine shared labels in each step: rows of `paired`, with the step in words."""
    rows = on_shared_labels(paired[paired["metric"] == "macro_f1"])
    return rows.assign(step=rows["first"] + " → " + rows["second"])


def gain_table(gains: pd.DataFrame) -> pd.DataFrame:
    """The table of `gains` for readers: dataset, model, seed, change with its interval, and verdict."""
    rows = [
        (
            row.dataset,
            row.second,
            row.seed,
            f"{row.difference:+.2f} ({compare._bounds(row.low, row.high, '+.2f')})",
            metrics.verdict(row.low, row.high),
        )
        for row in gains.itertuples()
    ]
    return pd.DataFrame(rows, columns=["dataset", "model", "seed", "change", "verdict"])


def gain_lines(gains: pd.DataFrame) -> list[str]:
    """One line per step and seed: on which data sets it is a gain, a loss or no clear difference."""
    verdicts = gains.assign(verdict=[metrics.verdict(*row) for row in gains[["low", "high"]].to_numpy()])
    lines = []
    for (step, seed), rows in verdicts.groupby(["step", "seed"], sort=False):
        parts = [f"{word} on {', '.join(where)}" for word, where in rows.groupby("verdict", sort=False)["dataset"]]
        lines.append(f"{step}, seed {seed}: {'; '.join(parts)}.")
    return lines or [UNTRAINED]


def step_lines(paired: pd.DataFrame) -> list[str]:
    """One sentence per row of the `paired` record; the interval decides the words."""
    return [_sentence(row) for row in paired.itertuples()]


def _sentence(row) -> str:
    verdict, metric = metrics.verdict(row.low, row.high), row.metric.replace("_f1", "-F1")
    where = f"On {row.dataset} ({row.label_set}), seed {row.seed}"
    bounds = compare._bounds(row.low, row.high, "+.3f", "95 % interval ")
    if verdict == "no clear difference":
        return f"{where}, {verdict} from {row.first} to {row.second}: {row.difference:+.3f} {metric} ({bounds})."
    gains = {"gain": "gains", "loss": "loses"}[verdict]
    return f"{where}, {row.second} {gains} {abs(row.difference):.3f} {metric} compared with {row.first} ({bounds})."


def without_positive(scores: pd.DataFrame) -> str:
    """A sentence about the labels of the `scores` record that have no positive film."""
    rows = scores.loc[scores["support"] == 0, ["dataset", "label"]].drop_duplicates()
    if rows.empty:
        return "Every label has a positive film on every data set, so none is left out of a macro mean."
    named = ", ".join(f"{row.label} on {row.dataset}" for row in rows.itertuples())
    return f"These labels have no positive film, so they have no F1 and are left out of the macro mean: {named}."


def seeds(overall: pd.DataFrame) -> pd.DataFrame:
    """Macro-F1 on the nine shared labels over training seeds, and the interval over patients.

    One row per model and data set: model, dataset, seeds (number), macro_f1 with `_low` and `_high` (first seed, over
    patients), lowest, highest and sd (over seeds; sd is NaN for one seed).
    """
    groups = on_shared_labels(overall).groupby(["model", "dataset"], sort=False, as_index=False)
    first = {name: (name, "first") for name in ("macro_f1", "macro_f1_low", "macro_f1_high")}
    over = {name: ("macro_f1", how) for name, how in (("lowest", "min"), ("highest", "max"), ("sd", "std"))}
    return groups.agg(seeds=("seed", "nunique"), **first, **over)


def seed_summary(table: pd.DataFrame) -> str:
    """One or two sentences about the variation between seeds, from the table of `seeds`."""
    repeated = table[table["seeds"] > 1]
    if repeated.empty:
        return (
            "Every run has one seed, so the intervals hold for these weights only. This study does not show how much "
            "another seed would change the scores."
        )
    widest = repeated.loc[(repeated["highest"] - repeated["lowest"]).idxmax()]
    return (
        f"Over seeds, macro-F1 spreads most for {widest['model']} on {widest['dataset']}: {widest['lowest']:.3f} to "
        f"{widest['highest']:.3f} with {widest['seeds']} seeds, where the interval over patients runs from "
        f"{widest['macro_f1_low']:.3f} to {widest['macro_f1_high']:.3f}."
    )


def f1_table(study: Study, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """F1 by label on every test set, one column per model, like Tables 5 and 6; the last row of each set is macro-F1.

    It uses the first label set of each test set and the study's first seed.  `tables` has the records `overall` and
    `scores`.
    """
    macro = tables["overall"].rename(columns={"macro_f1": "f1"}).assign(label="Macro F1")
    rows = pd.concat([tables["scores"], macro], ignore_index=True)
    wanted = rows["dataset"].map({name: test.label_sets[0] for name, test in study.tests.items()}) == rows["label_set"]
    rows = rows[wanted & (rows["seed"] == study.seeds[0])]
    in_order = pd.concat([rows[rows["dataset"] == name] for name in study.tests])
    f1 = in_order.set_index(["dataset", "label", "model"])["f1"].unstack(sort=False)
    return f1.rename_axis(columns=None).reset_index()


def notes(study: Study) -> list[str]:
    """Remarks about models: one line of Markdown for each model whose entry has a `note`."""
    return [f"{escape(model.name)}: {escape(model.note)}" for model in study.models.values() if model.note]


def sensitivity_table(table: pd.DataFrame) -> pd.DataFrame:
    """The `sensitivity` record for readers: one row per checkpoint and test set, one column per policy."""
    told = [
        f"{row.macro_f1:.2f}"
        + ("" if np.isnan(row.macro_f1_low) else f" ({row.macro_f1_low:.2f}–{row.macro_f1_high:.2f})")
        for row in table.itertuples()
    ]
    column = table["policy"] + table["closed"].map({False: "", True: ", closed"})
    rows = table.assign(told=told, column=column).set_index(["model", "seed", "dataset", "label_set", "column"])["told"]
    return rows.unstack(sort=False).rename_axis(columns=None).reset_index()


def mcnemar_summary(mcnemar: pd.DataFrame, level: float = 0.05) -> str:
    """How many tests of the `mcnemar` record are below `level` after Holm's adjustment, and in which direction."""
    if mcnemar.empty:
        return UNTRAINED
    told = mcnemar[mcnemar["p_holm"] < level]
    better = (told["second_only"] > told["first_only"]).sum()
    return (
        f"Of {len(mcnemar)} tests, {len(told)} have p below {level} after Holm's adjustment: "
        f"{better} in favor of the later checkpoint, {len(told) - better} in favor of the earlier one.\n"
        "The test treats films as independent. Films of one patient are not, so p tends to be too small."
    )


def different_labels(mcnemar: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """The labels that differ in each step of the `mcnemar` record, at `level` after Holm's adjustment.

    One row per data set and step: dataset, seed, first, second, better and worse (labels on which `second` is right
    more or less often, separated by commas).
    """
    apart = mcnemar["p_holm"] < level
    named = mcnemar.assign(
        better=mcnemar["label"].where(apart & (mcnemar["second_only"] > mcnemar["first_only"])),
        worse=mcnemar["label"].where(apart & (mcnemar["second_only"] < mcnemar["first_only"])),
    )
    steps = named.groupby(["dataset", "seed", "first", "second"], sort=False, as_index=False)
    return steps[["better", "worse"]].agg(lambda labels: ", ".join(labels.dropna()) or "–")


def _label_set_phrase(label_set: str) -> str:
    """ " on <label set>", or "" for the nine labels that all hospitals have."""
    return "" if LABEL_SETS.get(label_set) == NIH9 else f" on {label_set}"


def transfer_lines(transfer: pd.DataFrame) -> list[str]:
    """One sentence per row of the `transfer` record about its transfer gap, if both scores are defined."""
    return [_transfer_line(row) for row in transfer.dropna(subset=["change"]).itertuples()] or [ALONE]


def _transfer_line(row) -> str:
    verdict = metrics.verdict(row.change_low, row.change_high)
    share = f"{row.relative:+.0%}, {compare._bounds(row.relative_low, row.relative_high, '+.0%', '95 % interval ')}"
    ends = f"from {row.in_domain} to {row.out_of_domain}{_label_set_phrase(row.label_set)}"
    return (
        f"{row.model}, seed {row.seed}, {ends}: macro-F1 {row.in_domain_macro_f1:.3f} to "
        f"{row.out_of_domain_macro_f1:.3f} ({'from nothing' if np.isnan(row.relative) else share}), {verdict}."
    )


def gap_lines(paired: pd.DataFrame) -> list[str]:
    """One sentence per step of the `transfer_paired` record: does the later checkpoint lose more out of domain?"""
    return [_gap_line(row) for row in paired[paired["metric"] == "change"].itertuples()] or [UNTRAINED]


def _gap_line(row) -> str:
    less = {"gain": "loses less than", "loss": "loses more than"}
    compared = less.get(metrics.verdict(row.low, row.high), "shows no clear difference from")
    ends = f"From {row.in_domain} to {row.out_of_domain}{_label_set_phrase(row.label_set)}"
    return (
        f"{ends}, {row.second} (seed {row.seed}) {compared} {row.first}: "
        f"{row.difference:+.3f} macro-F1 ({compare._bounds(row.low, row.high, '+.3f', '95 % interval ')})."
    )
