"""Image classification as a task: its dataset, its split, and the data of each client."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.options import imported
from lit_fedbabu.tasks.evaluation import ACCURACY
from lit_fedbabu.tasks.images.clients import EITHER
from lit_fedbabu.tasks.images.datamodule import ClientData
from lit_fedbabu.tasks.images.partition import class_counts, client_names, copies, deal, summary
from lit_fedbabu.tasks.images.partitioners import Partition
from lit_fedbabu.tasks.images.sources import Source, load
from lit_fedbabu.tasks.images.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, try_augmentation

Constants = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by channel, of images scaled to 0..1."""


class ImageClassification:
    """The images of a configuration. Dataset and split are read when they are first asked for, and once.

    Args:
        config: the experiment.
        constants: what images are normalized with, and so their number of channels; None: as the configuration says.
        classes: their names by their numbers; empty: as the configuration says.
    """

    score = ACCURACY

    def __init__(self, config: Config, constants: Constants | None = None, classes: Sequence[str] = ()) -> None:
        self.config = config
        self._constants = constants
        self._classes = tuple(classes) or config.classes

    @cached_property
    def source(self) -> Source:
        """The dataset.

        Raises:
            InputError: it is not there, cannot be reached, or its columns or classes are not as asked for.
        """
        config = self.config
        owners = config.natural_id_column
        if config.partitioner == "natural-id" and config.dataset != "digits":
            owners = owners or EITHER
        return load(config.dataset, config.label_column, owners, self._classes, config.image_size)

    @cached_property
    def partition(self) -> Partition:
        """Which images each client has.

        Raises:
            InputError: the dataset cannot be dealt in this way.
        """
        return deal(self.config, self.source)

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
        """What a checkpoint says of images and outputs."""
        mean, std = self.constants
        return {"class_names": self.class_names, "mean": mean, "std": std}

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the dataset is left out or doubtful, a line for each kind; to be printed where a run begins."""
        return (*self.source.notes, *copies(self.config, self.source, self.partition))

    @cached_property
    def client_names(self) -> tuple[str, ...]:
        """What natural-id names the clients, by their numbers; empty for others."""
        return client_names(self.source, self.partition) if self.config.partitioner == "natural-id" else ()

    def client_data(self, client: int, seed: int, **options: Any) -> ClientData:
        """The data of a client; options as of ``ClientData``."""
        return ClientData(self, client, seed, **options)

    def check(self) -> None:
        """Read and deal the dataset, and try the user's own augmentation.

        Raises:
            InputError: the dataset is not what the configuration needs, or the augmentation fails.
        """
        self.augmentation  # noqa: B018 - imported before the dataset is read
        if self.config.normalization == "imagenet" and self.source.channels != 3:
            remedy = "is of colour images; the dataset's are grey: take data"
            raise InputError("normalization", self.config.normalization, remedy)
        self.partition  # noqa: B018 - dealt once, here
        if callable(self.augmentation):
            try_augmentation(self.config.augmentation, self.augmentation, self.image_shape, self.batch_sizes()[0])

    @property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Training and test images of each client."""
        train, test = ([len(images) for images in parts] for parts in (self.partition.train, self.partition.test))
        return dict(enumerate(zip(train, test, strict=True)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of an image as the model takes it: channels, height and width."""
        return self.channels, self.config.image_size, self.config.image_size

    def batch_sizes(self, pooled: bool = False) -> tuple[list[int], list[int]]:
        """Images of the largest and the smallest batch that a client trains on, and of those that it is evaluated on.

        Args:
            pooled: whether one participant trains on the images of all clients.
        """
        config, parts = self.config, self.partition
        train = [len(images) for images in parts.train]
        return (
            _extremes([sum(train[: config.num_federated])] if pooled else train, config.batch_size),
            _extremes([*train, *(len(images) for images in parts.test)], config.test_batch_size),
        )

    def summary(self) -> str:
        """The split in one line."""
        if self.config.on_sites:
            return f"{self.config.num_clients} sites with images of their own"
        return summary(self.config, self.source, self.partition)

    def class_counts(self) -> str:
        """The split as CSV: for every client and split, the number of images of each class."""
        return class_counts(self.config, self.source, self.partition)


def _extremes(counts: Sequence[int], batch_size: int) -> list[int]:
    """The largest and the smallest batch into which so many images are divided."""
    sizes = {min(count, batch_size) for count in counts} | {count % batch_size for count in counts} - {0}
    return sorted({max(sizes), min(sizes)}, reverse=True)
