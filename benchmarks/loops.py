"""What a round is compared with: a bare loop without ballast, and the loop that most published code has."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lit_fedbabu.config import Config
from lit_fedbabu.tasks.images.transforms import IMAGENET_MEAN, IMAGENET_STD, augment, normalize


class Tuned:
    """The floor: nothing but the arithmetic of a client's round, in the fastest form found.

    channels_last, pooling before ReLU, no biases that batch norm would cancel, fused SGD over the body, and
    augmentation of whole batches.

    Args:
        config: batch size, epochs, learning rate and momentum.
        images: a client's training images (N, 32, 32, 3) of uint8, as an array.
        labels: theirs (N,).
        bf16: autocast to bfloat16.
        bias: keep the biases, which the paper's model has and trains.
    """

    def __init__(
        self, config: Config, images: np.ndarray, labels: np.ndarray, bf16: bool = False, bias: bool = False
    ) -> None:
        self.config, self.bf16 = config, bf16
        self.images, self.labels = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels))
        self.model = _four_blocks(lambda norm: [norm, nn.MaxPool2d(2), nn.ReLU()], bias=bias)
        self.model.to(memory_format=torch.channels_last)

    def train(self) -> None:
        """One round of one client."""
        torch.set_num_threads(self.config.num_threads)
        generator = torch.Generator().manual_seed(0)
        body, head = self.model
        head.requires_grad_(False)
        optimizer = _sgd(self.config, body, fused=True)
        for _ in range(self.config.num_local_epochs):
            for rows in torch.randperm(len(self.images), generator=generator).split(self.config.batch_size):
                images = augment(self.images[rows], self.config.augmentation, generator)
                with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
                    loss = functional.cross_entropy(
                        self.model(normalize(images, IMAGENET_MEAN, IMAGENET_STD)), self.labels[rows]
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


class Common:
    """The loop of most published code: PIL images one by one, default memory layout, ReLU before pooling.

    Args:
        config: as for ``Tuned``, and of fine-tuning.
        train: training images and labels.
        test: test images and labels.
    """

    def __init__(self, config: Config, train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> None:
        self.config = config
        normalized = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalized]
        self.train_set = _Pictures(*train, transforms.Compose(augmented))
        self.test_set = _Pictures(*test, transforms.Compose(normalized))
        self.model = _four_blocks(lambda norm: [norm, nn.ReLU(), nn.MaxPool2d(2)], bias=True)

    def train(self) -> None:
        """One round of one client: the body."""
        self._fit(self.model[0], self.config.num_local_epochs)

    def evaluate(self) -> float:
        """Accuracy on a client's test images, from 0 to 1."""
        with torch.no_grad():
            hits = [
                (self.model(images).argmax(1) == labels).sum().item()
                for images, labels in DataLoader(self.test_set, self.config.test_batch_size)
            ]
        return sum(hits) / len(self.test_set)

    def personalize(self) -> None:
        """Fine-tuning of the whole model, with an evaluation before it and after every epoch."""
        self.evaluate()
        for _ in range(self.config.num_finetune_epochs):
            self._fit(self.model, 1)
            self.evaluate()

    def _fit(self, part: nn.Module, epochs: int) -> None:
        self.model.requires_grad_(False)
        part.requires_grad_(True)
        optimizer = _sgd(self.config, part)
        for _ in range(epochs):
            for images, labels in DataLoader(self.train_set, self.config.batch_size, shuffle=True):
                loss = functional.cross_entropy(self.model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


class _Pictures(Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = np.array(images), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def _four_blocks(after: Callable[[nn.Module], list[nn.Module]], bias: bool) -> nn.Sequential:
    """The FourConvNet, with what follows a convolution in the given order."""

    def block(channels_in: int) -> nn.Sequential:
        norm = nn.BatchNorm2d(64, track_running_stats=False)
        return nn.Sequential(nn.Conv2d(channels_in, 64, 3, padding=1, bias=bias), *after(norm))

    return nn.Sequential(nn.Sequential(*map(block, (3, 64, 64, 64)), nn.Flatten()), nn.Linear(256, 10))


def _sgd(config: Config, part: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(part.parameters(), lr=config.learning_rate, momentum=config.momentum, fused=fused)
