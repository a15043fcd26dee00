"""What a worker does: it calls the functions that it is asked for, until who asks is gone."""

import importlib
import io
import os
import pickle
import select
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

SHARED = "shared"
"""Stands in a request for the object that was sent before, once for many requests."""

FORKED_BY: socket.socket | None = None
"""In a forked worker: where the process that it was forked from takes connections."""
COMMON: int | None = None
"""In a forked worker: a file in memory that it has in common with all others of that process, empty at first."""


class Pickler(pickle.Pickler):
    """Pickles requests, with a mark in the place of one object that the worker has.

    Args:
        file: to write to.
        shared: the object; None: there is none.
    """

    def __init__(self, file: io.BytesIO, shared: object) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared = shared

    def persistent_id(self, item: object) -> str | None:
        return SHARED if item is self._shared and item is not None else None


class Unpickler(pickle.Unpickler):
    """Reads what ``Pickler`` wrote.

    Args:
        content: the bytes.
        shared: the object that the mark stands for.
    """

    def __init__(self, content: bytes, shared: object) -> None:
        super().__init__(io.BytesIO(content))
        self._shared = shared

    def persistent_load(self, mark: str) -> object:
        return self._shared


def pickled(value: object, shared: object = None) -> bytes:
    """A value as bytes, in which the shared object is only a mark."""
    file = io.BytesIO()
    Pickler(file, shared).dump(value)
    return file.getvalue()


def serve(connection: Connection, environment: Mapping[str, str], path: Sequence[str], log: str) -> None:
    """Answer requests, and end this process early if the other end of the connection is closed.

    A request is (path of a function as ``package.module:function``, its arguments). An answer is (value, ""), or
    (None, "ExceptionName: message") where the function raised.

    Args:
        connection: to who asks.
        environment: variables of this process.
        path: folders that modules are imported from.
        log: file that everything printed is appended to; "": as the parent's.
    """
    os.environ.update(environment)
    sys.path[:] = path
    if log:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    threading.Thread(target=end_with, args=(connection.fileno(),), daemon=True).start()
    shared = None
    while True:
        try:
            function, arguments = Unpickler(connection.recv_bytes(), shared).load()
            if function == SHARED:
                (shared,) = arguments
                continue
            answer = pickled((called(function, arguments), ""))
        except EOFError:
            return
        except Exception as error:
            traceback.print_exc()
            answer = pickled((None, f"{type(error).__name__}: {error}"))
        sys.stdout.flush()
        connection.send_bytes(answer)


def called(function: str, arguments: Sequence[Any]) -> Any:
    """What a function returns, by its path as ``package.module:function``."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def end_with(descriptor: int) -> None:
    """End this process, whatever it does, when the other end of the connection is closed."""
    end = select.poll()
    end.register(descriptor, getattr(select, "POLLRDHUP", select.POLLHUP))
    end.poll()
    os._exit(1)


def main() -> None:
    """Serve the connection whose number is the first argument: a worker that was not forked."""
    connection = Connection(int(sys.argv[1]))
    serve(connection, **connection.recv())


if __name__ == "__main__":
    main()
