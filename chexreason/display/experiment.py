"""Figures of the controlled experiment; see `figures` for what they have in common."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from chexreason.display import figures, tables

SOURCES = {
    "truth": "the truth",
    "labels-a": "A's labels",
    "labels-c": "C's labels",
    "shuffled": "shuffled labels",
    "format": "format alone",
}
"""What each run of the experiment is rewarded for, for readers."""


def two_rulers(paired: pd.DataFrame, ax, *, phantom: bool):
    """The change of macro-F1 in each step of training by both rulers, from the record `truth_paired`.

    `paired` has the columns step and dataset; one row per step, data set and ruler.
    """
    rows = paired.rename(columns={"difference_low": "low", "difference_high": "high"})
    rows = rows.assign(place=rows["dataset"] + "\n" + rows["step"])
    ax.set_xlabel("← loss      macro-F1, 95 % paired interval      gain →")
    ax.set_title(tables.title_text("Gain of each training step, by labels and by the truth", phantom))
    return figures.about_zero(rows, ax, y="place", hue="ruler", empty="no step of training")


def layer_shares(shares: pd.DataFrame, ax, *, phantom: bool):
    """The share of each layer in the fall from one hospital to the other, from the record `layers`."""
    rows = shares.rename(columns={"share": "difference", "share_low": "low", "share_high": "high"})
    ax.set_xlabel("part of the fall in macro-F1, 95 % interval")
    ax.set_title(tables.title_text("What the fall from A to C is made of", phantom))
    return figures.about_zero(rows, ax, y="layer", hue="model", empty="no checkpoint")


def dose_response(effects: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """The effect of each source of reward by step, one panel per hospital and ruler, with 95 % intervals.

    `effects` has panel, run, step and the fields of `dose.Effect`; every path begins at 0.
    """
    import seaborn as sns

    axes = list(axes)
    runs = [run for run in SOURCES if run in set(effects["run"])]
    colors = dict(zip(SOURCES, sns.color_palette("colorblind", len(SOURCES)), strict=True))
    for ax, (panel, rows) in zip(axes, effects.groupby("panel", sort=False), strict=True):
        for number, run in enumerate(runs):
            mine = rows[rows["run"] == run].sort_values("step")
            shift = (number - (len(runs) - 1) / 2) * 0.02 * rows["step"].max()  # no bar hides another
            steps = np.array([0, *(mine["step"] + shift)])
            ax.plot(steps, [0, *mine["effect"]], marker=figures.MARKERS[number], color=colors[run], label=SOURCES[run])
            ax.vlines(steps[1:], mine["low"], mine["high"], color=colors[run], linewidth=2)
        ax.axhline(0, color="black", linewidth=1)
        ax.set(xlabel="steps of GRPO", ylabel="change of macro-F1")
        ax.set_title(tables.title_text(panel, phantom))
    figures._legend(axes[0])
    return axes


def along_path(path: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """Macro-F1 against the KL divergence from the start of the run, one line per run, one panel per `panel`.

    `path` has panel, run, kl and macro_f1, in the order of steps.
    """
    axes = list(axes)
    for ax, (panel, rows) in zip(axes, path.groupby("panel", sort=False), strict=True):
        for number, (run, mine) in enumerate(rows.groupby("run", sort=False)):
            label = SOURCES.get(run, run)
            ax.plot(mine["kl"], mine["macro_f1"], marker=figures.MARKERS[number % len(figures.MARKERS)], label=label)
        ax.set(xlabel="KL from the start, nats a reply", ylabel="macro-F1")
        ax.set_title(tables.title_text(panel, phantom))
    figures._legend(axes[0])
    return axes


def reasoning(rates: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """How often labels are stated and statements are true, one panel per share, from the record `reasoning`."""
    axes = list(axes)
    titles = {"stated": "labels that the reasoning states", "true": "statements that are true"}
    for number, (ax, (rate, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        figures.dots(rates, ax, y="dataset", hue="model", value=rate, low=f"{rate}_low", high=f"{rate}_high")
        ax.set(xlim=(None, 1), xlabel="share, 95 % interval", **({"yticklabels": []} if number else {}))
        ax.set_title(tables.title_text(title.capitalize(), phantom))
    figures._legend(axes[0])
    return axes
