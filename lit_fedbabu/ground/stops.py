"""Signals that end a command: Ctrl-C, and what ``timeout``, batch systems and a terminal that is closed send."""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from lit_fedbabu.ground.printing import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S, MOST_S = 0.5, 30.0
"""Seconds between two looks at whether a stop was lost, and those that cleaning up may take."""


class Stopped(BaseException):
    """A signal ends the command. A note says how it goes on.

    It is no KeyboardInterrupt, at which Lightning's Trainer would end the process without a word.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPS = (KeyboardInterrupt, Stopped)
"""KeyboardInterrupt comes where the package is used from Python: a user's handlers stay as they are."""


class _Process:
    """What a signal does to this process: ``act`` is called with its number. ``stop`` is what it has raised."""

    def __init__(self) -> None:
        self.is_command = False
        self.act: Callable[[int], None] = _nothing
        self.stop: Stopped | None = None
        self.since = 0.0
        self.status = 0

    def raises(self, number: int) -> None:
        self.stop, self.since, self.act = Stopped(number), time.monotonic(), _nothing
        signal.signal(signal.SIGALRM, self.looks)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
        raise self.stop

    def looks(self, number: int, frame: FrameType | None) -> None:
        """Raise the stop once more where nobody handles it: code of others may have caught it and gone on."""
        if self.stop is None:
            return
        if time.monotonic() - self.since > MOST_S:
            _end(self.stop.number)
        handled = sys.exc_info()[1]
        while handled is not None and handled is not self.stop:
            handled = handled.__context__
        if handled is None and self.act is _nothing:
            raise self.stop


def _nothing(number: int) -> None:
    """The command is being stopped."""


def _settled(number: int) -> None:
    """The command is done, or as good as that."""


def _end(number: int) -> None:
    """End at once: a command that has not begun anything, or that nothing else ends."""
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(128 + number)


_process = _Process()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _process.act(number)


def _caught() -> dict[int, Any]:
    """Catch the signals that are not ignored, as under nohup; returns the handlers that there were."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _on_signal)
    return before


def is_command() -> None:
    """This process is a command: until it begins its work, a signal ends it at once."""
    _process.is_command, _process.act = True, _end
    _caught()
    atexit.register(_last)


def _last() -> None:
    """The last exit handler. After it Python takes down its imports, which takes seconds, and forgets handlers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if _process.stop is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        os._exit(_process.status)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While it lasts a signal raises Stopped, and the signals after it change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        """Say nothing of a stop that came where none can be raised, as in ``__del__``: ``looks`` raises it."""
        if not isinstance(lost.exc_value, Stopped):
            hook(lost)

    before = {} if _process.is_command else _caught()
    try:
        sys.unraisablehook, _process.act = unraisable, _process.raises
        yield
    finally:
        sys.unraisablehook, _process.act = hook, _settled
        if _process.stop is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not _process.is_command:
            _process.stop = None
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def left_to_this_process() -> Iterator[None]:
    """Processes that are started while it lasts are ended by this one, and not by Ctrl-C and hang-ups of their own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle() -> None:
    """What the command was asked for is as good as there: from now on a signal changes nothing."""
    if _process.stop is None:
        _process.act = _settled


def over(status: int) -> None:
    """Nothing but exit handlers is left. If they take too long, a second signal ends the process with the status."""

    def first(number: int) -> None:
        _process.act = lambda _: os._exit(status)

    if _process.is_command:
        _process.act, _process.status = first, status


def asked() -> Stopped | None:
    """The stop that was raised, whatever code of others has made of it; None: there was none."""
    return _process.stop


def told(stop: BaseException) -> int:
    """Print the line of a stop; returns the exit status."""
    words = [str(stop)] if isinstance(stop, KeyboardInterrupt) and str(stop) else getattr(stop, "__notes__", [])
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone
        say("; ".join(["stopped", *words[:1]]), sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = None  # else Python's own attempt would change the exit status
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
