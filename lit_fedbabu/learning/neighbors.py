"""kNN-Per: stored features of a client's training images vote beside the head."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

GRID = 10
"""Weights of the votes that are compared lie between 0 and 1, in so many steps."""
HELD_OUT = 0.2
"""Share of a client's training images that the weight is chosen on."""


class Neighbors(nn.Module):
    """A head and the votes of the nearest of stored features, mixed (Marfoq et al. 2022, Section 3).

    p = w p_votes + (1 - w) p_head. In p_votes each of the k nearest features counts exp(-d) for its class, where d is
    the Euclidean distance.

    Args:
        head: gives logits (N, num_classes).
        neighbors: k; if fewer are stored, all of them.
        count: M stored features.
        size: F, of each.

    Shapes: features (N, ...) of F numbers each to logarithms of probabilities (N, num_classes).
    """

    def __init__(self, head: nn.Module, neighbors: int, count: int, size: int) -> None:
        super().__init__()
        dtype = next(head.parameters()).dtype
        self.head = head
        self.neighbors = neighbors
        self.register_buffer("stored", torch.zeros(count, size, dtype=dtype))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.long))
        self.register_buffer("share", torch.zeros((), dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        stored, labels, share = (self.get_buffer(name) for name in ("stored", "labels", "share"))
        own = self.head(features).to(stored.dtype).softmax(1)
        voted = votes(features.flatten(1).to(stored.dtype), stored, labels, self.neighbors, own.shape[1])
        mixed = share * voted + (1 - share) * own
        logits: Tensor = mixed.clamp(min=torch.finfo(stored.dtype).tiny).log()
        return logits


def votes(features: Tensor, stored: Tensor, labels: Tensor, neighbors: int, num_classes: int) -> Tensor:
    """Probabilities (N, num_classes) of features (N, F) by the nearest of stored ones (M, F) with labels (M,)."""
    if torch.compiler.is_exporting():  # ONNX has no cdist
        distances = torch.linalg.vector_norm(features[:, None] - stored, dim=2)
    else:
        distances = torch.cdist(features, stored, compute_mode="donot_use_mm_for_euclid_dist")
    near, places = distances.topk(min(neighbors, len(stored)), largest=False)
    counts = features.new_zeros(features.shape[0], num_classes)  # len would fix their number in an export
    return counts.scatter_add(1, labels[places], (-near).softmax(1))


def with_neighbors(model: nn.Module, sizes: Sequence[int]) -> nn.Module:
    """The model, whose head gets votes of features that are yet zero.

    Args:
        model: of body and head; it is changed.
        sizes: k, numbers of stored features and of numbers in each, as of ``Neighbors``; empty: nothing is changed.
    """
    if sizes:
        model.head = Neighbors(model.get_submodule("head"), *sizes)
    return model


def store(model: nn.Module, features: Tensor, labels: Tensor, share: float | None = None) -> None:
    """Fill a model of ``with_neighbors``: features (M, F), labels (M,), and the weight of votes; None leaves that."""
    head = model.get_submodule("head")
    for name, value in (("stored", features), ("labels", labels)):
        head.get_buffer(name).copy_(value)
    if share is not None:
        head.get_buffer("share").fill_(share)


def best_share(features: Tensor, logits: Tensor, labels: Tensor, neighbors: int, seed: int) -> float:
    """The weight of votes that classifies most images right where a fifth of them, drawn by the seed, is not stored.

    Of equally good ones it is that of the least cross-entropy. With one image nothing can be held out, and it is 0.

    Args:
        features: (M, F) of all images.
        logits: (M, num_classes), those of the head.
        labels: (M,).
        neighbors: k.
        seed: of which images are held out.
    """
    count = len(labels)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count)).to(labels.device)
    number = min(max(1, round(HELD_OUT * count)), count - 1)
    held, rest = order[:number], order[number:]
    if not len(held):
        return 0.0
    own = logits[held].softmax(1)
    voted = votes(features[held], features[rest], labels[rest], neighbors, logits.shape[1])

    def quality(step: int) -> tuple[int, float]:
        mixed = step / GRID * voted + (1 - step / GRID) * own
        right = (mixed.argmax(1) == labels[held]).sum().item()
        chance = mixed.gather(1, labels[held, None]).clamp(min=torch.finfo(mixed.dtype).tiny)
        return int(right), chance.log().mean().item()

    return max(range(GRID + 1), key=quality) / GRID
