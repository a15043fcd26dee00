"""Whether a user's module is the same after its checkpoint was written and read, tried before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.ground.places import scratch
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.base import facts_of
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import BASE, first_other
from lit_fedbabu.tasks.custom.data import CustomData
from lit_fedbabu.tasks.custom.learner import tested
from lit_fedbabu.tasks.custom.module import CustomModule
from lit_fedbabu.tasks.custom.state import is_safe

if TYPE_CHECKING:
    from lit_fedbabu.tasks.custom.task import CustomTask

Refuse = Callable[[str], InputError]


def refuse_unrepeatable(first: CustomModule, second: CustomModule, refuse: Refuse) -> None:
    """Refuse a module whose weights are others each time that it is made: server and clients make it each."""
    if name := first_other(whole_state(first.lightning), whole_state(second.lightning)):
        remedy = (
            "server and clients, which each make it, would differ; draw it by torch's, NumPy's or Python's generator"
        )
        raise refuse(f"its {name} is another one each time that its module is made: {remedy}")


def try_reading(
    trained: CustomModule, make: Callable[[], CustomModule], data: CustomData | None, task: CustomTask
) -> None:
    """Write a checkpoint of a trained module and read it, as fine-tuning and resuming will.

    Args:
        trained: it is tested, and else left as it is.
        make: makes the module as it starts.
        data: that it is tested on; None: it is not.
        task: whose module it is; it gets a note where ``load_from_checkpoint`` alone does not make the same module.

    Raises:
        InputError: what cannot be written or read, or differs afterwards.
    """
    refuse = task.refused
    with scratch() as folder:
        path = Path(folder) / "tried.ckpt"
        trained.provenance = {"kind": "personal", "config": task.config.experiment(), "round": 1, **task.provenance}
        if trained.base:
            trained.provenance[BASE] = facts_of(trained.base, task.config)
        try:
            checkpoint.save(trained, path)
        except Exception as error:  # whatever the user's hooks raise
            raise refuse(f"a checkpoint of its module cannot be written: {told(error)}") from error
        content = torch.load(path, map_location="cpu", weights_only=False)  # of this process, a moment ago
        _refuse_unsafe(trained.lightning, content, refuse)
        again = make()
        try:
            again.load(checkpoint.read(path, task.config.task).state)
        except ValueError as error:
            raise refuse(f"a checkpoint of its module cannot be read: {error}") from error
        if name := first_other(whole_state(trained.lightning), whole_state(again.lightning), 0.0):
            raise refuse(f"its {name} is another one after a checkpoint was written and read")
        before = _repeated(trained, data)
        if name := first_other(before, _measured(again, data) if before else {}):
            remedy = "training changes something of it that is no weight and no buffer; register it as a buffer"
            raise refuse(f"{name} is another one after a checkpoint was written and read: {remedy}")
        try:
            with seeded(0):
                options: dict[str, Any] = {"strict": False} if trained.base else {}
                loaded = type(trained.lightning).load_from_checkpoint(
                    path, map_location="cpu", weights_only=True, **options
                )
                other = first_other(before, _measured(CustomModule(loaded, task), data) if before else {})
            reason = f"{other} is another one then" if other else ""
        except Exception as error:  # whatever the user's __init__ raises without its arguments
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if reason:
            name = type(trained.lightning).__name__
            remedy = "call self.save_hyperparameters() in its __init__, or give it its arguments then"
            if trained.base:
                remedy = "lit_fedbabu.load_module(PATH, TASK) does, with what was frozen"
            task.found.append(f"{name}.load_from_checkpoint(PATH) does not make the task's module: {reason}; {remedy}")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers of a module, also those that are not persistent."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _refuse_unsafe(module: L.LightningModule, content: dict[str, Any], refuse: Refuse) -> None:
    """Refuse what a checkpoint cannot have, for reading it would run code."""
    kept = content.get(L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    for name in module.hparams:
        if name not in kept:
            remedy = f"give a number or a text, or save_hyperparameters(ignore=[{name!r}])"
            kind = type(module.hparams[name]).__name__
            raise refuse(f"its hyper-parameter {name}, a {kind}, would be lost: no checkpoint can have it; {remedy}")
    for name, value in _unsafe(content):
        kind = f"{type(value).__module__}.{type(value).__name__}"
        remedy = "which could not be read again; make it numbers, texts, tensors, and lists and dicts of them"
        raise refuse(f"its on_save_checkpoint puts {name} into checkpoints, a {kind}, {remedy}")


def _unsafe(content: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The innermost entries that cannot be read without running code, by their keys."""
    for key, value in content.items():
        if not is_safe(value):
            inner = list(_unsafe(value, f"{path}{key}.")) if isinstance(value, Mapping) else []
            yield from inner or [(f"{path}{key}", value)]


def _repeated(module: CustomModule, data: CustomData | None) -> dict[str, float]:
    """What a module logs of a batch, as far as it logs the same of it twice."""
    once, twice = _measured(module, data), _measured(module, data)
    return {name: value for name, value in once.items() if not first_other({name: value}, twice)}


def _measured(module: CustomModule, data: CustomData | None) -> dict[str, float]:
    if data is None:
        return {}
    with seeded(0):
        return dict(tested(module, data, limit_test_batches=1).measures)


class Unset(L.Callback):
    """Notes the first weight that ``setup`` or ``configure_model`` sets, over what the run has set."""

    def __init__(self, module: L.LightningModule) -> None:
        self._before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        self.name = ""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.name = self.name or first_other(self._before, dict(module.named_parameters()))

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.on_fit_start(trainer, module)

    def refuse(self, refuse: Refuse) -> None:
        """Raise what ``refuse`` makes where there is one."""
        if self.name:
            remedy = "over those that the run has given it; do it in __init__"
            raise refuse(f"its setup or configure_model gives {self.name} other values, {remedy}")
