"""A LightningModule of the user's own: trained, evaluated and made personal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu.errors import InputError
from lit_fedbabu.learning.own_module import OwnModule
from lit_fedbabu.learning.parts import PARTS, parts_of
from lit_fedbabu.learning.state import load_state, not_finite, state_of
from lit_fedbabu.learning.trainer import new_trainer
from lit_fedbabu.length import steps_of
from lit_fedbabu.tasks.evaluation import OwnEvaluation, Personalization
from lit_fedbabu.tasks.own import OwnData, short


def fit(
    modules: Sequence[OwnModule],
    data: Sequence[OwnData],
    *,
    mode: str,
    epochs: float,
    learning_rate: float,
    steps: int = 0,
    curves: Sequence[list[OwnEvaluation]] = (),
    callbacks: Sequence[L.Callback] = (),
) -> list[float]:
    """Train a part of the one module in place, with the optimizer that it configures.

    Args:
        modules: one module.
        data: the client's.
        mode: "body", "head" or "full".
        epochs: over the client's training samples; of a fraction of an epoch its first batches, rounded up.
        learning_rate: written to the module's hyper-parameters; 0: the module's own stands.
        steps: mini-batches, in place of ``epochs``; 0: the epochs.
        curves: one list, which gets an evaluation after every epoch; the last is that of the trained module. Empty:
            nothing is evaluated.
        callbacks: Lightning's, before those of the task.

    Returns:
        The mean training loss over all samples seen; nan if there was no epoch or no loss.
    """
    (module,), (own,) = modules, data
    module.set_mode(mode)
    module.set_rate(learning_rate)
    if epochs == steps == 0:
        return [math.nan]
    watch = _Watch(module, mode, keep=bool(curves))
    if steps or epochs % 1:
        batches = own.batches
        watch.left = steps_of(batches, epochs, steps)
        epochs = math.ceil(watch.left / batches)
    trainer = new_trainer(
        own.config,
        max_epochs=int(epochs),
        num_sanity_val_steps=0,
        callbacks=[*callbacks, *own.task.task.callbacks(), watch],
    )
    trainer.fit(module.lightning, datamodule=own.module)
    watch.restore()
    module.lightning.zero_grad(set_to_none=True)
    for curve in curves:
        trained = {name: value.clone() for name, value in state_of(module.model).items()}
        for state in [*watch.epochs[:-1], trained]:  # the end of a fit may change the weights, as averages of them do
            load_state(module.model, state)
            curve.extend(evaluate(modules, data))
        curve.extend([curve[-1]] * (int(epochs) - len(watch.epochs)))  # a callback may have stopped the training
        load_state(module.model, trained)
    return [watch.mean_loss]


def evaluate(modules: Sequence[OwnModule], data: Sequence[OwnData]) -> list[OwnEvaluation]:
    """What the one module logs of its client's test samples.

    Raises:
        InputError: as of ``tested``.
    """
    (module,), (own,) = modules, data
    return [tested(new_trainer(own.config), module.lightning, own)]


def tested(trainer: L.Trainer, module: L.LightningModule, own: OwnData) -> OwnEvaluation:
    """What a user's module logs of a client's test samples.

    Raises:
        InputError: the task's score is not among it, or two metrics have one name in results.json.
    """
    found = trainer.test(module, datamodule=own.module, verbose=False)
    logged = {name: float(value) for of_loader in found for name, value in of_loader.items()}
    score = own.task.task.score
    if score not in logged:
        remedy = f"its score {score} is not logged in test_step; {', '.join(logged) or 'nothing'} is logged"
        raise InputError("task", own.config.task, remedy)
    names: dict[str, str] = {}
    for name in logged:
        if (first := names.setdefault(short(name), name)) != name:
            remedy = f"it logs {first} and {name}, which would both be {short(name)} in results.json; rename one"
            raise InputError("task", own.config.task, remedy)
    return OwnEvaluation({short(name): value for name, value in logged.items()}, logged[score], own.num_test)


def personalize(
    modules: Sequence[OwnModule], data: Sequence[OwnData], *, part: str, epochs: int, learning_rate: float
) -> list[Personalization]:
    """Fine-tune a part of the one module in place; evaluate before, and after every epoch."""
    curve = evaluate(modules, data)
    fit(modules, data, mode=part, epochs=epochs, learning_rate=learning_rate, curves=[curve])
    if not_finite(modules[0].model.state_dict()):  # what is measured of such a model means nothing
        nothing = dict.fromkeys(curve[0].measures, math.nan)
        curve[-1] = OwnEvaluation(nothing, math.nan, curve[-1].count)
    return [Personalization(tuple(curve), name=data[0].task.score.name)]


class _Watch(L.Callback):
    """Keeps frozen parts as they are, whatever the module and its optimizer do, and notes losses and weights.

    Args:
        module: that is trained.
        mode: what trains.
        keep: whether the weights after every epoch are kept.
    """

    def __init__(self, module: OwnModule, mode: str, keep: bool) -> None:
        self._module = module
        self._mode = mode
        self._keep = keep
        self._frozen = {
            name: value.detach().cpu().clone()
            for name, value in state_of(module.model).items()
            if name.partition(".")[0] not in parts_of(mode) or name in module.frozen
        }
        self._loss, self._seen = 0.0, 0
        self.left = math.inf
        """Batches that may still be trained on."""
        self.epochs: list[dict[str, Tensor]] = []
        """The weights after every epoch."""

    @property
    def mean_loss(self) -> float:
        """Over all samples seen; nan if there was none."""
        return self._loss / self._seen if self._seen else math.nan

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._module.set_mode(self._mode)
        for part in PARTS:
            if part not in parts_of(self._mode):
                self._module.model.get_submodule(part).eval()

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self._module.set_mode(self._mode)
        for weight in self._module.model.parameters():
            if not weight.requires_grad:
                weight.grad = None  # which optimizers leave alone, also with weight decay

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (loss := loss_of(outputs)) is not None:
            count = _samples(batch)
            self._loss += loss.detach().double().item() * count
            self._seen += count
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left == 0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._keep:
            self.restore()
            state = state_of(self._module.model)
            self.epochs.append({name: value.detach().cpu().clone() for name, value in state.items()})

    def restore(self) -> None:
        """Give frozen weights and buffers the values that they had."""
        state = state_of(self._module.model)
        with torch.no_grad():
            for name, value in self._frozen.items():
                state[name].copy_(value)


def loss_of(outputs: Any) -> Tensor | None:
    """The loss that a ``training_step`` has returned; None if it returned none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss if isinstance(loss, Tensor) else None


def _samples(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor; 1 if it has none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((_samples(part) for part in parts if isinstance(part, Tensor | Mapping | list | tuple)), 1)
