"""Errors that a person reads: one line each, with an exit status."""

import functools
import json
import sys
from typing import Any, Protocol


class InputError(ValueError):
    """Bad input. The message is one line: the key or file, its value, and what to do instead.

    Args:
        key: name of the option, argument or file.
        value: what was given.
        remedy: what is wrong with it and what to do.
    """

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        name = key if key.isprintable() else json.dumps(key)
        super().__init__(f"{name} = {json.dumps(value, default=str)}: {remedy}")


class RunError(RuntimeError):
    """The run cannot go on. The message says in one line why, and what to do."""


class Command(Protocol):
    """A command: takes the words after its name (None: those of the process) and returns the exit status."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def one_line_errors(main: Command) -> Command:
    """Print errors of a command as one line on stderr. Exit status: 2 for bad input, 1 for others, as a full disk.

    Ctrl-C is one line too, with the text of the KeyboardInterrupt, and status 130.
    """

    @functools.wraps(main)
    def command(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (InputError, RunError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2 if isinstance(error, InputError) else 1
        except KeyboardInterrupt as stop:
            print(f"stopped; {stop}" if str(stop) else "stopped", file=sys.stderr)
            return 130

    return command
