"""Augmentation and normalization of whole batches, on the device that trains."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.seeding import seeded

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""By channel, of images scaled to 0..1: the constants that the official code uses for CIFAR-10."""

AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of the part that a resized crop takes: its share of the image, and width by height, as torchvision has them."""

Augmentation = str | Callable[[Tensor], Tensor]
"""A name of the option ``augmentation``, or a user's own function of float images (B, C, S, S) in 0..1."""


def augment(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment every image by random numbers of its own.

    Shapes: images (B, S, S, C) of uint8 to the same, in 0..255. Random numbers are drawn on the CPU, so every device
    sees the same; those of a user's own function are seeded by the generator.
    """
    return augmented(images, how, draw(len(images), images.shape[1], how, generator))


def draw(count: int, size: int, how: Augmentation, generator: torch.Generator) -> Tensor | None:
    """Random numbers for the augmentation of so many images, which are its second axis; None for "none".

    For crops they are rows and columns (2, count, size) of padded images; for resized crops width, height and centre of
    the part, in units of half an image, and 1 or -1 for flipped ones (5, count); for a user's own function the seed of
    the batch (1, count).
    """
    if how == "none":
        return None
    if callable(how):
        return torch.randint(2**63 - 1, (1, 1), generator=generator).expand(1, count)
    if how == "resized-crop-flip":
        return _parts(count, generator)
    span = torch.arange(size)
    top, left = torch.randint(0, 2 * _padding(size) + 1, (2, count, 1), generator=generator)
    columns = span.expand(count, -1)
    if how == "crop-flip":
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, size - 1 - span, span)
    return torch.stack([top + span, left + columns])


def augmented(images: Tensor, how: Augmentation, drawn: Tensor | None) -> Tensor:
    """Images (B, S, S, C) of uint8, augmented as was drawn, in 0..255; None leaves them as they are."""
    if drawn is None:
        return images
    if not callable(how):
        return resized_crop(images, drawn) if how == "resized-crop-flip" else crop(images, drawn)
    seeds = {seed: len(list(same)) for seed, same in groupby(drawn[0].tolist())}  # one for each client of a cohort
    batches = torch.split(images, list(seeds.values()))
    return torch.cat([_by_own(batch, how, seed) for batch, seed in zip(batches, seeds, strict=True)])


def crop(images: Tensor, places: Tensor) -> Tensor:
    """Images (B, S, S, C), padded, at the rows and columns (2, B, S)."""
    padded = functional.pad(images, (0, 0, *4 * (_padding(images.shape[1]),)))
    rows, columns = places.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def resized_crop(images: Tensor, parts: Tensor) -> Tensor:
    """The parts (5, B) of images (B, S, S, C), resized to them with bilinear interpolation, as floats."""
    width, height, across, down, direction = parts.to(images.device)
    none = torch.zeros_like(width)
    maps = torch.stack([width * direction, none, across, none, height, down], 1).view(-1, 2, 3)
    pixels = images.permute(0, 3, 1, 2).to(maps.dtype)
    grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    resized = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def try_augmentation(path: str, own: Augmentation, shape: tuple[int, int, int], sizes: Sequence[int]) -> None:
    """Call a user's own augmentation on batches of these sizes.

    Args:
        path: as the option names it.
        own: the function.
        shape: of an image: channels, height and width.
        sizes: images of the batches.

    Raises:
        InputError: it fails, or what it returns is no batch of the same shape.
    """
    for size in sizes:
        images = torch.randint(0, 256, (size, *shape[1:], shape[0]), dtype=torch.uint8)
        try:
            finite = augment(images, own, torch.Generator()).isfinite().all()
        except Exception as error:  # whatever a user's own function raises
            what = f"a batch of {size} images of {' x '.join(map(str, shape))}"
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError("augmentation", path, f"fails on {what}: {reason}") from error
        if not finite:
            raise InputError("augmentation", path, "returns numbers that are not finite")


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images (B, S, S, C) in 0..255 as (B, C, S, S) of the dtype; mean and std (C,) are of images in 0..1."""
    shift, scale = (torch.tensor(values, device=images.device, dtype=dtype) * 255 for values in (mean, std))
    return ((images - shift) / scale).permute(0, 3, 1, 2)


def _padding(size: int) -> int:
    """Black pixels around an image before its random crop: an eighth of its size, as 4 for 32."""
    return size // 8


def _parts(count: int, generator: torch.Generator) -> Tensor:
    """Random parts as of ``draw``. A side longer than the image's is cut, where torchvision draws the part anew."""
    area, ratio, across, down, side = torch.rand(5, count, generator=generator)
    area = AREAS[0] + (AREAS[1] - AREAS[0]) * area
    ratio = torch.exp(math.log(RATIOS[0]) + (math.log(RATIOS[1]) - math.log(RATIOS[0])) * ratio)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across, down = ((2 * place - 1) * (1 - length) for place, length in ((across, width), (down, height)))
    return torch.stack([width, height, across, down, torch.where(side < 0.5, -1.0, 1.0)])


def _by_own(images: Tensor, own: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """What a user's own function makes of images (B, S, S, C) of uint8, in 0..255, with a seed for what it draws."""
    given = images.permute(0, 3, 1, 2).float() / 255
    shape = tuple(given.shape)
    with seeded(seed), torch.no_grad():
        returned = own(given)
    if not isinstance(returned, Tensor):
        raise TypeError(f"it returns a {type(returned).__name__} and no tensor")
    if tuple(returned.shape) != shape or not returned.is_floating_point():
        raise ValueError(f"it returns {returned.dtype} {tuple(returned.shape)} for torch.float32 {shape}")
    return (returned.permute(0, 2, 3, 1) * 255).contiguous()
