"""What `make soak` tried: every long test and fuzzer adds a row, and `python tests/soak.py` prints them as a table."""

import csv
import os
import sys
from pathlib import Path

TABLE = Path(os.environ.get("SOAK_TABLE", Path(__file__).resolve().parent.parent / "runs" / "soak.csv"))


def row(what: str, tried: int, survived: int) -> None:
    """Add to the table what was tried, how often, and how many of these it survived."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("a", newline="", encoding="utf-8") as file:  # one short write: rows of two processes do not mix
        csv.writer(file).writerow([what, tried, survived])


def main() -> int:
    """Print the table; 1 when something was not survived, or nothing was tried."""
    rows = []
    if TABLE.exists():
        with TABLE.open(newline="", encoding="utf-8") as file:
            rows = sorted((what, int(tried), int(survived)) for what, tried, survived in csv.reader(file))
    width = max([len(what) for what, *_ in rows], default=0)
    print(f"{'tried':{width}}  {'times':>9}  {'survived':>9}")
    for what, tried, survived in rows:
        print(f"{what:{width}}  {tried:>9,}  {survived:>9,}")
    return int(not rows or any(survived < tried for _, tried, survived in rows))


if __name__ == "__main__":
    sys.exit(main())
