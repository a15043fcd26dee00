"""A task of the user's own: a LightningModule and a LightningDataModule, named in a line."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import NAMES, imported
from lit_fedbabu.config.rules import TUNED
from lit_fedbabu.ground.errors import InputError, some, told
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.evaluation import Score
from lit_fedbabu.learning.parts import NORM, PARTS, REST, parts_of
from lit_fedbabu.tasks.custom import learner
from lit_fedbabu.tasks.custom.data import CustomData
from lit_fedbabu.tasks.custom.learner import short
from lit_fedbabu.tasks.custom.loaders import batches_of, undealt
from lit_fedbabu.tasks.custom.module import CustomModule, initial_module
from lit_fedbabu.tasks.custom.private import refuse_unbounded
from lit_fedbabu.tasks.custom.trial import try_steps, try_task
from lit_fedbabu.tasks.protocol import Batches, Data

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from lit_fedbabu.algorithms.algorithm import Algorithm
    from lit_fedbabu.learning.evaluation import LoggedEvaluation, Personalization
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

REMEDY = "must be the import path of a lit_fedbabu.Task or of an object with its methods, as in my_module:task"
MODEL = "personal.ckpt"
"""The file of a module that ``save`` writes."""


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
        parts: names of other parts, and of the modules or weights in each, as {"adapters": ("encoder.adapters",)}. They
            lie beside body and head: "full" is all of them, and "head+adapters" is two.
        base: names of weights or modules that the module freezes in ``__init__`` and that no training moves. They do
            not travel, and are not in checkpoints. None: all that it freezes; (): none.
        client_names: names of clients by their numbers, where they have names: of schools, machines, persons.
        callbacks: makes Lightning's callbacks, anew for every fit and test. Those that save checkpoints, draw progress
            bars or print summaries are left out, here and of the module's ``configure_callbacks``.
    """

    module: Callable[[], L.LightningModule]
    data: Callable[..., L.LightningDataModule]
    score: str
    higher_is_better: bool = True
    body: Sequence[str] = ("body",)
    head: Sequence[str] = ("head",)
    parts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    base: Sequence[str] | None = None
    client_names: Sequence[str] = ()
    callbacks: Callable[[], Sequence[L.Callback]] = list

    @property
    def measured(self) -> Score:
        """The score by its name in results.json."""
        return Score(short(self.score), self.higher_is_better)


def read_task(path: str) -> Task:
    """The task at an import path.

    Raises:
        InputError: there is none.
    """
    task = imported("task", path, REMEDY)
    if isinstance(task, Task):
        return task
    if isinstance(task, type):
        raise InputError("task", path, f"{REMEDY}; it is a type, {task.__name__}")
    fields = dataclasses.fields(Task)
    needed = [field.name for field in fields if dataclasses.MISSING is field.default is field.default_factory]
    if missing := [name for name in needed if not hasattr(task, name)]:
        raise InputError("task", path, f"{REMEDY}; it is a {type(task).__name__} without {' and '.join(missing)}")
    return Task(**{field.name: getattr(task, field.name) for field in fields if hasattr(task, field.name)})


def _refuse_names(task: Task, path: str) -> None:
    """Raise InputError where a part's name means something else, or is none."""
    taken = (*PARTS, *TUNED, NORM, REST, "none")
    for name in task.parts:
        if not isinstance(name, str) or name in taken or "+" in name or not NAMES.fullmatch(name):
            raise InputError("task", path, f"names a part {name!r}; take another name, of small letters, digits and _")


