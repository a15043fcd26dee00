"""Steps of DP-SGD for a user's module: its ``training_step`` sees one sample after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.private_steps import PoissonBatches, PrivateSteps
from lit_fedbabu.tasks.custom.data import CustomData
from lit_fedbabu.tasks.custom.loaders import Singles
from lit_fedbabu.tasks.custom.module import CustomModule

if TYPE_CHECKING:
    from lit_fedbabu.tasks.custom.task import CustomTask

OF_BATCHES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
"""Hooks of a module or its data that get a batch, and may mix its samples."""
OF_GRADIENTS = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_callbacks")
"""Hooks of a module that see data or gradients before they have noise, and may use them."""


def refuse_unbounded(module: CustomModule, task: CustomTask) -> None:
    """Raise InputError where a user's module, or the task's callbacks, can use data in other ways than in a loss."""
    lightning = module.lightning
    if not lightning.automatic_optimization:
        raise _refused(task, "its module optimizes by hand; let training_step return a loss alone")
    if hooks := [hook for hook in (*OF_BATCHES, *OF_GRADIENTS) if is_overridden(hook, lightning)]:
        raise _refused(task, f"its module has a {hooks[0]} of its own, which no noise covers; do without it")
    if task.task.callbacks():
        raise _refused(task, "its callbacks see data, which no noise covers; leave them out")


def poisson_batches(own: CustomData) -> int:
    """Batches of an epoch of a client, which are those that are paid for."""
    return math.ceil(own.num_train / own.config.batch_size)


@contextmanager
def by_sample(module: CustomModule, own: CustomData, steps: int) -> Iterator[PrivateSteps]:
    """Give the module single samples of Poisson batches, and make its gradients, by the callback that is given.

    Args:
        module: of the user's.
        own: a client's data.
        steps: that were paid for.

    Raises:
        InputError: batches cannot be drawn of its loader, or are not of ``batch-size``.
    """
    config, lightning, datamodule = own.config, module.lightning, own.module
    made = PrivateSteps(config.clipping_norm, config.noise_multiplier, min(config.batch_size, own.num_train), steps)
    users = lightning.training_step

    @wraps(users)
    def training_step(batch: Singles, *rest: Any) -> Tensor:
        total = torch.zeros((), device=lightning.device)
        for sample in batch:
            total = total + _add(module, made, users, sample, rest)
        return (total / max(len(batch), 1)).requires_grad_()  # which no weight has a gradient of

    loader = _poisson_loader(own)
    lightning.training_step = training_step  # type: ignore[method-assign]
    datamodule.train_dataloader = lambda: loader  # type: ignore[method-assign]
    try:
        yield made
    finally:
        del lightning.training_step, datamodule.train_dataloader


def _add(
    module: CustomModule, made: PrivateSteps, users: Callable[..., Any], sample: Any, rest: tuple[Any, ...]
) -> Tensor:
    """Add the gradient of one sample; returns its loss."""
    weights = {name: weight for name, weight in module.model.named_parameters() if weight.requires_grad}
    outputs = users(sample, *rest)
    loss: Tensor | None = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if loss is None or not loss.requires_grad:
        return torch.zeros((), device=module.lightning.device)
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    dense = (
        torch.zeros_like(weight) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for weight, gradient in zip(weights.values(), gradients, strict=True)
    )
    made.add({name: gradient[None] for name, gradient in zip(weights, dense, strict=True)})
    return loss.detach()


def _poisson_loader(own: CustomData) -> DataLoader[Any]:
    """A loader of the samples of the client's own, whose batches are drawn by chance."""
    loader, task, size = own.module.train_dataloader(), own.task, own.config.batch_size
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise _refused(task, f"the training loader of client {own.client} is no DataLoader of a dataset with an index")
    if loader.batch_size != size:
        remedy = f"the loader of client {own.client} has batches of {loader.batch_size}; give the same number"
        raise InputError("batch-size", size, f"privacy=sample counts by it, and {remedy}")
    if hooks := [hook for hook in OF_BATCHES if is_overridden(hook, own.module)]:
        raise _refused(task, f"its data have a {hooks[0]}, which may mix samples; do without it")
    collate = loader.collate_fn
    return DataLoader(
        loader.dataset,
        batch_sampler=PoissonBatches(own.num_train, size),
        collate_fn=lambda samples: Singles(collate([sample]) for sample in samples),
    )


def _refused(task: CustomTask, why: str) -> InputError:
    return task.refused(f"with privacy=sample {why}")
