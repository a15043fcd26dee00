"""The process of the engine ``ray`` that speaks with Ray, which prints, catches signals and may end its process."""

import os
import queue
import re
import secrets
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lit_fedbabu.ground import system
from lit_fedbabu.ground.compat import free_resources_of_ray
from lit_fedbabu.ground.errors import some
from lit_fedbabu.workers.host import Host
from lit_fedbabu.workers.pool import ATTEMPTS
from lit_fedbabu.workers.serving import end_with

HOST_TIMEOUT_S = 120.0
"""Seconds in which a node's actor has to start, and in which a node has to come where none is left."""
ROOM_S = 10.0
"""Seconds in which a cluster has to have room for a worker."""
LOOK_S = 1.0
"""Seconds between two looks for nodes while there is none."""
STARTS = 3
"""How often an actor is started on a node without an answer from it, before the node is left alone."""


class RefusedError(Exception):
    """The cluster cannot do the run. The message says why."""


class LostError(Exception):
    """The run cannot go on. The message says why."""


class _Node:
    """A node of the cluster, and the actor with its workers.

    Args:
        actor: Ray's handle.
        size: how many workers it has.
        name: the machine's, for who reads notes.
    """

    def __init__(self, actor: Any, size: int, name: str) -> None:
        self.actor, self.size, self.name = actor, size, name
        self.free = size
        self.is_ready = self.is_asked = self.is_taken = False
        """Whether its versions fit, whether it was asked for its place, and whether it may answer for clients."""
        self.has = 0
        """The number of the shared object that was sent to it."""


class _Asked(NamedTuple):
    """A request: its place among those of a call, or None if it introduces its node, and how often it was sent."""

    place: int | None
    attempt: int


class _Sent(NamedTuple):
    """What is sent to a node, and in which call."""

    id: str
    node: _Node
    asked: _Asked | None
    call: int


