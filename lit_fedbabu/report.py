"""``lit-fedbabu report RUN...``: a page, tables and figures that compare runs."""

import sys
from pathlib import Path

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.printing import waiting


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu report",
        description="Compare runs: report.html, every table as Markdown, CSV and LaTeX, every figure as PNG and SVG."
        " Runs that differ only in their seed make one row.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to (re)write the files; %(default)s")
    parser.add_argument(
        "--reference",
        default="",
        metavar="METHOD",
        help="the method that others are compared with, by its name in the tables; FedBABU, or the first if it is not"
        " there",
    )
    complete(parser)
    arguments = parser.parse_args(argv)
    with waiting("reading runs, then drawing figures"):
        from lit_fedbabu.reporting.files import write_report

        write_report(arguments.folders, arguments.out, arguments.reference)
    return 0


if __name__ == "__main__":
    sys.exit(main())
