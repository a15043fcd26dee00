"""Heads that classify by a simplex equiangular tight frame: directions of classes that all lie equally far apart."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError

SCALE = 10.0
"""Of the logits before training, as in the authors' convolutional network."""


class SimplexHead(nn.Module):
    """A head with a frame V in place of weights that are learned (Li et al. 2023 (FedETF), Section 4).

    logits = s h'V, h = g(z) / norm(g(z)). g is linear and keeps the number of features, and s is one number; both are
    trained. V is not, unless a mode names it.

    Args:
        features: d, of the body.
        num_classes: C, at most d.

    Shapes: features (N, d) to logits (N, C).
    """

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, features)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.etf = nn.Parameter(frame(features, num_classes), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.scale * (functional.normalize(self.projection(features), dim=-1) @ self.etf)
        return logits


def frame(features: int, num_classes: int) -> Tensor:
    """A random V = sqrt(C / (C - 1)) P (I - 11' / C) (d, C) in float64, with orthonormal columns P (d, C)."""
    basis, triangle = torch.linalg.qr(torch.randn(features, num_classes, dtype=torch.float64))
    basis = basis * triangle.diagonal().sign()  # so that every library makes the same one
    found: Tensor = math.sqrt(num_classes / (num_classes - 1)) * (basis - basis.mean(1, keepdim=True))
    return found


def with_simplex(model: nn.Module, seed: int) -> nn.Module:
    """The model with a ``SimplexHead``, drawn from the seed, in place of its linear head; it is changed.

    Raises:
        InputError: as of ``refuse_unfit``.
    """
    refuse_unfit(type(model).__name__, model)
    head = model.get_submodule("head")
    sizes: list[int] = [getattr(head, name) for name in ("in_features", "out_features")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # the body was drawn from the seed itself
        model.head = SimplexHead(*sizes)
    return model


def refuse_unfit(name: str, model: nn.Module) -> None:
    """Raise InputError for a model whose head is not one linear layer, or that has fewer features than classes."""
    head = model.get_submodule("head")
    if type(head) is not nn.Linear:
        what = f"has a {type(head).__name__} as its head, and a frame of classes takes the place of a torch.nn.Linear"
    elif head.in_features < head.out_features:
        what = f"has {head.in_features} features, and a frame of {head.out_features} classes needs as many at least"
    else:
        return
    raise InputError("model-name", name, f"{what}; take another model or algorithm")
