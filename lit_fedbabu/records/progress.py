"""What a person sees of a run while it lasts: lines and, on a terminal, a live line below them."""

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lit_fedbabu.errors import printable

PLAIN_EVERY_S = 30.0
"""Seconds between two lines about a work that goes on, where there is no live line."""


class Lines:
    """Prints lines. A work that takes long is spoken of now and then.

    Args:
        mark: starts every line.
    """

    def __init__(self, mark: str = "") -> None:
        self._mark = f"{mark} " if mark else ""
        self._what, self._total, self._done = "", 0, 0
        self._begun = self._spoken = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Print a line."""
        print(printable(f"{self._mark}{line}"), flush=True)

    def begin(self, what: str, clients: int, left: timedelta | None = None) -> None:
        """A work of so many clients begins, as a round of training. It ends when the next one begins.

        Args:
            what: the work.
            clients: how many take part in it.
            left: time until all works of this kind are done; None: it is estimated, for this work.
        """
        self._what, self._total, self._done = what, clients, 0
        self._begun = self._spoken = time.monotonic()

    def advance(self, clients: int) -> None:
        """So many clients more are done."""
        self._done += clients
        now = time.monotonic()
        if now - self._spoken > PLAIN_EVERY_S and self._done < self._total:
            self._spoken = now
            self._tell(f"{self._what}: {self._done} of {self._total} clients, {self.left()} left")

    def left(self) -> timedelta:
        """The time that the rest of this work will take, if it goes on as it did."""
        seconds = (time.monotonic() - self._begun) / max(1, self._done) * (self._total - self._done)
        return timedelta(seconds=round(seconds))

    def close(self) -> None:
        """Nothing more will be shown."""

    def _tell(self, line: str) -> None:
        self.say(line)


class Live(Lines):
    """Lines, and below them one that is always there: what is done now, by how many of the clients that were asked."""

    def __init__(self) -> None:
        super().__init__()
        columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn()
        self._bar = Progress(*columns, TextColumn("clients  {task.fields[left]}"), transient=True)
        self._all_left: timedelta | None = None
        self._task = self._bar.add_task("", total=None, visible=False, left="")
        self._bar.start()

    def say(self, line: str) -> None:
        self._bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, clients: int, left: timedelta | None = None) -> None:
        super().begin(what, clients)
        self._all_left = left
        self._bar.reset(self._task, total=clients, description=what, visible=True, left=f"{left} left" if left else "")

    def advance(self, clients: int) -> None:
        super().advance(clients)
        self._bar.update(self._task, completed=self._done, left=f"{self._all_left or self.left()} left")

    def close(self) -> None:
        self._bar.stop()

    def _tell(self, line: str) -> None:
        """The live line has said it."""


def shown(plain: bool = False) -> Lines:
    """Lines with a live one where the output is a terminal, unless plain ones are wanted."""
    return Live() if not plain and sys.stdout.isatty() and Console().is_terminal else Lines()
