"""A saved model that takes images as people have them: any size, files or arrays."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # public, and not in __all__
from PIL import Image
from torch import Tensor, nn

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import write_whole
from lit_fedbabu.learning import checkpoint, pretrained, reach
from lit_fedbabu.learning.checkpoint import Checkpoint
from lit_fedbabu.learning.models import by_batch
from lit_fedbabu.records import model_card
from lit_fedbabu.tasks.preprocessing import Pixels, normalize, read_images, size_of, to_array, with_channels

FILES = [pretrained.CONFIG, pretrained.WEIGHTS, model_card.NAME]
"""Of a saved model."""
ImageLike = Image.Image | Pixels | str | Path
"""An image of PIL, an array (H, W), (H, W, 1) or (H, W, 3) of uint8, or the path of an image file."""


class Classifier(nn.Module, ModelHubMixin):
    """A saved model with its preprocessing, in evaluation mode.

    As of ``huggingface_hub.ModelHubMixin`` it has ``save_pretrained(folder)``, ``from_pretrained(folder or hub name)``
    and ``push_to_hub(name)``. Such a folder is what ``finetune --data --save`` writes, and ``load_model`` reads it too.

    Args:
        saved: what a checkpoint holds.
    """

    def __init__(self, saved: Checkpoint) -> None:
        super().__init__()
        if not saved.of.by_options:
            remedy = f"is of the task {saved.task}; load_module gives its LightningModule"
            raise InputError("checkpoint", str(saved.path), remedy)
        self._saved = saved
        self.model = saved.build()
        self.provenance = saved.provenance
        self.class_names: tuple[str, ...] = tuple(saved.provenance["class_names"])
        self.normalizes_by_batch = bool(by_batch(self.model))
        self.kind = saved.kind
        self.image_size = size_of(saved.hyper_parameters)
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
        """Probabilities (N, num_classes) of images of any size.

        Batches have at most as many images as those of test images in training (``test-batch-size``, 1000 by default).

        Raises:
            InputError: a file cannot be read as an image, or one is given alone and the model normalizes by the batch.
        """
        return self.probabilities_of([self._pixels(image) for image in images])

    def probabilities_of(self, images: Sequence[Pixels]) -> Tensor:
        """The same of images (H, W, C) of uint8, of the size and the channels that the model takes."""
        size = self.provenance["config"].get("test-batch-size")
        if type(size) is not int or size < 1:
            raise InputError("checkpoint", str(self._saved.path), f"has test-batch-size = {size!r}; it is 1 or more")
        if self.normalizes_by_batch and len(images) == 1:
            remedy = "one image alone, and this model normalizes by the batch: a prediction would mean nothing; give it"
            raise InputError("images", 1, f"{remedy} with others, or take a model that finetune has saved")
        count = math.ceil(len(images) / size)
        return torch.cat([self._of_batch(batch) for batch in np.array_split(np.stack(images), count)])

    def _of_batch(self, images: Pixels) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        with torch.inference_mode():
            batch = normalize(torch.from_numpy(images), self.provenance["mean"], self.provenance["std"], dtype)
            probabilities: Tensor = self.model(batch).softmax(1)
            return probabilities

    def predict(self, images: Sequence[ImageLike]) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[index] for index in self.probabilities(images).argmax(1).tolist()]

    def _save_pretrained(self, save_directory: Path) -> None:
        saved, card = self._saved, self._saved.path / model_card.NAME
        text = card.read_text() if card.is_file() else str(self._card(save_directory.name))
        pretrained.write(save_directory, saved.provenance, saved.hyper_parameters, self.model.state_dict())
        write_whole(save_directory / model_card.NAME, text)

    def generate_model_card(self, *_: object, **__: object) -> ModelCard:
        """The card of this model, without results."""
        return self._card(".")

    def _card(self, path: str) -> ModelCard:
        titles = {"federation": "The model of a federation", "personal": "A personal model of a federation's client"}
        title = titles.get(self.kind) or f"A personal model for {Path(self.provenance.get('data', '')).name}"
        return model_card.card(title, self.provenance, None, path)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A model from a folder, or from the Hugging Face hub by its name; without the hub from its cache.

        Args:
            pretrained_model_name_or_path: the folder, or a name as ``owner/name``.
            options: as of ``huggingface_hub.ModelHubMixin``, and ``trusted_model`` as of ``load_model``.

        Raises:
            InputError: there is no such folder or name, the hub cannot be reached, or the model cannot be read.
        """
        name = str(pretrained_model_name_or_path)
        if name and Path(name).is_dir():
            return super().from_pretrained(name, **options)
        try:
            validate_repo_id(name)
        except HFValidationError:
            remedy = "is no folder, and no name on the Hugging Face hub, as owner/name"
            raise InputError("model", name, remedy) from None
        cached = options.pop("local_files_only", False) or not reach.answers()
        try:
            with reach.offline(cached):
                return super().from_pretrained(name, local_files_only=cached, **options)
        except OSError as error:  # all that the hub's library raises where it has no such model
            reason = f"the Hugging Face hub has no such model: {' '.join(str(error).split())[:200]}"
            if cached:
                reason = "is no folder; the Hugging Face hub cannot be reached, and the model is not in its cache"
            raise InputError("model", name, f"{reason}; give the folder of a saved model") from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        trusted_model: str = "",
        **unknown: Any,
    ) -> Self:
        if unknown:
            raise TypeError(f"from_pretrained has no argument {', '.join(unknown)}")
        folder = Path(model_id)
        if not folder.is_dir():
            options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download}
            options |= {"local_files_only": local_files_only, "token": token}
            folder = Path(snapshot_download(model_id, allow_patterns=FILES, **options))
        return cls(checkpoint.read(folder, trusted_model))

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
        path: of a saved model's folder or of a checkpoint, as of ``finetune`` with ``save``.
        trusted_model: the import path of a model of your own that the checkpoint may import.

    Raises:
        InputError: the file is damaged, not a checkpoint of this package, or names a model that is code.
    """
    return Classifier(checkpoint.read(Path(path), trusted_model))
