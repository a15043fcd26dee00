"""A worker as its asker sees it, and where workers come from."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lit_fedbabu.ground import system
from lit_fedbabu.ground.stops import left_to_this_process
from lit_fedbabu.workers import serving
from lit_fedbabu.workers.serving import SHARED, pickled

LOG = "workers.log"
"""In a run's folder: what workers printed."""
START_TIMEOUT_S = 300.0
FORKS = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Whether workers are forked. Elsewhere a process with PyTorch in it cannot be forked safely, and each is started."""
ALONE = ("-P", "-m")
"""Options of Python that run a module without searching the current folder first, where files may have any name."""
OOM_COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
"""Files of Linux with a line ``oom_kill N``: processes that were killed because memory ran out."""


class WorkerDiedError(RuntimeError):
    """A worker ended before it answered. The message says how."""


class StartError(RuntimeError):
    """No worker could be started. The message says why."""


class WorkerRaisedError(RuntimeError):
    """What a worker was asked for raised an exception, which is named in the message."""


class Worker:
    """A process that answers requests, one at a time.

    Args:
        connection: to it.
        warm: where it comes from.
        process: its number, or the process that was started for it.
    """

    def __init__(self, connection: Connection, warm: "Warm", process: "int | subprocess.Popen[bytes]") -> None:
        self.connection = connection
        self.pid = process if isinstance(process, int) else process.pid
        self._warm = warm
        self._process = process
        self._shared: object = None
        self._ooms = oom_kills()

    def ask(self, function: str, arguments: tuple[Any, ...], shared: object = None) -> None:
        """Send a request.

        Args:
            function: its path, as ``package.module:function``.
            arguments: that it is called with; they are pickled.
            shared: an object in the arguments of many requests, which is sent once.

        Raises:
            WorkerDiedError: it has ended.
        """
        try:
            if shared is not None and shared is not self._shared:
                self.connection.send_bytes(pickled((SHARED, (shared,))))
                self._shared = shared
            self.connection.send_bytes(pickled((function, arguments), shared))
        except OSError:
            raise WorkerDiedError(self._how_it_ended()) from None

    def answer(self) -> Any:
        """What the function returned; waits for it.

        Raises:
            WorkerDiedError: the worker has ended without an answer.
            WorkerRaisedError: the function raised an exception.
        """
        try:
            value, raised = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(self._how_it_ended()) from None
        if raised:
            raise WorkerRaisedError(raised)
        return value

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()  # which it watches
        if not isinstance(self._process, int):
            self._process.wait()

    def _how_it_ended(self) -> str:
        self.connection.close()
        status = self._warm.status_of(self.pid) if isinstance(self._process, int) else self._process.wait()
        if status is None:
            return "its process is gone"
        if status >= 0:
            return f"its process ended with exit status {status}"
        if -status == signal.SIGKILL and oom_kills() > self._ooms:
            return "its process was killed because memory ran out"
        return f"its process was killed by {signal.Signals(-status).name}"


class Warm:
    """A warm process, from which workers are forked. It ends with this object, or with this process.

    Args:
        prepare: path of the function that imports what workers need, as ``package.module:function``.
        environment: variables for it and its workers.
        outgoing: socket to a warm process that another started; None: it is still to be started.
    """

    def __init__(
        self, prepare: str, environment: Mapping[str, str] | None = None, outgoing: socket.socket | None = None
    ) -> None:
        self._prepare = prepare
        self._environment = environment or {}
        self._outgoing = outgoing
        self._started: subprocess.Popen[bytes] | None = None

    @classmethod
    def here(cls, prepare: str) -> Self:
        """The process that this worker was forked from, for workers of its own; where nothing is forked a new one."""
        return cls(prepare, outgoing=serving.FORKED_BY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, so that it imports while its owner does other things."""
        if not FORKS:
            return
        incoming, self._outgoing = socket.socketpair()
        with incoming:
            ends = [incoming.fileno(), self._outgoing.fileno()]
            words = [*map(str, [*ends, os.getpid()]), self._prepare]
            self._started = self._popen([sys.executable, *ALONE, "lit_fedbabu.workers.warm", *words], ends)

    def worker(self, environment: Mapping[str, str] | None = None, log: str = "") -> Worker:
        """A new worker; waits until the warm process is ready.

        Args:
            environment: variables for it, as CUDA_VISIBLE_DEVICES.
            log: file that it appends what it prints to; "": where this process prints.

        Raises:
            StartError: it could not be started.
        """
        hello = {"environment": dict(environment or {}), "path": sys.path, "log": log}
        if not FORKS:
            ours, theirs = socket.socketpair()
            command = [sys.executable, *ALONE, "lit_fedbabu.workers.serving", str(theirs.fileno())]
            with theirs:
                process = self._popen(command, pass_fds=[theirs.fileno()])
            connection = Connection(ours.detach())
            connection.send(hello)
            return Worker(connection, self, process)
        for _ in range(2):  # the warm process may just have been killed
            connection = self._connected()
            with suppress(EOFError, OSError):
                connection.send(hello)
                return Worker(connection, self, connection.recv())
        raise StartError("the process that starts workers ended twice while it started")

    def status_of(self, worker: int) -> int | None:
        """How a worker ended: its exit status, or the number of a signal below zero; None: nobody knows."""
        if (connection := self._connection()) is None:
            return None
        with connection:
            try:
                connection.send({"status-of": worker})
                status: int | None = connection.recv()
            except (EOFError, OSError):
                return None
        return None if status is None else os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the warm process and its workers, if this object started it."""
        if self._started is not None:
            with suppress(ProcessLookupError):
                self._started.terminate()
            self._started.wait()
            if self._outgoing is not None:
                self._outgoing.close()
            self._started = self._outgoing = None

    def _connected(self) -> Connection:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (connection := self._connection()) is None:
            if self._started is None or self._started.poll() is not None:
                if self._started is not None and self._started.returncode > 0:
                    raise StartError("the process that starts workers has failed; what it printed says why")
                self.start()
            if time.monotonic() > deadline:
                raise StartError(f"the process that starts workers did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        return connection

    def _connection(self) -> Connection | None:
        """A connection to the warm process; None: there is none."""
        if self._outgoing is None:
            return None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._outgoing, [b"c"], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return Connection(ours.detach())

    def _popen(self, command: list[str], pass_fds: list[int] | None = None) -> "subprocess.Popen[bytes]":
        """Start a process of a session of its own, which SIGTERM ends; Ctrl-C and a hang-up are for its asker alone."""
        environment = {"GLIBC_TUNABLES": system.MALLOC, **os.environ, **self._environment}
        environment["PYTHONPATH"] = with_package(environment.get("PYTHONPATH", ""))
        with left_to_this_process():
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=pass_fds or []
            )


def with_package(path: str) -> str:
    """A PYTHONPATH that begins with the folder of this package."""
    return os.pathsep.join(filter(None, [str(system.package_folder().parent), path]))


def threads(count: int, devices: int = 1) -> dict[str, str]:
    """Variables of a process that is to compute with so many threads, and of which several may train a client.

    These speak with one another on this machine alone, and not by an address that others reach: what they say they take
    apart with pickle. PyTorch would warn in each of them that it looks for weights without a gradient.
    """
    several = {"TORCH_CPP_LOG_LEVEL": "ERROR", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return {"OMP_NUM_THREADS": str(count), **(several if devices > 1 else {})}


def oom_kills() -> int:
    """Processes that Linux has killed because memory ran out, on this machine or in this container."""
    count = 0
    for file in OOM_COUNTERS:
        with suppress(OSError):
            count += sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
    return count
