"""A client's images as the batches that a Trainer sees."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler, TensorDataset

from lit_fedbabu import sources
from lit_fedbabu.config import Config
from lit_fedbabu.models import IMAGE_SIZE
from lit_fedbabu.partition import partition

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per channel, of images scaled to 0..1: the constants of the official code for CIFAR-10."""
PADDING = 4
"""Black pixels around an image before its random crop."""


class ClientData(L.LightningDataModule):
    """One client's images as batches: raw uint8 up to the device, augmented and normalized there.

    A batch is images (B, 32, 32, C) of uint8 and labels (B,); after its transfer the images are
    (B, C, 32, 32), normalized, in channels_last. Order and augmentation depend on ``seed`` alone.

    Args:
        config: the experiment.
        client: its number.
        seed: of order and augmentation.
        pooled: take the training images of all clients.
        constants: mean and standard deviation by channel for the normalization, and with them the number of channels;
            None: as the configuration says.
    """

    def __init__(
        self,
        config: Config,
        client: int,
        seed: int,
        pooled: bool = False,
        constants: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        source, parts = sources.source_of(config), partition(config)
        self.config = config
        self.client = client
        self.constants = constants or mean_and_std(config)
        self._channels = len(self.constants[0])
        self.train_set = self._gather(source.train, np.concatenate(parts.train) if pooled else parts.train[client])
        self.test_set = self._gather(source.test, parts.test[client])
        self._order = torch.Generator().manual_seed(seed)
        self._augmentation = torch.Generator().manual_seed(seed + 1)

    def train_dataloader(self) -> DataLoader:
        return _batches(self.train_set, _Shuffled(len(self.train_set), self._order), self.config.batch_size)

    def test_dataloader(self) -> DataLoader:
        return _batches(self.test_set, SequentialSampler(self.test_set), self.config.test_batch_size)

    val_dataloader = test_dataloader
    """While fine-tuning, the test images are looked at after every epoch; nothing is chosen by them."""

    def predict_dataloader(self) -> list[DataLoader]:
        """Training images in order and as they are, test images, and those of ``others`` if there are any."""
        rows = [self.train_set, self.test_set, *([self.others] if len(self.others) else [])]
        return [_batches(each, SequentialSampler(each), self.config.test_batch_size) for each in rows]

    @cached_property
    def others(self) -> TensorDataset:
        """Test images of classes that the client has no training image of: as many as its own, drawn by the seed."""
        test = sources.source_of(self.config).test
        foreign = np.flatnonzero(~np.isin(test.labels, self.train_set.tensors[1].numpy()))
        rng = np.random.default_rng(self.config.derived_seed("others", self.client))
        return self._gather(test, np.sort(rng.permutation(foreign)[: len(self.test_set)]))

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.prepare(images, self.draw(len(images)) if self.trainer.training else None), labels

    def draw(self, count: int) -> Tensor | None:
        """Places for the augmentation of the next ``count`` training images, as ``crop`` takes them."""
        return draw(count, self.config.augmentation, self._augmentation)

    def prepare(self, images: Tensor, places: Tensor | None) -> Tensor:
        """Images (B, 32, 32, C) of uint8 as the model takes them: cropped at the places and normalized."""
        dtype = torch.float64 if self.config.precision == "64-true" else torch.float32
        return normalize(crop(images, places), *self.constants, dtype)

    @property
    def members(self) -> list["ClientData"]:
        """The clients whose images these are: one, as opposed to a cohort."""
        return [self]

    def _gather(self, split: sources.Split, indices: np.ndarray) -> TensorDataset:
        images = with_channels(split.images[indices], self._channels)
        return TensorDataset(torch.from_numpy(images), torch.from_numpy(split.labels[indices]))


class _Shuffled(Sampler[int]):
    """Every index once, in an order that takes one draw from the generator for each epoch.

    RandomSampler takes a second one where its iterator is used up, which depends on how Lightning ends an epoch.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self.generator).tolist())

    def __len__(self) -> int:
        return self.count


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Images (N, H, W, C) of uint8 with so many channels: grey repeated, or the luma (Rec. 601) of colours."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma = images @ np.array([0.299, 0.587, 0.114])
    return np.rint(luma)[..., None].astype(np.uint8)


def _batches(rows: TensorDataset, sampler: Sampler[int], size: int) -> DataLoader:
    # Batches of indices in, so that a batch is one look-up and not a list of images to be stacked.
    generator = torch.Generator()  # DataLoader draws a seed for workers, of which there are none
    return DataLoader(rows, sampler=BatchSampler(sampler, size, drop_last=False), batch_size=None, generator=generator)


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Random crop with padding 4 and, with "crop-flip", horizontal flip, drawn for each image.

    Shapes: images (B, 32, 32, C) to the same. The draws are made on the CPU, so every device sees the same.
    """
    return crop(images, draw(len(images), how, generator))


def draw(count: int, how: str, generator: torch.Generator) -> Tensor | None:
    """Rows and columns (2, count, 32) of padded images that an augmentation takes; None of "none"."""
    if how == "none":
        return None
    span = torch.arange(IMAGE_SIZE)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    columns = span.expand(count, -1)
    if how == "crop-flip":
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, IMAGE_SIZE - 1 - span, span)
    return torch.stack([top + span, left + columns])


def crop(images: Tensor, places: Tensor | None) -> Tensor:
    """Images (B, 32, 32, C) after padding at the rows and columns (2, B, 32); None leaves them as they are."""
    if places is None:
        return images
    padded = torch.nn.functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows, columns = places.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def mean_and_std(config: Config) -> tuple[Sequence[float], Sequence[float]]:
    """What ``normalization`` takes off and divides by, per channel, of images scaled to 0..1."""
    if config.normalization == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    source = sources.source_of(config)
    return source.mean, source.std


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images (B, 32, 32, C) of uint8 as (B, C, 32, 32) of the dtype; mean and std (C,) are of images in 0..1."""
    mean, std = (torch.tensor(values, device=images.device, dtype=dtype) * 255 for values in (mean, std))
    return ((images - mean) / std).permute(0, 3, 1, 2)
