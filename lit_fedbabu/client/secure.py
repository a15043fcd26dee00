"""A node's part in secure aggregation: its clients' secrets between messages, and what they mask.

Any process may answer the next message, so the secrets of a client lie in a file beside what it keeps, which its user
alone can read: ``memory/client_0007/secure.json``. They are gone from it when the client has given its shares.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from flwr.app import Message

from lit_fedbabu.client.host import Host
from lit_fedbabu.ground.files import whole
from lit_fedbabu.protocol.handshake import Code
from lit_fedbabu.protocol.secure import MASKED_ARRAY, Routed, Step, StepReply, rows_of_public
from lit_fedbabu.protocol.wire import Arrays, Failure, Order
from lit_fedbabu.secure.masks import flat, quantized
from lit_fedbabu.secure.party import Party, ProtocolError
from lit_fedbabu.training.memory import folder_of

FILE = "secure.json"
Weights = npt.NDArray[Any]


def answer(message: Message, host: Host) -> Message:
    """Answer a step of the protocol for each asked client. One that refuses it is among the failures."""
    Code.from_record(message.content).refuse_other()
    step = Step.from_record(message.content)
    memories, config = host.memories(step.memory), host.experiment.config
    if not config.secure_aggregation:
        raise ValueError("this run has no secure aggregation")
    rows: list[tuple[int, int, bytes]] = []
    failures: list[Failure] = []
    for client in step.clients:
        try:
            found = _step(step, client, memories, config.unmasking_threshold)
            rows += [(client, other, data) for other, data in found.items()]
        except ProtocolError as refused:
            failures.append(Failure(client, str(refused)))
    return Message(StepReply(rows, failures).to_record(), reply_to=message)


def _step(step: Step, client: int, memories: Path, threshold: int) -> dict[int, bytes]:
    if step.name == "keys":
        party = _begun(client, step.server_round, memories, threshold)
        sent = {place: data for _, place, data in rows_of_public({client: party.public})}
    else:
        party = _read(memories, client)
        sent = (
            party.share(step.server_round, step.public)
            if step.name == "shares"
            else party.unmask(step.server_round, step.alive, step.dead)
        )
    _write(memories, party)
    return sent


def masked(
    message: Message, host: Host, order: Order, client: int, count: int, arrays: Arrays, received: Sequence[Weights]
) -> Arrays:
    """What a client sends in place of its weights.

    Args:
        message: that ordered to train.
        host: the node.
        order: in the message.
        client: its number.
        count: its training samples.
        arrays: its shared weights.
        received: those that it began with, in the order of their names in the experiment.

    Raises:
        ValueError: the message has no shares of others or those of too few, the client has masked in this round
            already, or its update is larger than ``quantization-range``.
    """
    experiment, routed, memories = host.experiment, Routed.from_record(message.content), host.memories(order.memory)
    before = dict(zip(experiment.shared_names, received, strict=False))  # others follow, which it does not send
    numbers = quantized(flat(arrays) - flat(before), count, routed.total, experiment.config.quantization_range)
    party = _read(memories, client)
    hidden = party.mask(order.server_round, numbers, routed.of(client))
    _write(memories, party)  # before it is sent, so that nothing is masked twice with the same keys
    return {MASKED_ARRAY: hidden}


def _begun(client: int, server_round: int, memories: Path, threshold: int) -> Party:
    before = _read(memories, client).summed if _place(memories, client).exists() else (0, list[int]())
    return Party.begin(client, server_round, threshold, before)


def _place(memories: Path, client: int) -> Path:
    return folder_of(memories, client) / FILE


def _read(memories: Path, client: int) -> Party:
    try:
        return Party.loads(_place(memories, client).read_text())
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ProtocolError(f"its secrets of this round cannot be read: {type(error).__name__}: {error}") from None


def _write(memories: Path, party: Party) -> None:
    place = _place(memories, party.client)
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole(place) as scratch:
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(party.dumps())
