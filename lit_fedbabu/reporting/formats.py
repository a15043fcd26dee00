"""A table as Markdown, CSV and LaTeX. Every cell may come from a run's folder, and none is read as markup."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lit_fedbabu.ground.printing import in_line, in_markdown

NUMBER = re.compile(r"[<+-]?\d+(\.\d+)?")
MEASURE = re.compile(r"[<+-]?\d[\d .,±+\-\[\]%]*")
"""A number, also with its deviation or interval."""
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with the same columns.

    Args:
        name: of its files.
        title: what it shows.
        rows: at least one; each has the columns in the same order.
        note: what a reader must know of its numbers.
    """

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    note: str = ""

    @property
    def numeric(self) -> list[str]:
        """Columns of numbers, which stand to the right."""
        return [
            column
            for column in self.rows[0]
            if all(row[column] == "" or NUMBER.fullmatch(str(row[column])) for row in self.rows)
        ]


def files(table: Table) -> dict[str, str]:
    """The contents of the table's files by their suffix."""
    return {".md": markdown(table), ".csv": as_csv(table), ".tex": latex(table)}


def as_csv(table: Table) -> str:
    """Text that a spreadsheet would take for a formula gets a quotation mark."""

    def cell(value: Any) -> str:
        text = in_line(str(value))
        return f"'{text}" if text[:1] in tuple("=+-@") and not NUMBER.match(text) else text

    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(map(cell, table.rows[0]))
    writer.writerows(map(cell, row.values()) for row in table.rows)
    return file.getvalue()


def markdown(table: Table) -> str:
    """Numbers stand to the right."""

    def cell(value: Any) -> str:
        return str(value).replace("<", "&lt;") if MEASURE.fullmatch(str(value)) else in_markdown(str(value))

    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(map(str, cells))} |\n"

    rule = ["---:" if column in table.numeric else "---" for column in table.rows[0]]
    body = "".join(line(map(cell, row.values())) for row in table.rows)
    return line(map(cell, table.rows[0])) + line(rule) + body


def latex(table: Table) -> str:
    r"""For ``\usepackage{booktabs}``; UTF-8 in the names needs nothing more in today's LaTeX."""

    def cell(value: Any) -> str:
        return "".join(LATEX.get(each, each) for each in in_line(str(value)))

    def line(cells: Iterable[Any]) -> str:
        return f"{' & '.join(map(cell, cells))} \\\\\n"

    columns = "".join("r" if column in table.numeric else "l" for column in table.rows[0])
    body = "".join(line(row.values()) for row in table.rows)
    head = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(table.rows[0])}\\midrule\n"
    return f"{head}{body}\\bottomrule\n\\end{{tabular}}\n"
