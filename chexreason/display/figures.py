"""Figures: functions that draw a tidy table on an Axes and return the Axes.

Colors are seaborn's color-blind palette, and every series has its own marker, so a figure can be read in gray. Every
function has the argument `phantom`, which adds "phantom" to the title.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from chexreason.display import tables

MARKERS = "osD^vP*X"
WITHHELD = "Films of this source are under an agreement and are not shown."


def style() -> None:
    """Set the look of all figures; call it once at the top of a notebook."""
    import seaborn as sns

    look = {
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "text.parse_math": False,  # names come from params files and tables: a dollar sign is a dollar sign
    }
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85, rc=look)


def dots(table: pd.DataFrame, ax, *, y: str, hue: str, value: str, low: str, high: str, skip: int = 0):
    """A dot at `value` with a bar from `low` to `high` for each row of `table`.

    The categories of column `y` run from top to bottom, in order of appearance. Those of `hue` have their own color and
    marker and, if a category has several rows, their own height. `skip` colors and markers are left for another panel.
    A row without a value keeps its place. Returns `ax`.
    """
    import seaborn as sns

    places, series = list(dict.fromkeys(table[y])), list(dict.fromkeys(table[hue]))
    colors = sns.color_palette("colorblind", skip + len(series))
    width = 0.7 / len(series) if table.duplicated(y).any() else 0.0
    for number, name in enumerate(series):
        color, marker = colors[skip + number], MARKERS[(skip + number) % len(MARKERS)]
        rows = table[table[hue] == name].dropna(subset=[value])
        lane = (number - (len(series) - 1) / 2) * width
        heights = np.array([places.index(place) for place in rows[y]]) + lane
        ax.hlines(heights, rows[low], rows[high], color=color, linewidth=2)
        ax.plot(rows[value], heights, marker, color=color, label=name, markeredgecolor="white")
    ax.set_yticks(range(len(places)), places)
    ax.set_ylim(max(len(places), 1) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    return ax


def intervals(overall: pd.DataFrame, ax, *, phantom: bool, metric: str = "macro_f1"):
    """A score by data set and model, with 95 % intervals, from rows of the `overall` record of one label set."""
    dots(overall, ax, y="dataset", hue="model", value=metric, low=f"{metric}_low", high=f"{metric}_high")
    ax.set(xlim=(0, 1), xlabel=f"{_words(metric)}, 95 % interval")
    ax.set_title(tables.title_text(f"{_words(metric)} of each model", phantom))
    _legend(ax)
    return ax


def step_gains(gains: pd.DataFrame, ax, *, phantom: bool):
    """The change in each step of training on each data set, with 95 % intervals, from `report.gains`."""
    steps = gains.assign(step=gains["step"].str.replace(" → ", "\n→ "))
    ax.set_xlabel("← loss      macro-F1, 95 % paired interval      gain →")
    ax.set_title(tables.title_text("Gain or loss of each training step, by hospital", phantom))
    return about_zero(steps, ax, y="step", hue="dataset", empty="no step of training")


def published_finding(scores: pd.DataFrame, differences: pd.DataFrame, axes: Iterable):
    """Scores and differences for one of the paper's findings, from `reanalysis.scores` and `reanalysis.differences`.

    Dots are published, bars are simulated.
    """
    left, right = axes
    dots(scores, left, y="place", hue="series", value="published", low="low", high="high")
    left.set(xlim=(0, None), xlabel="macro-F1; bar: simulated 95 % interval")
    left.set_title("Published")
    series = scores["series"].nunique()
    dots(differences, right, y="place", hue="errors", value="published", low="low", high="high", skip=series)
    right.axvline(0, color="black", linewidth=1)
    right.set(yticklabels=[], xlabel="difference of macro-F1; bar: simulated 95 % interval")
    right.set_title(f"Published, {differences['contrast'].iloc[0]}")
    for ax in (left, right):
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.25), ncols=2, borderaxespad=0)
    return axes


def transfer_gaps(transfer: pd.DataFrame, ax, *, phantom: bool):
    """One line per model, from its macro-F1 in-domain to its macro-F1 out-of-domain, with 95 % intervals.

    `transfer` has rows of that record for one pair of test sets and one seed.
    """
    import seaborn as sns

    colors = sns.color_palette("colorblind", len(transfer))
    for number, (row, color) in enumerate(zip(transfer.itertuples(), colors, strict=True)):
        places = np.array([0, 1]) + (number - (len(transfer) - 1) / 2) * 0.03  # no bar hides another
        lows, highs = (
            [row.in_domain_macro_f1_low, row.out_of_domain_macro_f1_low],
            [row.in_domain_macro_f1_high, row.out_of_domain_macro_f1_high],
        )
        ax.vlines(places, lows, highs, color=color, linewidth=2)
        marker = MARKERS[number % len(MARKERS)]
        ends = [row.in_domain_macro_f1, row.out_of_domain_macro_f1]
        ax.plot(places, ends, marker=marker, color=color, label=row.model, markeredgecolor="white")
    ends = [*transfer["in_domain"].unique(), *transfer["out_of_domain"].unique()]
    ax.set(xlim=(-0.3, 1.3), ylim=(-0.02, None), ylabel="macro-F1, 95 % interval")
    ax.set_xticks(range(len(ends)), ends)
    ax.grid(visible=False, axis="x")
    ax.set_title(tables.title_text(" to ".join(ends), phantom))
    return ax


def findings(table: pd.DataFrame, ax, *, phantom: bool):
    """The comparisons for each of the paper's findings, with 95 % intervals, from `findings.comparisons`."""
    place = table["finding"].astype(str) + " · " + table["second"] + ", " + table["dataset"]
    rows = table.assign(place=place + ", seed " + table["seed"].astype(str))
    ax.set_xlabel("difference of macro-F1, 95 % paired interval")
    ax.set_title(tables.title_text("Evidence on each of the paper's findings", phantom))
    return about_zero(rows, ax, y="place", hue="verdict", empty="no comparison")


