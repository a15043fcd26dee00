"""What a person sees of a run while it lasts: lines and, on a terminal, a live line below them."""

import sys
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_fedbabu.ground.printing import FRAMES, printable, say, waiting

PLAIN_EVERY_S = 30.0
"""Seconds between two lines about a work that goes on, where there is no live line."""
BAR_WIDTH = 20
LEAST = ("initial", "of", "this", "left", "clients", "after", "evaluation", "training")
"""Words of the live line that go first where it is too long."""


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
        say(f"{self._mark}{line}")

    def begin(self, what: str, clients: int, left: timedelta | None = None) -> None:
        """A work of so many clients begins, as a round of training. It ends when the next one begins.

        Args:
            what: the work.
            clients: how many take part in it.
            left: time until all works of this kind are done; None: it is estimated, for this work.
        """
        self._what, self._total, self._done = what, clients, 0
        self._begun = self._spoken = time.monotonic()

    def wait(self, what: str) -> None:
        """Something that is no work of clients begins, and nobody knows for how long. It ends with the next work."""

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

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.bar = _Bar(console=console, transient=True)
        self._all_left: timedelta | None = None
        self._task = self.bar.add_task("", total=None, visible=False, left="")
        self._alone = waiting("")
        self._alone.__enter__()
        self.bar.start()

    def say(self, line: str) -> None:
        self.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, clients: int, left: timedelta | None = None) -> None:
        super().begin(what, clients)
        self._all_left = left
        of_all = f"{left} of training left" if left else ""
        self.bar.reset(self._task, total=clients, description=what, visible=True, left=of_all)

    def wait(self, what: str) -> None:
        self.bar.reset(self._task, description=what, visible=True, left="")
        self.bar.tasks[0].total = None

    def advance(self, clients: int) -> None:
        super().advance(clients)
        of_this = f"{self.left()} of this {self._what.split()[0]} left"
        left = of_this if self._all_left is None else f"{self._all_left} of training left"
        self.bar.update(self._task, completed=self._done, left=left)

    def close(self) -> None:
        self.bar.stop()
        self._alone.__exit__(None, None, None)

    def _tell(self, line: str) -> None:
        """The live line has said it."""


class _Bar(Progress):
    """The live line: a work, its bar, the clients that are done and the time left."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line, if there is a work; all of it, or what a narrow terminal has room for."""
        for task in self.tasks:
            if not task.visible:
                continue
            if task.total is None:
                frame = FRAMES[int(5 * (task.elapsed or 0)) % len(FRAMES)]
                waits = f"{frame} {task.elapsed or 0:.0f} s  {task.description}"
                yield Text(waits, no_wrap=True, overflow="crop")
                continue
            what = printable(task.description).split("  ")
            done = [f"{task.completed:.0f}/{task.total:.0f} clients", *filter(None, [task.fields["left"]])]
            ends = "  ".join(what), "  ".join(done)
            if cell_len(" ".join(ends)) + BAR_WIDTH + 1 <= self.console.width:
                line = Table.grid(padding=(0, 1))
                line.add_row(Text(ends[0]), ProgressBar(task.total, task.completed, BAR_WIDTH), Text(ends[1]))
                yield line
            else:
                yield Text(fitted([*what, *done], self.console.width, len(what)), no_wrap=True, overflow="crop")


def fitted(parts: Sequence[str], width: int, count: int) -> str:
    """A line of parts that is as wide as it may be: words go before any number does, and one number stays longest.

    Args:
        parts: words and numbers.
        width: most columns.
        count: which part stays longest; the others go from the left.
    """
    left = [part.split() for part in parts]
    kept = left[count]
    words = [word for part in left for word in part if not _is_number(word)]
    for gone in (*LEAST, *words):
        if cell_len(_line(left)) <= width:
            break
        for part in left:
            if gone in part:
                part.remove(gone)
    while cell_len(_line(left)) > width and len(left) > 1:
        left.remove(next(part for part in left if part is not kept))
    return _line(left)


def _line(parts: Sequence[Sequence[str]]) -> str:
    return "  ".join(" ".join(part) for part in parts if part)


def _is_number(word: str) -> bool:
    return any(each.isdigit() for each in word) or word in ("%", "nan", "inf", "-inf")


def shown(plain: bool = False) -> Lines:
    """Lines with a live one where the output is a terminal, unless plain ones are wanted."""
    return Live() if not plain and sys.stdout.isatty() and Console().is_terminal else Lines()
