"""Images of any size and mode as arrays of the size and the channels that a model takes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_fedbabu.ground.errors import InputError

IMAGE_SIZE = 32
"""Height and width in pixels of images where nothing else is said, as of the paper's CIFAR-10."""

Pixels = npt.NDArray[np.uint8]
"""Images (N, H, W, C) or one image (H, W, C), 0 to 255."""

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has not downloaded."""


def decode(file: str | Path | bytes, mode: str | None = None, size: int = IMAGE_SIZE) -> Pixels:
    """An image file, or its content, as ``to_array`` gives it; of several frames the first.

    Pillow may warn of it; threads that decode side by side share one ``quiet_pillow``.

    Args:
        file: its path, or its bytes.
        mode: a mode of Pillow that the image is converted to before; None leaves it as it is.
        size: height and width of the array.

    Raises:
        ValueError: it is no image that can be used; the message says why, in one line.
    """
    try:
        # Bytes, because Pillow does not turn some TIFF files that it opens by their names.
        content = file if isinstance(file, bytes) else _content(Path(file))
        with Image.open(BytesIO(content)) as image:
            return to_array(ImageOps.exif_transpose(image).convert(mode) if mode else image, size)
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        raise ValueError(_reason(file, error)) from None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow, which warns of odd palettes and EXIF in images that it can read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ValueError("is no file")
    return path.read_bytes()


def _reason(file: str | Path | bytes, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        start = file[:100] if isinstance(file, bytes) else Path(file).read_bytes()[:100]
        if start.startswith(LFS_POINTER):
            return "is a pointer of Git LFS; fetch the files with git lfs pull"
        return "is no image, or of a format that cannot be read" if start else "is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def to_array(image: Image.Image, size: int = IMAGE_SIZE) -> Pixels:
    """An image as (size, size, C) of uint8: grey images have one channel, all others are RGB.

    The image is turned as its EXIF orientation says. Transparent pixels are laid over white. 16-bit values are scaled
    to 8 bits, and so are floating-point values between 0 and 1.

    Raises:
        ValueError: values are outside these ranges.
    """
    image = _in_eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L" if grey else "RGB")
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits or of floating-point numbers with 8 bits; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    high = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > high:
        raise ValueError(f"its values, of mode {image.mode}, are not all between 0 and {high:g}")
    return Image.fromarray(np.rint(values / high * 255).astype(np.uint8))


def with_channels(images: Pixels, channels: int) -> Pixels:
    """Images (..., H, W, C) with so many channels: grey is repeated, colours become their luma (Rec. 601)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    luma: Pixels = np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return luma[..., None]


def read_images(paths: Sequence[Path], channels: int, size: int = IMAGE_SIZE) -> Pixels:
    """Image files as (N, size, size, channels), decoded as training images are.

    Raises:
        InputError: a file is missing or is no image.
    """
    rows = []
    for path in paths:
        try:
            with quiet_pillow():
                rows.append(with_channels(decode(path, size=size)[None], channels))
        except ValueError as error:
            reason = "is no file" if not path.is_file() else f"cannot be read as an image: {error}"
            raise InputError("IMAGE", str(path), reason) from None
    return np.concatenate(rows)
