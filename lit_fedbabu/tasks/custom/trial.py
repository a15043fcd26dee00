"""A task of the user's own, tried before a run on a client with the smallest last batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn
from torch.optim import Optimizer

from lit_fedbabu.config.rules import RATES
from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.learning.parts import select
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.trial import refuse_unsendable
from lit_fedbabu.tasks.custom import reload
from lit_fedbabu.tasks.custom.data import CustomData
from lit_fedbabu.tasks.custom.learner import fit, tested
from lit_fedbabu.tasks.custom.module import CustomModule
from lit_fedbabu.tasks.custom.training import train
from lit_fedbabu.tasks.custom.watch import Watch

if TYPE_CHECKING:
    from lit_fedbabu.tasks.custom.task import CustomTask

BATCHES = 50
"""Of an epoch that are tried."""


def try_task(
    module: CustomModule,
    task: CustomTask,
    modes: Iterable[str],
    make: Callable[[], CustomModule],
    check: Callable[[Optimizer], None] = lambda _: None,
) -> None:
    """Train copies of the module for an epoch in each mode, test one for a batch, and write and read a checkpoint.

    Of an epoch the first batches are enough, unless it is short. The client is one whose last batch is the smallest,
    for on such batches modules fail, as batch norm does on a single sample. Where no data are here, as on a server of
    sites, only the module itself is looked at.

    Args:
        module: it is left as it is.
        task: whose module it is.
        modes: what trains: parts as in "body+neck", or "full".
        make: makes it anew.
        check: is given each optimizer, and raises InputError where the algorithm cannot do with it.

    Raises:
        InputError: in one line what failed.
    """
    refuse = task.refused
    refuse_unsendable(module.model, refuse)
    _refuse_uncopied(module, refuse)
    _check_rates(module, task)
    reload.refuse_unrepeatable(module, make(), refuse)
    tried = module.copy()
    if not task.clients:
        reload.try_reading(tried, make, None, task)
        return
    client = _client(task)
    data = CustomData(task, client)
    for mode in modes:
        tried = module.copy()
        tried.set_mode(mode)
        watch, held = Watch(tried, mode, epochs=1), _Held(check)
        setup = reload.Unset(tried.lightning)
        batches = min(BATCHES, data.batches or BATCHES)
        validated = task.config.trainer.get("limit_val_batches", 1)
        with task.running(f"training its {mode} on data of client {client} fails"), seeded(0):
            train(tried, data, watch, [held, setup], limit_train_batches=batches, limit_val_batches=validated)
        weights = select(dict(tried.model.named_parameters()), tried.parts_of(mode))
        if not any(id(weight) in held.weights for weight in weights.values()):
            raise refuse(f"its optimizer holds no weight of its {mode}, which the run trains")
        if not watch.told:
            raise refuse("its training_step returns no loss; return it, also where it optimizes by hand")
        if watch.skipped and not watch.learned:
            raise refuse(f"no loss of its training_step depends on a weight of its {mode} that trains; let one train")
        if change := _lost(module, tried):
            raise refuse(change)
        setup.refuse(refuse)
    copied = module.copy()
    setup = reload.Unset(copied.lightning)
    with task.running(f"testing it on data of client {client} fails"), seeded(0):
        tested(copied, data, after=[setup], limit_test_batches=1)
    setup.refuse(refuse)
    reload.try_reading(tried, make, data, task)


def try_steps(module: CustomModule, task: CustomTask, modes: Iterable[str]) -> None:
    """Take a few steps of DP-SGD with copies of the module in each mode, where there are data here.

    Raises:
        InputError: in one line what failed.
    """
    for mode, client in itertools.product(modes, task.clients[:1]):
        with task.running(f"training its {mode} on single samples of client {client} fails"), seeded(0):
            options: dict[str, Any] = {"epochs": 0, "steps": 2, "learning_rate": 0.0, "private": True}
            fit([module.copy()], [CustomData(task, client)], mode=mode, **options)


def _check_rates(module: CustomModule, task: CustomTask) -> None:
    """Refuse a learning rate that the module cannot follow; note one that is in place of its own."""
    for name in RATES:
        key, rate = name.replace("_", "-"), getattr(task.config, name)
        if rate and not module.own_rate:
            remedy = "the task's module has no hyper-parameter learning_rate or lr that is a number; leave it out"
            raise InputError(key, rate, f"{remedy}, or with flwr run give {key}=0")
        if rate not in (0, module.own_rate):
            task.found.append(f"{key} = {rate:g} is in place of the module's own rate, {module.own_rate:g}")


def _refuse_uncopied(module: CustomModule, refuse: Callable[[str], InputError]) -> None:
    try:
        copied = module.copy()
    except Exception as error:  # what the user's module holds, as an open file
        raise refuse(f"its module cannot be copied: {told(error)}; make such things in setup") from error
    if name := _bound(module.lightning, copied.lightning):
        raise refuse(f"its function {name} holds the module, and would act on another copy of it; make it a method")


def _bound(module: nn.Module, copied: nn.Module) -> str:
    """A function, as a hook, that a copy has and that still holds a part of what was copied; empty: none."""
    held = {id(each) for each in [*module.modules(), *module.parameters(), *module.buffers()]}
    for values in (vars(layer).values() for layer in copied.modules()):
        for value in values:
            for each in value.values() if isinstance(value, dict) else [value]:
                if isinstance(each, FunctionType):
                    cells = [cell.cell_contents for cell in each.__closure__ or () if cell != CellType()]
                    if any(id(content) in held for content in [*cells, *(each.__defaults__ or ())]):
                        return each.__qualname__
    return ""


def _client(task: CustomTask) -> int:
    """The client whose last training batch is the smallest; the first where batches have no size that is known."""
    size = getattr(CustomData(task, task.clients[0]).module.train_dataloader(), "batch_size", None)
    if not isinstance(size, int) or size < 1:
        return task.clients[0]
    return min(task.clients, key=lambda client: task.sizes[client][0] % size or size)


def _lost(before: CustomModule, after: CustomModule) -> str:
    """What an epoch has changed in a module in a way that no round can carry on; empty: nothing."""
    users = after.lightning.state_dict(keep_vars=True)
    places = {id(value): name for name, value in users.items()}
    first = before.model.state_dict()
    for name, value in after.model.state_dict(keep_vars=True).items():
        if id(value) not in places:
            return (
                f"its {name} is replaced when training starts; make its layer in __init__, or where there is none yet"
            )
        if value.shape != first[name].shape:
            was, now = list(first[name].shape), list(value.shape)
            return f"its {name} changes from shape {was} to {now} in training, and cannot be averaged"
    return ""


class _Held(L.Callback):
    """Checks the optimizers, and notes which weights they hold, which a Trainer forgets after a fit."""

    def __init__(self, check: Callable[[Optimizer], None]) -> None:
        self._check = check
        self.weights: set[int] = set()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self._check(optimizer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.weights |= {id(weight) for group in optimizer.param_groups for weight in group["params"]}
