"""Images of any size and mode as arrays of the one size and the channels that models take."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lit_fedbabu.errors import InputError

IMAGE_SIZE = 32
"""Height and width in pixels of the images that every model here takes."""

Pixels = npt.NDArray[np.uint8]
"""Images (N, H, W, C) or one image (H, W, C), 0 to 255."""


def to_array(image: Image.Image) -> Pixels:
    """An image as (32, 32, C) of uint8: grey images have one channel, all others are RGB."""
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def with_channels(images: Pixels, channels: int) -> Pixels:
    """Images (N, H, W, C) with so many channels: grey is repeated, colours become their luma (Rec. 601)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma: Pixels = np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return luma[..., None]


def read_images(paths: Sequence[Path], channels: int) -> Pixels:
    """Image files as (N, 32, 32, channels), decoded as training images are.

    Raises:
        InputError: a file is missing or is no image.
    """
    rows = []
    for path in paths:
        try:
            with Image.open(path) as image:
                rows.append(with_channels(to_array(image)[None], channels))
        except (OSError, SyntaxError, ValueError) as error:
            reason = "is no file" if not path.is_file() else f"cannot be read as an image: {error}"
            raise InputError("IMAGE", str(path), reason) from None
    return np.concatenate(rows)
