"""Text and tables of records as Markdown for the book's pages."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def code(text: str) -> str:
    """`text` as Markdown code that may stand in a table."""
    return escape(text) if "`" in text else f"`{text}`".replace("|", r"\|")


def escape(text: str) -> str:
    """`text` as Markdown that shows it as it is: no punctuation of it is markup."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
