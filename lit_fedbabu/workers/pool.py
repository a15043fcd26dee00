"""Workers that share the work. One that dies is replaced, and what it was asked for is asked once more."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from lit_fedbabu.workers.worker import Warm, Worker, WorkerDiedError, WorkerRaisedError

ATTEMPTS = 2
"""How often a request is sent before it has failed, if its worker dies."""
TOGETHER_S = 0.2
"""Seconds in which what ends all processes of a job, as a signal does, comes to this one too."""


class _Asked(NamedTuple):
    place: int
    attempt: int


class Pool:
    """A number of workers, which are started when there is work for them.

    Args:
        warm: where they come from.
        size: how many work side by side at most.
        environments: variables for each of them; None: none.
        log: file for what they print; "": where this process prints.
        say: prints a line; told of workers that died.
        once: whether a worker ends when it has answered, so that each request has one that has done nothing yet.
    """

    def __init__(
        self,
        warm: Warm,
        size: int,
        environments: Sequence[Mapping[str, str]] | None = None,
        log: str = "",
        say: Callable[[str], None] = print,
        once: bool = False,
    ) -> None:
        self._warm = warm
        self._environments = environments or [{}] * size
        self._workers: list[Worker | None] = [None] * size
        self._log = log
        self._say, self._once = say, once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for slot in range(len(self._workers)):
            self._end(slot)

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Call a function with each request's arguments; yields (place of the request, value) as they come.

        A value may be a WorkerDiedError, where two workers died of a request or it was not answered in time, or a
        WorkerRaisedError.

        Args:
            function: its path, as ``package.module:function``.
            requests: arguments of each call.
            shared: an object in the arguments of many requests, which is sent once to each worker.
            timeout_s: seconds that all answers may take together; None: any.
        """
        waiting = deque(_Asked(place, 1) for place in range(len(requests)))
        busy: dict[int, _Asked] = {}
        answered: list[tuple[int, Any]] = []
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while waiting or busy or answered:
            for slot in range(len(self._workers)):
                if slot not in busy and waiting:
                    asked = busy[slot] = waiting.popleft()
                    try:
                        self._worker(slot).ask(function, requests[asked.place], shared)
                    except WorkerDiedError as died:
                        yield from self._died(slot, died, waiting, busy)
            while answered:  # after its worker has its next work
                yield answered.pop()
            connections = {worker.connection: slot for slot in busy if (worker := self._workers[slot]) is not None}
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = wait(connections, left) if connections else []
            if ready:  # one answer at a time, for they may be large
                slot = connections[ready[0]]  # type: ignore[index] # what was waited for
                try:
                    value = self._worker(slot).answer()
                except WorkerDiedError as died:
                    yield from self._died(slot, died, waiting, busy)
                    continue
                except WorkerRaisedError as raised:
                    value = raised
                answered.append((busy.pop(slot).place, value))
                del value
                if self._once:
                    self._end(slot)
            elif connections:
                yield from self._late([*busy.values(), *waiting], timeout_s)
                return

    def _worker(self, slot: int) -> Worker:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = self._warm.worker(self._environments[slot], self._log)
        return worker

    def _died(
        self, slot: int, died: WorkerDiedError, waiting: "deque[_Asked]", busy: dict[int, _Asked]
    ) -> Iterator[tuple[int, WorkerDiedError]]:
        self._workers[slot] = None
        place, attempt = busy.pop(slot)
        if attempt == ATTEMPTS:
            yield place, died
            return
        time.sleep(TOGETHER_S)
        self._say(f"note: a worker died ({died}); another one does its work again")
        waiting.appendleft(_Asked(place, attempt + 1))

    def _late(self, asked: list[_Asked], timeout_s: float | None) -> Iterator[tuple[int, WorkerDiedError]]:
        for slot in range(len(self._workers)):
            self._end(slot)
        for place, _ in asked:
            yield place, WorkerDiedError(f"no answer within {timeout_s:.0f} s")

    def _end(self, slot: int) -> None:
        if (worker := self._workers[slot]) is not None:
            worker.end()
            self._workers[slot] = None
