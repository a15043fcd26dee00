"""What a fine-tuning was asked for: settings, clients and folders, checked before any work is done."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.config.options import ARTICLES
from lit_fedbabu.config.rules import Kind
from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.ground.files import new_folder
from lit_fedbabu.ground.printing import say
from lit_fedbabu.ground.system import shipped_bodies, title_of
from lit_fedbabu.learning.models import is_timm
from lit_fedbabu.records.federation import Federation, find_checkpoint
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT, is_of, number_of, write_config

FROZEN = re.compile(r"last:[1-9]\d*|norm")
"""What of the body of a network of timm may train, where not all of it does."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of a fine-tuning, as of ``lit-fedbabu finetune``. What is None is as in the federation.

    Args:
        source: a run's folder, a checkpoint, or a network of timm, as ``timm:resnet18``.
        part: head, body, full or knn; several as in "head,full".
        epochs: over a client's training images.
        lr: learning rate; several as in "1e-3,1e-2".
        knn_neighbors: of knn, as the option.
        knn_weight: of knn, as the option.
        clients: "all", or numbers or names as in "0,3,7" and "alice,bob".
        data: of someone who had no part in the federation: images as a folder or a hub name; with a task the import
            path of what makes a LightningDataModule without arguments.
        label_column: of ``data``, where it has several.
        save: whether clients' models are saved beside the results.
        save_to: with ``data``, a new folder for the model.
        running_statistics: whether models get statistics of the client's training images; None: those that are saved.
        precision: of the training, as the option ``precision``.
        dataset: where the federation's dataset is on this machine.
        model_name: the federation's model if it is an import path, to trust it.
        augmentation: of the training, as the option ``augmentation``; an import path must be named, to trust it.
        task: the federation's task if it has one, to trust it.
        algorithm: the federation's method if it is an import path, to trust it.
        weights: of a network of timm, a .safetensors; None: those of its hub.
        trainable: of a network of timm, what of its body trains, as the option; None: the head alone trains.
        plain: whether progress is shown by lines alone, also on a terminal.
    """

    source: Path
    part: str | None = None
    epochs: int | None = None
    lr: str | None = None
    knn_neighbors: int | None = None
    knn_weight: float | None = None
    clients: str = "all"
    data: str | None = None
    label_column: str = ""
    save: bool = False
    save_to: Path | None = None
    running_statistics: bool | None = None
    precision: str | None = None
    dataset: str | None = None
    model_name: str = ""
    augmentation: str | None = None
    task: str = ""
    algorithm: str = ""
    weights: Path | None = None
    trainable: str | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no text where one is written, as a number for ``lr``; other modules check the rest."""
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), (field.type, *get_args(field.type))
            kind = str if str in kinds else bool if bool in kinds else object
            if not isinstance(value, kind) and not (value is None and NoneType in kinds):
                key = f"--{field.name.replace('_', '-')}"
                example = f', as in "{value}"' if kind is str and isinstance(value, int | float) else ""
                raise InputError(key, value, f"must be {ARTICLES[kind]}{example}")

    @property
    def of_timm(self) -> bool:
        """Whether it begins with a network of timm, and no federation."""
        return is_timm(str(self.source))

    def refuse_unread(self) -> None:
        """Raise InputError where an option is given that would not be read."""
        self._refuse_of_the_other_kind()
        if self.data is None:
            if self.save_to is not None:
                raise InputError("--save", str(self.save_to), "is for --data; for the clients it is --save alone")
            if self.label_column:
                raise InputError("--label-column", self.label_column, "is for --data; leave it out, or give that too")
        elif self.save:
            raise InputError("--save", "", "needs a folder where there is --data")
        elif self.clients != "all":
            raise InputError("--clients", self.clients, "are those of the federation; leave it out, or --data")
        elif self.dataset is not None:
            raise InputError("--dataset", self.dataset, "is that of the federation; leave it out, or --data")

    def _refuse_of_the_other_kind(self) -> None:
        """Raise InputError where an option is given that is for networks of timm, or for federations, alone."""
        kind = ("model_name", "task", "algorithm") if self.of_timm else ("weights", "trainable")
        whose = "a federation" if self.of_timm else "timm:NAME"
        for name in kind:
            if value := getattr(self, name):
                raise InputError(f"--{name.replace('_', '-')}", str(value), f"is for {whose}; leave it out")
        if self.of_timm and self.data is None:
            remedy = "is a network without clients: give images of your own with --data"
            raise InputError("RUN_OR_CHECKPOINT", str(self.source), remedy)
        if self.trainable and not FROZEN.fullmatch(self.trainable):
            remedy = "must be last:N or norm, as in last:2; the whole body trains with --part full"
            raise InputError("--trainable", self.trainable, remedy)
        if self.trainable and self.part in ("head", "knn"):
            raise InputError("--trainable", self.trainable, f"is of the body, and --part {self.part} trains none of it")

    def with_statistics(self, config: Config) -> "Request":
        """The same with ``running_statistics`` as the federation's configuration leaves it.

        Raises:
            InputError: its models have them already, or are of a task.
        """
        unread = "running_statistics" in config.kind.unread
        if not self.running_statistics and (self.running_statistics is not None or unread):
            return self
        if self.running_statistics and config.norm != "batch":
            remedy = "the model has them already" if config.norm == "batch-running" else "its group norm needs none"
            raise InputError("--running-statistics", True, remedy)
        saves = self.save or self.save_to is not None
        statistics = self.running_statistics or (saves and config.norm == "batch")
        return dataclasses.replace(self, running_statistics=statistics)

    def refuse_unread_by(self, kind: Kind) -> None:
        """Raise InputError where an option is given that the federation's task does not read."""
        for name in kind.unread:
            if (value := getattr(self, name)) not in (None, ""):
                key = f"--{name.replace('_', '-')}"
                raise InputError(key, value, "is for federations of images, and this one is of a task; leave it out")

    def checkpoint(self) -> Path:
        """The checkpoint that is fine-tuned; prints what it is where it comes with this package.

        Raises:
            InputError: there is none, or it is a body of this package without ``data``.
        """
        found = find_checkpoint(self.source)
        if found in shipped_bodies().values():
            if self.data is None:
                remedy = "comes with this package, and its clients do not: give images of your own with --data"
                raise InputError("RUN_OR_CHECKPOINT", str(self.source), remedy)
            say(f"{self.source}: {title_of(found)}, from this package")
        return found

    def configs(self, config: Config) -> Iterator[Config]:
        """The federation's configuration with every combination of part and learning rate.

        Raises:
            InputError: an option is outside its limits, or the checkpoint names an augmentation that is code.
        """
        if ":" in config.augmentation and self.augmentation is None and "augmentation" not in config.kind.unread:
            remedy = "is code that the checkpoint names; give --augmentation to trust it, or another one"
            raise InputError("augmentation", config.augmentation, remedy)
        parts = self.part.split(",") if self.part else [config.finetune_part]
        try:
            rates = [float(rate) for rate in self.lr.split(",")] if self.lr else [config.finetune_learning_rate]
        except ValueError:
            raise InputError("--lr", self.lr, "must be numbers, as in 1e-3,1e-2") from None
        self._refuse_unread_by(parts)
        names = ("knn_neighbors", "knn_weight", "dataset", "augmentation", "precision")
        given: dict[str, Any] = {"num_finetune_epochs": self.epochs, **{name: getattr(self, name) for name in names}}
        own = {name: value for name, value in given.items() if value is not None}
        settings = itertools.product(dict.fromkeys(parts), dict.fromkeys(rates))
        for part, rate in dict.fromkeys((part, rates[0] if part == "knn" else rate) for part, rate in settings):
            yield dataclasses.replace(config, finetune_part=part, finetune_learning_rate=rate, **own)

    def _refuse_unread_by(self, parts: list[str]) -> None:
        """Raise InputError where an option is given that none of the parts reads."""
        for name, is_read, which in (
            ("epochs", set(parts) != {"knn"}, "head, body and full"),
            ("lr", set(parts) != {"knn"}, "head, body and full"),
            ("knn_neighbors", "knn" in parts, "knn"),
            ("knn_weight", "knn" in parts, "knn"),
        ):
            if (value := getattr(self, name)) is not None and not is_read:
                key = f"--{name.replace('_', '-')}"
                raise InputError(key, value, f"is for the parts {which}; leave it out, or give --part")

    def chosen_clients(self, federation: Federation) -> list[int]:
        """The clients that are fine-tuned. Where every client has its own machine, the one whose machine this is.

        Raises:
            InputError: no number, no client of the run, or not the client of this machine.
        """
        kept = algorithm_of(federation.config).kept
        if not federation.config.on_sites:
            if kept and federation.memories is None:
                remedy = f"what {federation.config.algorithm} kept is on the nodes' disks; copy every node's"
                remedy += " STATE_PATH/RUN/memory into the run's folder first, as in docs/cluster.md"
                raise InputError("RUN_OR_CHECKPOINT", str(self.source), remedy)
            if self.clients == "all":
                return federation.config.evaluated_last
            return _numbers(self.clients, federation.config.num_clients, federation.names)
        own = str(federation.site) if self.clients == "all" else self.clients
        if not own.isdecimal() or federation.site not in (None, int(own)):
            raise InputError("--clients", self.clients, "a site has the images of one client; give its client-id")
        if kept and federation.memories is None:
            where = f"what {federation.config.algorithm} kept is in the site's state folder"
            raise InputError("RUN_OR_CHECKPOINT", str(self.source), f"is the server's, and {where}; give that")
        return _numbers(own, federation.config.num_clients, {})


