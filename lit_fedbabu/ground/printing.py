"""What is printed: lines in which text of others steers no terminal."""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, set colours, turn text or are none; tabs and ends of lines aside."""
MARKED = re.compile(r"([\\|`*_\[\]])")
"""What has a meaning in Markdown."""
INTERACTIVE = "TTY_INTERACTIVE"
"""A variable of the environment, which rich reads as well: with 0 nothing is shown live."""
FRAMES, EVERY_S = "|/-\\", 0.2
CLEARED = "\r\x1b[K"
_LOCK, _WAITS = threading.RLock(), list[str]()
"""What is waited for at the moment."""


def printable(text: str) -> str:
    """A text with escapes for what steers a terminal; tabs and ends of lines stay."""
    return CONTROLS.sub(_escaped, text)


def in_line(text: str) -> str:
    """A text of others, as a name of a class or of a file, in one line that can be printed."""
    return re.sub(r"[\t\n]", _escaped, printable(text))


def in_markdown(text: str) -> str:
    """A text of others as one line of Markdown, in which nothing is a mark, a link or a tag."""
    return MARKED.sub(r"\\\1", in_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def in_code(text: str) -> str:
    """A text of others as code in a line of Markdown."""
    code = in_line(text).replace("`", "\\x60")
    return f"`{code}`"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text at once, on stdout if no file is given."""
    with _LOCK:
        if any(_WAITS) and is_live():
            _put(CLEARED)
        print(printable(str(text)), file=file or sys.stdout, flush=True)


def is_live(file: TextIO | None = None) -> bool:
    """Whether a line that moves can be shown on stderr, or on another file."""
    shows = (file or sys.stderr).isatty() and os.environ.get("TERM") != "dumb"
    return shows and os.environ.get(INTERACTIVE, "1") != "0"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """While it lasts, a terminal shows what is waited for, and since how many seconds; lines that are said go above.

    Args:
        what: it waits for; empty: nothing is shown, for something else is.
    """
    _WAITS.append(what)
    over = threading.Event()
    ticks = threading.Thread(target=_tick, args=(over,), daemon=True) if len(_WAITS) == 1 and is_live() else None
    if ticks:
        ticks.start()
    try:
        yield
    finally:
        over.set()
        if ticks:
            ticks.join()
        _WAITS.pop()


def _tick(over: threading.Event) -> None:
    begun, count = time.monotonic(), 0
    while not over.wait(EVERY_S):
        count += 1
        with _LOCK:
            if what := _WAITS[-1]:
                line = f"{FRAMES[count % len(FRAMES)]} {time.monotonic() - begun:.0f} s  {what}"
                _put(CLEARED + line[: shutil.get_terminal_size().columns - 1])
    _put(CLEARED)


def _put(text: str) -> None:
    with _LOCK:
        sys.stderr.write(text)
        sys.stderr.flush()
