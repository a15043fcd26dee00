"""Which images each client has: one assignment of classes for the training and the test split."""

import csv
import dataclasses
import io
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lit_fedbabu import sources
from lit_fedbabu.config import Config, ConfigError


@dataclasses.dataclass(frozen=True)
class Partition:
    """Indices into the training and the test split, one array per client."""

    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]


@lru_cache(maxsize=4)
def partition(config: Config) -> Partition:
    """Deal the dataset to the clients. Train and test follow one class assignment.

    Depends on dataset, partitioner, its parameters, the number of clients and the seed alone.

    Raises:
        ConfigError: no such partitioner, impossible parameters, or a client that would have no image.
    """
    if config.partitioner not in PARTITIONERS:
        raise ConfigError("partitioner", config.partitioner, f"must be one of {', '.join(PARTITIONERS)}")
    source = sources.load(config.dataset)
    classes = len(source.class_names)
    if config.num_clients > len(source.train.labels):
        raise ConfigError(
            "num-clients", config.num_clients, f"the dataset has {len(source.train.labels)} training images"
        )
    if config.num_classes_per_client > classes and config.partitioner in ("classes", "pathological"):
        raise ConfigError("num-classes-per-client", config.num_classes_per_client, f"the dataset has {classes} classes")
    dealt = PARTITIONERS[config.partitioner](config, np.asarray(source.train.labels), np.asarray(source.test.labels))
    for split, parts in (("training", dealt.train), ("test", dealt.test)):
        empty = [client for client, part in enumerate(parts) if len(part) == 0]
        if empty:
            raise ConfigError(
                "num-clients",
                config.num_clients,
                f"{len(empty)} clients (the first is {empty[0]}) would have no {split} image;"
                " take fewer clients or a less skewed partitioner",
            )
    return dealt


def class_counts(config: Config) -> str:
    """The split as CSV: for every client and split, the number of images of each class."""
    source, dealt = sources.load(config.dataset), partition(config)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["client", "split", *source.class_names])
    for name, split, parts in (("train", source.train, dealt.train), ("test", source.test, dealt.test)):
        for client, part in enumerate(parts):
            counts = np.bincount(split.labels[part], minlength=len(source.class_names))
            writer.writerow([client, name, *counts.tolist()])
    return file.getvalue()


def _by_classes(config: Config, train_labels: np.ndarray, test_labels: np.ndarray) -> Partition:
    """Exactly s different classes for every client, and the same number of images for all.

    Every class goes to equally many clients, to within one. What does not divide evenly is left out.
    """
    rng = np.random.default_rng(config.derived_seed("partition"))
    classes = int(train_labels.max()) + 1
    clients, per_client = config.num_clients, config.num_classes_per_client
    owners: list[list[int]] = [[] for _ in range(classes)]
    left = np.full(classes, clients * per_client // classes)
    left[rng.permutation(classes)[: clients * per_client % classes]] += 1
    for client in range(clients):
        must = np.flatnonzero(left == clients - client)  # else this class could not be placed any more
        free = np.flatnonzero((left > 0) & (left < clients - client))
        missing = per_client - len(must)
        drawn = rng.choice(free, missing, replace=False, p=left[free] / left[free].sum()) if missing else []
        for label in (*must, *drawn):
            owners[label].append(client)
            left[label] -= 1

    def deal(labels: np.ndarray) -> tuple[np.ndarray, ...]:
        counts = np.bincount(labels, minlength=classes)
        size = min(counts[label] // len(owners[label]) for label in range(classes) if owners[label])
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in range(classes):
            images = rng.permutation(np.flatnonzero(labels == label))
            for place, client in enumerate(owners[label]):
                parts[client].append(images[place * size : (place + 1) * size])
        return tuple(np.sort(np.concatenate(part)) for part in parts)

    return Partition(deal(train_labels), deal(test_labels))


def _with_flower(make: Callable) -> Callable[[Config, np.ndarray, np.ndarray], Partition]:
    """Let a Flower partitioner deal the training split; the test split follows its class counts."""

    def deal(config: Config, train_labels: np.ndarray, test_labels: np.ndarray) -> Partition:
        from datasets import Dataset

        rng = np.random.default_rng(config.derived_seed("partition"))
        order = rng.permutation(len(train_labels))
        rows = Dataset.from_dict({"label": train_labels[order], "index": order})
        partitioner = make(config, int(rng.integers(2**31)))
        partitioner.dataset = rows
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pages of advice on its own parameters, and pyarrow on sorting
                parts = [partitioner.load_partition(client)["index"] for client in range(config.num_clients)]
        except ValueError as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                "partitioner", config.partitioner, f"{reason}; lower num-clients = {config.num_clients}"
            ) from None
        train = tuple(np.sort(np.asarray(part, dtype=np.int64)) for part in parts)
        return Partition(train, _test_like(train, train_labels, test_labels, rng))

    return deal


def _test_like(
    train: tuple[np.ndarray, ...], train_labels: np.ndarray, test_labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Deal each class of the test split in the proportions of the training split (largest remainder)."""
    parts: list[list[np.ndarray]] = [[] for _ in train]
    for label in range(int(train_labels.max()) + 1):
        images = rng.permutation(np.flatnonzero(test_labels == label))
        owned = np.array([np.count_nonzero(train_labels[part] == label) for part in train])
        quota = owned * len(images) / max(owned.sum(), 1)
        counts = np.floor(quota).astype(int)
        ties = rng.permutation(len(train))
        largest = ties[np.argsort(-(quota - counts)[ties], kind="stable")]
        counts[largest[: round(quota.sum()) - counts.sum()]] += 1
        for client, share in enumerate(np.split(images, np.cumsum(counts))[:-1]):
            parts[client].append(share)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def _shards(config: Config, seed: int):
    from flwr_datasets.partitioner import ShardPartitioner

    return ShardPartitioner(
        config.num_clients, "label", num_shards_per_partition=config.num_classes_per_client, shuffle=True, seed=seed
    )


def _pathological(config: Config, seed: int):
    from flwr_datasets.partitioner import PathologicalPartitioner

    return PathologicalPartitioner(
        config.num_clients, "label", config.num_classes_per_client, class_assignment_mode="random", seed=seed
    )


def _dirichlet(config: Config, seed: int):
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(config.num_clients, "label", config.dirichlet_alpha, seed=seed)


def _iid(config: Config, seed: int):
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(config.num_clients)


PARTITIONERS = {
    "classes": _by_classes,
    "shards": _with_flower(_shards),
    "pathological": _with_flower(_pathological),
    "dirichlet": _with_flower(_dirichlet),
    "iid": _with_flower(_iid),
}
