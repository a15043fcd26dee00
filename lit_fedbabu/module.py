"""LitFedBABU: a LightningModule that trains one part of its model and leaves the rest bitwise alone."""

import json
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lit_fedbabu.models import PARTS, build_model, parts_of


class LitFedBABU(L.LightningModule):
    """A model of body and head with the modes "body", "head" and "full".

    What the mode does not name has ``requires_grad=False`` and is not in the optimizer, so neither
    gradients nor weight decay nor momentum can move it (paper, Sec. 4: the head stays as it was born).

    Args:
        model_name: a name of ``models.MODELS``.
        num_classes: outputs of the head.
        norm: a name of ``models.NORMS``.
        channels: of the images.
        mode: "body", "head" or "full": what trains.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        model_seed: the seed of the initial weights, which are drawn in float32.
        dtype: "float32" or "float64": of the weights.
    """

    about: dict[str, Any]
    """Where these weights come from (configuration, round, client); travels in checkpoints."""

    def __init__(
        self,
        model_name: str = "FourConvNet",
        num_classes: int = 10,
        norm: str = "batch",
        channels: int = 3,
        mode: str = "body",
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        model_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.about = {}
        initial = build_model(model_name, num_classes, model_seed, norm, channels)
        self.model = initial.to(getattr(torch, dtype), memory_format=torch.channels_last)
        self.train_loss = MeanMetric()
        self.test_loss = MeanMetric()
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_calibration_error = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
        self.set_mode(mode)

    @property
    def members(self) -> Sequence["LitFedBABU"]:
        """The modules that this one is: itself, as opposed to a cohort."""
        return [self]

    @property
    def weights_dtype(self) -> torch.dtype:
        """Of the weights, in which everything outside mixed precision is computed."""
        return getattr(torch, self.hparams.dtype)

    def set_mode(self, mode: str) -> None:
        """Choose what trains: "body", "head" or "full"."""
        self.hparams.mode = mode
        for part in PARTS:
            getattr(self.model, part).requires_grad_(part in parts_of(mode))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, channels, 32, 32)."""
        return self.model(images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD over what trains. Its momentum lives as long as one ``Trainer.fit``: one round."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.optim.SGD(
            trained,
            lr=self.hparams.learning_rate,
            momentum=self.hparams.momentum,
            weight_decay=self.hparams.weight_decay,
        )

    def on_fit_start(self) -> None:
        for metric in (self.train_loss, self.test_loss):  # on its way to the device a metric forgets its dtype
            metric.set_dtype(self.weights_dtype)

    on_test_start = on_fit_start

    def on_train_epoch_start(self) -> None:
        """What does not train keeps its running statistics, if it has any, as it keeps its weights."""
        for part in PARTS:
            getattr(self.model, part).train(part in parts_of(self.hparams.mode))

    def on_fit_end(self) -> None:
        self.train()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.train_loss.update(loss.detach(), weight=len(labels))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.observe(self(images), labels)

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (N, num_classes) of test images in; they are measured in the weights' own precision."""
        logits = logits.to(self.weights_dtype)
        self.test_loss.update(functional.cross_entropy(logits, labels), weight=len(labels))
        self.test_accuracy.update(logits, labels)
        self.test_calibration_error.update(logits, labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, ...]:
        """Features (N, F) of the body, logits (N, num_classes) and labels (N,), in the weights' own precision."""
        images, labels = batch
        features = self.model.body(images)
        return features.flatten(1).to(self.weights_dtype), self.model.head(features).to(self.weights_dtype), labels

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Pickle writes an object that it has seen as a reference: copied, equal contents make equal bytes.
        checkpoint["lit_fedbabu"] = json.loads(json.dumps(self.about))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.about = checkpoint.get("lit_fedbabu", {})
