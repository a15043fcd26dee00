"""pFedFDA: heads are Gaussian classifiers of features, mixed of everyone's and the client's own statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Combined,
    Update,
    mean_extra,
    refuse_aggregator,
    refuse_other_head,
)  # fmt: skip
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import load_state, state_of

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Beginning, Cohort, Participant, Received, Server
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.state import Learner

SMALL = 1e-4
"""Epsilon: of the shrinkage of covariances, and added to shares of classes."""


class Gaussians(NamedTuple):
    """Distributions of features, one for each class, with one covariance.

    Args:
        means: (C, F).
        covariance: (F, F).
    """

    means: Tensor
    covariance: Tensor

    def mixed(self, other: Gaussians, share: float) -> Gaussians:
        """A share of these and the rest of others."""
        return Gaussians(*(share * mine + (1 - share) * its for mine, its in zip(self, other, strict=True)))

    def head(self, shares: Tensor) -> dict[str, Tensor]:
        """The linear head that they make, by its names in the model, with the shares of classes (C,)."""
        size = len(self.covariance)
        even = self.covariance.trace() / size * torch.eye(size, dtype=self.covariance.dtype)
        weight = torch.linalg.solve((1 - SMALL) * self.covariance + SMALL * even, self.means.T).T
        bias = shares.log() - (self.means * weight).sum(1) / 2
        return {"head.weight": weight, "head.bias": bias}


@dataclasses.dataclass(frozen=True)
class PFedFda(Algorithm):
    """Feature distribution adaptation (McLaughlin and Su 2024, Algorithm 1) with one beta.

    Everyone's means and covariance of features make a linear head, which stands still while a client trains the body.
    Then the client estimates its own, of its training images without augmentation: means of classes, everyone's for a
    class that it lacks, and the covariance around them plus the identity, as in the authors' code, for a few images
    have a singular one. It sends beta times its own plus 1 - beta times everyone's, with the beta in 0 to 1 of least
    cross-entropy in two folds. Everyone's are the mean of these, by training samples. They begin as in the authors'
    code: means are drawn from 0 to 1, the covariance is the identity.

    The model that is evaluated, and that fine-tuning starts from, has the head of such a mixture, made anew of the
    received body and the client's training images. The head that is shared is everyone's, with equal shares of classes.
    """

    def check(self, config: Config) -> None:
        why = "takes the plain mean of bodies and of their features"
        refuse_aggregator(config, why)
        if config.server_optimizer != "none":
            raise InputError("server-optimizer", config.server_optimizer, f"{config.algorithm} {why}; take none")

    def check_model(self, name: str, model: nn.Module) -> None:
        refuse_other_head(name, model)

    @property
    def of_features(self) -> bool:
        return True

    @property
    def alike(self) -> bool:
        return True

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        weight = start.weights["head.weight"]
        generator = torch.Generator().manual_seed(start.config.derived_seed("means"))
        means = torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight)
        return Gaussians(means, torch.eye(weight.shape[1]).to(weight))._asdict()

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def broadcast_after(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return self.server_state(start)

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        for client, module, counts in zip(cohort.participants, modules, cohort.class_counts, strict=True):
            head = _of(client.extras).head(_shares(counts))
            load_state(module.model, {**state_of(module.model), **head})
        return super().train(cohort, modules)

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        updates = []
        for client, module in zip(cohort.participants, modules, strict=True):
            shared = cohort.shared(module)
            mixture, _ = _mixture(client, shared)
            head = {name: client.received[name] for name in shared if name.startswith("head.")}
            sent = {name: value.to(client.extras[name]) for name, value in mixture._asdict().items()}
            updates.append(Update({**shared, **head}, {}, sent))
        return updates

    def own_model(self, client: Participant) -> Learner:
        mixture, shares = _mixture(client, client.received)
        return client.module(client.received, mixture.head(shares))

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        state = {name: mean_extra(updates, name).to(before) for name, before in server.state.items()}
        classes = len(state["means"])
        head = _of(state).head(torch.full((classes,), 1 / classes, dtype=torch.float64))
        return Combined({**server.aggregate(updates), **head}, state)


def _of(arrays: Mapping[str, Tensor]) -> Gaussians:
    return Gaussians(arrays["means"].double(), arrays["covariance"].double())


def _shares(counts: Tensor) -> Tensor:
    """Shares of classes (C,) of numbers of images, none of them 0."""
    shares = counts.double() / counts.sum() + SMALL
    return shares / shares.sum()


def _mixture(client: Participant, state: Mapping[str, Tensor]) -> tuple[Gaussians, Tensor]:
    """The client's mixture, of the features that a model makes, and its shares of classes."""
    features, labels = client.features(state)
    everyone = _of(client.extras)
    shares = _shares(torch.bincount(labels, minlength=len(everyone.means)))
    own = _estimated(features.double(), labels, everyone)
    return own.mixed(everyone, _best_share(features.double(), labels, everyone, shares)), shares


def _estimated(features: Tensor, labels: Tensor, everyone: Gaussians) -> Gaussians:
    """Those of features (N, F) with labels (N,)."""
    means = everyone.means.clone()
    for label in sorted(set(labels.tolist())):
        means[label] = features[labels == label].mean(0)
    away = features - means[labels]
    size = features.shape[1]
    return Gaussians(means, away.T @ away / max(len(away) - 1, 1) + torch.eye(size, dtype=features.dtype))


def _best_share(features: Tensor, labels: Tensor, everyone: Gaussians, shares: Tensor) -> float:
    """Beta: of least cross-entropy on each half of every class, of the client's estimate on the other half."""
    halves: tuple[list[int], list[int]] = ([], [])
    for label in sorted(set(labels.tolist())):
        places = (labels == label).nonzero()[:, 0].tolist()
        for half, own in zip(halves, (places[::2], places[1::2]) if len(places) > 1 else ((), ()), strict=True):
            half.extend(own)
    if not halves[0]:
        return 0.0
    estimated = [_estimated(features[half], labels[half], everyone) for half in halves]

    def loss(share: float) -> float:
        total = 0.0
        for own, half in zip(estimated, reversed(halves), strict=True):
            head = own.mixed(everyone, share).head(shares)
            logits = functional.linear(features[half], head["head.weight"], head["head.bias"])
            total += functional.cross_entropy(logits, labels[half]).item()
        return total

    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-3}).x)
