"""What watches over a user's module in a fit: a part stays frozen, batches are counted, losses and weights noted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu.learning.state import state_of
from lit_fedbabu.tasks.custom.loaders import samples_in
from lit_fedbabu.tasks.custom.module import CustomModule


class Watch(L.Callback):
    """Keeps frozen parts as they are, whatever the module and its optimizer do; what trains is left to the module.

    In a ``with`` statement around the fit.

    Args:
        module: that is trained.
        mode: what trains: parts as in "body+neck", or "full".
        epochs: that are begun at most.
        batches: that may be trained on.
        keep: whether the weights after every epoch are kept.
    """

    def __init__(
        self, module: CustomModule, mode: str, epochs: int, batches: float = math.inf, keep: bool = False
    ) -> None:
        self._module = module
        self.mode = mode
        trained = module.parts_of(mode)
        self._parts = [module.model.get_submodule(part) for part in module.task.parts if part not in trained]
        self.max_epochs = epochs
        self.left = batches
        """Batches that may still be trained on."""
        self._keep = keep
        self.epochs: list[dict[str, Tensor]] = []
        """The weights after every epoch."""
        self._frozen = {name: value.clone() for name, value in self._standing().items()}
        self._versions: dict[str, int] = {}
        self.loss, self.seen = 0.0, 0.0
        """The sum of losses over samples, and their number."""
        self.told = False
        """Whether a training_step returned a loss."""
        self.learned = False
        """Whether a loss had a gradient."""
        self.skipped = False
        """Whether a loss had none, for all that it depends on is frozen."""

    @property
    def mean_loss(self) -> float:
        """Over all samples seen; nan if there was none."""
        return self.loss / self.seen if self.seen else math.nan

    def _standing(self) -> dict[str, Tensor]:
        """What does not train, as it is now."""
        state = state_of(self._module.model)
        trained = self._module.parts_of(self.mode)
        return {name: value for name, value in state.items() if name.partition(".")[0] not in trained}

    def __enter__(self) -> None:
        lightning = self._module.lightning
        users = lightning.backward
        self._modes = {layer: layer.training for part in self._parts for layer in part.modules()}

        def backward(loss: Tensor, *args: Any, **options: Any) -> None:
            """A loss of a frozen part alone, as of its own optimizer, moves nothing."""
            self.skipped = self.skipped or not loss.requires_grad
            if loss.requires_grad or not self._parts:
                users(loss, *args, **options)
                self.learned = True

        lightning.backward = backward  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._module.lightning.backward
        self._restore(self._standing())
        for layer, training in self._modes.items():
            layer.training = training

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._live = self._standing()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._module.freeze(self.mode)
        for part in self._parts:
            part.eval()
        moved = {name: value for name, value in self._live.items() if value._version != self._versions.get(name, 0)}
        self._restore(moved)
        self._versions |= {name: value._version for name, value in moved.items()}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self._module.freeze(self.mode)
        for part in self._parts:
            for weight in part.parameters():
                weight.grad = None  # which optimizers leave alone, also with weight decay

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and trainer.current_epoch < self.max_epochs:  # averages of weights take one more
            self.told = True
            count = samples_in(batch)
            self.loss += loss.detach().double().item() * count
            self.seen += count
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left == 0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._keep and len(self.epochs) < self.max_epochs:
            self._restore(self._standing())
            state = state_of(self._module.model)
            self.epochs.append({name: value.detach().cpu().clone() for name, value in state.items()})

    def _restore(self, standing: Mapping[str, Tensor]) -> None:
        """Give frozen weights and buffers the values that they had."""
        with torch.no_grad():
            for name in standing.keys() & self._frozen.keys():
                standing[name].copy_(self._frozen[name])
