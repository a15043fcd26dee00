"""Augmentation and normalization of whole batches, on the device that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_fedbabu.tasks.images.decoding import IMAGE_SIZE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""By channel, of images scaled to 0..1: the constants that the official code uses for CIFAR-10."""
PADDING = 4
"""Black pixels around an image before its random crop."""


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Random crop with padding 4 and, with "crop-flip", a random horizontal flip, drawn for each image.

    Shapes: images (B, 32, 32, C) to the same. Random numbers are drawn on the CPU, so every device sees the same.
    """
    return crop(images, draw(len(images), how, generator))


def draw(count: int, how: str, generator: torch.Generator) -> Tensor | None:
    """The rows and columns (2, count, 32) of padded images that an augmentation takes; None for "none"."""
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
    """Images (B, 32, 32, C), padded, at the rows and columns (2, B, 32); None leaves them as they are."""
    if places is None:
        return images
    padded = torch.nn.functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows, columns = places.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images (B, 32, 32, C) of uint8 as (B, C, 32, 32) of the dtype; mean and std (C,) are of images in 0..1."""
    shift, scale = (torch.tensor(values, device=images.device, dtype=dtype) * 255 for values in (mean, std))
    return ((images - shift) / scale).permute(0, 3, 1, 2)
