"""FedBABUClient: one participant as a Flower NumPyClient, driving one Lightning Trainer per call."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.client import NumPyClient

from lit_fedbabu import update
from lit_fedbabu.config import Config


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
        received, rate = self._received(parameters), config["learning-rate"]
        state, count, loss = update.client_update(
            self.config, self.client, config["server-round"], received, rate, self.memories
        )
        return [value.cpu().contiguous().numpy() for value in state.values()], count, {"train_loss": loss}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[float, int, dict[str, float]]:
        """Evaluate what was received and, where "personalize" is set, the personal model made from it.

        Returns:
            The initial loss in nats, the number of test images, and the client's entry in results.json.
        """
        what = self.config, self.client, config["server-round"], self._received(parameters), self.memories
        if config["personalize"]:
            _, outcome = update.personal_model(*what)
            initial, row = outcome.initial, outcome.as_row()
        else:
            initial = update.initial_evaluation(*what)
            row = {"num_test": initial.count, "initial_accuracy": initial.accuracy, "initial_loss": initial.loss}
        return initial.loss, initial.count, row

    def _received(self, parameters: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(array) for name, array in zip(self.shared_names, parameters, strict=True)}
