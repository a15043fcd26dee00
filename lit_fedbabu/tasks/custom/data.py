"""A client's LightningDataModule of a task of the user's own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.tasks.custom.loaders import batches_of, samples_of

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from lit_fedbabu.tasks.custom.task import CustomTask


class CustomData:
    """A client's LightningDataModule, set up once.

    Python's, NumPy's and PyTorch's generators are seeded from (seed, client) while it is made and set up, so that a
    split that is drawn there is the same in every round.

    Args:
        task: whose data they are.
        client: its number.
    """

    def __init__(self, task: CustomTask, client: int) -> None:
        self.config = task.config
        self.task = task
        self.client = client

    @cached_property
    def module(self) -> L.LightningDataModule:
        """The LightningDataModule, ready to give its loaders."""
        import lightning  # takes seconds

        seed = self.config.derived_seed("data", self.client)
        with seeded(seed):
            module = self.task.new_data(self.client)
            if not isinstance(module, lightning.LightningDataModule):
                what = f"its data of client {self.client} {foreign(module, 'LightningDataModule')}"
                raise self.task.refused(what)
            module.prepare_data()
        for stage in ("fit", "test"):
            with seeded(seed):
                module.setup(stage)
        # Set up here, where generators are seeded; a Trainer would do it again, and take the data down.
        for hook in ("prepare_data", "setup", "teardown"):
            setattr(module, hook, _nothing)
        module._log_hyperparams = False  # nobody logs them, and those of the module may have the same names
        return module

    @cached_property
    def num_train(self) -> int:
        with self._aside():
            return samples_of(self.module.train_dataloader())

    @property
    def class_counts(self) -> Tensor:
        """A user's data have samples, of which nobody knows the classes."""
        raise ValueError("the data of a task are not counted by classes")

    @property
    def batches(self) -> int | None:
        """Training batches of an epoch; None: the loader does not say."""
        with self._aside():
            return batches_of(self.module.train_dataloader())

    def _aside(self) -> AbstractContextManager[None]:
        """Loaders are looked at without moving the generators that a training draws from."""
        return seeded(self.config.derived_seed("data", self.client))

    @cached_property
    def num_test(self) -> int:
        with self._aside():
            return samples_of(self.module.test_dataloader())


def foreign(value: Any, kind: str) -> str:
    """What is wrong with a value that is not of a class of Lightning's, as "LightningModule"."""
    if any(each.__module__.startswith("pytorch_lightning.") for each in type(value).__mro__):
        return f"is of pytorch_lightning, which is another package; write import lightning as L and take L.{kind}"
    return f"must be a {kind} of lightning, and is a {type(value).__name__}"


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for a hook of a LightningDataModule that was called already."""
