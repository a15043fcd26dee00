"""A report as files: the page, and every table and figure by itself."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lit_fedbabu.ground.files import new_folder, write_whole
from lit_fedbabu.ground.printing import say
from lit_fedbabu.reporting.compare import Study, read_study
from lit_fedbabu.reporting.runs import Unfinished

PAGE = "report.html"
SUFFIXES = (".csv", ".md", ".png", ".svg", ".tex")
"""Of files of a report beside its page."""


def write_report(folders: Sequence[Path], out: Path, reference: str = "", failed: Sequence[Unfinished] = ()) -> None:
    """Compare runs, write the files and print their names.

    Args:
        folders: of the runs.
        out: folder for the files; those of an earlier report are written anew.
        reference: the method that others are compared with; "": FedBABU, or the first.
        failed: runs that have no results, as was told already; the report names them, too.

    Raises:
        InputError: a run cannot be read, or none is finished.
    """
    study = read_study(folders, reference, failed)
    with new_folder("--out", out, rewritten=True) as scratch:
        drawn = _written(study, scratch, failed)
        names = {path.name for path in scratch.iterdir()}
    for name in drawn:
        say(out / name)
    if earlier := [path for path in out.iterdir() if path.suffix in SUFFIXES and path.name not in names]:
        say(f"note: beside this report, and not of it: {', '.join(sorted(map(str, earlier)))}", sys.stderr)
    say(out / PAGE)


def _written(study: Study, out: Path, failed: Sequence[Unfinished]) -> list[str]:
    """Write a report; returns the names of its figures."""
    for run in (run for run in study.unfinished if run not in failed):
        say(f"note: {run.folder} has no results, {run.reason}", sys.stderr)
    from lit_fedbabu.records.plots import style  # imports Matplotlib, which takes long: first refuse bad input
    from lit_fedbabu.reporting import formats
    from lit_fedbabu.reporting.page import page
    from lit_fedbabu.reporting.panels import written
    from lit_fedbabu.reporting.sections import sections

    content, names = sections(study), []
    for section in content:
        for table in section.tables:
            for suffix, text in formats.files(table).items():
                write_whole(out / f"{table.name}{suffix}", text)
    for table in content[0].tables:
        say(formats.markdown(table))
    with warnings.catch_warnings(record=True) as warned:
        for section in content:
            for sentence in section.words:
                say(sentence)
            with style():
                for drawing in section.drawings:
                    names += [path.name for path in written(drawing, out)]
        write_whole(out / PAGE, page(study, content))
    lacking = [each for each in warned if "missing from font" in str(each.message)]
    for each in (each for each in warned if each not in lacking):
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    if lacking:
        say("note: names in PNG files have boxes for letters that no font here has; SVG and page have the letters")
    return names