def about_zero(differences: pd.DataFrame, ax, *, y: str, hue: str, empty: str):
    """Differences with intervals around a line at zero, or the text `empty` if there are none."""
    dots(differences, ax, y=y, hue=hue, value="difference", low="low", high="high")
    ax.axvline(0, color="black", linewidth=1)
    if differences.empty:
        ax.text(0, 0, empty)
    _legend(ax)
    return ax


def label_dots(scores: pd.DataFrame, ax, *, phantom: bool):
    """F1 per label and model, with 95 % intervals, from rows of the `scores` record of one data set and label set."""
    positives = scores["label"] + " (" + scores["support"].astype(str) + ")"
    dots(scores.assign(place=positives), ax, y="place", hue="model", value="f1", low="f1_low", high="f1_high")
    ax.set(xlim=(0, 1), xlabel="F1, 95 % interval; in brackets the positive films")
    ax.set_title(tables.title_text(", ".join(scores["dataset"].unique()), phantom))
    return ax


def panels(draw: Callable, table: pd.DataFrame, axes: Iterable, *, by: str, phantom: bool) -> None:
    """Draw each group of `table` (by column `by`, in order of appearance) on its own Axes; one legend for all.

    Remaining Axes are hidden.
    """
    axes, groups = list(axes), list(table.groupby(by, sort=False))
    for ax, (_, rows) in zip(axes, groups, strict=False):
        draw(rows, ax, phantom=phantom)
    for ax in axes[len(groups) :]:
        ax.axis("off")
    _legend(axes[0])


def curve(log: pd.DataFrame, ax, *, y: str, phantom: bool, x: str = "step", span: int = 20, label: str = ""):
    """A training curve: raw values faint, their exponential moving average over `span` points bold.

    `span=1` draws the values with dots, for few measurements without noise.
    """
    rows = log.dropna(subset=[y])
    (bold,) = ax.plot(
        rows[x], rows[y].ewm(span=span).mean(), linewidth=2, label=label or y, marker="o" if span == 1 else None
    )
    if span > 1:
        ax.plot(rows[x], rows[y], color=bold.get_color(), alpha=0.3, linewidth=1)
    ax.set(xlabel=_words(x), ylabel=_words(y))
    ax.set_title(tables.title_text(_words(y), phantom))
    return ax


