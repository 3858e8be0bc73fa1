"""Text and tables as Markdown for the pages of the book."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], look: str) -> str:
    """A table whose cells are Markdown; `look` is its class in `book/_static/book.css`."""
    grid = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
    return f"```{{table}}\n:class: {look}\n\n{grid}\n```"


def code(text: str) -> str:
    """`text` as Markdown code, also inside a table."""
    return escape(text) if "`" in text else f"`{text}`".replace("|", r"\|")


def escape(text: str) -> str:
    """`text` as Markdown in which no punctuation is markup."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
