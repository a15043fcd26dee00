"""Image classification as a task: its dataset, its split, the data of each client, and how models learn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.ground.files import dataset_folder
from lit_fedbabu.learning import pretrained
from lit_fedbabu.learning.evaluation import ACCURACY, Evaluation, Personalization
from lit_fedbabu.learning.models import MODELS, build_model, refuse_unfit_size
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import PARTS, select
from lit_fedbabu.learning.state import BASE, Learner, base_names
from lit_fedbabu.learning.trainable import restrict
from lit_fedbabu.learning.trial import refuse_other_forward, try_model, try_single_images
from lit_fedbabu.tasks.images import learner
from lit_fedbabu.tasks.images.arrays import told
from lit_fedbabu.tasks.images.clients import EITHER, layout_of
from lit_fedbabu.tasks.images.datamodule import ClientData
from lit_fedbabu.tasks.images.learner import Say
from lit_fedbabu.tasks.images.partition import class_counts, client_names, copies, dealt, evaluation_split, summary
from lit_fedbabu.tasks.images.partitioners import Partition, Sizes
from lit_fedbabu.tasks.images.sources import Source, load
from lit_fedbabu.tasks.images.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, try_augmentation
from lit_fedbabu.tasks.protocol import Batches, Data

if TYPE_CHECKING:
    from torch import Tensor

    from lit_fedbabu.algorithms.algorithm import Algorithm
    from lit_fedbabu.tasks.images.measures import Predicted

Constants = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by channel, of images scaled to 0..1."""


