"""Augmentation and normalization of whole batches, on the device that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""By channel, of images scaled to 0..1: the constants that the official code uses for CIFAR-10."""


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Random crop of the padded image and, with "crop-flip", a random horizontal flip, drawn for each image.

    Shapes: images (B, S, S, C) to the same. Random numbers are drawn on the CPU, so every device sees the same.
    """
    return crop(images, draw(len(images), images.shape[1], how, generator))


def draw(count: int, size: int, how: str, generator: torch.Generator) -> Tensor | None:
    """The rows and columns (2, count, size) of padded images that an augmentation takes; None for "none"."""
    if how == "none":
        return None
    span = torch.arange(size)
    top, left = torch.randint(0, 2 * _padding(size) + 1, (2, count, 1), generator=generator)
    columns = span.expand(count, -1)
    if how == "crop-flip":
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, size - 1 - span, span)
    return torch.stack([top + span, left + columns])


def crop(images: Tensor, places: Tensor | None) -> Tensor:
    """Images (B, S, S, C), padded, at the rows and columns (2, B, S); None leaves them as they are."""
    if places is None:
        return images
    padded = torch.nn.functional.pad(images, (0, 0, *4 * (_padding(images.shape[1]),)))
    rows, columns = places.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images (B, S, S, C) of uint8 as (B, C, S, S) of the dtype; mean and std (C,) are of images in 0..1."""
    shift, scale = (torch.tensor(values, device=images.device, dtype=dtype) * 255 for values in (mean, std))
    return ((images - shift) / scale).permute(0, 3, 1, 2)


def _padding(size: int) -> int:
    """Black pixels around an image before its random crop: an eighth of its size, as 4 for 32."""
    return size // 8
