"""What a person sees of a study while it lasts: a line for each run that ends and, on a terminal, a live table."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.records import live
from lit_fedbabu.records.results import read_results, score_of
from lit_fedbabu.studies.plan import Run, Study
from lit_fedbabu.studies.work import DONE, claim_of, log_of, times

ROUND = re.compile(r"^round (\d+)/(\d+) ")
SCORE = re.compile(r"(?:initial|personalized) \S+ (\S+ ± \S+)")
TAIL = 4096
"""Characters at the end of a run's log that are read."""
SHOWN = 8
"""Runs under way that have a row; more are counted."""


class Shown:
    """Shows which runs have ended and, where there is a table, how far others are.

    Args:
        study: whose runs they are.
        todo: those that are to be done.
        console: of the table; None: lines alone.
    """

    def __init__(self, study: Study, todo: Sequence[Run], console: Console | None) -> None:
        self._study, self._todo, self._console = study, todo, console
        self._ended: dict[str, str] = {}
        self._reached: dict[str, str] = {}
        self._begun = self._newest = time.monotonic()
        self._waiting = ""
        self.write()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._console is None:
            say(line)
        else:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def ended(self, run: Run, state: str) -> None:
        """A run has ended, or is left to others."""
        reached = ""
        if state == DONE:
            outcome = read_results(run.folder)
            score = score_of(outcome)
            over = outcome["summary"][f"personalized_{score.name}"]
            reached = (
                f"  personalized {score.name} {score.shown(over['mean'])} ± {score.shown(over['std'])}{score.unit}"
            )
        self._ended[run.name] = state
        self._newest = time.monotonic()
        self._reached[run.name] = reached.strip()
        self.write()
        self.say(f"{len(self._ended)}/{len(self._todo)}  {run.name}  {state}{reached}")

    def waits(self, runs: Sequence[Run]) -> None:
        """Nothing is left to do but what others do."""
        names = ", ".join(sorted(run.name for run in runs))
        if names != self._waiting:
            self._waiting = names
            self.say(f"waiting for others, who do: {names}")

    def write(self, stopped: str = "") -> None:
        """Write the study's page; ``stopped``: why it does not go on."""
        todo = {run.name for run in self._todo}
        rows = []
        for run in self._study.runs:
            going = run.name in todo and run.name not in self._ended and claim_of(run.folder).exists()
            state = self._ended.get(run.name, "under way" if going else "to do" if run.name in todo else DONE)
            page = {"href": f"{run.folder.name}/{live.PAGE}", "text": run.name}
            name = page if (run.folder / live.PAGE).exists() else run.name
            rows.append([name, state, *(_progress(run) if going else ("", self._reached.get(run.name, "")))])
        left = len(todo) - len(self._ended)
        done = len(rows) - left, len(rows)
        facts = {"runs that have ended": f"{done[0]} of {done[1]}"}
        if more := self._left(left):
            facts["time left"] = more.removeprefix(", about ").removesuffix(" left")
        tables = [live.Table("Runs", ("run", "state", "round", "newest score"), rows)]
        state = stopped or ("under way" if left else "all runs have ended; report/report.html compares them")
        going_on = bool(left and not stopped)
        title = f"Study {self._study.folder.name}"
        live.write(self._study.folder, title, state, facts, tables, done=done, going=going_on, bad=bool(stopped))

    def table(self) -> Group:
        """A line of all runs, and a row for each run under way."""
        going = [run for run in self._todo if run.name not in self._ended and claim_of(run.folder).exists()]
        left = len(self._todo) - len(self._ended)
        done = len(self._study.runs) - left
        rows = [_progress(run) for run in going[:SHOWN]]
        widths = [max(map(len, column)) for column in zip(("round", "newest score"), *rows, strict=True)]
        room = (self._console.width if self._console else 80) - sum(widths) - 4  # between columns
        table = Table(box=None, pad_edge=False)
        table.add_column("run", no_wrap=True)
        for name, width in zip(("round", "newest score"), widths, strict=True):
            table.add_column(name, no_wrap=True, min_width=width)
        for run, row in zip(going, rows, strict=False):  # those that are more are counted
            table.add_row(_shortened(run.name, room), *row)
        if len(going) > SHOWN:
            table.add_row(f"and {len(going) - SHOWN} more", "", "")
        return Group(Text(f"{done} of {len(self._study.runs)} runs have ended{self._left(left)}"), table)

    def _left(self, left: int) -> str:
        """The time that the rest will take, by the runs that have ended here; by earlier ones before that."""
        if self._ended:
            seconds = (self._newest - self._begun) / len(self._ended) * left - (time.monotonic() - self._newest)
            seconds = max(0.0, seconds)
        elif known := times(self._study.folder):
            seconds = sum(self._study.estimate(run, known) or 0.0 for run in self._todo)
        else:
            return ""
        return f", about {timedelta(seconds=round(seconds))} left" if left else ""


def _shortened(name: str, room: int) -> str:
    """A name in so many characters, without its middle: methods are at the beginning, and seeds at the end."""
    half = max(1, (room - 1) // 2)
    return name if len(name) <= room else f"{name[:half]}…{name[-half:]}"


def _progress(run: Run) -> tuple[str, str]:
    """How far a run is, by what it has printed: rounds done of all, and its newest score."""
    log = log_of(run.folder)
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    rounds = [found for line in lines if (found := ROUND.match(line))]
    scores = [found[1] for line in lines if (found := SCORE.search(line))]
    return f"{rounds[-1][1]} of {rounds[-1][2]}" if rounds else "", scores[-1] if scores else ""


@contextmanager
def shown(study: Study, todo: Sequence[Run], plain: bool) -> Iterator[Shown]:
    """Lines, and a live table below them where the output is a terminal, unless plain ones are wanted."""
    console = Console()
    moves = bool(not plain and todo and sys.stdout.isatty() and console.is_terminal)
    show = Shown(study, todo, console if moves else None)
    try:
        if moves:
            with waiting(""), Live(get_renderable=show.table, console=console, transient=True, refresh_per_second=1):
                yield show
        else:
            yield show
    except BaseException as error:
        show.write(f"stopped: {type(error).__name__}")
        raise
