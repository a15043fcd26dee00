"""Clients' data: which images each client has, and the batches that a Trainer sees."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from lit_fedbabu import sources
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import IMAGE_SIZE

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Per channel, of images scaled to 0..1: the constants of the official code (protocol for CIFAR-10)."""
PADDING = 4
"""Black pixels around an image before its random crop."""


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
        drawn = rng.choice(free, per_client - len(must), replace=False, p=left[free] / left[free].sum()) if len(
            must
        ) < per_client else []
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
            parts = [partitioner.load_partition(client)["index"] for client in range(config.num_clients)]
        except ValueError as error:
            raise ConfigError("partitioner", config.partitioner, " ".join(str(error).split())[:200]) from None
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


class ClientData(L.LightningDataModule):
    """One client's images as batches: raw uint8 up to the device, augmented and normalized there.

    A batch is images (B, 32, 32, 3) of uint8 and labels (B,); after its transfer the images are
    (B, 3, 32, 32) of float32, normalized, in channels_last. Order and augmentation depend on ``seed`` alone.
    """

    def __init__(self, config: Config, client: int, seed: int) -> None:
        super().__init__()
        source, parts = sources.load(config.dataset), partition(config)
        self.config = config
        self.train_set = _gather(source.train, parts.train[client])
        self.test_set = _gather(source.test, parts.test[client])
        self._order = torch.Generator().manual_seed(seed)
        self._augmentation = torch.Generator().manual_seed(seed + 1)

    def train_dataloader(self) -> DataLoader:
        shuffled = RandomSampler(self.train_set, generator=self._order)
        return _batches(self.train_set, shuffled, self.config.batch_size)

    def test_dataloader(self) -> DataLoader:
        return _batches(self.test_set, SequentialSampler(self.test_set), self.config.test_batch_size)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer.training:
            images = augment(images, self.config.augmentation, self._augmentation)
        return normalize(images), labels


def _gather(split: sources.Split, indices: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(split.images[indices]), torch.from_numpy(split.labels[indices]))


def _batches(rows: TensorDataset, sampler: RandomSampler | SequentialSampler, size: int) -> DataLoader:
    # Batches of indices in, so that a batch is one look-up and not a list of images to be stacked.
    generator = torch.Generator()  # DataLoader draws a seed for workers, of which there are none
    return DataLoader(rows, sampler=BatchSampler(sampler, size, drop_last=False), batch_size=None, generator=generator)


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Random crop with padding 4 and, with "crop-flip", horizontal flip, drawn for each image.

    Shapes: images (B, 32, 32, 3) to the same. The draws are made on the CPU, so every device sees the same.
    """
    if how == "none":
        return images
    count = len(images)
    pad = (0, 0, PADDING, PADDING, PADDING, PADDING)
    padded = torch.nn.functional.pad(images, pad)
    span = torch.arange(IMAGE_SIZE)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    columns = span.expand(count, -1)
    if how == "crop-flip":
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, IMAGE_SIZE - 1 - span, span)
    rows, columns = (top + span).to(images.device), (left + columns).to(images.device)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def normalize(images: Tensor) -> Tensor:
    """Images (B, 32, 32, 3) of uint8 as (B, 3, 32, 32) of float32 with MEAN and STD taken off."""
    mean, std = (torch.tensor(values, device=images.device) * 255 for values in (MEAN, STD))
    return ((images - mean) / std).permute(0, 3, 1, 2)
