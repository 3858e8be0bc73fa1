"""What was tried, how often, and how many survived: one row an attempt at breaking something, one table of them all.

`row` adds a line to the file that SOAK_TABLE names, so that tests in any process can; `python tests/soak.py` prints it.
"""

import json
import os
import sys
from pathlib import Path

TABLE = "SOAK_TABLE"
"""The environment variable that names the file of rows; without it rows are printed and not kept."""


def row(what: str, tried: int, survived: int) -> None:
    """Keep that `what` was tried `tried` times, and did `survived` times what it should."""
    line = json.dumps({"what": what, "tried": tried, "survived": survived})
    if file := os.environ.get(TABLE):
        with open(file, "a", encoding="utf-8") as table:
            table.write(line + "\n")
    else:
        print(line)


def told(file: Path) -> str:
    """The rows of a file as a table, and below it how many did not survive."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    width = max([4, *(len(each["what"]) for each in rows)])
    lines = [f"{'what':{width}} {'tried':>11} {'survived':>11}"]
    lines += [f"{each['what']:{width}} {each['tried']:>11,} {each['survived']:>11,}" for each in rows]
    return "\n".join([*lines, f"not survived: {sum(each['tried'] - each['survived'] for each in rows):,}"])


if __name__ == "__main__":
    print(told(Path(sys.argv[1] if len(sys.argv) > 1 else os.environ[TABLE])))
