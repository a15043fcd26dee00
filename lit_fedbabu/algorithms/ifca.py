"""IFCA: several shared models, of which each client takes the one that fits its data best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Beginning,
    Cohort,
    Combined,
    Participant,
    Received,
    Server,
    Update,
    refuse_aggregator,
    refuse_of_trainer,
)  # fmt: skip
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import Learner, load_state, state_of

CLUSTER = "cluster"
"""The extra array of a client: one at the place of the model that it took, of which there are as many as models."""


@dataclasses.dataclass(frozen=True)
class Ifca(Algorithm):
    """Iterative federated clustering (Ghosh et al. 2020, Algorithm 1, option II, model averaging).

    The shared weights are the first of M models; the server keeps the others, which start from seeds of their own, and
    sends all to the clients of a round and to those that are evaluated. A client takes the model of least loss on its
    training data, trains it, and sends it with a vector that says which it was. The server sets each model to the mean
    of the clients that took it, and leaves one that none took as it is. The mean is that of the run, by training
    samples. With one model this is FedAvg.
    """

    def check(self, config: Config) -> None:
        name = config.algorithm
        refuse_aggregator(config, "has a mean for each of its models, of few clients")
        refuse_of_trainer(config, {"devices"}, f"{name} measures each model on a client's whole data")
        if config.server_optimizer != "none":
            remedy = f"{name} has several models, and the optimizer is of one; take none"
            raise InputError("server-optimizer", config.server_optimizer, remedy)
        if config.num_clusters > 1 and (config.pretrained or config.initial_weights):
            key = "pretrained" if config.pretrained else "initial-weights"
            remedy = f"with {name} models must begin with different weights; leave it out, or take num-clusters=1"
            raise InputError(key, config.pretrained or config.initial_weights, remedy)

    @property
    def alike(self) -> bool:
        return False

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        others = range(1, start.config.num_clusters)
        return {f"{number}.{name}": value for number in others for name, value in start.other(number).items()}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def broadcast_after(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return {CLUSTER: torch.zeros(start.config.num_clusters)}

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        cohort.notes[CLUSTER] = chosen = [_least(client) for client in cohort.participants]
        for client, module, number in zip(cohort.participants, modules, chosen, strict=True):
            load_state(module.model, {**state_of(module.model), **_model(client, number)})
        return super().train(cohort, modules)

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        places = torch.eye(cohort.config.num_clusters)
        pairs = zip(modules, cohort.notes[CLUSTER], strict=True)
        return [Update(cohort.shared(module), {}, {CLUSTER: places[number]}) for module, number in pairs]

    def own_model(self, client: Participant) -> Learner:
        return client.module(_model(client, _least(client)))

    def problem(self, update: Received) -> str:
        sent = update.extras[CLUSTER].sort(descending=True).values
        return "" if torch.equal(sent, torch.eye(len(sent))[0]) else "it does not say which model it took"

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        models: list[Mapping[str, Tensor]] = [dict(server.shared)]
        for number in range(1, server.config.num_clusters):
            models.append({name: server.state[f"{number}.{name}"] for name in models[0]})
        for number in range(len(models)):
            if took := [each for each in updates if each.extras[CLUSTER][number]]:
                models[number] = server.aggregate(took)
        others = enumerate(models[1:], 1)
        state = {f"{number}.{name}": value for number, model in others for name, value in model.items()}
        return Combined(models[0], state)


def _model(client: Participant, number: int) -> dict[str, Tensor]:
    """One of the shared models, by its number from 0."""
    return {name: client.extras[f"{number}.{name}"] if number else value for name, value in client.received.items()}


def _least(client: Participant) -> int:
    """The number of the model of least loss on the client's training data; of equal ones the first."""
    if client.config.num_clusters == 1:
        return 0
    losses = [client.training_loss(_model(client, each)) for each in range(client.config.num_clusters)]
    return int(torch.tensor(losses).nan_to_num(float("inf")).argmin())
