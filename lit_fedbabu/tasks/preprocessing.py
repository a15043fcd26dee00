"""How images become what models take. Light to import: it leaves Lightning out."""

from lit_fedbabu.tasks.images.decoding import Pixels, read_images, to_array, with_channels
from lit_fedbabu.tasks.images.inputs import Named, read_named
from lit_fedbabu.tasks.images.saved import size_of
from lit_fedbabu.tasks.images.transforms import normalize

__all__ = [
    "Named", "Pixels", "normalize", "read_images", "read_named", "size_of", "to_array", "with_channels",
]  # fmt: skip