class CustomTask:
    """The user's task of a configuration, as ``AnyTask``.

    Args:
        config: the experiment, of which ``task`` is the import path of a ``Task``.
        data: makes a client's LightningDataModule in place of the task's own, as of a newcomer.
        clients: whose data are looked at before a run, of those on this machine; None: of all that are dealt, as of
            ``Config.looked_at``, or with sites of nobody, as on the server.

    Raises:
        InputError: there is no such task.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        config: Config,
        data: Callable[[], L.LightningDataModule] | None = None,
        clients: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        dealt = [] if config.on_sites else config.looked_at
        self.clients = dealt if clients is None else clients
        self.task = read_task(config.task)
        _refuse_names(self.task, config.task)
        self._data = data
        self.left_out: set[str] = set()
        """Kinds of callbacks that were left out."""
        self.found: list[str] = []
        """What a trial has found that a user should know."""

    @classmethod
    def of_site(cls, config: Config, client: int, data_path: str) -> Self:
        """The task on the machine of a client; its data are what the user's code gives there."""
        return cls(config, clients=[client])

    @classmethod
    def of_external(cls, config: Config, data: str, label_column: str, saved: Mapping[str, Any], further: bool) -> Self:
        """The data of someone who had no part: the import path of what makes a LightningDataModule.

        Raises:
            InputError: there is none.
        """
        make = imported("--data", data, "must be the import path of a LightningDataModule, as in my_module:MyData")
        return cls(dataclasses.replace(config, num_clients=1, num_new_clients=0, min_clients_per_round=0), make)

    @property
    def parts(self) -> tuple[str, ...]:
        return (*PARTS, *self.task.parts)

    @property
    def title(self) -> str:
        """Its import path."""
        return self.config.task

    @property
    def notes(self) -> tuple[str, ...]:
        why = "are left out: the run saves checkpoints and shows progress itself"
        left_out = [f"callbacks of the task ({', '.join(sorted(self.left_out))}) {why}"] if self.left_out else []
        if self._looks_at_some:
            many = f"of {self.config.num_clients} clients the data of {len(self.clients)}, drawn first, were looked at"
            left_out.append(f"{many}; of others an empty loader is found when they are drawn, and they fail then")
        return (*left_out, *self.found)

    @property
    def _looks_at_some(self) -> bool:
        """Whether some clients' data are looked at before a run, and those of others when they are drawn."""
        return not self.config.on_sites and len(self.clients) < self.config.num_clients

    @property
    def score(self) -> Score:
        return self.task.measured

    @property
    def client_names(self) -> tuple[str, ...]:
        """Of the clients of this run, by their numbers; empty where they have no names.

        Raises:
            InputError: some have none, or the same.
        """
        count = self.config.num_clients
        names = tuple(self.task.client_names)[:count]
        if names and (len(names) < count or not all(isinstance(name, str) and name for name in names)):
            raise self.refused(f"has {len(self.task.client_names)} client_names; give each of the {count} a text")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise self.refused(f"has two client_names {some(twice)}; give each client its own")
        return names

    @property
    def provenance(self) -> dict[str, Any]:
        return {"score": dataclasses.asdict(self.score)}

    def refused(self, why: str) -> InputError:
        """An error that names the task."""
        return InputError("task", self.config.task, why)

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """While the user's code runs: whatever it raises becomes an error that says what fails."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise self.refused(f"{what}: {told(error)}") from error

    def new_data(self, client: int) -> L.LightningDataModule:
        """The LightningDataModule of a client; the errors are those of the user's code."""
        if self._data is not None:
            return self._data()
        return self.task.data(client=client, num_clients=self.config.num_clients, seed=self.config.seed)

    def client_data(
        self, client: int, seed: int, pooled: bool = False, test_batch_size: int | None = None
    ) -> CustomData:
        """The data of a client; order and augmentation come from the generators that are seeded around training.

        Raises:
            InputError: they were not looked at before the run, and cannot be made, or are empty.
        """
        data = CustomData(self, client)
        if self._looks_at_some and client not in self.clients:
            self._sizes_of(data)
        return data

    @cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Training and test samples of the clients whose data are looked at.

        Raises:
            InputError: the data of a client cannot be made, or are empty.
        """
        return {client: self._sizes_of(CustomData(self, client)) for client in self.clients}

    def _sizes_of(self, data: CustomData) -> tuple[int, int]:
        client, devices = data.client, self.config.devices
        with self.running(f"its data of client {client} fail"):
            found = data.num_train, data.num_test
            batches = data.batches, batches_of(data.module.test_dataloader())
            is_dealt = devices > 1 and self._data is None
            split = undealt(data.module.train_dataloader, devices) if is_dealt else ""
        for kind, count, in_loader in zip(("training", "test"), found, batches, strict=True):
            if not count:
                raise self.refused(f"the {kind} loader of client {client} is empty")
            if in_loader == 0:
                remedy = f"gives no batch of its {count} samples; take smaller batches, or drop_last=False"
                raise self.refused(f"the {kind} loader of client {client} {remedy}")
        if split:
            remedy = f"the training loader of client {client} {split}"
            raise InputError("trainer.devices", self.config.devices, remedy)
        epochs, steps = self.config.length("num_local_epochs")
        if batches[0] is None and ((epochs % 1 and not steps) or self.config.num_head_epochs % 1):
            remedy = "has no length, which fractions of epochs need; give its dataset __len__, the number of samples"
            raise self.refused(f"the training loader of client {client} {remedy}")
        return found

    def check(
        self, algorithm: Algorithm, initial: Callable[[], Learner], made: Callable[[], Learner], with_data: bool
    ) -> None:
        """Make the data of ``clients`` once, and try the module on them."""
        name, config = self.config.algorithm, self.config
        if algorithm.pooled:
            raise InputError("algorithm", name, "pools images; a task gives data client by client")
        if algorithm.has_own_loss:
            remedy = "has a loss of its own, for images and their classes, and a task's module brings one"
            raise InputError("algorithm", name, f"{remedy}; take another, as fedprox")
        if algorithm.of_features:
            raise InputError("algorithm", name, "is of features of images by their classes; take another, as fedper")
        if config.devices > 1 and ":" in name and algorithm.has_own_hooks:
            remedy = "has hooks of its own, which would see a part of a client's data on each device; leave it out"
            raise InputError("trainer.devices", config.devices, f"{name} {remedy}")
        self._refuse_parts(algorithm)
        self.client_names  # noqa: B018 - refused here
        (module,) = _own([initial()])
        self.sizes  # noqa: B018 - counted once, here
        algorithm.check_steps(name, by_hand=not module.lightning.automatic_optimization)
        if config.protection == "sample":
            refuse_unbounded(module, self)
        modes = dict(algorithm.phases) | {config.finetune_part: ""}
        needed = {f"{name} shares": parts_of(algorithm.shared), f"with {name} a client keeps": algorithm.kept}
        module.refuse_empty({**needed, **{f"something trains ({mode})": module.parts_of(mode) for mode in modes}})
        phases = dict(algorithm.phases) if config.protection == "sample" else {}
        try_steps(module, self, phases)
        try_task(module, self, modes, lambda: _own([made()])[0], lambda each: algorithm.check_optimizer(name, each))

    def _refuse_parts(self, algorithm: Algorithm) -> None:
        """Raise InputError where something is asked for by a part that the task does not have."""
        for key, value, mode in (
            ("finetune-part", self.config.finetune_part, self.config.finetune_part),
            ("algorithm", self.config.algorithm, algorithm.shared),
            *(("algorithm", self.config.algorithm, part) for part, _ in algorithm.phases),
        ):
            if unknown := [part for part in parts_of(mode) if part not in self.parts]:
                remedy = f"there is no part {unknown[0]}; the task has {', '.join(self.parts)}, and full is all of them"
                raise InputError(key, value, remedy)

    def batches(self, pooled: bool) -> Batches | None:
        """Not known: loaders may give anything."""
        return None

    def refuse_other(self, saved: Mapping[str, Any], split: Path) -> None:
        """Nothing to refuse: what the data are is the user's."""

    def initial(self, seed: int) -> CustomModule:
        return initial_module(self, seed, self.config.precision == "64-true")

    def fit(
        self, modules: Sequence[Learner], data: Sequence[Data], *, losses: Sequence[Loss] = (), **options: Any
    ) -> list[float]:
        """Train a module, by the loss that it brings; arguments as of ``learner.fit``."""
        return learner.fit(_own(modules), _of_clients(data), **options)

    def evaluate(self, modules: Sequence[Learner], data: Sequence[Data]) -> list[LoggedEvaluation]:
        return learner.evaluate(_own(modules), _of_clients(data))

    def personalize(self, modules: Sequence[Learner], data: Sequence[Data], **options: Any) -> list[Personalization]:
        return learner.personalize(_own(modules), _of_clients(data), **options)

    def external_start(
        self, initial: Mapping[str, Tensor], shared: Mapping[str, Tensor], further: bool
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What the federation shares, over its initial weights."""
        if not shared:
            raise ValueError("shares nothing that others could make their own")
        return initial, shared

    def described(self, data: Data) -> str:
        return f"{data.num_train} training and {data.num_test} test samples"

    def save(self, module: Learner, folder: Path) -> Sequence[str]:
        """Write a checkpoint, which ``load_from_checkpoint`` of the user's module reads."""
        checkpoint.save(module, folder / MODEL)
        return [MODEL]

    def summary(self) -> str:
        if self.config.on_sites:
            return f"{self.config.num_clients} sites with data of their own"
        train, test = ([size[place] for size in self.sizes.values()] for place in (0, 1))
        ranges = [f"{min(each)} to {max(each)}" if min(each) < max(each) else str(min(each)) for each in (train, test)]
        many = f"{self.config.num_clients} clients{f', {len(train)} of them' if self._looks_at_some else ''}"
        return f"{many} with {ranges[0]} training and {ranges[1]} test samples each"

    def class_counts(self) -> str:
        """The split as CSV: for every client and split, the number of samples."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["client", "split", "samples"])
        for place, split in enumerate(("train", "test")):
            for client, counts in self.sizes.items():
                writer.writerow([client, split, counts[place]])
        return file.getvalue()


def _own(modules: Sequence[Learner]) -> Sequence[CustomModule]:
    """Modules that ``initial`` has made, or copies of them."""
    return cast(Sequence[CustomModule], modules)


def _of_clients(data: Sequence[Data]) -> Sequence[CustomData]:
    """Data that ``client_data`` has made."""
    return cast(Sequence[CustomData], data)
