"""Waiting for sites: until a deadline, with a line now and then, and with each site's answer read on its own."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from lit_fedbabu.protocol.handshake import PLACE
from lit_fedbabu.protocol.wire import Order

LOOK_EVERY_S, SAY_EVERY_S = 3.0, 300.0
"""Seconds between two looks for answers, and between two lines; the first line comes after a fifth of the latter."""


class PatientGrid:
    """Flower's grid, for sites. An answer that Flower cannot put together is that site's failure, not the run's.

    Args:
        grid: Flower's.
        say: prints a line.
    """

    def __init__(self, grid: Grid, say: Callable[[str], None]) -> None:
        self._grid = grid
        self._say = say

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        """The answers, and for sites that gave none in time an error that says so."""
        sent = list(messages)
        waiting = dict(zip(self._grid.push_messages(sent), sent, strict=True)) if sent else {}
        begun = time.monotonic()
        until = time.strftime("%H:%M", time.localtime(time.time() + timeout))
        replies: list[Message] = []
        next_line = SAY_EVERY_S / 5
        while waiting:
            for name in list(waiting):
                if found := self._answer_to(name, waiting[name]):
                    replies += found
                    del waiting[name]
            passed = time.monotonic() - begun
            if not waiting or passed >= timeout:
                break
            if passed >= next_line:
                next_line = passed + SAY_EVERY_S
                self._say(f"waiting for {_whom(waiting.values())} for {passed / 60:.0f} min; gives up at {until}")
            time.sleep(min(LOOK_EVERY_S, timeout - passed))
        late = f"no answer within {timeout / 60:.3g} min; round-timeout says how long a round waits"
        return replies + [_error(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, late) for message in waiting.values()]

    def _answer_to(self, name: str, message: Message) -> list[Message]:
        try:
            return list(self._grid.pull_messages([name]))
        except Exception as error:  # what a site has sent can be anything
            reason = f"its answer cannot be read: {type(error).__name__}: {error}"
            return [_error(message, ErrorCode.MESSAGE_UNAVAILABLE, reason)]


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def _whom(messages: Iterable[Message]) -> str:
    """Whose answers are missing."""
    orders = [Order.from_record(each.content)[0] for each in messages if each.metadata.message_type != PLACE]
    return f"clients {sorted(client for order in orders for client in order.clients)}" if orders else "nodes"
