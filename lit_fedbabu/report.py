"""``python -m lit_fedbabu.report RUN...``: a page, tables and figures that compare runs."""

import argparse
import sys
import warnings
from pathlib import Path

from lit_fedbabu.errors import one_line_errors
from lit_fedbabu.files import make_folder, write_whole

PAGE = "report.html"


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.report",
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
    arguments = parser.parse_args(argv)
    from lit_fedbabu.reporting.compare import read_study

    study = read_study(arguments.folders, arguments.reference)
    make_folder("--out", arguments.out)
    for folder in study.unfinished:
        print(f"note: {folder} has no results, it is not finished", file=sys.stderr)
    from lit_fedbabu.records.plots import style  # imports Matplotlib, which takes long: first refuse bad input
    from lit_fedbabu.reporting import formats
    from lit_fedbabu.reporting.page import page
    from lit_fedbabu.reporting.panels import written
    from lit_fedbabu.reporting.sections import sections

    content = sections(study)
    for section in content:
        for table in section.tables:
            for suffix, text in formats.files(table).items():
                write_whole(arguments.out / f"{table.name}{suffix}", text)
    for table in content[0].tables:
        print(formats.markdown(table))
    with warnings.catch_warnings(record=True) as warned:
        for section in content:
            for sentence in section.words:
                print(sentence)
            with style():
                for drawing in section.drawings:
                    for path in written(drawing, arguments.out):
                        print(path)
        write_whole(arguments.out / PAGE, page(study, content))
    lacking = [each for each in warned if "missing from font" in str(each.message)]
    for each in (each for each in warned if each not in lacking):
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    if lacking:
        print("note: names in PNG files have boxes for letters that no font here has; SVG and page have the letters")
    print(arguments.out / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
