"""FedAS: the received body is first fitted to the client's features; bodies count by their Fisher information."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Beginning,
    Cohort,
    Combined,
    Received,
    Server,
    Update,
    refuse_aggregator,
    refuse_of_trainer,
)
from lit_fedbabu.algorithms.steps import stepped
from lit_fedbabu.learning.losses import vectors

if TYPE_CHECKING:
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.losses import Batch
    from lit_fedbabu.learning.state import Learner

TRACE = "trace"
"""The extra number of a client: the trace of its Fisher information."""


@dataclasses.dataclass(frozen=True)
class FedAs(Algorithm):
    """FedPer with aligned bodies and weights by Fisher information (Yang et al. 2024 (FedAS), Algorithm 1).

    The client keeps its head, and the body that it trained last. Of that body's features of its training images it
    takes the mean of each class, and fits the received body to these means by MSE for ``num-alignment-epochs``; not
    before it has trained once. Then it trains body and head as in FedPer. At last it sends the trace of its Fisher
    information, the sum of squares of the gradient of the log-likelihood with respect to all weights, by which the
    server weights the mean of bodies.

    As in the authors' code the trace is of mini-batches: with batch norm the likelihood of an image depends on its
    batch. Means and trace are taken in an epoch of training batches each, augmented as in training, without a step.
    """

    in_cohorts: bool = False

    @property
    def kept(self) -> tuple[str, ...]:
        return self.parts

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("num_alignment_epochs", *super().lengths)

    @property
    def has_own_loss(self) -> bool:
        return True

    def check(self, config: Config) -> None:
        why = f"{config.algorithm} measures on all of a client's batches, each by itself"
        refuse_of_trainer(config, {"accumulate_grad_batches", "limit_train_batches"}, why)
        refuse_aggregator(config, "weights clients by numbers that they send, of which one can be of any size")

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return {TRACE: torch.zeros((), dtype=torch.float64)}

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        (client,) = cohort.participants
        if client.memory and cohort.config.num_alignment_epochs:
            means = ClassMeans(len(cohort.class_counts[0]))
            cohort.show([client.module(client.memory)], losses=[means])
            cohort.fit(modules, "body", "num_alignment_epochs", losses=[Aligned(means.of_classes)])
        return super().train(cohort, modules)

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (module,), squares = modules, Squares()
        cohort.show(modules, [squares])
        return [Update(cohort.shared(module), cohort.kept(module), {TRACE: squares.total})]

    def problem(self, update: Received) -> str:
        return "its trace is below 0" if update.extras[TRACE] < 0 else ""

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        traces, sizes = [float(each.extras[TRACE]) for each in updates], [each.num_train for each in updates]
        if not sum(traces):
            return Combined(server.aggregate(updates), server.state)
        factors = [own * sum(sizes) / (sum(traces) * size) for own, size in zip(traces, sizes, strict=True)]
        scaled = [
            each._replace(shared=_scaled(server.shared, each.shared, factor))
            for each, factor in zip(updates, factors, strict=True)
        ]
        return Combined(server.aggregate(scaled), server.state)


def _scaled(before: Mapping[str, Tensor], after: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Weights and buffers, their differences to those before multiplied; counters as they are."""

    def moved(start: Tensor, end: Tensor) -> Tensor:
        return start.double() + factor * (end.double() - start.double())

    return {name: moved(before[name], end) if end.is_floating_point() else end for name, end in after.items()}


class ClassMeans(nn.Module):
    """The cross-entropy, and of all batches the mean features of each class.

    Args:
        classes: their number.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes, self._sums = classes, torch.zeros((), dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.float64)

    def forward(self, batch: Batch) -> Tensor:
        """The mean over a batch, in nats."""
        one_hot = functional.one_hot(batch.labels, self._classes).cpu().double()
        self._sums = self._sums + one_hot.T @ batch.features.detach().flatten(1).cpu().double()
        self._counts += one_hot.sum(0)
        return functional.cross_entropy(batch.logits, batch.labels)

    @property
    def of_classes(self) -> Tensor:
        """(C, F); not a number for classes that were not seen."""
        return self._sums / self._counts[:, None]


class Aligned(nn.Module):
    """The mean squared difference between features and the means of their classes.

    Args:
        means: (C, F).
    """

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)

    def forward(self, batch: Batch) -> Tensor:
        """The mean over a batch and over features."""
        features = vectors(batch.features)
        return functional.mse_loss(features, self.get_buffer("means")[batch.labels].to(features.dtype))


class Squares(L.Callback):
    """Adds up the squares of all gradients."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        for _, _, gradient in stepped(module, optimizer):
            self.total = self.total + gradient.double().square().sum().cpu()
