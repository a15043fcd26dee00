"""Waiting for sites: until a deadline, with a line now and then, and with each site's answer read on its own."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from lit_fedbabu.protocol.wire import TrainReply, clients_of
from lit_fedbabu.server.answers import LATE, SPARE

LOOK_EVERY_S, SAY_EVERY_S = 3.0, 300.0
"""Seconds between two looks for answers, and between two lines; the first line comes after a fifth of the latter."""


class PatientGrid:
    """Flower's grid, for sites. An answer that Flower cannot put together is that site's failure, not the run's.

    Each answer is pulled by a thread of its own: Flower waits minutes for the rest of one that a site began to send.
    Whose answer it is is known by what was asked, and not by what it says.

    Args:
        grid: Flower's.
        say: prints a line.
        limit: the option that says how long a round waits.
    """

    enough: int | None = None
    """So many updates end the waiting of a round; None: all."""

    def __init__(self, grid: Grid, say: Callable[[str], None], limit: str = "round-timeout") -> None:
        self._grid, self._say, self._limit = grid, say, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> Iterator[Message]:
        """The answers as they come, and for sites that gave none in time an error that says so."""
        sent = list(messages)
        waiting = dict(enumerate(sent))
        arrived: queue.Queue[tuple[int, Message]] = queue.Queue()
        over = threading.Event()
        for place, name in enumerate(self._grid.push_messages(sent) if sent else ()):
            pulling = (place, name, sent[place], arrived, over)
            threading.Thread(target=self._pull, args=pulling, daemon=True).start()
        begun = time.monotonic()
        until = time.strftime("%H:%M", time.localtime(time.time() + timeout))
        next_line = SAY_EVERY_S / 5
        left = self.enough if sent and sent[0].metadata.message_type == MessageType.TRAIN else None
        while waiting and left != 0 and ((passed := time.monotonic() - begun) < timeout or not arrived.empty()):
            if passed >= next_line:
                next_line = passed + SAY_EVERY_S
                self._say(f"waiting for {_whom(waiting.values())} for {passed / 60:.0f} min; gives up at {until}")
            try:
                place, reply = arrived.get(timeout=max(0.0, min(next_line, timeout) - passed))
            except queue.Empty:
                continue
            del waiting[place]
            if left is not None and reply.has_content():
                left -= TrainReply.brings_updates(reply.content)
            yield reply
        over.set()
        took = f"{timeout / 60:.3g} min" if timeout >= 60 else f"{timeout:.3g} s"
        why = LATE, f"late: no answer within {took}; {self._limit} says how long a round waits"
        if left == 0:
            why = SPARE, "late: others were enough"
        for message in waiting.values():
            yield _error(message, *why)

    def _pull(
        self,
        place: int,
        name: str,
        message: Message,
        arrived: queue.Queue[tuple[int, Message]],
        over: threading.Event,
    ) -> None:
        """Look for the answer to a message until it is there, or until the round is over."""
        while not over.is_set():
            try:
                found = next(iter(self._grid.pull_messages([name])), None)
                if found is not None:
                    arrived.put((place, _of(message, found)))
                    return
            except Exception as error:  # what a site has sent can be anything
                reason = f"its answer cannot be read: {type(error).__name__}: {error}"
                arrived.put((place, _error(message, ErrorCode.MESSAGE_UNAVAILABLE, reason)))
                return
            over.wait(LOOK_EVERY_S)


def _of(message: Message, found: Message) -> Message:
    """The answer, from the node that was asked; errors of Flower's own, as of a node that is gone, stay."""
    if found.has_error() and found.metadata.src_node_id == message.metadata.src_node_id:
        return found
    if found.has_error():
        return _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(found.error.reason))
    return Message(found.content, reply_to=message)


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def _whom(messages: Iterable[Message]) -> str:
    """Whose answers are missing."""
    clients = sorted(client for message in messages for client in clients_of(message))
    return f"clients {clients}" if clients else "nodes"