class Cluster:
    """Actors on the nodes of a Ray cluster, one on each, whose workers answer requests.

    Args:
        address: as of ``ray.init``; empty: a Ray is started here.
        num_threads: CPU threads of a worker.
        path: folders that modules are imported from here.
        current: the current folder of the command.
        log: file of a run's folder that workers print to, where nodes share it.
        judge: is given a node's name, whether it has answered the introduction, and the answer, or why there is none;
            returns why it cannot take part, or nothing.

    Raises:
        RefusedError: there is no such cluster.
    """

    def __init__(
        self, address: str, num_threads: int, path: Sequence[str], current: str, log: str, judge: Callable[..., str]
    ) -> None:
        cores = max(system.available_cores(), num_threads)
        where: dict[str, Any] = {"address": address}
        if not address:
            where = {"num_cpus": cores, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, configure_logging=False)
        except (Exception, SystemExit) as error:  # whatever Ray raises
            raise RefusedError(line_of(error)) from error
        self._num_threads = num_threads
        self._of_host = num_threads, path, current, log
        self._judge = judge
        self._nodes: dict[str, _Node] = {}
        self._sizes: dict[str, int] = {}
        self._starts: Counter[str] = Counter()
        self._left_out: set[str] = set()
        self._events: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._flying: dict[Future[Any], _Sent] = {}
        self._notes: list[str] = []
        self._call = 0
        self._introduction, self._folder = b"", ""
        self._is_begun = False
        self._introduction_s: float | None = None
        self._look()

    def begin(self) -> int:
        """Wait for the actors; returns how many workers there are.

        Raises:
            RefusedError: none has started, or one cannot take part.
        """
        deadline = time.monotonic() + HOST_TIMEOUT_S
        while not self._nodes or not all(node.is_ready for node in self._nodes.values()):
            if time.monotonic() > deadline - (0 if self._nodes else HOST_TIMEOUT_S - ROOM_S):
                raise RefusedError(self._nothing())
            self._next(LOOK_S)
        return sum(node.size for node in self._nodes.values())

    def answers(
        self, introduction: bytes, folder: str, requests: Sequence[bytes], shared: bytes | None, timeout_s: float | None
    ) -> Iterator[tuple[Any, ...]]:
        """Have requests answered; yields what ``ray.Workers`` reads, as it comes.

        Args:
            introduction: a request that shares nothing, which a node answers once before it may answer for clients.
            folder: in which every node must see at once what another one writes; empty: there is none.
            requests: packed.
            shared: what they share, packed.
            timeout_s: seconds that all answers may take together; None: any.

        Raises:
            LostError: there are no workers any more.
            RefusedError: a node cannot take part, in the first call.
        """
        if not self._is_begun:
            self._introduction, self._introduction_s, self._folder = introduction, timeout_s, folder
            for id_, node in [each for each in self._nodes.items() if each[1].is_ready]:
                self._made_ready(_Sent(id_, node, None, 0))
        self._call += 1
        self._object = ray.put(shared)
        waiting = deque(_Asked(place, 1) for place in range(len(requests)))
        open_: set[int] = set(range(len(requests)))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        ready_at = time.monotonic()
        self._look()
        while open_ or not (self._is_begun or all(node.is_taken for node in self._nodes.values())):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                for place in sorted(open_):
                    yield "failed", place, f"no answer within {timeout_s:.0f} s"
                return
            self._send(waiting, requests, left)
            ended = self._next(LOOK_S if left is None else min(LOOK_S, left))
            if ended is not None and ended[0].asked is not None:
                yield from self._told(*ended, waiting, open_)
            for note in self._notes:
                yield "note", note
            self._notes = []
            if any(node.is_ready for node in self._nodes.values()):
                ready_at = time.monotonic()
            elif time.monotonic() - ready_at > HOST_TIMEOUT_S:
                raise LostError(self._nothing())
        self._is_begun = True

    def _told(
        self, sent: _Sent, future: "Future[Any]", waiting: "deque[_Asked]", open_: set[int]
    ) -> Iterator[tuple[Any, ...]]:
        """What comes of a request that a node has answered, or died of."""
        place, attempt = sent.asked or (None, 0)
        is_late = place is not None and sent.call != self._call
        if (error := future.exception()) is not None:
            if place is None or is_late:
                return
            if attempt < ATTEMPTS:
                waiting.appendleft(_Asked(place, attempt + 1))
                return
            open_.discard(place)
            yield "failed", place, f"its node was lost twice, the last time: {line_of(error)}"
            return
        is_answer, answer, notes = future.result()
        for note in notes:
            yield "note", note
        if place is not None and not is_late:
            open_.discard(place)
            yield "answered" if is_answer else "failed", place, answer
        elif place is None and self._nodes.get(sent.id) is sent.node:
            if reason := self._judge(sent.node.name, is_answer, answer):
                self._leave_out(sent, reason)
            sent.node.is_taken = True

    def _send(self, waiting: "deque[_Asked]", requests: Sequence[bytes], left: float | None) -> None:
        """Give nodes with free workers something to do, one request to each in turn.

        One that joins later first answers the introduction. In the first call, in which no clients are asked for
        anything, all answer that beside requests.
        """
        while free := [
            (id_, node)
            for id_, node in self._nodes.items()
            if node.is_ready
            and node.free
            and (not node.is_asked or (waiting and (node.is_taken or not self._is_begun)))
        ]:
            for id_, node in sorted(free, key=lambda each: -each[1].free):
                if not node.is_asked:
                    node.is_asked = True
                    self._ask(_Sent(id_, node, _Asked(None, 1), 0), self._introduction, self._introduction_s)
                elif waiting:
                    if node.has < self._call:
                        node.has = self._call
                        node.actor.take.remote(self._call, self._object)
                    asked = waiting.popleft()
                    self._ask(_Sent(id_, node, asked, self._call), requests[asked.place or 0], left)

    def _ask(self, sent: _Sent, request: bytes, timeout_s: float | None) -> None:
        sent.node.free -= 1
        self._watch(sent.node.actor.answer.remote(sent.call, request, timeout_s), sent)

    def _watch(self, reference: Any, sent: _Sent) -> None:
        future: Future[Any] = reference.future()
        self._flying[future] = sent
        future.add_done_callback(self._events.put)

    def _next(self, timeout_s: float) -> "tuple[_Sent, Future[Any]] | None":
        """What ends next, accounted for; None: nothing has within so many seconds.

        Raises:
            LostError: a node cannot start workers.
            RefusedError: a node cannot take part, before the run has begun.
        """
        try:
            future = self._events.get(timeout=timeout_s)
        except queue.Empty:
            if not self._nodes:
                self._look()
            return None
        sent = self._flying.pop(future)
        error = future.exception()
        if error is not None and not isinstance(error, RayError):
            raise error
        if self._nodes.get(sent.id) is not sent.node:  # it was given up before
            return sent, future
        if isinstance(error, RayTaskError):
            if sent.asked is not None:
                raise LostError(f"{sent.node.name}: {line_of(error)}")
            self._leave_out(sent, line_of(error))
            return sent, future
        if error is not None:
            self._died(sent, error)
        elif sent.asked is not None:
            sent.node.free += 1
            self._starts[sent.id] = 0
        else:
            self._introduced(sent, future.result())
        return sent, future

    def _introduced(self, sent: _Sent, told: dict[str, Any]) -> None:
        sent.node.name = told["machine"]
        if reason := system.unlike(told, system.installed()):
            self._leave_out(sent, reason)
        else:
            self._made_ready(sent)

    def _made_ready(self, sent: _Sent) -> None:
        """Let a node take part if it sees what is written to the run's folder, where that matters."""
        node, folder = sent.node, self._folder
        try:
            node.is_ready = not folder or is_shared(
                Path(folder), lambda file: ray.get(node.actor.sees.remote(file), timeout=HOST_TIMEOUT_S)
            )
        except RayError as error:
            self._died(sent, error)
            return
        if not node.is_ready:
            remedy = "take an output-dir on a disk that all share, one of NFS with the mount option actimeo=0"
            why = f"it does not see at once what is written to {folder}, where clients keep what is theirs"
            self._leave_out(sent, f"{why}; {remedy}")

    def _died(self, sent: _Sent, error: BaseException) -> None:
        self._drop(sent)
        name, why = sent.node.name, line_of(error)
        if sent.node.is_ready:
            self._notes.append(f"note: the actor on {name} is gone ({why}); its work is done again")
        elif self._starts[sent.id] >= STARTS:
            self._leave_out(sent, f"it starts no workers: {why}")
        self._look()

    def _leave_out(self, sent: _Sent, reason: str) -> None:
        """Do without a node; raises RefusedError where the run has not begun."""
        if not self._is_begun:
            raise RefusedError(f"{sent.node.name}: {reason}")
        self._drop(sent)
        self._left_out.add(sent.id)
        self._notes.append(f"note: {sent.node.name} is left out: {reason}")

    def _drop(self, sent: _Sent) -> None:
        if self._nodes.pop(sent.id, None):
            ray.kill(sent.node.actor)

    def _look(self) -> None:
        """Start an actor on every node that has room for workers and none yet."""
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        free = free_resources_of_ray()
        gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in alive.values())
        for id_, node in alive.items():
            if id_ in self._nodes or id_ in self._left_out:
                continue
            has = free.get(id_, node["Resources"])
            size = int(has.get("GPU", 0)) if gpus else int(has.get("CPU", 0)) // self._num_threads
            if not (size := self._sizes.get(id_) or size):
                continue
            self._sizes[id_] = size
            self._starts[id_] += 1
            there = NodeAffinitySchedulingStrategy(id_, soft=False)
            cpus = 0 if gpus else size * self._num_threads
            options = {"num_cpus": cpus, "num_gpus": size if gpus else 0, "max_concurrency": size + 1}
            actor = ray.remote(Host).options(**options, max_restarts=0, scheduling_strategy=there)
            handle: Any = actor.remote(size, *self._of_host)
            self._nodes[id_] = _Node(handle, size, node["NodeManagerHostname"])
            self._watch(handle.introduce.remote(self._is_begun), _Sent(id_, self._nodes[id_], None, 0))

    def _nothing(self) -> str:
        if late := [node.name for node in self._nodes.values() if not node.is_ready]:
            return f"within {HOST_TIMEOUT_S:.0f} s no workers were started on {some(late)}"
        if any(self._starts.values()):
            return "none of its nodes has started workers"
        return f"none of its nodes has num-threads = {self._num_threads} free CPU cores, or a free GPU if there are any"


