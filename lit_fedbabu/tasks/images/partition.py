"""Which images each client has: one assignment of classes for the training and the test split."""

import csv
import hashlib
import io
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import EVERYONE
from lit_fedbabu.ground.errors import InputError, RunError, close_to, some
from lit_fedbabu.ground.files import naming
from lit_fedbabu.learning import cache
from lit_fedbabu.tasks.images.arrays import save
from lit_fedbabu.tasks.images.partitioners import PARTITIONERS, REMEDY, Indices, Partition, Parts
from lit_fedbabu.tasks.images.sources import Source
from lit_fedbabu.tasks.images.tables import Split

AT_ONCE = 1000
"""Clients whose images are counted at a time."""


DEALT_BY = (
    "partitioner", "seed", "num_clients", "num_classes_per_client", "dirichlet_alpha", "lognormal_sigma",
    "min_client_images", "natural_id_column", "validation_fraction",
)  # fmt: skip
"""Fields that decide which images a client has."""
_FORMAT = "v1"
"""Of kept splits. It changes when images would be dealt otherwise."""


def dealt(config: Config, source: Source) -> Partition:
    """As ``deal``; a split of many clients is kept in the cache, where the processes of a run map it from one copy.

    Raises:
        InputError: as of ``deal``.
        RunError: the kept split is damaged.
    """
    if config.num_clients <= EVERYONE or config.on_sites:
        return deal(config, source)
    versions = [_FORMAT, np.__version__, version("flwr-datasets")]
    facts = [*versions, *(getattr(config, name) for name in DEALT_BY), len(source.class_names)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for split in (source.train, source.test):
        for numbers in (split.labels, split.owners):
            digest.update(b"none" if numbers is None else np.ascontiguousarray(numbers).tobytes())
    path = cache.folder() / cache.SPLITS / f"{digest.hexdigest()[:32]}.npy"
    if not path.exists():
        found = deal(config, source)
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # others may write the same
            both = (found.train, found.test)
            save(Path(scratch) / path.name, np.concatenate([part for each in both for part in each.kept]))
            os.replace(Path(scratch) / path.name, path)
        return found
    try:
        numbers = np.load(path, mmap_mode="r")
        train = Parts.read(numbers, config.num_clients)
        return Partition(train, Parts.read(numbers[config.num_clients + len(train.rows) :], config.num_clients))
    except (OSError, ValueError, EOFError, LookupError):
        raise RunError(f"{path}: this kept split is damaged; remove the file, and it is dealt anew") from None


def deal(config: Config, source: Source) -> Partition:
    """Deal the dataset to the clients. Train and test follow one class assignment.

    With a ``validation-fraction`` the test part of each client are images of the training split, held out of training.

    Depends on the dataset, the partitioner and its parameters, the number of clients and the seed alone.

    Raises:
        InputError: no such partitioner, impossible parameters, or a client that would have too few images.
    """
    if config.partitioner not in PARTITIONERS:
        remedy = f"must be one of {', '.join(PARTITIONERS)}{close_to(config.partitioner, PARTITIONERS)}"
        raise InputError("partitioner", config.partitioner, remedy)
    classes = len(source.class_names)
    if config.num_clients > len(source.train.labels) and not config.on_sites:
        raise InputError(
            "num-clients", config.num_clients, f"the dataset has {len(source.train.labels)} training images"
        )
    if config.num_classes_per_client > classes and config.partitioner in ("classes", "pathological", "distribution"):
        raise InputError("num-classes-per-client", config.num_classes_per_client, f"the dataset has {classes} classes")
    dealt = PARTITIONERS[config.partitioner](config, source)
    if config.validation_fraction:
        dealt = _with_validation(config, dealt)
    for split, parts, least in (("training", dealt.train, config.min_client_images), ("test", dealt.test, 1)):
        poor = np.flatnonzero(parts.sizes < least)
        if len(poor):
            who = f"{len(poor)} clients (the first is {poor[0]})"
            remedy = f"{who} would have fewer {split} images than {least}; {REMEDY}"
            remedy += ", or a lower validation-fraction" if config.validation_fraction else ""
            images = source.train if split == "training" else evaluation_split(config, source)
            if absent := _absent(source, images):
                remedy += f"; there is no {split} image of the classes {some(absent)}"
            raise InputError("num-clients", config.num_clients, remedy)
    return dealt


def _with_validation(config: Config, dealt: Partition) -> Partition:
    """Hold out a share of every client's training images, at least one, drawn by (seed, client)."""
    train, held_out = [], []
    for client, images in enumerate(dealt.train):
        rng = np.random.default_rng(config.derived_seed("validation", client))
        count = max(1, round(config.validation_fraction * len(images)))
        mixed = rng.permutation(images)
        held_out.append(np.sort(mixed[:count]))
        train.append(np.sort(mixed[count:]))
    return Partition(Parts.of(train), Parts.of(held_out))


def evaluation_split(config: Config, source: Source) -> Split:
    """The split that the test part of a partition is of."""
    return source.train if config.validation_fraction else source.test


def copies(config: Config, source: Source, dealt: Partition) -> list[str]:
    """A note where images that clients are evaluated on are also training images, of the same client or of another."""
    evaluated = evaluation_split(config, source)
    if source.train.digests is None or evaluated.digests is None:
        return []
    train, test = (_different(parts.rows) for parts in (dealt.train, dealt.test))
    count = int(np.isin(evaluated.digests[test], source.train.digests[train]).sum())
    what = f"{count} of {len(test)} images that clients are evaluated on are copies of training images"
    return [f"{what}, pixel for pixel at {config.image_size} x {config.image_size}"] if count else []


def client_names(source: Source, dealt: Partition) -> tuple[str, ...]:
    """The names of the owners of each client's images, by its number; none where images have no owners."""
    if source.train.owners is None or not source.owner_names:
        return ()
    clients, owners = _distinct(dealt.train, source.train.owners)
    starts = np.searchsorted(clients, np.arange(1, len(dealt.train)))
    return tuple(some(source.owner_names[owner] for owner in each) for each in np.split(owners, starts))


def _distinct(parts: Parts, values: Indices) -> tuple[Indices, Indices]:
    """Clients and the different values of their images, from one value (N,) of each image of the split, in order."""
    clients, rows = parts.pairs
    most = int(values.max(initial=0)) + 1
    pairs = _different(clients * most + values[rows])
    return pairs // most, pairs % most


def _different(values: Indices) -> Indices:
    """The different values, in order: of many faster than ``np.unique``, which hashes them."""
    ordered = np.sort(values)
    return ordered[np.diff(ordered, prepend=-1) > 0]


def _absent(source: Source, split: Split) -> list[str]:
    """The names of the classes without images in a split."""
    counts = np.bincount(split.labels, minlength=len(source.class_names))
    return [name for name, count in zip(source.class_names, counts, strict=True) if not count]


def summary(config: Config, source: Source, dealt: Partition) -> str:
    """The split in one line: the least and the most images and classes that a client has, and images that none has."""
    classes = np.bincount(_distinct(dealt.train, source.train.labels)[0], minlength=len(dealt.train))
    extents = {
        "training images": dealt.train.sizes,
        "test images": dealt.test.sizes,
        f"of {len(source.class_names)} classes": classes,
    }
    ranges = [f"{_range(values)} {name}" for name, values in extents.items()]
    return (
        f"{config.num_clients} clients with {ranges[0]}, {ranges[1]} and {ranges[2]} each{_left(config, source, dealt)}"
    )


def _left(config: Config, source: Source, dealt: Partition) -> str:
    """How many images no client has; empty for none."""
    of_train, of_test = dealt.train.sizes.sum(), dealt.test.sizes.sum()
    of_train += of_test if config.validation_fraction else 0
    splits = {"training": (source.train, of_train), "test": (source.test, of_test)}
    if config.validation_fraction:
        del splits["test"]
    left = {name: len(split.labels) - count for name, (split, count) in splits.items()}
    words = [f"{count} of {len(splits[name][0].labels)} {name}" for name, count in left.items() if count]
    return f"; left out are {' and '.join(words)} images" if words else ""


def class_counts(config: Config, source: Source, dealt: Partition) -> str:
    """The split as CSV: for every client and split, the number of images of each class."""
    file, evaluated = io.StringIO(), evaluation_split(config, source)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["client", "split", *source.class_names])
    for name, split, parts in (("train", source.train, dealt.train), ("test", evaluated, dealt.test)):
        for first in range(0, len(parts), AT_ONCE):
            counts = _by_class(parts[first : first + AT_ONCE], split.labels, len(source.class_names))
            writer.writerows([client, name, *each] for client, each in enumerate(counts.tolist(), first))
    return file.getvalue()


def _by_class(parts: Parts, labels: Indices, classes: int) -> Indices:
    """Images of each client by class (clients, classes)."""
    clients, rows = parts.pairs
    return np.bincount(clients * classes + labels[rows], minlength=len(parts) * classes).reshape(len(parts), classes)


def _range(values: Indices) -> str:
    low, high = values.min(), values.max()
    return str(low) if low == high else f"{low} to {high}"
