"""The workers of one machine, for requests from another one, which come and are answered as bytes."""

import os
import pickle
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.ground import system
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.serving import Unpickler, called, pickled
from lit_fedbabu.workers.worker import Warm, WorkerDiedError, threads

PREPARE = "lit_fedbabu.client_app:prepare"
ANSWER = "lit_fedbabu.workers.host:answer_packed"


class Host:
    """Workers that are asked one by one, from as many threads as there are workers.

    They begin to import what they need at once. CUDA_VISIBLE_DEVICES, where it names GPUs, has one for each worker.

    Args:
        size: how many workers there are.
        num_threads: CPU threads of each.
        path: folders that the asker's modules are imported from.
        current: the asker's current folder, which becomes that of this process if it is on this machine.
        log: file that workers append what they print to, where its folder is on this machine; else they print where
            this process does.
    """

    def __init__(self, size: int, num_threads: int, path: Sequence[str], current: str, log: str) -> None:
        import_as(path, current)
        self._warm = Warm(PREPARE, environment=threads(num_threads))
        self._warm.start()
        gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        self._log = log
        self._idle: queue.SimpleQueue[tuple[dict[str, str], Pool | None]] = queue.SimpleQueue()
        for slot in range(size):
            self._idle.put(({"CUDA_VISIBLE_DEVICES": gpus[slot]} if gpus else {}, None))
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._number = 0
        self._shared: bytes | None = None
        self._came = threading.Condition()

    def introduce(self, waits: bool) -> dict[str, Any]:
        """What the asker compares with its own: machine, code and versions.

        Args:
            waits: first wait until workers can be started without delay.

        Raises:
            StartError: they cannot be started.
        """
        if waits:
            self._warm.worker().end()
        return system.installed()

    def sees(self, file: str) -> bool:
        """Whether a file is here."""
        return Path(file).exists()

    def take(self, number: int, shared: bytes | None) -> None:
        """Take the object that the requests with this number share, packed; the one before is no longer needed."""
        with self._came:
            if number > self._number:
                self._number, self._shared = number, shared
            self._came.notify_all()

    def answer(self, number: int, request: bytes, timeout_s: float | None) -> tuple[bool, bytes | str, list[str]]:
        """Have a worker answer a request.

        Args:
            number: of the shared object, which is waited for; 0: it has none.
            request: ``(function, arguments)``, packed by ``serving.pickled``.
            timeout_s: seconds that the worker may take; None: any.

        Returns:
            Whether there is an answer; its bytes, or why there is none; and notes on workers that died.

        Raises:
            StartError: no worker can be started.
        """
        with self._came:
            self._came.wait_for(lambda: self._number >= number)
            if self._number > number > 0:
                return False, "it is too late", []
            shared = self._shared if number else None
        environment, pool = self._idle.get()
        notes: list[str] = []
        try:
            pool = pool or Pool(self._warm, 1, [environment], self._log_here(), self._notes.put)
            ((_, value),) = pool.answers(ANSWER, [(request, shared)], shared, timeout_s)
        finally:
            self._idle.put((environment, pool))
        while not self._notes.empty():
            notes.append(self._notes.get())
        if isinstance(value, WorkerDiedError):
            return False, str(value), notes
        return (True, value, notes) if isinstance(value, bytes) else (False, str(value), notes)

    def _log_here(self) -> str:
        return self._log if self._log and Path(self._log).parent.is_dir() else ""


def import_as(path: Sequence[str], current: str) -> None:
    """Let this process find a user's modules where the asker does; arguments as of ``Host``."""
    if Path(current).is_dir():
        os.chdir(current)
    sys.path += [folder for folder in path if folder not in sys.path]


class _Last:
    """In a worker: what the last requests shared, as it came and unpacked."""

    packed: bytes | None = None
    shared: object = None


_last = _Last()


def answer_packed(request: bytes, shared: bytes | None) -> bytes:
    """In a worker: the answer to a request, packed."""
    if shared is not _last.packed:
        _last.packed, _last.shared = shared, None if shared is None else pickle.loads(shared)
    function, arguments = Unpickler(request, _last.shared).load()
    return pickled(called(function, arguments))
