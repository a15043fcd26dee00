"""FedDBE: what is one client's own in its features is left to a vector that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Combined,
    Update,
    mean_extra,
    refuse_aggregator,
    refuse_other_head,
)  # fmt: skip
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.losses import Debiased

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Beginning, Cohort, Participant, Received, Server
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

MEAN = "mean"
"""The extra array: mean features of a client in round 1, and then of all clients."""
OWN = "own"
"""How the name of the vector begins in what a client keeps."""


@dataclasses.dataclass(frozen=True)
class FedDbe(Algorithm):
    """FedAvg with the domain bias eliminator (Zhang et al. 2023, Algorithm 1, Eq. 8).

    A client trains the received model and a vector u of its own, zero at first, by the cross-entropy of head(z + u) and
    kappa / 2 mean((r - r_all)^2), with features z and their running mean r over batches: r <- (1 - mu) r + mu mean(z),
    from zero in every round. r_all is the mean of all clients' r, by training samples, after one plain local training
    from the initial model: the paper's period of initialization, which is round 1 here. All clients take part in it,
    and its weights are dropped. u is trained by the run's optimizer.

    The model that is evaluated, and that fine-tuning starts from, has u in the bias of its head: b + W u.
    """

    in_cohorts: bool = False

    def check(self, config: Config) -> None:
        name = config.algorithm
        if config.num_server_rounds < 2:
            remedy = f"{name} measures mean features in its first round and trains in those after it; take 2 or more"
            raise InputError("num-server-rounds", config.num_server_rounds, remedy)
        refuse_aggregator(config, "takes a mean of features, which one client can move far")

    def check_model(self, name: str, model: nn.Module) -> None:
        refuse_other_head(name, model)

    def drawn(self, config: Config, server_round: int, clients: list[int]) -> list[int]:
        return list(range(config.num_federated)) if server_round == 1 else clients

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        return {MEAN: torch.zeros_like(start.weights["head.weight"][0])}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return self.server_state(start)

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        (client,), (module,), config = cohort.participants, modules, cohort.config
        head, everyone = module.model.get_submodule("head"), client.extras[MEAN]
        own = client.memory.get(f"{OWN}.{MEAN}", torch.zeros_like(everyone))
        kappa = None if cohort.server_round == 1 else config.dbe_kappa
        cohort.notes[OWN] = loss = Debiased(head, own, everyone, kappa, config.dbe_momentum)
        return [loss]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (client,), (module,), loss = cohort.participants, modules, cohort.notes[OWN]
        if cohort.server_round == 1:
            return [Update(dict(client.received), {}, {MEAN: loss.mean.to(client.extras[MEAN])})]
        own = {f"{OWN}.{MEAN}": loss.own.detach()}
        return [Update(cohort.shared(module), own, {MEAN: torch.zeros_like(client.extras[MEAN])})]

    def own_model(self, client: Participant) -> Learner:
        own = client.memory.get(f"{OWN}.{MEAN}")
        if own is None:
            return client.module(client.received)
        weight, bias = (client.received[f"head.{name}"] for name in ("weight", "bias"))
        return client.module(client.received, {"head.bias": bias + weight @ own})

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        if server.server_round > 1:
            return Combined(server.aggregate(updates), server.state)
        return Combined(server.shared, {MEAN: mean_extra(updates, MEAN).to(server.state[MEAN])})