class ImageClassification:
    """The images of a configuration, as ``AnyTask`` and ``Classifies``. Data and split are read when first asked for.

    Args:
        config: the experiment.
        constants: what images are normalized with, and so their number of channels; None: as the configuration says.
        classes: their names by their numbers; empty: as the configuration says.
    """

    score = ACCURACY
    parts = PARTS

    def __init__(self, config: Config, constants: Constants | None = None, classes: Sequence[str] = ()) -> None:
        self.config = config
        self._constants = constants
        self._classes = tuple(classes) or config.classes

    @classmethod
    def of_site(cls, config: Config, client: int, data_path: str) -> Self:
        """The task on a machine with images of its own, in a folder or file."""
        return cls(dataclasses.replace(config, dataset=data_path))

    @classmethod
    def of_external(cls, config: Config, data: str, label_column: str, saved: Mapping[str, Any], further: bool) -> Self:
        """The images of someone who had no part: a folder, a hub name or "digits", all of them of one client.

        Raises:
            InputError: they have one class, or where a model is tuned ``further`` one that it does not know.
        """
        config = dataclasses.replace(
            config,
            dataset=data,
            label_column=label_column,
            class_names="",
            natural_id_column="",
            normalization="data",
            partitioner="iid",
            num_clients=1,
            num_new_clients=0,
            min_clients_per_round=0,
            validation_fraction=0.0,
            min_client_images=1,
        )
        constants, classes = (saved["mean"], saved["std"]), tuple(saved["class_names"])
        task = cls(config, constants)
        found = task.class_names
        if further and (unknown := [name for name in found if name not in classes]):
            remedy = f"has the classes {some(unknown)}, and the model knows {some(classes)}"
            raise InputError("--data", data, f"{remedy}; fine-tune a federation's body")
        if further and tuple(found) != classes:
            task = cls(config, constants, classes)
        if len(task.class_names) < 2:
            raise InputError("--data", data, f"has one class, {found[0]}; give two or more")
        return task

    @property
    def title(self) -> str:
        """Dataset and partitioner."""
        return f"{self.config.dataset} by {self.config.partitioner}"

    @cached_property
    def source(self) -> Source:
        """The dataset.

        Raises:
            InputError: it is not there, cannot be reached, or its columns or classes are not as asked for.
        """
        config = self.config
        owners = config.natural_id_column
        if config.partitioner == "natural-id" and config.dataset != "digits":
            owners = owners or self._layout()
        as_needed = config.normalization != "data" and self._looks_at_some
        return load(config.dataset, config.label_column, owners, self._classes, config.image_size, as_needed)

    @property
    def _looks_at_some(self) -> bool:
        """Whether some clients' images are looked at before a run, and those of others when they are drawn."""
        return not self.config.on_sites and len(self.config.looked_at) < self.config.num_clients

    def _layout(self) -> str:
        """Which folders are clients, where the dataset is a folder and nothing was said of it."""
        if (place := dataset_folder(self.config.dataset)) is None:
            return EITHER
        return layout_of(self.config.dataset, place[0], self.config.num_clients, self._classes)

    @cached_property
    def partition(self) -> Partition:
        """Which images each client has.

        Raises:
            InputError: the dataset cannot be dealt in this way.
        """
        return dealt(self.config, self.source)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """By the numbers of the classes: those that are given, else the dataset's."""
        return self._classes or self.source.class_names

    @cached_property
    def constants(self) -> Constants:
        """What normalization subtracts and divides by."""
        if self._constants is not None:
            return self._constants
        if self.config.normalization == "imagenet":
            return IMAGENET_MEAN, IMAGENET_STD
        if self.config.normalization == "none":
            return (0.0,) * self.source.channels, (1.0,) * self.source.channels
        return self.source.mean, self.source.std

    @cached_property
    def augmentation(self) -> Augmentation:
        """Of training images: a name, or the user's own function.

        Raises:
            InputError: the function cannot be imported, or is none.
        """
        name = self.config.augmentation
        if ":" not in name:
            return name
        own: Augmentation = imported(
            "augmentation", name, "must be the import path of a function, as in my_module:augment"
        )
        if not callable(own):
            raise InputError("augmentation", name, f"is a {type(own).__name__} and cannot be called with images")
        return own

    @property
    def channels(self) -> int:
        """Channels of the images that the model takes: 1 or 3."""
        return len(self.constants[0])

    @property
    def provenance(self) -> dict[str, Any]:
        mean, std = self.constants
        return {"class_names": self.class_names, "mean": mean, "std": std}

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the dataset is left out or doubtful, a line for each kind; to be printed where a run begins."""
        notes = (*self.source.notes, *copies(self.config, self.source, self.partition))
        if self.source.train.undecoded is not None:
            many = f"of {self.config.num_clients} clients the images of {len(self.config.looked_at)}, drawn first, were"
            many += " looked at; others are decoded when they are needed, and a client fails then if one cannot be read"
            notes += (f"{many}; copies of training images are not looked for",)
        if self.config.protection == "none" or self.config.normalization != "data":
            return notes
        return (
            *notes,
            "normalization=data has mean and deviation of all images, without noise; imagenet and none have constants",
        )

    @cached_property
    def client_names(self) -> tuple[str, ...]:
        """What natural-id names the clients, by their numbers; empty for others."""
        return client_names(self.source, self.partition) if self.config.partitioner == "natural-id" else ()

    def client_data(
        self, client: int, seed: int, pooled: bool = False, test_batch_size: int | None = None
    ) -> ClientData:
        return ClientData(self, client, seed, pooled, test_batch_size)

    def check(
        self, algorithm: Algorithm, initial: Callable[[], Learner], made: Callable[[], Learner], with_data: bool
    ) -> None:
        """Read and deal the dataset, and try the user's own model and augmentation."""
        config = self.config
        refuse_unfit_size(config.model_name, config.image_size)
        if with_data:
            self.check_data()
        classes, seed = len(self.class_names), config.derived_seed("model")
        model = build_model(config.model_name, classes, seed, config.norm, self.channels, config.image_size)
        restrict(model, ["body"], config.trainable, seed)
        if config.model_name not in MODELS:
            sizes = self.batches(algorithm.pooled)[:2] if with_data else ([config.batch_size], [1])
            try_model(config.model_name, model, classes, self.image_shape, *sizes)
            if config.protection == "sample":
                try_single_images(config.model_name, _classifiers([initial()])[0], self.image_shape)
            if algorithm.of_features or config.finetune_part == "knn":
                refuse_other_forward(config.model_name, model, self.image_shape)
        algorithm.check_model(config.model_name, model)

    def check_data(self) -> None:
        """Read and deal the dataset, and try the user's own augmentation; raises InputError as ``check``."""
        self.augmentation  # noqa: B018 - imported before the dataset is read
        if self.config.normalization == "imagenet" and self.source.channels != 3:
            remedy = "is of colour images; the dataset's are grey: take data or none"
            raise InputError("normalization", self.config.normalization, remedy)
        self.partition  # noqa: B018 - dealt once, here
        self._decode_first()
        if callable(self.augmentation):
            try_augmentation(self.config.augmentation, self.augmentation, self.image_shape, self.batches(False).train)

    def _decode_first(self) -> None:
        """Decode the images of those clients that are looked at before a run."""
        looked_at, evaluated = self.config.looked_at, evaluation_split(self.config, self.source)
        for split, parts in ((self.source.train, self.partition.train), (evaluated, self.partition.test)):
            if split.undecoded is not None:
                own = np.concatenate([parts[client] for client in looked_at])
                with told("decoding images of the clients drawn first", len(own)) as done:
                    split.undecoded.need(own, done)

    def refuse_other(self, saved: Mapping[str, Any], split: Path) -> None:
        """Raise InputError where classes or split are not those of a federation."""
        found, expected = ", ".join(self.source.class_names), ", ".join(saved["class_names"])
        if found != expected:
            remedy = f"has the classes {found}, and the federation's had {expected}"
            raise InputError("dataset", self.config.dataset, f"{remedy}; for images of your own there is --data")
        if split.is_file() and split.read_text() != self.class_counts():
            remedy = f"is dealt otherwise than {split} says, and clients would get others' images; give it as it was"
            raise InputError("dataset", self.config.dataset, remedy)

    @property
    def sizes(self) -> Mapping[int, tuple[int, int]]:
        return Sizes(self.partition)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of an image as the model takes it: channels, height and width."""
        return self.channels, self.config.image_size, self.config.image_size

    def batches(self, pooled: bool) -> Batches:
        """The batches of all clients, or of one participant that trains on the images of all."""
        config, parts = self.config, self.partition
        train, test = (sorted(set(each.sizes.tolist())) for each in (parts.train, parts.test))
        everything = int(parts.train.sizes[: config.num_federated].sum())
        return Batches(
            _extremes([everything] if pooled else train, config.batch_size),
            _extremes([*train, *test], config.test_batch_size),
            self.image_shape,
        )

    def summary(self) -> str:
        if self.config.on_sites:
            return f"{self.config.num_clients} sites with images of their own"
        return summary(self.config, self.source, self.partition)

    def class_counts(self) -> str:
        """The split as CSV: for every client and split, the number of images of each class."""
        return class_counts(self.config, self.source, self.partition)

    def initial(self, seed: int) -> LitFedBABU:
        config = self.config
        return LitFedBABU(
            model_name=config.model_name,
            num_classes=len(self.class_names),
            norm=config.norm,
            channels=self.channels,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            model_seed=seed,
            dtype="float64" if config.precision == "64-true" else "float32",
            image_size=config.image_size,
            head=algorithm_of(config).head,
            trainable=config.trainable,
        )

    def fit(self, modules: Sequence[Learner], data: Sequence[Data], **options: Any) -> list[float]:
        return learner.fit(_classifiers(modules), _images(data), **options)

    def evaluate(self, modules: Sequence[Learner], data: Sequence[Data]) -> list[Evaluation]:
        return learner.evaluate(_classifiers(modules), _images(data))

    def personalize(self, modules: Sequence[Learner], data: Sequence[Data], **options: Any) -> list[Personalization]:
        return learner.personalize(_classifiers(modules), _images(data), **options)

    def vote(
        self, modules: Sequence[Learner], data: Sequence[Data], neighbors: int, weight: float, say: Say = lambda _: None
    ) -> list[Personalization]:
        return learner.vote(_classifiers(modules), _images(data), neighbors, weight, say)

    def predictions(self, modules: Sequence[Learner], data: Sequence[Data]) -> list[list[Predicted]]:
        return learner.predictions(_classifiers(modules), _images(data))

    def features(self, module: Learner, data: Data) -> tuple[Tensor, Tensor]:
        return learner.features(_classifiers([module])[0], _images([data])[0])

    def with_running_statistics(self, module: Learner, data: Data) -> LitFedBABU:
        return learner.with_running_statistics(_classifiers([module])[0], _images([data])[0])

    def external_start(
        self, initial: Mapping[str, Tensor], shared: Mapping[str, Tensor], further: bool
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """A body under a fresh head, for the classes are others; of a model that is tuned ``further`` all weights."""
        if not further and not select(shared, ["body"]):
            raise ValueError("shares no body that others could make their own")
        start = {**initial, **shared}
        start = start if further else select(start, ["body"])
        return start, start

    def described(self, data: Data) -> str:
        images, size = f"{data.num_train} training and {data.num_test} test images", self.config.image_size
        return f"{images} of {len(self.class_names)} classes, resized to {size} x {size}"

    def save(self, module: Learner, folder: Path) -> Sequence[str]:
        """Write weights and options in the form of model hubs; without a base that the provenance names."""
        (saved,) = _classifiers([module])
        state, base = saved.model.state_dict(), base_names(saved.model) if BASE in saved.provenance else ()
        own = {name: value for name, value in state.items() if name not in base}
        pretrained.write(folder, saved.provenance, saved.hparams, own)
        return [pretrained.WEIGHTS, pretrained.CONFIG]


def _classifiers(modules: Sequence[Learner]) -> Sequence[LitFedBABU]:
    """Modules that ``initial`` has made, or copies of them."""
    return cast(Sequence[LitFedBABU], modules)


def _images(data: Sequence[Data]) -> Sequence[ClientData]:
    """Data that ``client_data`` has made."""
    return cast(Sequence[ClientData], data)


def _extremes(counts: Sequence[int], batch_size: int) -> list[int]:
    """The largest and the smallest batch into which so many images are divided."""
    sizes = {min(count, batch_size) for count in counts} | {count % batch_size for count in counts} - {0}
    return sorted({max(sizes), min(sizes)}, reverse=True)
