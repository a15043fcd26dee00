"""``python -m lit_fedbabu.report RUN...``: tables (Markdown, CSV) and figures (PNG, SVG) from run folders."""

import argparse
import sys
from pathlib import Path

from lit_fedbabu.errors import one_line_errors
from lit_fedbabu.files import make_folder, write_whole
from lit_fedbabu.reporting.compare import by_method, read_run
from lit_fedbabu.reporting.tables import as_csv, finetuning_table, markdown, measure_table, method_table


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.report",
        description="Make tables and figures from run folders. Runs that differ only in their seed make one row.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to (re)write the files; %(default)s")
    arguments = parser.parse_args(argv)
    methods = by_method([read_run(folder) for folder in arguments.folders])
    make_folder("--out", arguments.out)
    tables = {"methods": method_table, "finetuning": finetuning_table, "measures": measure_table}
    for name, rows in ((name, of(methods)) for name, of in tables.items()):
        if not rows:
            continue
        write_whole(arguments.out / f"{name}.md", markdown(rows))
        write_whole(arguments.out / f"{name}.csv", as_csv(rows))
        print(markdown(rows))
    from lit_fedbabu.reporting import figures  # imports matplotlib, which takes long: first refuse bad input

    for path in figures.draw(methods, arguments.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
