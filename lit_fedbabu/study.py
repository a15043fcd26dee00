"""``lit-fedbabu study STUDY.toml``: many runs that differ in a few options, and the report that compares them."""

import sys
from datetime import timedelta
from pathlib import Path

from lit_fedbabu.completion import Parser, complete, option_words, studies
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import one_line_errors
from lit_fedbabu.ground.files import refuse_unwritable
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.stops import STOPS
from lit_fedbabu.ground.system import configs_folder
from lit_fedbabu.studies.conduct import do
from lit_fedbabu.studies.nodes import joined
from lit_fedbabu.studies.plan import Study, read_study, refuse_other_studies
from lit_fedbabu.studies.slurm import submit


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu study",
        description="Do all runs of a study that are not done yet, side by side, and compare them. A study that was"
        " stopped, at whatever moment, is finished by the same command.",
    )
    about = "options; those with a list are axes; or the name of a shipped study, as digits or field"
    parser.add_argument("file", type=Path, metavar="STUDY.toml", help=about)
    about = "options for all runs, in place of the file's; of an axis its values, as in seed=1 or seed=[1,2]"
    parser.add_argument("words", nargs="*", default=[], metavar="key=value", help=about)
    parser.add_argument("--plain", action="store_true", help="print lines alone, without a live table")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--dry-run", action="store_true", help="print the runs, their state and an estimate of time")
    one_of.add_argument(
        "--worker",
        action="store_true",
        help="take runs that nobody does, as one of several machines with the study's folder, and write no report",
    )
    about = "submit JOBS jobs to Slurm, each such a worker with the resources of the study's table [slurm]"
    one_of.add_argument("--slurm", type=int, metavar="JOBS", help=about)
    about = "let the other nodes of the Ray cluster at auto or host:port do runs too, which share the study's folder"
    one_of.add_argument("--ray", default="", metavar="ADDRESS", help=about)
    complete(parser, file=studies, words=option_words)
    arguments = parser.parse_intermixed_args(argv)
    shipped = configs_folder() / "studies" / f"{arguments.file}.toml"
    given = parse_words(arguments.words)
    study = read_study(shipped if shipped.is_file() and not arguments.file.exists() else arguments.file, given)
    refuse_unwritable("output-dir", study.folder)
    for note in study.repeated():
        say(note)
    try:
        if arguments.dry_run:
            return _dry_run(study)
        if arguments.slurm is not None:
            return submit(study, arguments.slurm)
        with joined(study, arguments.ray) as others:
            return do(study, arguments.plain, arguments.worker, 1 + others)
    except STOPS as stop:
        stop.add_note("the same command goes on from here")
        raise


def _dry_run(study: Study) -> int:
    from lit_fedbabu.studies.shares import shares, workers_of
    from lit_fedbabu.studies.tuning import chosen, tuning_of
    from lit_fedbabu.studies.work import is_done, times  # imports PyTorch, which takes seconds

    tuning = tuning_of(study)
    if tuning is not None:
        refuse_other_studies(tuning.study)
        tried = sum(is_done(run.config) for run in tuning.study.runs)
        say(f"{tried} of {len(tuning.study.runs)} runs of the tuning are done")
        if tried < len(tuning.study.runs):
            say(f"the {len(study.runs)} runs of the study come after the tuning, with the options that it chooses")
            return 0
        study, _ = chosen(study, tuning, {})
    refuse_other_studies(study)
    known = times(study.folder)
    todo = []
    for run in study.runs:
        state = "done" if is_done(run.config) else "begun" if run.folder.exists() else "to do"
        say(f"{state:<6} {run.name}  {_told(study.estimate(run, known))}")
        todo += [] if state == "done" else [run]
    estimates = [seconds for run in todo if (seconds := study.estimate(run, known)) is not None]
    at_once = len(shares(workers_of(study), len(todo)))
    whole = _told(sum(estimates) / at_once) if len(estimates) == len(todo) else "unknown"
    say(f"{len(study.runs) - len(todo)} of {len(study.runs)} runs are done; the others take: {whole}")
    return 0


def _told(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
