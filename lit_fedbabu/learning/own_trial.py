"""A task of the user's own, tried before a run on a client with the smallest last batch."""

from collections.abc import Iterable
from typing import Any

import lightning as L
from torch import Tensor

from lit_fedbabu.errors import InputError, told
from lit_fedbabu.learning.own import loss_of, tested
from lit_fedbabu.learning.own_module import OwnModule
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.learning.trainer import new_trainer
from lit_fedbabu.learning.trial import refuse_unsendable
from lit_fedbabu.option_rules import RATES
from lit_fedbabu.tasks.own import OwnData, OwnTask
from lit_fedbabu.tasks.seeding import seeded

BATCHES = 50
"""Of an epoch that are tried."""


def try_task(module: OwnModule, task: OwnTask, modes: Iterable[str]) -> None:
    """Train copies of the module for an epoch in each mode, and test one for a batch.

    Of an epoch the first batches are enough, unless it is short. The client is one whose last batch is the smallest,
    for on such batches modules fail, as batch norm does on a single sample. Where no data are here, as on a server of
    sites, only the module itself is looked at.

    Args:
        module: it is left as it is.
        task: whose module it is.
        modes: what trains: "body", "head" or "full".

    Raises:
        InputError: in one line what failed.
    """

    def refuse(remedy: str) -> InputError:
        return InputError("task", task.config.task, remedy)

    refuse_unsendable(module.model, refuse)
    try:
        module.copy()
    except Exception as error:  # what the user's module holds, as an open file
        raise refuse(f"its module cannot be copied: {told(error)}; make such things in setup") from error
    for name in RATES:
        key, rate = name.replace("_", "-"), getattr(task.config, name)
        if rate and not module.rate:
            remedy = "the task's module has no hyper-parameter learning_rate or lr that is a number; leave it out"
            raise InputError(key, rate, f"{remedy}, or with flwr run give {key}=0")
    if not task.clients:
        return
    client = _client(task)
    data = OwnData(task, client)
    for mode in modes:
        tried = module.copy()
        tried.set_mode(mode)
        watch = _Watch()
        try:
            with seeded(0):
                _train(tried, data, watch)
        except Exception as error:  # whatever the user's code raises
            raise refuse(f"training its {mode} on data of client {client} fails: {told(error)}") from error
        weights = select(dict(tried.model.named_parameters()), parts_of(mode))
        if not any(id(weight) in watch.held for weight in weights.values()):
            raise refuse(f"its optimizer holds no weight of its {mode}, which the run trains")
        if not watch.told:
            raise refuse("its training_step returns no loss; return it, also where it optimizes by hand")
        if change := _lost(module, tried):
            raise refuse(change)
    try:
        with seeded(0):
            tested(new_trainer(task.config, limit_test_batches=1), module.copy().lightning, data)
    except InputError:
        raise
    except Exception as error:
        raise refuse(f"testing it on data of client {client} fails: {told(error)}") from error


def _client(task: OwnTask) -> int:
    """The client whose last training batch is the smallest; the first where batches have no size that is known."""
    size = getattr(OwnData(task, task.clients[0]).module.train_dataloader(), "batch_size", None)
    if not isinstance(size, int) or size < 1:
        return task.clients[0]
    return min(task.clients, key=lambda client: task.sizes[client][0] % size or size)


def _lost(before: OwnModule, after: OwnModule) -> str:
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
    seen = {id(value) for value in after.model.state_dict(keep_vars=True).values()}
    earlier = before.lightning.state_dict()
    for name, value in users.items():
        if isinstance(value, Tensor) and id(value) not in seen and not _equal(value, earlier.get(name)):
            remedy = "add its layer to one, or register it with persistent=False"
            return f"its {name} changes in training, is in neither body nor head, and would be lost; {remedy}"
    return ""


def _equal(value: Tensor, other: Any) -> bool:
    if not isinstance(other, Tensor) or value.shape != other.shape:
        return False
    return value.double().cpu().allclose(other.double().cpu(), rtol=0, atol=0, equal_nan=True)


def _train(module: OwnModule, data: OwnData, watch: L.Callback) -> None:
    """Train for an epoch, of which the first batches are enough."""
    options: dict[str, int] = {"max_epochs": 1, "num_sanity_val_steps": 0, "limit_train_batches": data.first(BATCHES)}
    if "limit_val_batches" not in data.config.trainer:
        options["limit_val_batches"] = 1
    trainer = new_trainer(data.config, callbacks=[*data.task.task.callbacks(), watch], **options)
    trainer.fit(module.lightning, datamodule=data.module)


class _Watch(L.Callback):
    """Notes which weights the optimizers hold, which a Trainer forgets after a fit, and whether a loss was told."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.told = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.held |= {id(weight) for group in optimizer.param_groups for weight in group["params"]}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.told = self.told or loss_of(outputs) is not None