def results_folder(checkpoint: Path, config: Config, facts: dict[str, str]) -> Path:
    """The folder for results, beside the run's other files: a new one, or that of the same fine-tuning begun before.

    Args:
        checkpoint: that is fine-tuned.
        config: with the options of fine-tuning.
        facts: what else decides the results.

    Raises:
        InputError: it cannot be made.
    """
    run = checkpoint.parent.parent if checkpoint.parent.name == LAST_CHECKPOINT.parent.name else checkpoint.parent
    which = "" if checkpoint.name == LAST_CHECKPOINT.name else f"{checkpoint.stem}-"
    rate = f"lr{config.finetune_learning_rate:g}" if config.finetune_learning_rate else "last-lr"
    how = f"{config.num_finetune_epochs}epochs-{rate}"
    if config.finetune_part == "knn":
        how = f"{config.knn_neighbors}neighbors" + (f"-weight{config.knn_weight:g}" if config.knn_weight >= 0 else "")
    name = f"{which}{config.finetune_part}-{how}"
    for count in itertools.count(1):
        folder = run / "finetune" / (name if count == 1 else f"{name}-{count}")
        if folder.exists():
            if is_of(folder, config, facts):
                return folder
            continue
        with new_folder("RUN_OR_CHECKPOINT", folder, is_result=False) as scratch:
            write_config(scratch, config, facts)
        return folder
    raise AssertionError("there is always another name")


def _numbers(words: str, num_clients: int, names: Mapping[int, str]) -> list[int]:
    """The clients of these numbers or names; a word that is both is a number."""
    if (number := number_of(words, names)) is not None and "," in words:
        return [number]
    each = [number_of(word, names) for word in words.split(",")]
    if None in each:
        of = f", or names as in {some(names.values(), 3)}" if names else ""
        raise InputError("--clients", words, f"must be all, or numbers as in 0,3,7{of}")
    clients = sorted({client for client in each if client is not None})
    if clients[0] < 0 or clients[-1] >= num_clients:
        raise InputError("--clients", words, f"the run's clients are 0 to {num_clients - 1}")
    return clients
