"""What a node answers: it trains and evaluates the clients it hosts, one NumPyClient or cohort after another."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from logging import WARNING
from typing import Any, TypeVar

from flwr.app import Context, Message
from flwr.common.logger import log

from lit_fedbabu.client import alone
from lit_fedbabu.client import secure as secret
from lit_fedbabu.client.host import Host, Hosts
from lit_fedbabu.client.numpy_client import (
    Evaluated,
    FedBABUClient,
    FitReply,
    Parameters,
    evaluate_together,
    fit_together,
)  # fmt: skip
from lit_fedbabu.ground.printing import say
from lit_fedbabu.learning.precision import resolve_precision, trains_on
from lit_fedbabu.learning.trainer import cohorts
from lit_fedbabu.protocol.handshake import Code, Place
from lit_fedbabu.protocol.packing import pack, unpack
from lit_fedbabu.protocol.plain import is_plain
from lit_fedbabu.protocol.wire import Arrays, ClientUpdate, EvaluateReply, Failure, Order, TrainReply

T = TypeVar("T")
HOSTS = Hosts()
"""Of this process: it keeps the experiment between messages."""


def place(message: Message, context: Context) -> Message:
    """Answer which of how many nodes this is, and what it trains on; or why it cannot take part."""
    try:
        Code.from_record(message.content).refuse_other()
        host = HOSTS.of(context)
        base = str(host.experiment.base_facts.get("digest", ""))
    except ValueError as error:
        say(f"error: {error}")
        return Message(Place(0, 0, "", refusal=" ".join(str(error).split())).to_record(), reply_to=message)
    config = host.experiment.config
    device, digest = trains_on(config.precision), config.initial_weights_digest
    sizes = host.experiment.task.sizes[host.client] if host.client is not None else (0, 0)
    precision = resolve_precision(config.precision)
    answer = Place(host.place, host.nodes, device, precision, host.state is not None, digest, base, *sizes, host.name)
    return Message(answer.to_record(), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train the asked clients. A client that raises is left out, and the reply says why."""
    updates: list[ClientUpdate] = []
    failures: list[Failure] = []
    host = HOSTS.of(context)
    if is_plain(message.content):
        return alone.train(message, context, host)
    for participants, received, order in _asked(message, host, host.experiment.down_names):
        for participant, outcome in _each(participants, _training(received, order)):
            if isinstance(outcome, Exception):
                failures.append(_failure(participant, outcome))
                continue
            parameters, count, metrics = outcome
            arrays: Arrays = dict(zip(host.experiment.up_names, parameters, strict=True))
            if host.experiment.config.secure_aggregation:
                try:
                    arrays = secret.masked(message, host, order, participant.client, count, arrays, received)
                except ValueError as error:
                    failures.append(_failure(participant, error))
                    continue
            updates.append(ClientUpdate(participant.client, count, metrics["train_loss"], arrays))
    return Message(TrainReply(updates, failures).to_record(), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the asked clients, with personal models where the message says so.

    A client that raises is left out, and the reply says why. A site then also keeps the federation's model, beside its
    memories, for fine-tuning.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    host = HOSTS.of(context)
    if is_plain(message.content):
        return alone.evaluate(message, context, host)
    for participants, received, order in _asked(message, host, host.experiment.after_names):
        if host.experiment.config.on_sites and order.personalize:
            participants[0].save(received, order.server_round)
        for participant, outcome in _each(participants, _evaluation(received, order)):
            if isinstance(outcome, Exception):
                failures.append(_failure(participant, outcome))
            else:
                rows.append({"client": participant.client, **outcome[-1]})
    return Message(EvaluateReply(rows, failures).to_record(), reply_to=message)


def secure(message: Message, context: Context) -> Message:
    """Answer a step of secure aggregation; errors are as of ``secure.answer``."""
    return secret.answer(message, HOSTS.of(context))


ANSWERS = {"place": place, "train": train, "evaluate": evaluate, "secure": secure}
"""What answers a message, by the name of the handler in ``client_app``."""


def answer(what: str, message: Message, context: Context) -> Message:
    """The answer of the handler of that name, packed if the message was."""
    is_packed = unpack(message.content)
    reply = ANSWERS[what](message, context)
    if is_packed:
        pack([reply])
    return reply


def _training(received: Parameters, order: Order) -> Callable[[Sequence[FedBABUClient]], Sequence[FitReply]]:
    def train(participants: Sequence[FedBABUClient]) -> Sequence[FitReply]:
        if len(participants) == 1:
            return [participants[0].fit(received, order.to_config())]
        return fit_together(participants, received, order.to_config())

    return train


def _evaluation(received: Parameters, order: Order) -> Callable[[Sequence[FedBABUClient]], Sequence[Evaluated]]:
    return lambda participants: evaluate_together(participants, received, order.to_config())


def _each(
    participants: Sequence[FedBABUClient], work: Callable[[Sequence[FedBABUClient]], Sequence[T]]
) -> list[tuple[FedBABUClient, T | Exception]]:
    """What the work returns for each participant, or raises. A cohort that raises is split, to find who failed."""
    try:
        return list(zip(participants, work(participants), strict=True))
    except Exception as error:  # whatever it is, the other clients' work counts
        if len(participants) == 1:
            return [(participants[0], error)]
        log(WARNING, "a cohort of %d clients is asked one by one after %r", len(participants), error)
        return [pair for each in participants for pair in _each([each], work)]


def _failure(participant: FedBABUClient, error: Exception) -> Failure:
    return Failure(participant.client, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def _asked(
    message: Message, host: Host, names: Sequence[str]
) -> Iterator[tuple[list[FedBABUClient], Parameters, Order]]:
    """The clients that a message is for, by cohorts, each with the received arrays of these names and the order."""
    Code.from_record(message.content).refuse_other()
    order, received = Order.from_record(message.content)
    experiment, memories = host.experiment, host.memories(order.memory)
    for clients in cohorts(experiment.config, order.clients):
        participants = [FedBABUClient(experiment, client, memories) for client in clients]
        yield participants, [received[name].numpy() for name in names], order
