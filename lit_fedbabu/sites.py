"""``lit-fedbabu sites RUN``: the sites of a run on real machines, as its server has written them down."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.printing import in_line, say
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.sites import COLUMNS, SITES, cells, read

LEAST_NAME = 5
"""Characters that are left of names where the table is too wide."""
STALE_S = 120.0
"""Seconds after which a file that was not written again is spoken of: it is written every 15 s."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu sites",
        description="Show a run's sites: since when each is registered and there, the last round that it trained in,"
        " its failures, what it has spent of its privacy, and what is next for it.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, on the server")
    complete(parser)
    folder: Path = parser.parse_args(argv).folder
    config = run_folder.read_config(folder)
    if not config.on_sites:
        what = "its clients are all on this machine, and sites is for runs on real ones (partitioner=sites)"
        raise InputError("RUN", str(folder), f"{what}; report.html in it shows its clients")
    if not (folder / SITES).exists():
        say(f"no site has taken part yet; the run waits until num-clients = {config.num_clients} sites are there")
        return 0
    content = read(folder)
    say(content["state"])
    for line in _lines(content["sites"], shutil.get_terminal_size().columns):
        say(line)
    age = time.time() - content["written"]
    if content["going"] and age > STALE_S:
        told = timedelta(seconds=round(age))
        say(f"note: this was written {told} ago: the server no longer does the run, or its machine stands still")
    return 0


def _lines(sites: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """The table in so many characters: names give way, then what is next goes below it; numbers stay whole."""
    columns, rows = cells(sites)
    table = [columns, *([in_line(value) for value in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    name = columns.index(COLUMNS["name"]) if COLUMNS["name"] in columns else None
    spare = max(0, widths[name] - LEAST_NAME) if name is not None else 0
    below: list[str] = []
    if sum(widths) + len(widths) - 1 - spare > width:
        below = [f"site {row[0]}: {row[-1]}" for row in table[1:]]
        table, widths = [row[:-1] for row in table], widths[:-1]
    if name is not None and (over := sum(widths) + len(widths) - 1 - width) > 0:
        widths[name] -= min(over, spare)
        for row in table:
            whole = row[name]
            row[name] = whole if cell_len(whole) <= widths[name] else f"{set_cell_size(whole, widths[name] - 1)}…"
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    right = [column in (COLUMNS["round"], COLUMNS["epsilon"]) for column in columns]
    lines = [
        gap.join(
            " " * (to - cell_len(value)) + value if is_right else set_cell_size(value, to)
            for value, to, is_right in zip(row, widths, right, strict=False)
        ).rstrip()
        for row in table
    ]
    return [*lines, *below]


if __name__ == "__main__":
    sys.exit(main())
