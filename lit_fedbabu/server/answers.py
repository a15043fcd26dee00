"""Which of the messages that came back can be read, and speak of nobody but the clients that were asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.common.constant import ErrorCode

from lit_fedbabu.ground.errors import some
from lit_fedbabu.protocol.fields import text
from lit_fedbabu.protocol.handshake import WireError
from lit_fedbabu.protocol.secure import StepReply
from lit_fedbabu.protocol.wire import EvaluateReply, TrainReply

DEAD_WORKER = ("ActorDied", "WorkerCrashed")
"""In an error of Flower's simulation: Ray lost a worker process, and Flower's pool does not start another one."""

LATE, SPARE = ErrorCode.REPLY_MESSAGE_UNAVAILABLE, 1_000
"""Codes of errors in place of answers that did not come in time, and of those that were not waited for."""

Reply = TypeVar("Reply", TrainReply, EvaluateReply, StepReply)


@dataclasses.dataclass
class Answers(Generic[Reply]):
    """What came back.

    Args:
        readable: replies, in which every client was asked and is there once.
        unanswered: clients that no reply speaks of, and why.
        refused: those of them whose node sent something that cannot be read or does not speak of them.
        late: those whose answer did not come in time, which their node does not say itself.
        spare: those of them that were not waited for, since there were enough.
        lost_worker: whether Flower's simulation says that Ray lost a worker.
    """

    readable: list[Reply] = dataclasses.field(default_factory=list)
    unanswered: dict[int, str] = dataclasses.field(default_factory=dict)
    refused: set[int] = dataclasses.field(default_factory=set)
    late: set[int] = dataclasses.field(default_factory=set)
    spare: set[int] = dataclasses.field(default_factory=set)
    lost_worker: bool = False


def read(
    form: type[Reply],
    asked: Mapping[int, int],
    replies: Iterable[Message],
    kept: Callable[[Reply], Reply] = lambda reply: reply,
) -> Answers[Reply]:
    """Read replies, each as soon as it is there.

    Args:
        form: of the replies.
        asked: for each client the node that was asked.
        replies: of nodes, or of Flower in place of nodes.
        kept: what is kept of a reply until all are there.
    """
    found = Answers[Reply]()
    errors: dict[int, str] = {}
    left = dict(asked)
    for message in replies:
        node = message.metadata.src_node_id
        own = {client for client, its_node in left.items() if its_node == node}
        if message.has_error():
            errors[node] = text("reason", str(message.error.reason or "an error without a reason"))
            words = any(word in errors[node] for word in DEAD_WORKER)
            if message.error.code in (LATE, SPARE):
                found.late |= own
            if message.error.code == SPARE:
                found.spare |= own
            found.lost_worker |= words and message.error.code == ErrorCode.UNKNOWN
            continue
        try:
            reply = form.from_record(message.content)
            if others := reply.clients - own:
                raise WireError(f"an answer of clients {some(map(str, sorted(others)))}, which were not asked")
        except WireError as error:
            errors[node] = f"sent {error}"
            found.refused |= own
            continue
        found.readable.append(kept(reply))
        found.refused |= own - reply.clients
        left = {client: its_node for client, its_node in left.items() if client not in reply.clients}
    # Errors of Flower itself, as of a node that is gone, do not say whose they are.
    of_flower = "; ".join(reason for node, reason in errors.items() if node not in asked.values())
    found.unanswered = {client: errors.get(node) or of_flower or "no answer" for client, node in sorted(left.items())}
    found.refused &= left.keys()
    return found