def curves(log: pd.DataFrame, axes: Iterable, *, columns: Iterable[str], phantom: bool, span: int = 20) -> None:
    """One training curve for each of `columns`, each on its own Axes."""
    for ax, column in zip(axes, columns, strict=True):
        curve(log, ax, y=column, phantom=phantom, span=span)


def learning(log: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """Loss and token accuracy of an SFT log, for training films and held-out films."""
    for ax, column in zip(axes, ("loss", "token_accuracy"), strict=True):
        curve(log[log["split"] == "train"], ax, y=column, phantom=phantom, label="trained on")
        curve(log[log["split"] == "eval"], ax, y=column, phantom=phantom, span=1, label="held out")
        ax.legend()
    return axes


def formats(logs: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """Held-out loss and token accuracy by epoch, one line per model, run and seed, from `sft.logs`."""
    axes, held = list(axes), logs[logs["split"] == "eval"]
    for ax, column in zip(axes, ("loss", "token_accuracy"), strict=True):
        _lines(held, ax, by=["model", "run", "seed"], x="epoch", y=column, phantom=phantom)
    _legend(axes[0])
    return axes


def courses(logs: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """Reward, KL and validation macro-F1 by step, one line per run, from `grpo.logs`; moving average 0.95, as
    published.
    """
    axes = list(axes)
    for _, log in logs.groupby("run", sort=False):
        for ax, column in zip(axes, ("reward", "kl"), strict=False):
            curve(log, ax, y=column, phantom=phantom, span=39, label=log["run"].iloc[0])
    _lines(logs.dropna(subset=["validation_f1"]), axes[2], by=["run"], x="step", y="validation_f1", phantom=phantom)
    _legend(axes[2])
    return axes


def _lines(table: pd.DataFrame, ax, *, by: list[str], x: str, y: str, phantom: bool) -> None:
    """One line with its own marker for each group of `table`."""
    for number, (names, rows) in enumerate(table.groupby(by, sort=False)):
        ax.plot(rows[x], rows[y], marker=MARKERS[number % len(MARKERS)], label=", ".join(map(str, names)))
    ax.set(xlabel=_words(x), ylabel=_words(y))
    ax.set_title(tables.title_text(_words(y), phantom))


def vision_learning(log: pd.DataFrame, ax, *, phantom: bool):
    """Area under the ROC curve by epoch, one line per label, from the log of `build.train_vision`."""
    import seaborn as sns

    sns.lineplot(log, x="epoch", y="auc", hue="label", style="label", ax=ax)
    ax.set(xlabel="epoch", ylabel="held-out area under the ROC curve")
    ax.set_title(tables.title_text("What the vision tower sees", phantom))
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title=None)
    return ax


def contact_sheet(films: pd.DataFrame, ax, *, phantom: bool, title: str = "Films", columns: int = 6):
    """Films in a grid, each with its caption.

    `films` has columns `image` (a path, or an array of gray values (height, width), uint8) and `caption` (str).
    """
    import textwrap

    from PIL import Image

    for place, film in enumerate(films.itertuples()):
        row, column = divmod(place, columns)
        pixels = film.image if isinstance(film.image, np.ndarray) else np.asarray(Image.open(film.image).convert("L"))
        left, top = column * 1.05, row * 1.4
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, left + 1, top + 1, top))
        lines = textwrap.wrap(film.caption, 24)
        caption = "\n".join([*lines[:2], lines[2] + " …" if len(lines) > 3 else lines[2]] if len(lines) > 2 else lines)
        ax.text(left, top + 1.02, caption, va="top", fontsize="x-small", parse_math=False)
    rows = -(-max(len(films), 1) // columns)
    ax.set(xlim=(0, min(columns, max(len(films), 1)) * 1.05), ylim=(rows * 1.4, 0))
    ax.axis("off")
    if films.empty:
        ax.text(0, 0.2, WITHHELD, va="top")
    ax.set_title(tables.title_text(title, phantom))
    return ax


def prevalence(shares: pd.DataFrame, ax, *, floor: float, ceiling: float, phantom: bool):
    """The share of films with each label, by stage, from the `prevalence` record; lines at floor and ceiling."""
    dots(shares, ax, y="label", hue="stage", value="share", low="share", high="share")
    ax.axvline(floor, color="black", linewidth=1, linestyle="--", label=f"floor {floor:.0%}")
    ax.axvline(ceiling, color="black", linewidth=1, linestyle=":", label=f"ceiling {ceiling:.0%}")
    ax.set(xlim=(0, None), xlabel="share of films that show the label")
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set_title(tables.title_text("Each label before and after sampling", phantom))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=3, borderaxespad=0)
    return ax


