"""What a node answers: it trains and evaluates the clients it hosts, one NumPyClient or cohort after another."""

import platform
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.logger import log

from lit_fedbabu import runs, training
from lit_fedbabu.client import FedBABUClient, evaluate_together, fit_together
from lit_fedbabu.host import Host, host_of
from lit_fedbabu.preflight import trains_on


def place(message: Message, context: Context) -> Message:
    """Tell which of how many nodes this is, and what it trains on. It hosts the clients c with c mod nodes == node."""
    _refuse_other_code(message)
    host = host_of(context)
    answer = {"node": host.place, "nodes": host.nodes, "trains-on": trains_on(host.config)}
    return Message(RecordDict({"place": ConfigRecord(answer)}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train the asked clients; the reply has each shared array once per client, stacked in their order.

    A client that raises is left out, and the reply's "failures" say why.
    """
    stacks: dict[str, list[np.ndarray]] = defaultdict(list)
    metrics: dict[str, list] = defaultdict(list)
    failures: dict[str, list] = defaultdict(list)
    host = host_of(context)
    for participants, received, order in _asked(message, host):
        for participant, outcome in _trained(participants, received, order):
            if isinstance(outcome, Exception):
                trace = "".join(traceback.format_exception(outcome))
                told = {"client": participant.client, "reason": repr(outcome), "traceback": trace}
                for key, value in told.items():
                    failures[key].append(value)
                continue
            arrays, count, told = outcome
            for name, array in zip(participant.shared_names, arrays, strict=True):
                stacks[name].append(array)
            for key, value in {"client": participant.client, "num_train": count, **told}.items():
                metrics[key].append(value)
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(np.stack(arrays)) for name, arrays in stacks.items()}),
            "metrics": MetricRecord(metrics),
        }
    )
    if failures:
        content["failures"] = ConfigRecord(failures)
    return Message(content, reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the asked clients, with personal models where the message says so.

    A site then also keeps the federation's model, beside its memories, for fine-tuning.
    """
    metrics: dict[str, list] = defaultdict(list)
    host = host_of(context)
    for participants, received, order in _asked(message, host):
        if host.config.on_sites and order["personalize"]:
            participants[0].save(received, order["server-round"])
        for participant, (*_, row) in zip(participants, evaluate_together(participants, received, order)):
            for key, value in {"client": participant.client, **row}.items():
                metrics[key].append(value)
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _trained(
    participants: Sequence[FedBABUClient], received: list[np.ndarray], order: dict[str, Any]
) -> list[tuple[FedBABUClient, tuple | Exception]]:
    """What each participant returns or raises; a cohort that raises is trained one by one, to see whose fault it is."""
    try:
        if len(participants) == 1:
            return [(participants[0], participants[0].fit(received, order))]
        return list(zip(participants, fit_together(participants, received, order)))
    except Exception as error:  # whatever it is, the other clients' work counts
        if len(participants) == 1:
            return [(participants[0], error)]
        log(WARNING, "a cohort of %d clients is trained one by one after %r", len(participants), error)
        return [pair for each in participants for pair in _trained([each], received, order)]


def _asked(message: Message, host: Host) -> Iterator[tuple[list[FedBABUClient], list[np.ndarray], dict[str, Any]]]:
    """The clients that a message is for, by cohorts, each with the received arrays and what the server asks."""
    _refuse_other_code(message)
    order, received = dict(message.content["config"]), message.content["arrays"]
    for clients in training.cohorts(host.config, order["clients"]):
        participants = [FedBABUClient(host.config, client, host.state / order["memory"]) for client in clients]
        yield participants, [received[name].numpy() for name in participants[0].shared_names], order


def _refuse_other_code(message: Message) -> None:
    """Raise ValueError where the server that sent the message runs other code than this node."""
    server = message.content["config"]
    if server["source-digest"] != runs.source_digest():
        raise ValueError(
            f"the server runs {server['source-folder']} but {platform.node()} runs {runs.package_folder()}, and their"
            " code differs; install the same version on both, or end the flower-superlink that was started elsewhere"
        )
