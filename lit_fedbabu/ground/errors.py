"""Errors that a person reads: one line each, with an exit status."""

import contextlib
import difflib
import errno
import functools
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TextIO

from lit_fedbabu.ground import compat, places, stops
from lit_fedbabu.ground.printing import in_line, say

LONGEST = 1000
"""Characters of a value that a message shows."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(ValueError):
    """Bad input. The message is one line: the key or file, its value, and what to do instead.

    Args:
        key: name of the option, argument or file.
        value: what was given.
        remedy: what is wrong with it and what to do.
    """

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        name = key if key.isprintable() else json.dumps(key)
        shown = json.dumps(value, default=str)
        super().__init__(f"{name} = {shown if len(shown) <= LONGEST else f'{shown[:LONGEST]}...'}: {remedy}")


class RunError(RuntimeError):
    """The run cannot go on. The message says in one line why, and what to do."""


def some(names: Iterable[str], most: int = 5) -> str:
    """Names with commas between them; of many the first and how many more there are."""
    names = [in_line(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def close_to(word: str, names: Iterable[str]) -> str:
    """A question after a remedy, where a name is like the word that was typed; else nothing."""
    by_case = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_case, n=1)
    return f"; did you mean {by_case[close[0]]}?" if close else ""


def told(error: BaseException) -> str:
    """An exception of a user's code in one line, with the place where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


class Command(Protocol):
    """A command: takes the words after its name (None: those of the process) and returns the exit status."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def one_line_errors(main: Command) -> Command:
    """Print errors of a command as one line on stderr. Exit status: 2 for bad input, 1 for others, as a full disk.

    A signal that stops it, as Ctrl-C, is one line too, with the note of the stop, and status 128 + its number.
    The traceback of an error that nobody thought of is kept in a file, which the line names.
    """

    @functools.wraps(main)
    def command(argv: list[str] | None = None) -> int:
        _open_streams()
        try:
            with stops.raised():
                try:
                    status = _status(main, argv)
                except SystemExit:
                    _lost_output()
                    raise
                if (lost := _lost_output()) and not status:
                    _tell(f"error: {lost}")
                    status = 1
                stops.settle()
        except stops.STOPS as stop:
            status = stops.told(stop)
            compat.forget_interrupt_in_text()
        stops.over(status)
        return status

    return command


def _status(main: Command, argv: list[str] | None) -> int:
    """Run a command; returns its exit status."""
    try:
        _refuse_removed_folder()
        places.keep_matplotlib_quiet()
        return main(argv)
    except (Exception, SystemExit) as error:
        if stop := stops.asked():
            raise stop from None
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, InputError | RunError):
            _tell(f"error: {error}")
            return 2 if isinstance(error, InputError) else 1
        if isinstance(error, OSError):
            _tell(f"error: {of_system(error)}")
            return 1
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _tell(f"error: {reason}; this should not happen, {_kept_traceback()}")
        return 1


def _open_streams() -> None:
    """Put the null device where a standard stream is closed: the next file that is opened would take its place.

    The streams take any name of a file, by escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse_removed_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        where = os.environ.get("PWD", "")
        raise InputError("current folder", where, "was removed; change to one that is there") from None


def _lost_output(more: str = "") -> str:
    """Write out what was printed, and more. Where that fails, as on a closed pipe, say why; the rest goes nowhere."""
    _tell("")
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        return f"standard output: {error.strerror}"
    return ""


def _tell(line: str) -> None:
    """Print a line on stderr, if there is one, and what it has not written yet; where nobody reads, it goes nowhere."""
    try:
        if line:
            say(line.replace("\n", "\\n"), sys.stderr)
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Put the null device under a stream that cannot be written, else Python's own attempt changes the exit status."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def of_system(error: OSError, next_step: str = "repeat the command") -> str:
    """What the system refused, for which file, and what to do: of a full disk to free space, and then the next step."""
    file = error.filename2 or error.filename
    if isinstance(error, BrokenPipeError):  # our own sockets and pipes are watched where they are
        return f"standard output: {error.strerror}; {next_step}"
    if file is None or not error.strerror:
        lost = _lost_output("\n") if error.errno in FULL else ""  # a file of ours, or what is printed?
        return f"{lost}; {next_step}" if lost else str(error)
    path = Path(os.fsdecode(file))
    return f"{path}: {error.strerror}" + (f"; free some space, and {next_step}" if error.errno in FULL else "")


def _kept_traceback() -> str:
    """Where the traceback of the current exception has been written."""
    try:
        with tempfile.NamedTemporaryFile(prefix="lit_fedbabu-", suffix=".txt", delete=False) as file:
            file.write(traceback.format_exc().encode(errors="backslashreplace"))
    except OSError as error:
        return f"and its traceback cannot be kept: {error.strerror}"
    return f"its traceback is in {file.name}"
