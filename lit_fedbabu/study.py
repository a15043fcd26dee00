"""``lit-fedbabu study STUDY.toml``: many runs that differ in a few options, and the report that compares them."""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lit_fedbabu.errors import RunError, one_line_errors
from lit_fedbabu.files import make_folder, refuse_unwritable
from lit_fedbabu.studies.plan import Run, Study, read_study
from lit_fedbabu.system import configs_folder
from lit_fedbabu.workers.worker import Warm, threads

if TYPE_CHECKING:
    from rich.live import Live

REPORT = "report"
"""In a study's folder: what ``lit-fedbabu report`` writes."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.study",
        description="Do all runs of a study that are not done yet, side by side, and compare them. A study that was"
        " stopped, at whatever moment, is finished by the same command.",
    )
    about = "options; those with a list are axes; or the name of a shipped study: digits, cifar10"
    parser.add_argument("file", type=Path, metavar="STUDY.toml", help=about)
    parser.add_argument("--dry-run", action="store_true", help="print the runs, their state and an estimate of time")
    parser.add_argument("--plain", action="store_true", help="print lines alone, without a live table")
    parser.add_argument(
        "--worker",
        action="store_true",
        help="take runs that nobody does, as one of several machines with the study's folder, and write no report",
    )
    arguments = parser.parse_args(argv)
    shipped = configs_folder() / "studies" / f"{arguments.file}.toml"
    study = read_study(shipped if shipped.is_file() and not arguments.file.exists() else arguments.file)
    refuse_unwritable("output-dir", study.folder)
    try:
        if arguments.dry_run:
            return _dry_run(study)
        return _do(study, arguments.plain, arguments.worker)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None


def _dry_run(study: Study) -> int:
    from lit_fedbabu.studies.work import is_done  # imports PyTorch, which takes seconds

    todo = []
    for run in study.runs:
        state = "done" if is_done(run.config) else "begun" if run.folder.exists() else "to do"
        print(f"{state:<6} {run.name}  {_told(_estimate(study, run))}")
        todo += [] if state == "done" else [run]
    known = [seconds for run in todo if (seconds := _estimate(study, run)) is not None]
    whole = _told(sum(known) / _side_by_side(study)) if len(known) == len(todo) else "unknown"
    print(f"{len(study.runs) - len(todo)} of {len(study.runs)} runs are done; the others take: {whole}")
    return 0


def _estimate(study: Study, run: Run) -> float | None:
    """Seconds that a run takes, by those of its algorithm that are done, else by all; None: none is done."""
    from lit_fedbabu.studies.work import times

    known = times(study.folder)
    alike = [known[each.name] for each in study.runs if each.name in known]
    same = [
        known[each.name] for each in study.runs if each.name in known and each.config.algorithm == run.config.algorithm
    ]
    return statistics.median(same or alike) if alike else None


def _told(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))


def _side_by_side(study: Study) -> int:
    from lit_fedbabu.engines.resources import worker_environments

    return min(len(worker_environments(run.config)) for run in study.runs)


def _do(study: Study, plain: bool, is_worker: bool) -> int:
    most_threads = max(run.config.num_threads for run in study.runs)
    with Warm("lit_fedbabu.studies.work:prepare", environment=threads(most_threads)) as warm:
        warm.start()
        print(f"checking {len(study.runs)} runs", flush=True)
        _check(study)
        make_folder("output-dir", study.folder)
        from lit_fedbabu.studies.work import is_done

        todo = [run for run in study.runs if not is_done(run.config)]
        failed, elsewhere = _work(study, todo, warm, plain)
    done = len(study.runs) - len(failed) - len(elsewhere)
    print(f"{done} of {len(study.runs)} runs are done")
    if elsewhere:
        print(f"{len(elsewhere)} runs are done by others at this moment: {', '.join(elsewhere)}")
    for name, reason in failed.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    if not is_worker and done:
        from lit_fedbabu.reporting.files import write_report

        ready = [run.folder for run in study.runs if run.name not in failed and run.name not in elsewhere]
        write_report(ready, study.folder / REPORT)
    return int(bool(failed))


def _check(study: Study) -> None:
    """Check one run of every kind: what differs in the seed alone is alike."""
    import dataclasses

    from lit_fedbabu.experiment import Experiment

    seen = set()
    for run in study.runs:
        kind = dataclasses.replace(run.config, seed=0, run_name="")
        if kind not in seen:
            seen.add(kind)
            Experiment(run.config).check()


def _work(study: Study, todo: Sequence[Run], warm: Warm, plain: bool) -> tuple[dict[str, str], list[str]]:
    """Do these runs; returns the failed ones with their reasons, and those that others do.

    Raises:
        RunError: no worker can be started.
    """
    from lit_fedbabu.engines.resources import worker_environments
    from lit_fedbabu.studies.work import DONE
    from lit_fedbabu.workers.pool import Pool
    from lit_fedbabu.workers.worker import StartError

    size = _side_by_side(study)
    environments = worker_environments(study.runs[0].config)[:size]
    failed: dict[str, str] = {}
    elsewhere: list[str] = []
    with (
        _shown(todo, plain) as show,
        Pool(warm, size, environments, str(study.folder / "workers.log"), show.say) as pool,
    ):
        try:
            for place, outcome in pool.answers("lit_fedbabu.studies.work:work", [(run.config,) for run in todo]):
                run = todo[place]
                if isinstance(outcome, Exception):
                    failed[run.name] = f"{outcome}; {run.folder}.log has what it printed"
                elif outcome != DONE:
                    elsewhere.append(run.name)
                show.ended(run, "failed" if run.name in failed else outcome)
        except StartError as error:
            raise RunError(str(error)) from None
    return failed, elsewhere


class _Shown:
    """Shows which runs have ended: by lines and, where there is one, in a live table."""

    def __init__(self, todo: Sequence[Run], live: "Live | None") -> None:
        self._todo, self._live, self._states = todo, live, dict[str, str]()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line, markup=False, highlight=False)

    def ended(self, run: Run, state: str) -> None:
        """A run has ended."""
        from lit_fedbabu.records.results import read_results

        accuracy = ""
        if state == "done":
            over = read_results(run.folder)["summary"]["personalized_accuracy"]
            accuracy = f"  personalized accuracy {100 * over['mean']:.2f} ± {100 * over['std']:.2f} %"
        self._states[run.name] = state
        self.say(f"{len(self._states)}/{len(self._todo)}  {run.name}  {state}{accuracy}")
        if self._live is not None:
            self._live.update(self.table())

    def table(self) -> str:
        """The live line below: how many runs have ended, and which are next."""
        waiting = [run.name for run in self._todo if run.name not in self._states]
        return (
            f"{len(self._states)} of {len(self._todo)} runs have ended; now {', '.join(waiting[:2])}" if waiting else ""
        )


@contextmanager
def _shown(todo: Sequence[Run], plain: bool) -> Iterator[_Shown]:
    if plain or not sys.stdout.isatty():
        yield _Shown(todo, None)
        return
    from rich.live import Live

    with Live(transient=True, auto_refresh=False) as live:
        shown = _Shown(todo, live)
        live.update(shown.table(), refresh=True)
        yield shown


if __name__ == "__main__":
    sys.exit(main())
