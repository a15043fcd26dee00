"""FedBABUClient: one participant as a Flower NumPyClient, driving one Lightning Trainer per call."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from flwr.client import NumPyClient

from lit_fedbabu.algorithms.algorithm import EXTRA
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.protocol.wire import Order
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, SERVER
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import cohort_update, initial_evaluations, personal_models
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import protect

Parameters = list[npt.NDArray[Any]]
"""Arrays in the order of ``Experiment.shared_names``; followed by those of ``Experiment.extras``."""
FitReply = tuple[Parameters, int, dict[str, Any]]
Evaluated = tuple[float, int, dict[str, Any]]


class FedBABUClient(NumPyClient):
    """Participant ``client`` of the experiment.

    Arrays in and out are the shared entries of the model's state, in the order of the state (for FedBABU: the body's).
    The head is built from the seed here and never travels.

    Args:
        experiment: with the algorithm and the client's data.
        client: its number.
        memories: folder of what clients keep between rounds.
    """

    def __init__(self, experiment: Experiment, client: int, memories: Path) -> None:
        self.experiment = experiment
        self.client = client
        self.memories = memories

    def fit(self, parameters: Parameters, config: dict[str, Any]) -> FitReply:
        """Train for one round.

        Args:
            parameters: the shared arrays, as the server holds them, and what it sends besides.
            config: "server-round" and "learning-rate" of this round.

        Returns:
            The trained shared arrays and what is sent besides, the number of training images, and {"train_loss": nats}.
        """
        return fit_together([self], parameters, config)[0]

    def evaluate(self, parameters: Parameters, config: dict[str, Any]) -> Evaluated:
        """Evaluate what was received and, where "personalize" is set, the personal model made from it.

        Args:
            parameters: the shared arrays, as the server holds them, and what it sends besides.
            config: "server-round" and "personalize".

        Returns:
            The initial loss in nats, the number of test images, and the client's entry in results.json.
        """
        return evaluate_together([self], parameters, config)[0]

    def save(self, parameters: Parameters, server_round: int) -> None:
        """Write what was received in a round as a checkpoint, in the folder that the memories lie in."""
        module = self.experiment.received_module(self.received(parameters))
        rounds = [{"round": server_round}]
        facts = {"round": server_round, "rounds": rounds, "client": self.client}
        module.provenance = self.experiment.provenance("federation", **facts)
        checkpoint.save(module, self.memories.parent / LAST_CHECKPOINT)
        if extras := self.besides(parameters, self.experiment.extras.after):
            memory.keep_in(self.memories.parent / SERVER, server_round, {EXTRA + name: extras[name] for name in extras})

    def received(self, parameters: Parameters) -> dict[str, torch.Tensor]:
        """Shared arrays under their names in the model's state."""
        names = self.experiment.shared_names
        named = zip(names, parameters[: len(names)], strict=True)
        return {name: torch.tensor(array) for name, array in named}

    def besides(self, parameters: Parameters, extras: Iterable[str]) -> dict[str, torch.Tensor]:
        """Arrays that follow the shared ones, under their names."""
        named = zip(extras, parameters[len(self.experiment.shared_names) :], strict=True)
        return {name: torch.tensor(array) for name, array in named}


def fit_together(
    participants: Sequence[FedBABUClient], parameters: Parameters, config: dict[str, Any]
) -> list[FitReply]:
    """What ``FedBABUClient.fit`` returns, of several participants of one experiment, which are trained together."""
    first, clients, order = participants[0], [each.client for each in participants], Order.from_config(config)
    experiment, shared = first.experiment, parameters[: len(first.experiment.shared_names)]
    extras = first.besides(parameters, experiment.extras.down)
    received = first.received(parameters)
    updates = cohort_update(
        experiment, clients, order.server_round, received, order.learning_rate, first.memories, extras
    )
    replies = []
    for state, count, loss, sent in updates:
        arrays = protect(_arrays(state[name] for name in experiment.shared_names), shared, experiment.config)
        own = _arrays(sent[name] for name in experiment.extras.up)
        replies.append(([*arrays, *own], count, {"train_loss": loss}))
    return replies


def _arrays(values: Iterable[torch.Tensor]) -> Parameters:
    return [value.detach().cpu().contiguous().numpy() for value in values]


def evaluate_together(
    participants: Sequence[FedBABUClient], parameters: Parameters, config: dict[str, Any]
) -> list[Evaluated]:
    """What ``FedBABUClient.evaluate`` returns, of several participants of one experiment."""
    first, clients, order = participants[0], [each.client for each in participants], Order.from_config(config)
    extras = first.besides(parameters, first.experiment.extras.after)
    what = first.experiment, clients, order.server_round, first.received(parameters), first.memories, extras
    if order.personalize:
        outcomes = [outcome for _, outcome in personal_models(*what)]
        return [(outcome.initial.loss, outcome.initial.count, outcome.as_row()) for outcome in outcomes]
    score = first.experiment.task.score.name
    replies: list[Evaluated] = []
    for found in initial_evaluations(*what):
        row = {"num_test": found.count, f"initial_{score}": found.score, "initial_loss": found.loss}
        replies.append((found.loss, found.count, row))
    return replies
