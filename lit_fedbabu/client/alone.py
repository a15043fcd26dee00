"""What a node that hosts one client answers to Flower's own strategies."""

from pathlib import Path

from flwr.app import Context, Message

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.client.host import Host
from lit_fedbabu.client.numpy_client import FedBABUClient, Parameters
from lit_fedbabu.protocol import plain
from lit_fedbabu.protocol.wire import Order


def train(message: Message, context: Context, host: Host) -> Message:
    """Train the one client; what it shares goes back under its names, with ``num-examples`` and ``train_loss``.

    Raises:
        ValueError: the node hosts other than one client, the arrays are not what the algorithm shares, or the strategy
            pulls clients in another way than the algorithm.
    """
    client, received, order = _asked(message, context, host)
    parameters, count, metrics = client.fit(received, order.to_config())
    arrays = dict(zip(host.experiment.shared_names, parameters, strict=True))
    return Message(plain.trained(arrays, count, metrics), reply_to=message)


def evaluate(message: Message, context: Context, host: Host) -> Message:
    """Evaluate the one client; with "personalize" in the strategy's ``evaluate_config`` also its personal model.

    The reply has the client's entry in results.json as metrics, and ``num-examples``. Errors are as of ``train``.
    """
    client, received, order = _asked(message, context, host)
    _, count, row = client.evaluate(received, order.to_config())
    return Message(plain.evaluated(count, row), reply_to=message)


def _asked(message: Message, context: Context, host: Host) -> tuple[FedBABUClient, Parameters, Order]:
    experiment = host.experiment
    if host.nodes != experiment.config.num_clients:
        raise ValueError(
            f"this is one of {host.nodes} nodes for num-clients = {experiment.config.num_clients}; Flower's own"
            " strategies know one client per node, so start as many nodes as clients"
        )
    if any(experiment.extras):
        name = experiment.config.algorithm
        raise ValueError(f"{name} sends more than weights, which Flower's own strategies do not; use lit-fedbabu run")
    order, arrays = plain.read(message.content, experiment.rate_in)
    experiment.check_received(arrays)
    if type(experiment.algorithm).combine is not Algorithm.combine:
        remedy = "has a server's step of its own, which Flower's own strategies do not take; use lit-fedbabu run"
        raise ValueError(f"{experiment.config.algorithm} {remedy}")
    if experiment.config.protection == "central":
        raise ValueError("privacy=central adds noise where Flower's own strategies add none; use lit-fedbabu run")
    if experiment.config.secure_aggregation:
        raise ValueError("secure-aggregation has steps that Flower's own strategies do not take; use lit-fedbabu run")
    pulled = experiment.algorithm.step == "proximal"
    plain.check_pull(message.content, experiment.config.proximal_mu if pulled else None)
    # A folder for each run: what clients kept in another one must not go into this.
    memory = f"run_{context.run_id}/memory"
    memories = host.memories(memory) if experiment.keeps else Path()
    received = [arrays[name].numpy() for name in experiment.shared_names]
    return FedBABUClient(experiment, host.place, memories), received, order
