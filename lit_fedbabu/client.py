"""FedBABUClient: one participant as a Flower NumPyClient, driving one Lightning Trainer per call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient

from lit_fedbabu import runs, training, update
from lit_fedbabu.config import Config
from lit_fedbabu.privacy import protect


class FedBABUClient(NumPyClient):
    """Participant ``client`` of the experiment.

    Arrays in and out are the shared entries of the model's state, in the order of the state (for
    FedBABU: the body's). The head is built from the seed here and never travels.

    Args:
        config: the experiment.
        client: its number.
        memories: the folder of what clients keep between rounds.
    """

    def __init__(self, config: Config, client: int, memories: Path) -> None:
        self.config = config
        self.client = client
        self.memories = memories
        self.shared_names = update.shared_names(config)

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, float]]:
        """Train for one round.

        Args:
            parameters: the shared arrays, as the server holds them.
            config: "server-round" and "learning-rate" of this round.

        Returns:
            The trained shared arrays, the number of training images, and {"train_loss": nats}.
        """
        return fit_together([self], parameters, config)[0]

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[float, int, dict[str, float]]:
        """Evaluate what was received and, where "personalize" is set, the personal model made from it.

        Returns:
            The initial loss in nats, the number of test images, and the client's entry in results.json.
        """
        return evaluate_together([self], parameters, config)[0]

    def save(self, parameters: list[np.ndarray], server_round: int) -> None:
        """Write what was received in a round as a checkpoint, in the folder that the memories lie in."""
        module = update.received_module(self.config, self.received(parameters))
        rounds = [{"round": server_round}]
        module.about = update.about(self.config, round=server_round, rounds=rounds, client=self.client)
        training.save_checkpoint(module, self.memories.parent / runs.LAST_CHECKPOINT)

    def received(self, parameters: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Shared arrays under their names in the model's state."""
        return {name: torch.tensor(array) for name, array in zip(self.shared_names, parameters, strict=True)}


def fit_together(
    participants: Sequence[FedBABUClient], parameters: list[np.ndarray], config: dict[str, Any]
) -> list[tuple[list[np.ndarray], int, dict[str, float]]]:
    """What ``FedBABUClient.fit`` returns, of several participants of one experiment, which are trained together."""
    first, clients = participants[0], [each.client for each in participants]
    received, rate = first.received(parameters), config["learning-rate"]
    updates = update.cohort_update(first.config, clients, config["server-round"], received, rate, first.memories)
    replies = []
    for state, count, loss in updates:
        arrays = [value.cpu().contiguous().numpy() for value in state.values()]
        replies.append((protect(arrays, parameters, first.config), count, {"train_loss": loss}))
    return replies


def evaluate_together(
    participants: Sequence[FedBABUClient], parameters: list[np.ndarray], config: dict[str, Any]
) -> list[tuple[float, int, dict[str, float]]]:
    """What ``FedBABUClient.evaluate`` returns, of several participants of one experiment."""
    first, clients = participants[0], [each.client for each in participants]
    what = first.config, clients, config["server-round"], first.received(parameters), first.memories
    if config["personalize"]:
        outcomes = [outcome for _, outcome in update.personal_models(*what)]
        return [(outcome.initial.loss, outcome.initial.count, outcome.as_row()) for outcome in outcomes]
    replies = []
    for found in update.initial_evaluations(*what):
        row = {"num_test": found.count, "initial_accuracy": found.accuracy, "initial_loss": found.loss}
        replies.append((found.loss, found.count, row))
    return replies