def is_shared(folder: Path, sees: Callable[[str], bool]) -> bool:
    """Whether another machine sees at once what is written in a folder here.

    Args:
        folder: that is here.
        sees: says whether a file is there.
    """
    mark = folder / f".shared-{secrets.token_hex(8)}"
    sees(str(mark))  # a disk that remembers what is not there, as NFS for a minute, does so from now on
    try:
        mark.touch()
        return sees(str(mark))
    finally:
        mark.unlink(missing_ok=True)


def line_of(error: BaseException) -> str:
    """What Ray says, in a line: it fills many with what may have been the cause."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    text = " ".join(str(cause or error).split())
    if isinstance(error, ActorUnavailableError):
        return "the connection to it was lost"
    if "Could not find any running Ray instance" in text:
        return "Ray finds no cluster that this machine is a node of; begin one with ray start, or give its host:port"
    if "Failed to connect to Ray cluster" in text:
        return "Ray does not let this machine in; give the RAY_AUTH_MODE and RAY_AUTH_TOKEN that ray start had, if any"
    if "running low on memory" in text:
        return "Ray ended it because memory ran low"
    found = re.search(r"because (its (?:worker process|node) has died)", text)
    return found[1] if found else text[:300] or type(error).__name__


def main() -> None:
    """Serve the process at the other end of the connection whose number is the first argument, until it is gone."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=end_with, args=(connection.fileno(),), daemon=True).start()

    def judged(*introduced: Any) -> str:
        connection.send(("introduced", *introduced))
        reason: str = connection.recv()
        return reason

    try:
        cluster = Cluster(**connection.recv(), judge=judged)
        connection.send(("ready", cluster.begin()))
        while True:
            for told in cluster.answers(*connection.recv()):
                connection.send(told)
            connection.send(("over",))
    except (RefusedError, LostError) as error:
        connection.send(("refused" if isinstance(error, RefusedError) else "lost", str(error)))
        end_with(connection.fileno())
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    main()
