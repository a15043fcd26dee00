"""Waiting for sites: until a deadline, with a line now and then, and with each site's answer read on its own."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from lit_fedbabu.config import Config
from lit_fedbabu.ground.compat import look_soon_for_objects
from lit_fedbabu.ground.waits import growing
from lit_fedbabu.protocol.packing import pack, unpack
from lit_fedbabu.protocol.wire import TrainReply, clients_of
from lit_fedbabu.server.answers import LATE, SPARE

SAY_EVERY_S = 300.0
"""Seconds between two lines; the first one comes after a fifth of it."""
SITES_EVERY_S = 15.0
"""Seconds between two calls of ``PatientGrid.look``."""


class PatientGrid:
    """Flower's grid, for real nodes. An answer that Flower cannot put together is that site's failure, not the run's.

    Each answer is pulled by a thread of its own: Flower waits minutes for the rest of one that a site began to send.
    Whose answer it is is known by what was asked, and not by what it says.

    Args:
        grid: Flower's.
        say: prints a line.
        limit: the option that says how long a round waits.
    """

    enough: int | None = None
    """So many updates end the waiting of a round; None: all."""
    look: Callable[[], None] = staticmethod(lambda: None)
    """Is called now and then while answers are waited for."""

    def __init__(self, grid: Grid, say: Callable[[str], None], limit: str = "round-timeout") -> None:
        self._grid, self._say, self._limit = grid, say, limit
        self._next_look = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> Iterator[Message]:
        """The answers as they come, and for sites that gave none in time an error that says so."""
        sent = list(messages)
        waiting = dict(enumerate(sent))
        arrived: queue.Queue[tuple[int, Message]] = queue.Queue()
        over = threading.Event()
        for place, name in enumerate(self._pushed(sent)):
            pulling = (place, name, sent[place], arrived, over)
            threading.Thread(target=self._pull, args=pulling, daemon=True).start()
        begun = time.monotonic()
        until = time.strftime("%H:%M", time.localtime(time.time() + timeout))
        next_line = SAY_EVERY_S / 5
        left = self.enough if sent and sent[0].metadata.message_type == MessageType.TRAIN else None
        while waiting and left != 0 and ((passed := time.monotonic() - begun) < timeout or not arrived.empty()):
            if passed >= next_line:
                next_line = passed + SAY_EVERY_S
                self._waits(waiting.values(), passed, until)
            wait_s = self._looked()
            try:
                place, reply = arrived.get(timeout=max(0.0, min(wait_s, min(next_line, timeout) - passed)))
            except queue.Empty:
                continue
            del waiting[place]
            if left is not None and reply.has_content():
                left -= TrainReply.brings_updates(reply.content)
            yield reply
        over.set()
        why = self._late(timeout)
        if left == 0:
            why = SPARE, "late: others were enough"
        for message in waiting.values():
            yield _error(message, *why)

    def _pushed(self, messages: list[Message]) -> Iterable[str]:
        """Names of the messages, which are with the SuperLink now."""
        pack(messages)
        return self._grid.push_messages(messages) if messages else ()

    def _looked(self) -> float:
        """Look, where it is time to; returns the seconds until it is the next time."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + SITES_EVERY_S
            self.look()
        return self._next_look - time.monotonic()

    def _late(self, timeout: float) -> tuple[int, str]:
        """Code and reason of an error in place of an answer that did not come in time."""
        took = f"{timeout / 60:.3g} min" if timeout >= 60 else f"{timeout:.3g} s"
        return LATE, f"late: no answer within {took}; {self._limit} says how long a round waits"

    def _waits(self, messages: Iterable[Message], passed: float, until: str) -> None:
        clients = sorted(client for message in messages for client in clients_of(message))
        whom = f"clients {clients}" if clients else "nodes"
        self._say(f"waiting for {whom} for {passed / 60:.0f} min; gives up at {until}")

    def _pull(
        self,
        place: int,
        name: str,
        message: Message,
        arrived: queue.Queue[tuple[int, Message]],
        over: threading.Event,
    ) -> None:
        """Look for the answer to a message until it is there, or until the round is over."""
        for wait_s in growing():
            if over.is_set():
                return
            try:
                found = next(iter(self._grid.pull_messages([name])), None)
                if found is not None:
                    if found.has_content():
                        unpack(found.content)
                    arrived.put((place, _of(message, found)))
                    return
            except Exception as error:  # what a site has sent can be anything
                reason = f"its answer cannot be read: {type(error).__name__}: {error}"
                arrived.put((place, _error(message, ErrorCode.MESSAGE_UNAVAILABLE, reason)))
                return
            over.wait(wait_s)


class OpenGrid(PatientGrid):
    """The same for a buffered server: what asks to train stays open, and its answers come one in a call."""

    is_training = False
    """Whether the next messages, which may be none, ask to train."""

    def __init__(self, grid: Grid, say: Callable[[str], None], limit: str = "round-timeout") -> None:
        super().__init__(grid, say, limit)
        self._open: dict[int, tuple[Message, float, threading.Event]] = {}
        self._came: queue.Queue[tuple[int, Message]] = queue.Queue()
        self._places = itertools.count()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> Iterator[Message]:
        """One answer to a message that is open, or an error in its place; to others than to train all answers."""
        sent = list(messages)
        if not self.is_training:
            yield from super().send_and_receive(sent, timeout=timeout)
            return
        self.is_training = False
        begun = time.monotonic()
        for name, message in zip(self._pushed(sent), sent, strict=True):
            place, over = next(self._places), threading.Event()
            self._open[place] = message, begun + timeout, over
            threading.Thread(target=self._pull, args=(place, name, message, self._came, over), daemon=True).start()
        next_line = begun + SAY_EVERY_S / 5
        while self._open:
            now = time.monotonic()
            first = min(self._open)
            message, ends, over = self._open[first]
            if now >= next_line:
                next_line = now + SAY_EVERY_S
                until = time.strftime("%H:%M", time.localtime(time.time() + ends - now))
                self._waits((each for each, *_ in self._open.values()), now - begun, until)
            wait_s = self._looked()
            try:
                place, reply = self._came.get(timeout=max(0.0, min(wait_s, min(next_line, ends) - now)))
            except queue.Empty:
                if time.monotonic() < ends:
                    continue
                over.set()
                place, reply = first, _error(message, *self._late(timeout))
            if place in self._open:  # else it came after its time
                message, *_ = self._open.pop(place)
                yield _error(message, reply.error.code, str(reply.error.reason)) if reply.has_error() else reply
                return


def patient(grid: Grid, config: Config, say: Callable[[str], None]) -> Grid:
    """The grid of real nodes for the options; any other as it is."""
    is_real = type(grid).__name__ == "HttpGrid"  # of Flower's SuperLink, whose import takes half a second
    if not is_real and not (config.on_sites and isinstance(grid, Grid)):
        return grid
    look_soon_for_objects()
    limit = "round-deadline-s" if config.round_deadline_s else "round-timeout"
    return cast(Grid, (OpenGrid if config.is_buffered else PatientGrid)(grid, say, limit))


def _of(message: Message, found: Message) -> Message:
    """The answer, from the node that was asked; errors of Flower's own, as of a node that is gone, stay."""
    if found.has_error() and found.metadata.src_node_id == message.metadata.src_node_id:
        return found
    if found.has_error():
        return _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(found.error.reason))
    return Message(found.content, reply_to=message)


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)
