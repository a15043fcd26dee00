"""SCAFFOLD: control variates turn every step of a client to where the steps of all clients go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Beginning,
    Cohort,
    Combined,
    Received,
    Server,
    Update,
    refuse_aggregator,
)
from lit_fedbabu.algorithms.steps import Counted, refuse_but_sgd, stepped
from lit_fedbabu.config import Config
from lit_fedbabu.learning.state import Learner

CONTROL = "control"
"""How the names of a client's c_i begin in what it keeps."""


@dataclasses.dataclass(frozen=True)
class Scaffold(Algorithm):
    """Gradients are corrected by c - c_i (Karimireddy et al. 2020, Algorithm 1, option II).

    From the received x a client steps by g - c_i + c to y, keeps c_i - c + (x - y) / (K eta) as its c_i, which is zero
    before it first takes part, and sends the difference to the one before. The server adds the sum of these over N, the
    number of all clients, to c, and sets x to the mean of y. The global rate eta_g of the paper is
    ``server-learning-rate`` with ``server-optimizer=momentum`` and ``server-momentum=0``: x + eta_g mean(y - x).

    The mean is that of the run, by training samples; in c clients count alike, as in the paper. With momentum, which
    the paper has not, gradients are in y as often as FedNova counts: K eta is then that number times eta, so that
    c_i stays what it is in the paper, a mean of the client's gradients. Weight decay is part of these. A weight that
    gets no gradient keeps its c_i.
    """

    state: tuple[str, ...] = (CONTROL,)
    in_cohorts: bool = False

    def check(self, config: Config) -> None:
        refuse_aggregator(config, "adds up controls that clients send, of which one can be of any size")

    def check_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        refuse_but_sgd(name, optimizer)

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight) for name, weight in start.weights.items()}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return self.server_state(start)

    def callbacks(self, cohort: Cohort, modules: Sequence[Learner]) -> list[L.Callback]:
        (client,) = cohort.participants
        c = client.extras
        own = {name: client.memory.get(f"{CONTROL}.{name}", torch.zeros_like(c[name])) for name in c}
        counted = Counted(cohort.config.algorithm)
        cohort.notes.update(own=own, counted=counted)
        return [Corrected({name: c[name] - own[name] for name in c}), counted]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (client,), (module,) = cohort.participants, modules
        own, lengths = cohort.notes["own"], cohort.notes["counted"].lengths
        shared, new = cohort.shared(module), dict(own)
        for name, c in client.extras.items():
            if lengths.get(name):
                new[name] = own[name] - c + (client.received[name] - shared[name].cpu()) / lengths[name]
        kept = {f"{CONTROL}.{name}": value for name, value in new.items()}
        return [Update(shared, {**cohort.kept(module), **kept}, {name: new[name] - own[name] for name in new})]

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        state = {}
        for name, c in server.state.items():
            moved = sum((each.extras[name] for each in updates), torch.zeros_like(c))
            state[name] = c + moved / server.config.num_federated
        return Combined(server.aggregate(updates), state)


class Corrected(L.Callback):
    """Adds c - c_i to the gradients before each step."""

    def __init__(self, correction: Mapping[str, Tensor]) -> None:
        self._correction = correction

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        for name, weight, gradient in stepped(module, optimizer):
            if name in self._correction:
                gradient.add_(self._correction[name].to(weight.device))
