"""A process that has imported what a worker needs, and forks a worker for every connection (Linux).

Its address is a name in the kernel's abstract namespace: no file is made, and nothing is left after a kill.
"""

import importlib
import os
import selectors
import signal
import socket
import struct
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from lit_fedbabu.workers.serving import serve

HELLO_TIMEOUT_S = 10.0
KEPT_STATUSES = 100
"""Statuses of ended workers that are kept for who asks."""


def peer_is_this_user(end: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user."""
    _, user, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    same: bool = user == os.getuid()
    return same


def main() -> None:
    """Listen at the name in the first argument until the process in the second one ends.

    The third argument is the path of a function, as ``package.module:function``, that imports what workers need. If
    the name is taken, another process does this work already.
    """
    name, owner, prepare = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(f"\0{name}")
            watched = os.pidfd_open(owner)
        except (OSError, ProcessLookupError):
            return
        server.listen(128)
        module, _, function = prepare.partition(":")
        getattr(importlib.import_module(module), function)()
        _Forks(server).run(watched)
    os._exit(0)  # without the seconds that taking down the imports would take


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Forks:
    """The workers that live, and how those ended that do not.

    Args:
        server: the listening socket.
    """

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.living: set[int] = set()
        self.ended: dict[int, int] = {}

    def run(self, watched: int) -> None:
        """Fork for every connection until the watched process, a pidfd, has ended or a SIGTERM comes."""
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, _stop)
        selector = selectors.DefaultSelector()
        for each in (self.server, watched, wake):
            selector.register(each, selectors.EVENT_READ)
        try:
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if watched in ready:
                    return
                if wake in ready:
                    with suppress(BlockingIOError):
                        os.read(wake, 1024)
                self._reap()
                if self.server.fileno() in ready:
                    self._accept()
        except KeyboardInterrupt:
            pass
        finally:
            for worker in self.living:
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)

    def _accept(self) -> None:
        end, _ = self.server.accept()
        if not peer_is_this_user(end):
            end.close()
            return
        with Connection(end.detach()) as connection:
            try:
                if not connection.poll(HELLO_TIMEOUT_S):
                    return
                hello = connection.recv()
                if "status-of" in hello:
                    connection.send(self._status_of(hello["status-of"]))
                    return
                worker = os.fork()
                if worker:
                    self.living.add(worker)
                    connection.send(worker)
                    return
            except (EOFError, OSError):  # who asked is gone
                return
            _in_fork(self.server, connection, hello)

    def _status_of(self, worker: int) -> int | None:
        """The wait status of a worker, which is about to end or has ended; None: it is unknown."""
        if worker in self.living:
            self._ended(*os.waitpid(worker, 0))
        return self.ended.pop(worker, None)

    def _reap(self) -> None:
        while self.living:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                return
            self._ended(worker, status)

    def _ended(self, worker: int, status: int) -> None:
        self.living.discard(worker)
        self.ended[worker] = status
        while len(self.ended) > KEPT_STATUSES:
            self.ended.pop(next(iter(self.ended)))


def _in_fork(server: socket.socket, connection: Connection, hello: dict[str, Any]) -> None:
    """The life of a worker."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        server.close()
        end_with_parent()
        serve(connection, **hello)
        status = 0
    finally:
        os._exit(status)


def end_with_parent() -> None:
    """Have this process killed when its parent ends (Linux)."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent or parent == 1:
        os._exit(1)


if __name__ == "__main__":
    main()
