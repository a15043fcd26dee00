"""A task of the user's own: a LightningModule and a LightningDataModule, named in a line."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError, told
from lit_fedbabu.options import imported
from lit_fedbabu.tasks.evaluation import Score
from lit_fedbabu.tasks.loaders import batches_of
from lit_fedbabu.tasks.own_data import OwnData

if TYPE_CHECKING:
    import lightning as L

REMEDY = "must be the import path of a lit_fedbabu.Task, as in my_module:task"


@dataclasses.dataclass(frozen=True)
class Task:
    """What clients learn: a model and data, written without knowing of this package.

    Args:
        module: makes the LightningModule, without arguments. It has its own loss, metrics and optimizer.
        data: makes the LightningDataModule of a client, from ``client`` (0 to ``num_clients`` - 1), ``num_clients``
            and ``seed``, which is that of the run.
        score: the metric that clients are compared by, as the module logs it in ``test_step``.
        higher_is_better: whether more of it is better.
        body: names of the modules or weights that are the body.
        head: the same of the head. No weight that trains lies in neither, and one of the two may be empty: ().
        callbacks: makes Lightning's callbacks, anew for every fit and test. Those that save checkpoints, draw progress
            bars or print summaries are left out, here and of the module's ``configure_callbacks``.
    """

    module: Callable[[], L.LightningModule]
    data: Callable[..., L.LightningDataModule]
    score: str
    higher_is_better: bool = True
    body: Sequence[str] = ("body",)
    head: Sequence[str] = ("head",)
    callbacks: Callable[[], Sequence[L.Callback]] = list

    @property
    def measured(self) -> Score:
        """The score by its name in results.json."""
        return Score(short(self.score), self.higher_is_better)


def short(metric: str) -> str:
    """A metric's name in results.json: "f1" of "test_f1" and "test/f1"."""
    return metric.removeprefix("test_").removeprefix("test/")


def read_task(path: str) -> Task:
    """The task at an import path.

    Raises:
        InputError: there is none.
    """
    task = imported("task", path, REMEDY)
    if not isinstance(task, Task):
        raise InputError("task", path, f"{REMEDY}; it is a {type(task).__name__}")
    return task


class OwnTask:
    """The user's task of a configuration.

    Args:
        config: the experiment, of which ``task`` is the import path of a ``Task``.
        data: makes a client's LightningDataModule in place of the task's own, as of a newcomer.
        clients: whose data this machine has; None: everyone's, or with sites nobody's, as on the server.

    Raises:
        InputError: there is no such task.
    """

    class_names: tuple[str, ...] = ()
    client_names: tuple[str, ...] = ()

    def __init__(
        self,
        config: Config,
        data: Callable[[], L.LightningDataModule] | None = None,
        clients: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        everyone: Sequence[int] = () if config.on_sites else range(config.num_clients)
        self.clients = everyone if clients is None else clients
        self.task = read_task(config.task)
        self._data = data
        self.left_out: set[str] = set()
        """Kinds of callbacks that were left out."""
        self.found: list[str] = []
        """What a trial has found that a user should know."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before a run."""
        why = "are left out: the run saves checkpoints and shows progress itself"
        left_out = [f"callbacks of the task ({', '.join(sorted(self.left_out))}) {why}"] if self.left_out else []
        return (*left_out, *self.found)

    @property
    def score(self) -> Score:
        """What clients are compared by."""
        return self.task.measured

    @property
    def provenance(self) -> dict[str, Any]:
        """What a checkpoint says of its outputs."""
        return {"score": dataclasses.asdict(self.score)}

    def new_data(self, client: int) -> L.LightningDataModule:
        """The LightningDataModule of a client; the errors are those of the user's code."""
        if self._data is not None:
            return self._data()
        return self.task.data(client=client, num_clients=self.config.num_clients, seed=self.config.seed)

    def client_data(self, client: int, seed: int, **options: Any) -> OwnData:
        """The data of a client; order and augmentation come from the generators that are seeded around training."""
        return OwnData(self, client)

    @cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Training and test samples of the clients whose data this machine has.

        Raises:
            InputError: the data of a client cannot be made, or are empty.
        """
        return {client: self._sizes_of(client) for client in self.clients}

    def _sizes_of(self, client: int) -> tuple[int, int]:
        data = OwnData(self, client)
        try:
            found = data.num_train, data.num_test
            batches = data.batches, batches_of(data.module.test_dataloader())
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise InputError("task", self.config.task, f"its data of client {client} fail: {told(error)}") from error
        for kind, count, some in zip(("training", "test"), found, batches, strict=True):
            if not count:
                raise InputError("task", self.config.task, f"the {kind} loader of client {client} is empty")
            if some == 0:
                remedy = f"gives no batch of its {count} samples; take smaller batches, or drop_last=False"
                raise InputError("task", self.config.task, f"the {kind} loader of client {client} {remedy}")
        epochs, steps = self.config.length("num_local_epochs")
        if batches[0] is None and ((epochs % 1 and not steps) or self.config.num_head_epochs % 1):
            remedy = "has no length, which fractions of epochs need; give its dataset __len__, the number of samples"
            raise InputError("task", self.config.task, f"the training loader of client {client} {remedy}")
        return found

    def check(self) -> None:
        """Make the data of ``clients`` once; raises InputError where they cannot be used."""
        self.sizes  # noqa: B018 - counted once, here

    def summary(self) -> str:
        """The split in one line."""
        if self.config.on_sites:
            return f"{self.config.num_clients} sites with data of their own"
        train, test = ([size[place] for size in self.sizes.values()] for place in (0, 1))
        ranges = [f"{min(each)} to {max(each)}" if min(each) < max(each) else str(min(each)) for each in (train, test)]
        return f"{self.config.num_clients} clients with {ranges[0]} training and {ranges[1]} test samples each"

    def class_counts(self) -> str:
        """The split as CSV: for every client and split, the number of samples."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["client", "split", "samples"])
        for place, split in enumerate(("train", "test")):
            for client, counts in self.sizes.items():
                writer.writerow([client, split, counts[place]])
        return file.getvalue()


def task_of_site(config: Config, site: int | None) -> OwnTask | None:
    """The user's task on a machine that has the data of one client; None: it has everyone's, or images are learned."""
    return OwnTask(config, clients=[site]) if config.task and site is not None else None
