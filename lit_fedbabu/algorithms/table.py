"""The algorithms as a table: which part of a model is shared, and what is trained in a round.

A client's model is made of three overlays, in this order:

    initial  <-  memory  <-  received

*initial* is built from the seed and equal on every client. *memory* is what this client keeps for itself between
rounds: what it trains and does not share. *received* is what the server sent. No message carries a part that is not
shared. What a client does with its model is in ``client_update.py``, the same for every row.
"""

import dataclasses

from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.learning.parts import NORM, PARTS, parts_of


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    Args:
        title: its name in tables and figures.
        shared: the part that travels: "body", "head", "full" or "none".
        phases: what a client trains in a round, one after the other: a part, and the option with its number of epochs.
        step: how a mini-batch moves the weights: a name of ``steps.STEPS``.
        personal: the client also trains a whole model of its own, pulled towards the received one, and keeps it.
        own_norm: normalization layers stay with the client, their weights and their statistics.
        pooled: there is one participant, and it has the training images of all clients.
    """

    title: str
    shared: str
    phases: tuple[tuple[str, str], ...]
    step: str = "sgd"
    personal: bool = False
    own_norm: bool = False
    pooled: bool = False

    @property
    def trained(self) -> tuple[str, ...]:
        """The parts that a round trains."""
        return tuple(part for part in PARTS if any(part in parts_of(phase) for phase, _ in self.phases))

    def check_steps(self, name: str, by_hand: bool) -> None:
        """Raise InputError where its step moves weights around an optimizer's, and a module takes steps by hand."""
        if by_hand and self.step in ("first-order-maml", "moreau-envelope"):
            remedy = "moves weights around each step of the optimizer, and the task's module takes steps by hand"
            raise InputError("algorithm", name, f"{remedy}; take another, as fedprox")

    @property
    def kept(self) -> tuple[str, ...]:
        """The parts that a client keeps for itself: what it trains and does not share."""
        if self.personal:
            return PARTS
        own = tuple(part for part in self.trained if part not in parts_of(self.shared))
        return (*own, NORM) if self.own_norm else own


EPOCHS = "num_local_epochs"
BODY, FULL = (("body", EPOCHS),), (("full", EPOCHS),)

ALGORITHMS = {
    "fedbabu": Algorithm("FedBABU", "body", BODY),  # Oh et al. 2022, Algorithm 1
    "fedavg": Algorithm("FedAvg", "full", FULL),  # McMahan et al. 2017, Algorithm 1
    "fedper": Algorithm("FedPer", "body", FULL),  # Arivazhagan et al. 2019, Algorithm 1
    "fedrep": Algorithm("FedRep", "body", (("head", "num_head_epochs"), *BODY)),  # Collins et al. 2021, Algorithm 1
    "lg-fedavg": Algorithm("LG-FedAvg", "head", FULL),  # Liang et al. 2020, Algorithm 1
    "fedbn": Algorithm("FedBN", "full", FULL, own_norm=True),  # Li et al. 2021, Algorithm 1
    "fedprox": Algorithm("FedProx", "full", FULL, step="proximal"),  # Li et al. 2020, Algorithm 2
    "fedprox-babu": Algorithm("FedProx+BABU", "body", BODY, step="proximal"),  # Oh et al. 2022
    "ditto": Algorithm("Ditto", "full", FULL, personal=True),  # Li et al. 2021, Algorithm 1
    "per-fedavg": Algorithm("Per-FedAvg", "full", FULL, step="first-order-maml"),  # Fallah et al. 2020, Algorithm 1
    "pfedme": Algorithm("pFedMe", "full", FULL, step="moreau-envelope"),  # Dinh et al. 2020, Algorithm 1
    "local": Algorithm("Local only", "none", FULL),  # no federation: what a client can do alone
    "centralized": Algorithm("Centralized", "full", FULL, pooled=True),  # no federation: all images in one place
}


def algorithm_of(config: Config) -> Algorithm:
    """The row that the configuration names.

    Raises:
        InputError: there is no such row.
    """
    if config.algorithm not in ALGORITHMS:
        raise InputError("algorithm", config.algorithm, f"must be one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[config.algorithm]
