"""The algorithms as a table: which part of a model is shared, and which is trained in a round.

A client's model is made of overlays: the *initial* model, built from the seed and equal on every
client, and over it what was *received* from the server. No message carries a part that is not shared.
What a client does with its model is in update.py, the same for every row.
"""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import parts_of, select


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One row: its name, the mode ("body", "head" or "full") that is shared, and the one that trains in a round."""

    title: str
    shared: str
    trained: str


ALGORITHMS = {
    "fedbabu": Algorithm("FedBABU", shared="body", trained="body"),  # Oh et al. 2022, Algorithm 1
    "fedavg": Algorithm("FedAvg", shared="full", trained="full"),  # McMahan et al. 2017, Algorithm 1
}


def algorithm_of(config: Config) -> Algorithm:
    """The row that the configuration names.

    Raises:
        ConfigError: there is no such row.
    """
    if config.algorithm not in ALGORITHMS:
        raise ConfigError("algorithm", config.algorithm, f"must be one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[config.algorithm]


def shared_state(config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What travels: the entries of a model's state that the algorithm shares, in the state's order."""
    return select(state, parts_of(algorithm_of(config).shared))
