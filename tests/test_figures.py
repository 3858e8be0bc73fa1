"""Figures draw what their table says, can be read without colour, and say phantom where it is phantom."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from chexreason.display import figures, tables

matplotlib.use("Agg")


@pytest.fixture
def axes():
    from matplotlib import pyplot as plt

    figures.style()
    figure, axes = plt.subplots(1, 3)
    yield axes
    plt.close(figure)


@pytest.fixture
def overall():
    rows = [("untuned", "b", 0.2), ("grpo", "b", 0.6), ("untuned", "c", 0.3), ("grpo", "c", np.nan)]
    table = pd.DataFrame(rows, columns=["model", "dataset", "macro_f1"])
    return table.assign(macro_f1_low=table["macro_f1"] - 0.1, macro_f1_high=table["macro_f1"] + 0.1)


@pytest.fixture
def scores():
    rows = [("b", "Edema", 5, 0.5), ("b", "Fracture", 0, np.nan), ("c", "Edema", 7, 0.4), ("c", "Fracture", 2, 0.1)]
    table = pd.DataFrame(rows, columns=["dataset", "label", "support", "f1"])
    return table.assign(model="untuned", f1_low=table["f1"] - 0.1, f1_high=table["f1"] + 0.1)


def drawn(ax):
    """The dots of each series: name -> values."""
    return {line.get_label(): list(line.get_xdata()) for line in ax.lines if not line.get_label().startswith("_")}


def test_intervals_draw_each_defined_score_with_its_bar(overall, axes):
    ax = figures.intervals(overall, axes[0], phantom=True)
    assert ax is axes[0] and drawn(ax) == {"untuned": [0.2, 0.3], "grpo": [0.6]}
    bars = [tuple(np.round(segment[:, 0], 6)) for each in ax.collections for segment in each.get_segments()]
    assert sorted(bars) == [(0.1, 0.3), (0.2, 0.4), (0.5, 0.7)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c"]
    assert "phantom" in ax.get_title(loc="left")


def test_series_differ_in_marker_as_well_as_in_colour(overall, axes):
    ax = figures.intervals(overall, axes[0], phantom=False)
    lines = [line for line in ax.lines if line.get_label() in ("untuned", "grpo")]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 2
    assert "phantom" not in ax.get_title(loc="left")


def test_series_of_one_place_do_not_hide_each_other(overall, axes):
    ax = figures.intervals(overall, axes[0], phantom=True)
    heights = [height for line in ax.lines for height in line.get_ydata()]
    assert len(set(heights)) == len(heights) == 3


def test_a_place_of_one_row_has_its_dot_beside_its_name(axes):
    rows = pd.DataFrame({"place": ["1 · b", "1 · c"], "verdict": ["not told", "otherwise"], "difference": [0.1, 0.2]})
    rows = rows.assign(low=0.0, high=0.3)
    ax = figures.dots(rows, axes[0], y="place", hue="verdict", value="difference", low="low", high="high")
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.0], [1.0]]


def test_tension_shows_gains_and_losses_about_zero(axes):
    rows = [("m/sft → grpo", "b", 0.1), ("m/sft → grpo", "c", -0.1)]
    gains = pd.DataFrame(rows, columns=["step", "dataset", "difference"])
    gains = gains.assign(low=gains["difference"] - 0.05, high=gains["difference"] + 0.05)
    ax = figures.step_gains(gains, axes[0], phantom=True)
    assert drawn(ax) == {"b": [0.1], "c": [-0.1]}
    assert "loss" in ax.get_xlabel() and "gain" in ax.get_xlabel() and "phantom" in ax.get_title(loc="left")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["m/sft\n→ grpo"]


def test_journeys_are_a_line_a_model_with_a_bar_at_either_end(axes):
    transfer = pd.DataFrame({"model": ["m/sft", "m/grpo"], "in_domain": "b", "out_of_domain": "c"})
    transfer = transfer.assign(in_domain_macro_f1=[0.3, 0.5], out_of_domain_macro_f1=[0.2, np.nan])
    for end in ("in_domain", "out_of_domain"):
        score = transfer[f"{end}_macro_f1"]
        transfer = transfer.assign(**{f"{end}_macro_f1_low": score - 0.1, f"{end}_macro_f1_high": score + 0.1})
    ax = figures.transfer_gaps(transfer, axes[0], phantom=True)
    assert {line.get_label(): list(line.get_ydata())[:1] for line in ax.lines} == {"m/sft": [0.3], "m/grpo": [0.5]}
    segments = [segment for each in ax.collections for segment in each.get_segments() if len(segment)]
    bars = [tuple(np.round(segment[:, 1], 6)) for segment in segments]
    assert sorted(bars) == [(0.1, 0.3), (0.2, 0.4), (0.4, 0.6)]  # an undefined score has no bar
    assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "c"]
    assert len({line.get_marker() for line in ax.lines}) == 2 and "phantom" in ax.get_title(loc="left")


def test_nothing_to_compare_draws_empty_axes(axes):
    gains = pd.DataFrame(columns=["step", "dataset", "difference", "low", "high"], dtype=object)
    assert drawn(figures.step_gains(gains, axes[0], phantom=True)) == {}


def test_panels_draw_a_data_set_each_and_hide_the_rest(scores, axes):
    figures.panels(figures.label_dots, scores, axes, by="dataset", phantom=True)
    assert [ax.get_title(loc="left") for ax in axes] == ["b (phantom films)", "c (phantom films)", ""]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["Edema (5)", "Fracture (0)"]
    assert drawn(axes[0]) == {"untuned": [0.5]}  # a label without positives keeps its place and shows no score
    assert not axes[2].axison and len(axes[0].figure.legends) == 1


def test_a_curve_is_the_moving_average_with_the_raw_values_faint(axes):
    log = pd.DataFrame({"step": range(5), "reward": [0.0, 1, 0, 1, np.nan]})
    bold, faint = figures.curve(log, axes[0], y="reward", phantom=True, span=3).lines
    assert list(faint.get_ydata()) == [0, 1, 0, 1] and faint.get_alpha() < 0.5
    assert np.ptp(bold.get_ydata()) < 1 and bold.get_linewidth() > faint.get_linewidth()
    (plain,) = figures.curve(log, axes[1], y="reward", phantom=True, span=1).lines
    assert list(plain.get_ydata()) == [0, 1, 0, 1]


def test_curves_draw_a_column_each(axes):
    log = pd.DataFrame({"step": [1, 2], "kl": [0.0, 0.1], "entropy": [1.0, 0.9], "completion_length": [80, 90]})
    figures.curves(log, axes, columns=["kl", "entropy", "completion_length"], phantom=True)
    assert [ax.get_ylabel() for ax in axes] == ["kl", "entropy", "completion length"]
    with pytest.raises(ValueError, match="shorter"):
        figures.curves(log, axes, columns=["kl"], phantom=True)


def test_learning_tells_films_trained_on_from_films_held_out(axes):
    log = pd.DataFrame({"step": [1, 2, 2], "split": ["train", "train", "eval"], "loss": [3.0, 2, 2.5]})
    figures.learning(log.assign(token_accuracy=0.5), axes[:2], phantom=True)
    assert {line.get_label() for line in axes[0].lines} >= {"trained on", "held out"}


def test_contact_sheet_shows_every_film_whether_file_or_array(axes, tmp_path):
    from PIL import Image

    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    captions = ["Edema", "No Finding $1", "a caption so long that it does not fit into three lines of text " * 2]
    films = pd.DataFrame({"image": [pixels, tmp_path / "film.png", pixels], "caption": captions})
    ax = figures.contact_sheet(films, axes[0], columns=2, phantom=True)
    assert len(ax.images) == 3 and all((image.get_array() == pixels).all() for image in ax.images)
    corners = [(image.get_extent()[0], image.get_extent()[3]) for image in ax.images]  # left, top
    assert corners[0][1] == corners[1][1] < corners[2][1] and corners[0][0] == corners[2][0] < corners[1][0]
    assert ax.texts[2].get_text().count("\n") == 2 and ax.texts[2].get_text().endswith("…")
    ax.figure.canvas.draw()  # a dollar sign is no formula


def test_a_table_is_shown_escaped_rounded_and_named(recwarn):
    table = pd.DataFrame({"reply": ["<b>Edema</b>"], "f1": [1 / 3], "low": [np.nan]})
    html = tables.styled_table(table, "Replies", phantom=True).to_html()
    assert "&lt;b&gt;Edema" in html and "0.333" in html and "–" in html and "Replies (phantom films)" in html
    assert html == tables.styled_table(table, "Replies", phantom=True).to_html()


def test_prevalence_puts_each_share_at_its_place_between_floor_and_ceiling(axes):
    shares = pd.DataFrame({"label": ["Edema", "Edema"], "stage": ["pool", "sft"], "share": [0.02, 0.06]})
    ax = figures.prevalence(shares, axes[0], floor=0.05, ceiling=0.25, phantom=True)
    drawn = {line.get_label(): line.get_xdata()[0] for line in ax.lines}
    assert drawn == {"pool": 0.02, "sft": 0.06, "floor 5%": 0.05, "ceiling 25%": 0.25}
    assert "phantom" in ax.get_title("left")


def test_cooccurrence_writes_the_share_of_the_rows_films_in_percent(axes):
    shares = pd.DataFrame([[1.0, 0.25], [0.5, 1.0]], index=["Edema", "Fracture"], columns=["Edema", "Fracture"])
    ax = figures.cooccurrence(shares, axes[0], phantom=True)
    assert [text.get_text() for text in ax.texts] == ["100", "25", "50", "100"]
    assert "phantom" in ax.get_title("left")


def test_boxes_lie_where_the_finding_is(axes, tmp_path):
    from PIL import Image

    from chexreason.data.phantom.drawing import Box

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "film.png")
    box = Box("Edema", 0.25, 0.5, 0.75, 0.625, "both", "mid", 0.9)
    figures.boxed(pd.DataFrame({"image": [tmp_path / "film.png"], "box": [box]}, index=["Edema"]), axes, phantom=True)
    (drawn,) = axes[0].patches
    assert drawn.get_bbox().extents.tolist() == [0.25, 0.5, 0.75, 0.625]
    assert axes[0].get_title("left") == "Edema" and not axes[1].axison
    assert "phantom" in axes[0].figure.get_suptitle()


def test_what_was_written_beside_a_film_is_escaped(tmp_path):
    (tmp_path / "film.png").write_bytes(b"pixels")
    film = {"film": "a-p1", "image": str(tmp_path / "film.png"), "labels": ["Edema"], "text": "<think>x</think>"}
    html = figures.film_beside_text(pd.DataFrame([film]), phantom=True)
    assert "&lt;think&gt;x" in html and "<think>" not in html
    assert "data:image/png;base64,cGl4ZWxz" in html and 'alt="Phantom film a-p1, labeled Edema"' in html


def test_a_value_and_its_interval_are_read_from_one_cell():
    table = pd.DataFrame(
        {"model": ["a", "b"], "f1": [0.5, np.nan], "f1_low": [0.4, np.nan], "f1_high": [0.625, np.nan]}
        | {"difference": [-0.01, 0.02], "low": [-0.03, 0.0], "high": [0.01, 0.04], "n": [3, 4]}
    )
    compact = tables.compact(table)
    assert list(compact) == ["model", "f1", "difference", "n"]
    assert list(compact["f1"]) == ["0.500 (0.400\u00a0to\u00a00.625)", "–"]
    assert list(compact["difference"]) == ["-0.010 (-0.030\u00a0to\u00a0+0.010)", "+0.020 (+0.000\u00a0to\u00a0+0.040)"]
