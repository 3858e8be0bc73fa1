"""Tables for the book: captions, compact columns, values with their intervals."""

import numpy as np
import pandas as pd

NAMING = ("model", "seed", "label_set", "metric")
SHORT = 12  # letters; a cell of so many is not broken over lines


def title_text(text: str, phantom: bool) -> str:
    """A title or caption, with "(phantom films)" if it is about phantoms."""
    return f"{text} (phantom films)" if phantom else text


def styled_table(table: pd.DataFrame, caption: str, *, phantom: bool):
    """`table` for a notebook: with a caption, three decimals, a dash for undefined values, and escaped text.

    Short texts, such as names of data sets, are not broken over lines; a heading may be broken after an underscore.
    """
    from html import escape

    from pandas.io.formats.style import Styler

    name = "".join(letter for letter in caption.lower() if letter.isalnum())  # a fixed name: the same page every time
    look = Styler(table, uuid=name, cell_ids=False, caption=escape(title_text(caption, phantom)))
    look.set_table_styles([{"selector": "caption", "props": "text-align: left"}])
    short = [column for column, cells in table.select_dtypes("str").items() if cells.str.len().max() <= SHORT]
    on_a_line = [{"selector": "td", "props": "white-space: nowrap"}]
    look.set_table_styles({column: on_a_line for column in short}, overwrite=False)
    look.format(precision=3, na_rep="–", escape="html")
    look.format_index(lambda name: escape(str(name)).replace("_", "_<wbr>"), axis="columns")
    return look.hide(axis="index")


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """`table` for readers: each `x`, `x_low` and `x_high` is one column of text, as in 0.80 (0.72 to 0.85).

    A column of `NAMING` with one value only is left out.
    """
    table = table.rename(columns={"low": "difference_low", "high": "difference_high"})
    constant = [name for name in NAMING if name in table and len(table) > 1 and table[name].nunique() == 1]
    table = table.drop(columns=constant)
    for name in [column for column in table if f"{column}_low" in table]:
        bounds = table[[name, f"{name}_low", f"{name}_high"]]
        sign = "+" if (bounds < 0).any(axis=None) else ""
        told = ["–" if np.isnan(row[0]) else estimate_text(*row, sign=sign) for row in bounds.to_numpy()]
        table = table.assign(**{name: told}).drop(columns=[f"{name}_low", f"{name}_high"])
    return table


def estimate_text(value: float, low: float, high: float, *, sign: str = "") -> str:
    """A value and its interval as text; `sign` is "+" for changes.

    A value without an interval (NaN: too few patients, see `metrics.score`) has a remark instead.
    """
    if np.isnan(low):
        return f"{value:{sign}.3f} (no\u00a0interval)"
    return f"{value:{sign}.3f} ({low:{sign}.3f}\u00a0to\u00a0{high:{sign}.3f})"
