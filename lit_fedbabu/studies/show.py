"""What a person sees of a study while it lasts: a line for each run that ends and, on a terminal, a live table."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from lit_fedbabu.records import live, progress
from lit_fedbabu.records.progress import Lines, short, state_in
from lit_fedbabu.records.results import read_results, score_of
from lit_fedbabu.studies.plan import Run, Study
from lit_fedbabu.studies.work import DONE, claim_of, log_of, state_of, times

if TYPE_CHECKING:
    from rich.table import Table

ROUND = re.compile(r"^round (\d+)/(\d+) ")
SCORE = re.compile(r"(?:initial|personalized) \S+ (\S+ ± \S+)")
TAIL = 4096
"""Characters at the end of a run's log that are read."""
SHOWN = 8
"""Runs under way that have a row; more are counted."""
LOOK_S = 1.0
"""Seconds between two looks at what runs say."""
COLUMNS = ("run", "round", "newest score", "clients", "left", "memory", "sent")
"""Of the table; on narrow terminals those at the end go."""


class Shown:
    """Shows which runs have ended and, where there is a table, how far others are.

    Args:
        study: whose runs they are.
        todo: those that are to be done.
    """

    def __init__(self, study: Study, todo: Sequence[Run]) -> None:
        self._study, self._todo, self._lines = study, todo, Lines()
        self._ended: dict[str, str] = {}
        self._reached: dict[str, str] = {}
        self._begun = self._newest = time.monotonic()
        self._waiting = ""
        self._sent: dict[str, int] = {}
        self._rows: list[list[str]] = []
        self._looked = 0.0
        self.write()

    def begin(self, lines: Lines) -> None:
        """Show the study by these."""
        self._lines = lines
        self._tell()

    def say(self, line: str) -> None:
        """Print a line."""
        self._lines.say(line)

    def _tell(self) -> None:
        done = len(self._study.runs) - len(self._todo) + len(self._ended)
        self._lines.begin(f"study {self._study.folder.name}", len(self._study.runs), self._left, "runs")
        self._lines.advance(done)

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
        self._tell()
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
        if (more := self._left()) is not None:
            facts["time left"] = str(more)
        tables = [live.Table("Runs", ("run", "state", "round", "newest score"), rows)]
        state = stopped or ("under way" if left else "all runs have ended; report/report.html compares them")
        going_on = bool(left and not stopped)
        title = f"Study {self._study.folder.name}"
        live.write(self._study.folder, title, state, facts, tables, done=done, going=going_on, bad=bool(stopped))

    def table(self, width: int) -> Table:
        """A row for each run under way, as wide as a terminal."""
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            going = [run for run in self._todo if run.name not in self._ended and claim_of(run.folder).exists()]
            self._rows = [self._row(run) for run in going[:SHOWN]]
            if len(going) > SHOWN:
                self._rows.append([f"and {len(going) - SHOWN} more", *[""] * (len(COLUMNS) - 1)])
        return progress.headings(self._rows, COLUMNS, width)

    def _row(self, run: Run) -> list[str]:
        """How far a run is; what it has sent counts as the study's."""
        state = state_in(state_of(run.folder))
        if not state:
            return [run.name, *_progress(run), "", "", "", ""]
        self._lines.moved(max(0, state["sent"] - self._sent.get(run.name, 0)))
        self._sent[run.name] = state["sent"]
        clients = f"{state['done']}/{state['total']}" if state["total"] else state["what"]
        left = "" if state["left_s"] is None else str(timedelta(seconds=round(state["left_s"])))
        return [
            run.name,
            *_progress(run),
            clients,
            left,
            short(state["memory"]),
            short(state["sent"]) if state["sent"] else "",
        ]

    def _left(self) -> timedelta | None:
        """The time that the rest will take, by the runs that have ended here; by earlier ones before that."""
        left = len(self._todo) - len(self._ended)
        if self._ended:
            seconds = (self._newest - self._begun) / len(self._ended) * left - (time.monotonic() - self._newest)
            seconds = max(0.0, seconds)
        elif known := times(self._study.folder):
            seconds = sum(self._study.estimate(run, known) or 0.0 for run in self._todo)
        else:
            return None
        return timedelta(seconds=round(seconds)) if left else None


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
    show = Shown(study, todo)
    try:
        with progress.shown(plain or not todo, show.table) as lines:
            show.begin(lines)
            yield show
    except BaseException as error:
        show.write(f"stopped: {type(error).__name__}")
        raise
