"""Steps of DP-SGD: gradients of single samples are clipped, added up and get noise before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.data import Sampler

from lit_fedbabu.learning.state import view_of

AT_ONCE = 2**25
"""Numbers in gradients of single samples that are held at once, of as many samples as that makes, but one at least."""


class PoissonBatches(Sampler[list[int]]):
    """Batches of an epoch: each sample is in each of them by itself, from the system's entropy. There are empty ones.

    Args:
        count: of all samples.
        size: of a batch on average; all samples where there are fewer.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count, self._rate = count, min(1.0, size / count)
        self._batches = -(-count // size)
        self._rng = np.random.default_rng()

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._batches):
            drawn = self._rng.random(self._count) < self._rate
            yield [int(each) for each in np.flatnonzero(drawn)]

    def __len__(self) -> int:
        return self._batches


class PrivateSteps(L.Callback):
    """Makes the gradient of every step of a fit (Abadi et al. 2016, Algorithm 1). It comes before other callbacks.

    The noise is Gaussian of standard deviation ``noise_multiplier`` times ``clipping_norm``, and comes from the
    system's entropy. What becomes of a gradient afterwards, as momentum, weight decay or a pull, costs nothing more.

    Args:
        clipping_norm: largest L2 norm of the gradient of one sample, of all weights that train together.
        noise_multiplier: of the noise on their sum.
        size: of a batch on average, which the sum is divided by.
        steps: that were paid for.
    """

    def __init__(self, clipping_norm: float, noise_multiplier: float, size: int, steps: int) -> None:
        self._bound, self._deviation, self._size = clipping_norm, noise_multiplier * clipping_norm, size
        self._left = steps
        self._sums: dict[str, Tensor] = {}
        self._rng = np.random.default_rng()

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Clip gradients of samples, by the names of weights (B, ...), and add them to the sum of the step.

        One that is not finite is zero, for it would spoil the others.
        """
        rows = {name: gradient.reshape(len(gradient), -1) for name, gradient in gradients.items()}
        norms = sum(row.double().square().sum(1) for row in rows.values()) ** 0.5
        if not isinstance(norms, Tensor):
            raise ValueError("no weight trains, so that there is no gradient")
        shorter = self._bound / norms.clamp(min=self._bound)
        for name, row in rows.items():
            scales = torch.where(shorter < 1, shorter * (1 - 8 * torch.finfo(row.dtype).eps), shorter)  # for rounding
            total = scales.nan_to_num().to(row.dtype) @ row.where(norms.isfinite()[:, None], 0.0)
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.precision == "16-mixed":
            raise ValueError("precision = 16-mixed skips steps by gradients without noise; take 32-true")
        if any(schedule.reduce_on_plateau for schedule in trainer.lr_scheduler_configs):
            raise ValueError("its learning rate follows a measure without noise (ReduceLROnPlateau); take another")
        self._buffers = {name: value.clone() for name, value in module.named_buffers()}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("its optimizer takes more gradients than there are batches; take SGD or Adam")
        for name, weight in view_of(module).named_parameters():
            if weight.requires_grad:
                total = self._sums.get(name, torch.zeros(weight.numel(), device=weight.device))
                noise = torch.from_numpy(self._rng.normal(0, self._deviation, weight.numel()))
                made = (total.double() + noise.to(weight.device)) / self._size
                weight.grad = made.view(weight.shape).to(weight.dtype)
        self._sums = {}

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, value in module.named_buffers():
            if name in self._buffers and not torch.equal(value, self._buffers[name]):
                raise ValueError(f"its buffer {name} changes in training, and has no noise; take another layer")


def mixing_layer(model: torch.nn.Module) -> str:
    """The first layer whose output for one sample depends on others of the batch; empty: none is known to be such."""
    found = ((name, each) for name, each in model.named_modules() if isinstance(each, _NormBase))
    return next((name for name, each in found if each.track_running_stats or not isinstance(each, _InstanceNorm)), "")
