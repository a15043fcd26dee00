"""What a person sees of long work: lines and, on a terminal, a live line below them; of other processes' work too."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lit_fedbabu.ground.files import write_whole
from lit_fedbabu.ground.printing import FRAMES, is_live, printable, say, waiting

PLAIN_EVERY_S = 30.0
"""Seconds between two lines about a work that goes on, where there is no live line."""
BAR_WIDTH = 20
LEAST = ("initial", "of", "this", "memory", "sent", "left", "clients", "after", "evaluation", "training")
"""Words of the live line that go first where it is too long."""
SIZE = re.compile(r"\d[kMGT]B\b")
"""In a part of the live line that is a size."""
LEAST_NAME = 9
"""Characters that the first column of a table has at least."""
TOLD_EVERY_S, MEASURED_EVERY_S = 0.5, 5.0
"""Seconds between two writings of the file of a work, and between two looks at the memory of processes."""


Left = timedelta | Callable[[], timedelta | None]


class Lines:
    """Prints lines. A work that takes long is spoken of now and then.

    Args:
        mark: starts every line.
        file: gets the state of the work, for a process that shows it with ``Live.follow``; None: there is none.
    """

    def __init__(self, mark: str = "", file: Path | None = None) -> None:
        self._mark, self._file = f"{mark} " if mark else "", file
        self._what, self._unit, self._total, self._done = "", "clients", 0, 0
        self._begun = self._spoken = self._written = 0.0
        self._all_left: Left | None = None
        self._sent, self._memory = 0, Memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Print a line."""
        say(f"{self._mark}{line}")

    def begin(self, what: str, count: int, left: Left | None = None, unit: str = "clients") -> None:
        """A work begins, as a round of training of so many clients. It ends when the next one begins.

        Args:
            what: the work.
            count: how many take part in it.
            left: time until all works of this kind are done, or what says it anew each time that it is shown; None: it
                is estimated, for this work.
            unit: what they are.
        """
        self._what, self._unit, self._total, self._done, self._all_left = what, unit, count, 0, left
        self._begun = self._spoken = time.monotonic()
        self._write()

    def wait(self, what: str) -> None:
        """Something that is no work of clients begins, and nobody knows for how long. It ends with the next work."""
        self._what, self._total = what, 0
        self._write()

    def advance(self, count: int) -> None:
        """So many more are done; none says that it goes on."""
        self._done += count
        now = time.monotonic()
        if now - self._spoken > PLAIN_EVERY_S and self._done < self._total:
            self._spoken = now
            self._tell(f"{self._what}: {self._done} of {self._total} {self._unit}, {', '.join(self._rest())}")
        if now - self._written > TOLD_EVERY_S:
            self._write()

    def moved(self, nbytes: int) -> None:
        """So many bytes more of weights were sent, both ways."""
        self._sent += nbytes

    def left(self) -> timedelta:
        """The time that the rest of this work will take, if it goes on as it did."""
        seconds = (time.monotonic() - self._begun) / max(1, self._done) * (self._total - self._done)
        return timedelta(seconds=round(seconds))

    def close(self) -> None:
        """Nothing more will be shown."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _rest(self) -> list[str]:
        """Time left of this work, memory, and bytes sent."""
        return [*([f"{self.left()} left"] if self._done else []), *self._sizes()]

    def _sizes(self) -> list[str]:
        return [f"memory {short(self._memory.own())}", *([f"{short(self._sent)} sent"] if self._sent else [])]

    def _tell(self, line: str) -> None:
        if self._file is None:
            self.say(line)

    def _write(self) -> None:
        """Say in the file what is done now."""
        if self._file is None:
            return
        self._written = time.monotonic()
        state = {"what": self._what, "unit": self._unit, "total": self._total, "done": self._done, "sent": self._sent}
        left = self._all_left() if callable(self._all_left) else self._all_left
        if left is None and self._done:
            left = self.left()
        seconds = None if left is None else left.total_seconds()
        of_all = self._all_left is not None
        state |= {"left_s": seconds, "of_all": of_all, "memory": self._memory.own()}
        with suppress(OSError):  # on a full disk the work itself goes on, or says so
            write_whole(self._file, json.dumps(state))


class Memory:
    """Bytes of memory that this process and those that it started have to themselves."""

    def __init__(self) -> None:
        self._bytes, self._looked = 0, -MEASURED_EVERY_S

    def own(self) -> int:
        """As they were a few seconds ago at most."""
        if time.monotonic() - self._looked >= MEASURED_EVERY_S:
            self._looked, self._bytes = time.monotonic(), 0
            this = psutil.Process()
            for process in (this, *this.children(recursive=True)):
                with suppress(psutil.Error):
                    memory = process.memory_info()
                    self._bytes += memory.rss - getattr(memory, "shared", 0)
        return self._bytes


def short(nbytes: float) -> str:
    """Bytes as one word of three digits, as 4.5MB."""
    for unit in ("kB", "MB", "GB", "TB"):
        nbytes /= 1000
        if nbytes < 999.5 or unit == "TB":
            return f"{nbytes:.1f}{unit}" if nbytes < 9.95 else f"{nbytes:.0f}{unit}"
    return ""


def headings(rows: Sequence[Sequence[str]], names: Sequence[str], width: int) -> Table:
    """Rows under their names, as wide as a terminal: of the first column the middle of long words goes.

    Args:
        rows: of texts.
        names: of the columns.
        width: most columns of characters.
    """
    table = Table(box=None, pad_edge=False)
    if not rows:
        return table
    shown = [place for place, name in enumerate(names) if not place or any(row[place] for row in rows)]
    widths = [max(cell_len(row[place]) for row in [names, *rows]) for place in shown]
    while len(shown) > 2 and sum(widths[1:]) + 2 * len(shown) + LEAST_NAME > width:
        del shown[-1], widths[-1]
    room = width - sum(widths[1:]) - 2 * len(shown)
    for place, least in zip(shown, [1, *widths[1:]], strict=True):
        table.add_column(names[place], no_wrap=True, min_width=least)
    for row in rows:
        table.add_row(_shortened(row[0], room), *(row[place] for place in shown[1:]))
    return table


def _shortened(name: str, room: int) -> str:
    """A name in so many characters, without its middle: methods are at the beginning, and seeds at the end."""
    half = max(1, (room - 1) // 2)
    return name if len(name) <= room else f"{name[:half]}…{name[-half:]}"


def state_in(file: Path) -> dict[str, Any]:
    """What ``Lines`` has said in its file; nothing where there is none."""
    try:
        state: dict[str, Any] = json.loads(file.read_text())
        return state
    except (OSError, ValueError):
        return {}


class Live(Lines):
    """Lines, and below them one that is always there: what is done now, by how many of those that were asked.

    Args:
        console: of the terminal; None: standard output.
        below: makes what is shown below the line, for a width in characters.
    """

    def __init__(self, console: Console | None = None, below: Callable[[int], RenderableType] | None = None) -> None:
        super().__init__()
        self._followed: Path | None = None
        self.bar = _Bar(self._look, below, console=console, transient=True)
        self._task = self.bar.add_task("", total=None, visible=False, unit="", rest=[])
        self._alone = waiting("")
        self._alone.__enter__()
        self.bar.start()

    def say(self, line: str) -> None:
        self.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def follow(self, file: Path) -> None:
        """Show the work of another process, as its ``Lines`` says it in a file."""
        self._followed = file

    def begin(self, what: str, count: int, left: Left | None = None, unit: str = "clients") -> None:
        super().begin(what, count, left, unit)
        rest = self._rest if callable(left) else self._rest()
        self.bar.reset(self._task, total=count, description=what, visible=True, unit=unit, rest=rest)

    def wait(self, what: str) -> None:
        super().wait(what)
        self.bar.tasks[0].total = None
        self.bar.reset(self._task, description=what, visible=True)

    def advance(self, count: int) -> None:
        super().advance(count)
        rest = self._rest if callable(self._all_left) else self._rest()
        self.bar.update(self._task, completed=self._done, rest=rest)

    def close(self) -> None:
        self.bar.stop()
        self._alone.__exit__(None, None, None)

    def _rest(self) -> list[str]:
        sizes = self._sizes()
        if callable(self._all_left):
            left = self._all_left()
            return [*([] if left is None else [f"{left} left"]), *sizes]
        if self._all_left is not None:
            return [f"{self._all_left} of training left", *sizes]
        return [*([f"{self.left()} of this {self._what.split()[0]} left"] if self._done else []), *sizes]

    def _look(self) -> None:
        """Take over what another process says."""
        state = state_in(self._followed) if self._followed else {}
        if not state:
            return
        left = None if state["left_s"] is None else timedelta(seconds=state["left_s"])
        self._sent = state["sent"]
        if not state["total"]:
            if self._what != state["what"]:
                self.wait(state["what"])
            return
        if (self._what, self._total) != (state["what"], state["total"]):
            self.begin(state["what"], state["total"], left if state["of_all"] else None, state["unit"])
        if self._done != state["done"]:
            self.advance(state["done"] - self._done)

    def _tell(self, line: str) -> None:
        """The live line has said it."""


class _Bar(Progress):
    """The live line: a work, its bar, those that are done and the time left; and what else is shown below it."""

    def __init__(self, look: Callable[[], None], below: Callable[[int], RenderableType] | None, **options: Any) -> None:
        self._look, self._below = look, below
        super().__init__(**options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line, if there is a work; all of it, or what a narrow terminal has room for."""
        self._look()
        for task in self.tasks:
            if not task.visible:
                continue
            if task.total is None:
                frame = FRAMES[int(5 * (task.elapsed or 0)) % len(FRAMES)]
                waits = f"{frame} {task.elapsed or 0:.0f} s  {task.description}"
                yield Text(waits, no_wrap=True, overflow="crop")
                continue
            what = printable(task.description).split("  ")
            rest = task.fields["rest"]
            rest = rest() if callable(rest) else rest
            done = [f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}", *rest]
            ends = "  ".join(what), "  ".join(done)
            if cell_len(" ".join(ends)) + BAR_WIDTH + 1 <= self.console.width:
                line = Table.grid(padding=(0, 1))
                line.add_row(Text(ends[0]), ProgressBar(task.total, task.completed, BAR_WIDTH), Text(ends[1]))
                yield line
            else:
                yield Text(fitted([*what, *done], self.console.width, len(what)), no_wrap=True, overflow="crop")
        if self._below is not None and self.tasks:
            yield self._below(self.console.width)


def fitted(parts: Sequence[str], width: int, count: int) -> str:
    """A line of parts that is as wide as it may be: words go before any number does, and one number stays longest.

    Args:
        parts: words and numbers; sizes, as of memory, at the end.
        width: most columns.
        count: which part stays longest; of the others sizes go first, and then those from the left.
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
    if cell_len(_line(left)) > width and (rest := [part for part in parts if not SIZE.search(part)]) != list(parts):
        return fitted(rest, width, count)
    while cell_len(_line(left)) > width and len(left) > 1:
        left.remove(next(part for part in left if part is not kept))
    return _line(left)


def _line(parts: Sequence[Sequence[str]]) -> str:
    return "  ".join(" ".join(part) for part in parts if part)


def _is_number(word: str) -> bool:
    return any(each.isdigit() for each in word) or word in ("%", "nan", "inf", "-inf", "day,", "days,")


def shown(plain: bool = False, below: Callable[[int], RenderableType] | None = None) -> Lines:
    """Lines with a live one where the output is a terminal, unless plain ones are wanted; ``below`` as of ``Live``."""
    return Live(below=below) if not plain and is_live(sys.stdout) and Console().is_terminal else Lines()
