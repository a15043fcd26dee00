"""A process that has imported what a worker needs, and forks a worker for every connection (Linux).

Connections come over a pair of sockets that it inherits. It has no address, so nobody else can ask it for anything, and
nothing is left after a kill.
"""

import gc
import importlib
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from lit_fedbabu.ground.places import SCRATCH, beside
from lit_fedbabu.workers import serving

HELLO_TIMEOUT_S = 10.0
KEPT_STATUSES = 100
"""Statuses of ended workers that are kept for who asks."""


def main() -> None:
    """Take connections until the process in the third argument ends.

    The first two arguments are the numbers of a pair of sockets: connections come from the first, and are sent to the
    second. The fourth is the path of a function, as ``package.module:function``, that imports what workers need.
    """
    incoming, outgoing = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    owner, prepare = int(sys.argv[3]), sys.argv[4]
    try:
        watched = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    serving.COMMON = os.memfd_create("common")
    module, _, function = prepare.partition(":")
    with _ending_with(watched):
        getattr(importlib.import_module(module), function)()
    gc.freeze()  # so that workers soon find the cycles that trained modules are in, without a look at all imports
    gc.collect()  # of nothing: it forgets how many objects there were
    _Forks(incoming, outgoing).run(watched)
    os._exit(0)  # without the seconds that taking down the imports would take


@contextmanager
def _ending_with(watched: int) -> Iterator[None]:
    """While it lasts, which is before the first fork, end this process with the watched one, a pidfd."""
    over, end = os.pipe()

    def watch() -> None:
        if watched in select.select([watched, over], [], [])[0]:
            os._exit(0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()
        os.close(over)


class _Forks:
    """The workers that live, and how those ended that do not.

    Args:
        incoming: the socket that connections come from.
        outgoing: its other end, which workers inherit.
    """

    def __init__(self, incoming: socket.socket, outgoing: socket.socket) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.living: set[int] = set()
        self.ended: dict[int, int] = {}
        self._scratch = ""

    def run(self, watched: int) -> None:
        """Fork for every connection until the watched process, a pidfd, has ended or a SIGTERM comes."""
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        os.environ[SCRATCH] = self._scratch = tempfile.mkdtemp(prefix="lit_fedbabu-", dir=beside())
        selector = selectors.DefaultSelector()
        for each in (self.incoming, watched, wake):
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
                if self.incoming.fileno() in ready:
                    self._accept()
        finally:
            self._kill()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._kill()
        os._exit(0)

    def _kill(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for worker in self.living:
            with suppress(ProcessLookupError, ChildProcessError):  # it was waited for
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _accept(self) -> None:
        _, (end,), _, _ = socket.recv_fds(self.incoming, 1, 1)
        with Connection(end) as connection:
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
            _in_fork(self.incoming, self.outgoing, connection, hello)

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


def _in_fork(incoming: socket.socket, outgoing: socket.socket, connection: Connection, hello: dict[str, Any]) -> None:
    """The life of a worker."""
    serving.FORKED_BY = outgoing
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        incoming.close()
        end_with_parent()
        serving.serve(connection, **hello)
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
