"""A user's module and the Trainer: what the run adds around a fit and a test, and how a part is kept frozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from torch import Tensor

from lit_fedbabu.ground.places import scratch
from lit_fedbabu.learning.base import moved
from lit_fedbabu.learning.client_trainer import ClientTrainer
from lit_fedbabu.learning.devices import joined, over_all
from lit_fedbabu.learning.trainer import new_trainer
from lit_fedbabu.tasks.custom.data import CustomData, foreign
from lit_fedbabu.tasks.custom.logger import Dropped
from lit_fedbabu.tasks.custom.module import CustomModule
from lit_fedbabu.tasks.custom.watch import Watch

LEFT_OUT = (Checkpoint, ProgressBar, ModelSummary)
"""Callbacks that a run does without: it saves its own checkpoints and shows its own progress."""


@contextmanager
def trainer_of(
    module: CustomModule,
    own: CustomData,
    before: Sequence[L.Callback] = (),
    after: Sequence[L.Callback] = (),
    **options: Any,
) -> Iterator[ClientTrainer]:
    """A Trainer for a user's module on a client's data, with the callbacks of the task, those of the module, and ours.

    Its logger drops everything, and what is written to its folders goes with it.

    Args:
        module: whose ``configure_callbacks`` is used.
        own: the data.
        before: callbacks before those of the task.
        after: callbacks after them.
        options: of Lightning's Trainer.
    """
    lightning, users = module.lightning, module.lightning.configure_callbacks

    def kept(callbacks: Sequence[L.Callback] | L.Callback | None) -> list[L.Callback]:
        each = [callbacks] if isinstance(callbacks, L.Callback) else list(callbacks or ())
        for callback in each:
            if not isinstance(callback, L.Callback):
                raise TypeError(f"its callback {foreign(callback, 'Callback')}")
        own.task.left_out |= {type(callback).__name__ for callback in each if isinstance(callback, LEFT_OUT)}
        return [callback for callback in each if not isinstance(callback, LEFT_OUT)]

    lightning.configure_callbacks = lambda: kept(users())  # type: ignore[method-assign]
    try:
        with scratch() as folder:
            yield new_trainer(
                own.config,
                logger=Dropped(folder),
                default_root_dir=folder,
                callbacks=[*before, *kept(own.task.task.callbacks()), *after],
                **options,
            )
    finally:
        del lightning.configure_callbacks


def train(
    module: CustomModule, own: CustomData, watch: Watch, callbacks: Sequence[L.Callback] = (), **options: Any
) -> None:
    """Fit a user's module as a plain Trainer would, but for a part that is frozen.

    Args:
        module: trained in place; its mode is set.
        own: the client's data.
        watch: with the limits of the fit.
        callbacks: Lightning's, before those of the task.
        options: of Lightning's Trainer.

    Raises:
        InputError: something changed that no round can carry on.
    """
    module.set_mode(watch.mode)
    inside = {id(value) for value in module.model.state_dict(keep_vars=True).values()}
    names = {name for name, value in module.lightning.state_dict(keep_vars=True).items() if id(value) in inside}
    outside = _outside(module, names)
    moved(module.model)  # notes how the base is
    options |= {"max_epochs": watch.max_epochs, "num_sanity_val_steps": 0}
    with joined(f"client {own.client}, {watch.mode}") as on_devices:
        with trainer_of(module, own, callbacks, [watch], **options, **on_devices) as trainer, watch:
            if watch.left < math.inf:
                trainer.mini_batches = int(watch.left)
            trainer.fit(module.lightning, datamodule=own.module)
        trained = (weight for weight in module.model.parameters() if weight.requires_grad)
        watch.loss, watch.seen = over_all([watch.loss, watch.seen], trained)
    module.lightning.zero_grad(set_to_none=True)
    if name := moved(module.model):
        remedy = "where a base does not: say which frozen weights stay so by Task(..., base=(...)), or () for none"
        raise own.task.refused(f"its {name} is frozen in __init__ and changes in training, {remedy}")
    for name, value in _outside(module, names).items():
        if outside.get(name) != value:
            remedy = "add its layer to one, or register it with persistent=False"
            told = f"its {name} changes in training, is in neither body nor head, and would be lost; {remedy}"
            raise own.task.refused(told)


def _outside(module: CustomModule, inside: Collection[str]) -> dict[str, str]:
    """Of the entries of the user's module that lie in no part their sums, which tell whether one has changed."""
    return {
        name: str(value.sum(dtype=torch.complex128 if value.is_complex() else torch.float64).item())
        for name, value in module.lightning.state_dict().items()
        if isinstance(value, Tensor) and name not in inside
    }
