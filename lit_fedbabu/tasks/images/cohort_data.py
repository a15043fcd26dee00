"""The batches of several clients side by side, for a cohort."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_fedbabu.learning.cohort import Group
from lit_fedbabu.tasks.images.datamodule import ClientData

SideBySideBatch = tuple[list[int], list[int], Tensor, Tensor]
"""Clients, the sizes of their batches, and images and labels of all of them in a row."""


class CohortData(L.LightningDataModule):
    """The batches of several clients side by side. Each has its own order, augmentation and number of images.

    Args:
        members: the clients' data, all of one experiment.
    """

    def __init__(self, members: Sequence[ClientData]) -> None:
        super().__init__()
        self.members = members
        self.config = members[0].config

    def allow(self, epochs: float, steps: int) -> int:
        """As of ``ClientData``, for every client; returns how many epochs the longest of them begins."""
        return max(member.allow(epochs, steps) for member in self.members)

    def train_dataloader(self) -> "_SideBySide":
        return _SideBySide(dict(enumerate(member.train_dataloader() for member in self.members)))

    def test_dataloader(self) -> "_SideBySide":
        return _SideBySide(dict(enumerate(member.test_dataloader() for member in self.members)))

    def val_dataloader(self) -> "_SideBySide":
        return self.test_dataloader()

    def predict_dataloader(self) -> list["_SideBySide"]:
        loaders = [member.predict_dataloader() for member in self.members]
        return [
            _SideBySide({client: own[kind] for client, own in enumerate(loaders) if len(own) > kind})
            for kind in range(max(map(len, loaders)))
        ]

    def on_after_batch_transfer(self, batch: SideBySideBatch, dataloader_idx: int) -> list[Group]:
        clients, sizes, images, labels = batch
        drawn = None
        if self.trainer is not None and self.trainer.training and self.config.augmentation != "none":
            draws = zip(clients, sizes, strict=True)
            each_drawn = [self.members[client].draw(size) for client, size in draws]
            drawn = torch.cat([each for each in each_drawn if each is not None], 1)
        images = self.members[0].prepare(images, drawn)
        if len(set(sizes)) == 1:
            shape = len(sizes), sizes[0]
            return [(clients, images.view(*shape, *images.shape[1:]), labels.view(shape))]
        rows = list(zip(clients, torch.split(images, sizes), torch.split(labels, sizes), strict=True))
        groups: list[Group] = []
        for size in sorted(set(sizes), reverse=True):
            same = [row for row in rows if len(row[2]) == size]
            members, own_images, own_labels = zip(*same, strict=True)
            groups.append((list(members), torch.stack(own_images), torch.stack(own_labels)))
        return groups


class _SideBySide:
    """Step by step, the next batch of every client that still has one."""

    def __init__(self, loaders: Mapping[int, DataLoader[Any]]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return max(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[SideBySideBatch]:
        for step in zip_longest(*self.loaders.values()):
            own = {client: batch for client, batch in zip(self.loaders, step, strict=True) if batch is not None}
            images, labels = zip(*own.values(), strict=True)
            yield list(own), [len(each) for each in labels], torch.cat(images), torch.cat(labels)
