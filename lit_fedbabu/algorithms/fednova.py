"""FedNova: clients that take unequal numbers of steps are averaged as if they had taken equally many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from lit_fedbabu.algorithms.steps import Counted, refuse_but_sgd
from lit_fedbabu.config import Config
from lit_fedbabu.learning.state import Learner

LENGTHS = "lengths"
"""The extra array of a client: eta ||a_i||_1 of every weight, in the order of ``Server.weights``."""


@dataclasses.dataclass(frozen=True)
class FedNova(Algorithm):
    """Updates are divided by the number of gradients in them before they are averaged (Wang et al. 2020, section 4).

    A client's x - y_i is eta G_i a_i, with the gradients G_i of its steps and a vector a_i that says how often each is
    in it: K ones for K steps of plain SGD, and with momentum rho (1 - rho^(K - k)) / (1 - rho) for step k. The server
    sets x - tau_eff sum p_i (x - y_i) / ||a_i||_1 with tau_eff = sum p_i ||a_i||_1, where p_i is the client's share of
    the round's training samples. Buffers, as running statistics, are no sums of gradients: they are the plain mean.

    The norm is counted while the optimizer steps, for every weight, with the rate of each step: it follows a decayed
    rate, Nesterov's momentum and weights that are frozen for a while. The L2 term of SGD's weight decay is part of a
    step's gradient and changes no a_i. Clients whose a_i are equal are averaged as in FedAvg, to the bit.
    """

    in_cohorts: bool = False

    def check(self, config: Config) -> None:
        refuse_aggregator(config, "divides by numbers that clients send, of which one can be of any size")

    def check_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        refuse_but_sgd(name, optimizer)

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return {LENGTHS: torch.zeros(len(start.weights), dtype=torch.float64)}

    def callbacks(self, cohort: Cohort, modules: Sequence[Learner]) -> list[L.Callback]:
        cohort.notes[LENGTHS] = counted = Counted(cohort.config.algorithm)
        return [counted]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (module,), lengths = modules, cohort.notes[LENGTHS].lengths
        shared = cohort.shared(module)
        weights = dict(module.model.named_parameters())
        sent = torch.tensor([lengths.get(name, 0.0) for name in shared if name in weights], dtype=torch.float64)
        return [Update(shared, cohort.kept(module), {LENGTHS: sent})]

    def problem(self, update: Received) -> str:
        return "its lengths are below 0" if bool((update.extras[LENGTHS] < 0).any()) else ""

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        total = sum(each.num_train for each in updates)
        lengths = torch.stack([each.extras[LENGTHS] for each in updates])
        effective = sum(each.num_train * own for each, own in zip(updates, lengths, strict=True)) / total
        factors = torch.where(lengths > 0, effective / lengths, 0.0)
        factors = torch.where((lengths == lengths[0]).all(0), 1.0, factors)
        normalized = [
            each._replace(shared={**each.shared, **_scaled(server, each, own)})
            for each, own in zip(updates, factors.tolist(), strict=True)
        ]
        return Combined(server.aggregate(normalized), server.state)


def _scaled(server: Server, update: Received, factors: Sequence[float]) -> dict[str, Tensor]:
    """The client's weights, their differences to those that it began with multiplied; 1 leaves them as they are."""
    scaled = {}
    for name, factor in zip(server.weights, factors, strict=True):
        before, after = server.shared[name].double(), update.shared[name]
        scaled[name] = after if factor == 1 else (before + factor * (after - before)).to(after.dtype)
    return scaled
