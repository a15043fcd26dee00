"""A client's images as the batches that a Trainer sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from lit_fedbabu.config.length import steps_of
from lit_fedbabu.learning.private_steps import PoissonBatches
from lit_fedbabu.tasks.images.decoding import with_channels
from lit_fedbabu.tasks.images.partition import evaluation_split
from lit_fedbabu.tasks.images.partitioners import Indices
from lit_fedbabu.tasks.images.tables import Split
from lit_fedbabu.tasks.images.transforms import augmented, draw, normalize

if TYPE_CHECKING:
    from lit_fedbabu.tasks.images.task import ImageClassification


class ClientData(L.LightningDataModule):
    """One client's images as batches: raw uint8 up to the device, augmented and normalized there.

    A batch is images (B, S, S, C) of uint8, S being ``image-size``, and labels (B,). After its transfer to the device
    the images are (B, C, S, S), normalized, in channels_last. Order and augmentation depend on ``seed`` alone.

    Args:
        task: whose dataset and split it is, as in ``Experiment(config).task``.
        client: its number.
        seed: of order and augmentation.
        pooled: take the training images of all clients.
        test_batch_size: test images in a batch at most; None: as the configuration says.
    """

    def __init__(
        self,
        task: ImageClassification,
        client: int,
        seed: int,
        pooled: bool = False,
        test_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.config = task.config
        self.client = client
        self.constants = task.constants
        train = task.partition.train
        own = train[: self.config.num_federated].pairs[1] if pooled else train[client]
        self.train_set = self._rows(task.source.train, own)
        self.test_set = self._rows(evaluation_split(self.config, task.source), task.partition.test[client])
        self._test_batch_size = test_batch_size or self.config.test_batch_size
        self.left: float = math.inf
        """Training batches that it still gives."""
        self.poisson = False
        """Whether chance alone says which images are in a training batch, as DP-SGD needs it."""
        self._order = torch.Generator().manual_seed(seed)
        self._augmentation = torch.Generator().manual_seed(seed + 1)

    @property
    def class_counts(self) -> Tensor:
        """Training images by class (C,)."""
        return torch.bincount(torch.as_tensor(self.train_set.labels), minlength=len(self.task.class_names))

    def allow(self, epochs: float, steps: int) -> int:
        """Give no more training batches than ``length.steps_of`` says; returns how many epochs these begin."""
        batches = math.ceil(len(self.train_set) / self.config.batch_size)
        self.left = steps_of(batches, epochs, steps)
        return math.ceil(self.left / batches)

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        count, size = len(self.train_set), self.config.batch_size
        if self.poisson:
            return _batches(self.train_set, _Allowed(self, PoissonBatches(count, size)))
        shuffled = BatchSampler(_Shuffled(count, self._order), size, drop_last=False)
        return _batches(self.train_set, _Allowed(self, shuffled))

    def test_dataloader(self) -> DataLoader[list[Tensor]]:
        return self._in_order(self.test_set)

    def val_dataloader(self) -> DataLoader[list[Tensor]]:
        """The test images: fine-tuning is measured on them after each epoch, and nothing is chosen by them."""
        return self.test_dataloader()

    def predict_dataloader(self) -> list[DataLoader[list[Tensor]]]:
        """Training images in order and without augmentation, test images, and ``others`` if there are any."""
        rows = [self.train_set, self.test_set, *([self.others] if len(self.others) else [])]
        return [self._in_order(each) for each in rows]

    @cached_property
    def others(self) -> ImageRows:
        """Test images of classes that the client has no training image of: as many as its own, drawn by the seed."""
        test = self.task.source.test
        if self.config.validation_fraction:  # test images are not looked at, and others' training images are trained on
            return self._rows(test, np.zeros(0, dtype=np.int64))
        foreign = np.flatnonzero(~np.isin(test.labels, self.train_set.labels))
        rng = np.random.default_rng(self.config.derived_seed("others", self.client))
        return self._rows(test, np.sort(rng.permutation(foreign)[: len(self.test_set)]))

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        training = self.trainer is not None and self.trainer.training
        return self.prepare(images, self.draw(len(images)) if training else None), labels

    def draw(self, count: int) -> Tensor | None:
        """Random numbers for the augmentation of the next ``count`` training images."""
        return draw(count, self.config.image_size, self.task.augmentation, self._augmentation)

    def prepare(self, images: Tensor, drawn: Tensor | None) -> Tensor:
        """Images (B, S, S, C) of uint8 as the model takes them: augmented as was drawn, and normalized."""
        dtype = torch.float64 if self.config.precision == "64-true" else torch.float32
        return normalize(augmented(images, self.task.augmentation, drawn), *self.constants, dtype)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train_set)

    @property
    def num_test(self) -> int:
        """Test images."""
        return len(self.test_set)

    @property
    def members(self) -> Sequence[ClientData]:
        """The clients whose images these are: one. A cohort has several."""
        return [self]

    def _in_order(self, rows: ImageRows) -> DataLoader[list[Tensor]]:
        return _batches(rows, BatchSampler(SequentialSampler(rows), self._test_batch_size, drop_last=False))

    def _rows(self, split: Split, indices: Indices) -> ImageRows:
        return ImageRows(split, indices, len(self.constants[0]))


class ImageRows(Dataset[list[Tensor]]):
    """Some images of a split, which are read from disk, or decoded there, a batch at a time, and their labels.

    Args:
        split: all images.
        indices: (N,) of the images.
        channels: of the tensors.
    """

    def __init__(self, split: Split, indices: Indices, channels: int) -> None:
        self.labels = split.labels[indices]
        self._images, self._indices, self._channels = np.asarray(split.images), indices, channels
        self._undecoded = split.undecoded

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: list[int] | slice) -> list[Tensor]:
        """Images (B, S, S, C) of uint8 and labels (B,) of these rows."""
        own = self._indices[rows]
        if self._undecoded is not None:
            self._undecoded.need(own)
        images = with_channels(self._images[own], self._channels)
        return [torch.from_numpy(images), torch.from_numpy(self.labels[rows])]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them."""
        return self[:]


class _Shuffled(Sampler[int]):
    """Every index once, in an order that takes one draw from the generator for each epoch.

    RandomSampler takes a second draw when its iterator is exhausted, which depends on how Lightning ends an epoch.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self.generator).tolist())

    def __len__(self) -> int:
        return self.count


class _Allowed(Sampler[list[int]]):
    """The batches of an epoch, as long as the client is allowed more."""

    def __init__(self, data: ClientData, batches: BatchSampler | PoissonBatches) -> None:
        self._data, self._batches = data, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        if self._data.left < 1:  # before the order is drawn
            return
        for batch in self._batches:
            self._data.left -= 1
            yield batch
            if self._data.left < 1:
                return


def _batches(rows: ImageRows, sampler: Sampler[list[int]]) -> DataLoader[list[Tensor]]:
    # The sampler gives batches of indices, so a batch is one look-up and not a list of images to be stacked.
    generator = torch.Generator()  # DataLoader draws a seed for workers, of which there are none
    return DataLoader(rows, sampler=sampler, batch_size=None, generator=generator)
