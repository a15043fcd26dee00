"""MOON: features are drawn to those of the received model, and away from those of the client's last one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Cohort
    from lit_fedbabu.learning.losses import Batch, Loss
    from lit_fedbabu.learning.state import Learner


@dataclasses.dataclass(frozen=True)
class Moon(Algorithm):
    """Model-contrastive federated learning (Li et al. 2021 (MOON), Algorithm 1, Eq. 3 to 5).

    The paper's features are those after a projection head, two layers that it adds to a network. Here they are what the
    head takes: networks are as they are for all methods. The client keeps the body that it trained last; before the
    first time it is the initial one, as in the authors' code.
    """

    @property
    def kept(self) -> tuple[str, ...]:
        return ("body", *self.private)

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        config = cohort.config
        return [
            Contrastive(
                client.module(client.received).model.get_submodule("body"),
                client.module(client.memory).model.get_submodule("body"),
                config.moon_mu,
                config.moon_temperature,
            )
            for client in cohort.participants
        ]


class Contrastive(nn.Module):
    """Cross-entropy, and mu times the model-contrastive loss.

    Args:
        received: the body that the server sent.
        last: the body that the client trained last.
        mu: weight of the model-contrastive loss.
        temperature: cosines are divided by it.
    """

    def __init__(self, received: nn.Module, last: nn.Module, mu: float, temperature: float) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([received, last]).requires_grad_(False)
        self.mu, self.temperature = mu, temperature

    def forward(self, batch: Batch) -> Tensor:
        """The mean over a batch, in nats."""
        features = _rows(batch.features)
        near, far = (functional.cosine_similarity(features, _rows(body.eval()(batch.images))) for body in self.bodies)
        contrast = -functional.logsigmoid((near - far) / self.temperature).mean()
        return functional.cross_entropy(batch.logits, batch.labels) + self.mu * contrast


def _rows(features: Tensor) -> Tensor:
    """One vector for each image, in float32 at least, for cosines of half precision are coarse."""
    return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))
