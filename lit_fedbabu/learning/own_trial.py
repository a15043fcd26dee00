"""A task of the user's own, tried before a run on a client with the smallest last batch."""

from collections.abc import Iterable

import lightning as L
from torch.nn.parameter import UninitializedParameter

from lit_fedbabu.errors import InputError, told
from lit_fedbabu.learning.own_module import OwnModule
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.learning.trainer import new_trainer
from lit_fedbabu.learning.trial import FLOATS
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

    for name, value in module.model.state_dict(keep_vars=True).items():
        if isinstance(value, UninitializedParameter):
            raise refuse(f"its {name} has no shape before the first batch; give the layer its sizes")
        if (value.is_floating_point() and value.dtype not in FLOATS) or value.is_complex():
            raise refuse(f"its {name} is of {value.dtype}, which cannot be averaged; take float32")
    if not task.clients:
        return
    client = _client(task)
    data = OwnData(task, client)
    for mode in modes:
        tried = module.copy()
        tried.set_mode(mode)
        try:
            with seeded(0):
                held = _held_by_optimizer(tried, data)
        except Exception as error:  # whatever the user's code raises
            raise refuse(f"training its {mode} on data of client {client} fails: {told(error)}") from error
        weights = select(dict(tried.model.named_parameters()), parts_of(mode))
        if not any(id(weight) in held for weight in weights.values()):
            raise refuse(f"its optimizer holds no weight of its {mode}, which the run trains")
    try:
        with seeded(0):
            tester = new_trainer(task.config, limit_test_batches=1)
            tester.test(module.copy().lightning, datamodule=data.module, verbose=False)
    except Exception as error:
        raise refuse(f"testing it on data of client {client} fails: {told(error)}") from error
    if task.task.score not in tester.callback_metrics:
        logged = ", ".join(tester.callback_metrics) or "nothing"
        raise refuse(f"its score {task.task.score} is not logged in test_step; {logged} is logged")


def _client(task: OwnTask) -> int:
    """The client whose last training batch is the smallest; the first where batches have no size that is known."""
    size = getattr(OwnData(task, task.clients[0]).module.train_dataloader(), "batch_size", None)
    if not isinstance(size, int) or size < 1:
        return task.clients[0]
    return min(task.clients, key=lambda client: task.sizes[client][0] % size or size)


def _held_by_optimizer(module: OwnModule, data: OwnData) -> set[int]:
    """Train for an epoch; returns the ids of the weights that the module's optimizers hold."""
    watch = _KeepOptimizers()
    tried = min(BATCHES, len(data.module.train_dataloader()))
    options: dict[str, int] = {"max_epochs": 1, "num_sanity_val_steps": 0, "limit_train_batches": tried}
    if "limit_val_batches" not in data.config.trainer:
        options["limit_val_batches"] = 1
    trainer = new_trainer(data.config, callbacks=[*data.task.task.callbacks(), watch], **options)
    trainer.fit(module.lightning, datamodule=data.module)
    return watch.held


class _KeepOptimizers(L.Callback):
    """Notes which weights the optimizers hold; a Trainer forgets them after a fit."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.held |= {id(weight) for group in optimizer.param_groups for weight in group["params"]}