def cooccurrence(shares: pd.DataFrame, ax, *, phantom: bool):
    """Of the films with the row's label, the share that also have the column's label, from `describe.cooccurrence`."""
    import seaborn as sns

    whole = shares.mul(100)
    sns.heatmap(whole, ax=ax, cmap="cividis", vmin=0, vmax=100, annot=True, fmt=".0f", square=True, cbar=False)
    ax.set(xlabel="… show this one too (%)", ylabel="Of the films that show this label …")
    ax.tick_params(axis="x", rotation=90)
    ax.set_title(tables.title_text("Which labels come together", phantom))
    return ax


def boxed(findings: pd.DataFrame, axes: Iterable, *, phantom: bool):
    """One film for each finding, with the finding's box, each on its own Axes.

    `findings` has the finding as its index and columns `image` (path) and `box` (`Box`; corners as fractions of the
    film; None if not known), see `describe.clearest_films`.
    """
    import seaborn as sns
    from matplotlib.patches import Rectangle
    from PIL import Image

    color = sns.color_palette("colorblind")[1]
    axes = list(axes)
    for ax, (finding, image, box) in zip(axes, findings[["image", "box"]].itertuples(), strict=False):
        ax.imshow(np.asarray(Image.open(image).convert("L")), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
        ax.set_title(finding, fontsize="small")
        if box is not None:
            corner, width, height = (box.x0, box.y0), box.x1 - box.x0, box.y1 - box.y0
            ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.8))
    if findings.empty:
        axes[0].text(0, 0.5, WITHHELD)
    for ax in axes:
        ax.axis("off")
    axes[0].figure.suptitle(tables.title_text("One example film per finding", phantom), fontsize="medium")
    return axes


def film_beside_text(films: pd.DataFrame, *, phantom: bool) -> str:
    """Films with a text each, as HTML: `image` (path), `film`, `labels` (list), `text` (escaped)."""
    import base64
    from html import escape
    from pathlib import Path

    rows = []
    for film in films.itertuples():
        pixels = base64.b64encode(Path(film.image).read_bytes()).decode()
        named = f"{film.film}, labeled {', '.join(film.labels) or 'nothing'}"
        about = escape(f"Phantom film {named}" if phantom else f"Film {named}")
        rows.append(
            f'<tr><td><img style="width:160px;max-width:none" src="data:image/png;base64,{pixels}" alt="{about}"></td>'
            f'<td style="text-align:left"><b>{about}</b><br>{escape(film.text)}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>" if rows else f"<p>{WITHHELD}</p>"


def _words(column: str) -> str:
    """A column name as an axis label: `macro_f1` becomes macro-F1."""
    return column.replace("_f1", "-F1").replace("_", " ")


def _legend(ax) -> None:
    """One legend below all panels of a figure."""
    handles, names = ax.get_legend_handles_labels()
    ax.figure.legend(handles, names, loc="outside lower center", ncols=3 if max(map(len, names), default=0) < 30 else 2)
