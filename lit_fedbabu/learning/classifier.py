"""A saved model that takes images as people have them: any size, files or arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lit_fedbabu.errors import InputError
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.learning.checkpoint import Checkpoint
from lit_fedbabu.tasks.preprocessing import Pixels, normalize, read_images, to_array, with_channels

ImageLike = Image.Image | Pixels | str | Path
"""An image of PIL, an array (H, W), (H, W, 1) or (H, W, 3) of uint8, or the path of an image file."""


class Classifier(nn.Module):
    """A saved model with its preprocessing, in evaluation mode.

    Args:
        saved: what a checkpoint holds.
    """

    def __init__(self, saved: Checkpoint) -> None:
        super().__init__()
        if saved.task:
            remedy = f"is of the task {saved.task}; load it with load_from_checkpoint of its own LightningModule"
            raise InputError("checkpoint", str(saved.path), remedy)
        self.model = saved.build()
        self.provenance = saved.provenance
        self.class_names: tuple[str, ...] = tuple(saved.provenance["class_names"])
        self.normalizes_by_batch: bool = saved.hyper_parameters["norm"] == "batch"
        self.kind = saved.kind
        self.image_size = saved.image_size
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(saved.provenance[name], dtype=torch.float32)[:, None, None])
        self.eval()

    @property
    def channels(self) -> int:
        """Channels of the images that the model takes: 1 or 3."""
        return len(self.provenance["mean"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, S, S) in 0..1, S being ``image_size``, which are normalized here."""
        logits: Tensor = self.model((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits

    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Probabilities (N, num_classes) of images of any size, all of them in one batch.

        Raises:
            InputError: a file cannot be read as an image.
        """
        return self.probabilities_of_pixels(np.stack([self._pixels(image) for image in images]))

    def probabilities_of_pixels(self, images: Pixels) -> Tensor:
        """Probabilities (N, num_classes) of images (N, S, S, C) of uint8, all of them in one batch."""
        dtype = next(self.model.parameters()).dtype
        with torch.inference_mode():
            batch = normalize(torch.from_numpy(images), self.provenance["mean"], self.provenance["std"], dtype)
            probabilities: Tensor = self.model(batch).softmax(1)
            return probabilities

    def predict(self, images: Sequence[ImageLike]) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[index] for index in self.probabilities(images).argmax(1).tolist()]

    def _pixels(self, image: ImageLike) -> Pixels:
        if isinstance(image, str | Path):
            read: Pixels = read_images([Path(image)], self.channels, self.image_size)[0]
            return read
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image)
        pixels: Pixels = with_channels(to_array(image, self.image_size)[None], self.channels)[0]
        return pixels


def load_model(path: str | Path, trusted_model: str = "") -> Classifier:
    """A saved model, ready to predict.

    Args:
        path: of a checkpoint, as of ``finetune`` with ``save``.
        trusted_model: the import path of a model of your own that the checkpoint may import.

    Raises:
        InputError: the file is damaged, not a checkpoint of this package, or names a model that is code.
    """
    return Classifier(checkpoint.read(Path(path), trusted_model))
