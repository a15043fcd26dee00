"""FedDyn: clients' losses get a term of their own, so that what they look for alone is what all look for together."""

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
from lit_fedbabu.algorithms.steps import Proximal, stepped
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import behind
from lit_fedbabu.learning.state import Learner

GRADIENT = "gradient"
"""How the names of a client's g_i begin in what it keeps."""


@dataclasses.dataclass(frozen=True)
class FedDyn(Algorithm):
    """The local loss follows the other clients' (Acar et al. 2021, Algorithm 1).

    From the received x a client looks for the least L_i(y) - <g_i, y> + alpha / 2 ||y - x||^2, Eq. 1, and keeps
    g_i - alpha (y - x) as its g_i, which is zero before it first takes part. The server adds -alpha / N sum(y - x) to
    h, where N is the number of all clients, and sets x to mean(y) - h / alpha. With alpha = 0 all g_i and h stay zero;
    h / alpha is then taken as zero, and this is FedAvg, to the bit.

    L_i is what the optimizer looks for: it has the L2 term of weight decay, and momentum, or a task's own optimizer, is
    another way to the same least loss. The mean of y is that of the run, by training samples; in h clients count alike,
    as in the paper, so that x comes to rest where the clients' plain mean of losses is least. Buffers, as running
    statistics, are the mean. There is a g_i and an h for what is shared.
    """

    state: tuple[str, ...] = (GRADIENT,)
    in_cohorts: bool = False

    def check(self, config: Config) -> None:
        name = config.algorithm
        refuse_aggregator(config, "adds up the updates of clients, of which one can be of any size")
        if config.server_optimizer != "none":
            raise InputError("server-optimizer", config.server_optimizer, f"{name} has a server's step; take none")
        if config.clipping_norm:
            remedy = f"with {name} a client keeps the sum of its updates as they were before; take another algorithm"
            raise InputError("clipping-norm", config.clipping_norm, remedy)

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in start.weights.items()}

    def callbacks(self, cohort: Cohort, modules: Sequence[Learner]) -> list[L.Callback]:
        (client,) = cohort.participants
        return [Dynamic(cohort.config.dynamic_alpha, client.received, behind(f"{GRADIENT}.", client.memory))]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (client,), (module,), alpha = cohort.participants, modules, cohort.config.dynamic_alpha
        shared, own = cohort.shared(module), {}
        for name in shared.keys() & dict(module.model.named_parameters()).keys():
            moved = shared[name].cpu() - client.received[name]
            own[f"{GRADIENT}.{name}"] = client.memory.get(f"{GRADIENT}.{name}", torch.zeros_like(moved)) - alpha * moved
        return [Update(shared, {**cohort.kept(module), **own})]

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        alpha, mean = server.config.dynamic_alpha, server.aggregate(updates)
        if not alpha:
            return Combined(mean, server.state)
        before, state = server.shared, {}
        for name, h in server.state.items():
            moved = sum(each.shared[name].double() - before[name].double() for each in updates)
            state[name] = h - alpha / server.config.num_federated * moved
            mean[name] = mean[name].double() - state[name] / alpha
        return Combined(mean, state)


class Dynamic(Proximal):
    """The gradient of -<g_i, y> + alpha / 2 ||y - x||^2 in addition to that of the loss.

    Args:
        alpha: strength of the pull.
        anchor: x.
        gradient: g_i, by the names of weights; what it lacks is zero.
    """

    def __init__(self, alpha: float, anchor: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
        super().__init__(alpha, anchor)
        self.gradient = gradient

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, module, optimizer)
        for name, weight, gradient in stepped(module, optimizer):
            if name in self.gradient:
                gradient.sub_(self.gradient[name].to(weight.device))
