"""Losses that algorithms put in place of the cross-entropy, and what they are given."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Batch(NamedTuple):
    """A mini-batch of a client's training images, and what its model makes of them.

    Args:
        images: (N, C, S, S), augmented and normalized.
        features: what the body makes of them, (N, ...), in the precision that it computes in.
        logits: what the head makes of the features, (N, num_classes), likewise.
        labels: (N,), the classes.
    """

    images: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor


Loss = Callable[[Batch], Tensor]
"""Is trained on in place of the cross-entropy: the mean over a batch. A ``torch.nn.Module`` is moved to the device, and
its weights that require a gradient are trained with the model's, by the same optimizer."""


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
        features = vectors(batch.features)
        near, far = (functional.cosine_similarity(features, vectors(body.eval()(batch.images))) for body in self.bodies)
        contrast = -functional.logsigmoid((near - far) / self.temperature).mean()
        return functional.cross_entropy(batch.logits, batch.labels) + self.mu * contrast


class Balanced(nn.Module):
    """Balanced softmax: the cross-entropy of logits plus logarithms of the numbers of images.

    Args:
        counts: (C,) of the client's training images by class. Classes without images leave the loss.
    """

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("prior", counts.double().log())

    def forward(self, batch: Batch) -> Tensor:
        """The mean over a batch, in nats."""
        logits = batch.logits.to(torch.promote_types(batch.logits.dtype, torch.float32))
        return functional.cross_entropy(logits + self.get_buffer("prior").to(logits.dtype), batch.labels)


class Decoupled(Balanced):
    """Balanced softmax of the generic logits, and the cross-entropy of these and an own head's together.

    Args:
        head: the own head, which is trained.
        counts: as of ``Balanced``.
    """

    def __init__(self, head: nn.Module, counts: Tensor) -> None:
        super().__init__(counts)
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The mean of the sum of both over a batch, in nats."""
        logits = batch.logits.to(torch.promote_types(batch.logits.dtype, torch.float32))
        together = logits.detach() + self.head(batch.features.detach())
        own = functional.cross_entropy(together, batch.labels)
        return super().forward(batch) + own


class Debiased(nn.Module):
    """Cross-entropy of a head on features moved by a vector, and a term that draws mean features to those of all.

    Args:
        head: the model's, which trains with it.
        own: (F,), the vector, which is trained.
        everyone: (F,), mean features of all clients.
        kappa: weight of the term; None: there is neither term nor vector, and mean features are measured.
        momentum: share of a batch in the running mean of features.
    """

    def __init__(self, head: nn.Module, own: Tensor, everyone: Tensor, kappa: float | None, momentum: float) -> None:
        super().__init__()
        self.own = nn.Parameter(own.clone())
        self.register_buffer("everyone", everyone)
        self.register_buffer("mean", torch.zeros_like(everyone))
        self._head = (head,)  # a tuple, so that its weights are not weights of this module
        self._kappa, self._momentum = kappa, momentum

    def forward(self, batch: Batch) -> Tensor:
        """The sum of both over a batch, in nats."""
        own = self.own if self._kappa is not None else torch.zeros_like(self.own)
        loss = functional.cross_entropy(self._head[0](batch.features + own), batch.labels)
        mean = self._momentum * vectors(batch.features).mean(0) + (1 - self._momentum) * self.get_buffer("mean")
        self.mean = mean.detach()
        away = (mean - self.get_buffer("everyone")).square().mean()
        return loss + (self._kappa or 0.0) / 2 * away


def vectors(features: Tensor) -> Tensor:
    """One vector for each image, in float32 at least, for cosines and distances of half precision are coarse."""
    return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))
