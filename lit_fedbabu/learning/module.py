"""LitFedBABU: a LightningModule that trains one part of its model and leaves the rest bitwise unchanged."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lit_fedbabu.learning.assembly import classifier
from lit_fedbabu.learning.base import copied, put_under, still
from lit_fedbabu.learning.client_trainer import ClientTrainer
from lit_fedbabu.learning.losses import Batch, Loss
from lit_fedbabu.learning.parts import PARTS, parts_of
from lit_fedbabu.learning.private_steps import AT_ONCE, PrivateSteps
from lit_fedbabu.learning.state import base_names, base_of, load_state, places_of, state_of


class PartModule(L.LightningModule):
    """A ``model`` of body and head, of which the mode "body", "head" or "full" says what trains.

    What the mode does not name has ``requires_grad=False`` and is not in the optimizer. So neither gradients nor
    weight decay nor momentum can move it (the paper's Algorithm 1: the head stays as it was initialized).
    """

    model: nn.Module
    frozen: frozenset[str] = frozenset()
    """Weights that the model's own maker has frozen: they never train."""

    @property
    def members(self) -> Sequence["LitFedBABU"]:
        """The clients' modules that are trained here: one, or those of a cohort."""
        raise NotImplementedError

    @property
    def weights_dtype(self) -> torch.dtype:
        """The type of the weights. Measures are computed in it, also under mixed precision."""
        dtype: torch.dtype = getattr(torch, self.hparams["dtype"])
        return dtype

    def set_mode(self, mode: str) -> None:
        """Choose what trains: "body", "head", "full", or a module or weight of these, as in "head.projection"."""
        self.hparams["mode"] = mode
        trained = parts_of(mode)
        for name, weight in self.model.named_parameters():
            inside = f"{name}.".startswith(tuple(f"{part}." for part in trained))
            weight.requires_grad_(inside and (name not in self.frozen or name == mode))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over what trains. Its momentum lives as long as one ``Trainer.fit``: one round."""
        losses = [each.loss for each in self.members if isinstance(each.loss, nn.Module)]
        trained = [weight for each in (self.model, *losses) for weight in each.parameters() if weight.requires_grad]
        options = {name: self.hparams[name] for name in ("momentum", "weight_decay")}
        return torch.optim.SGD(trained, lr=self.hparams["learning_rate"], **options)

    def on_train_epoch_start(self) -> None:
        """Keep running statistics of what does not train as they are."""
        for part in PARTS:
            self.model.get_submodule(part).train(part in parts_of(self.hparams["mode"]))
        still(self.model, base_names(self.model))

    def on_fit_end(self) -> None:
        self.train()
        still(self.model, base_names(self.model))

    def in_weights_dtype(self, features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions in the type of the weights, for mixed precision leaves them in its own."""
        return features.to(self.weights_dtype), logits.to(self.weights_dtype), labels


class LitFedBABU(PartModule):
    """A classifier of body and head, with losses and accuracies.

    Under a Trainer of the user's it logs ``train_loss``, ``val_loss``, ``val_accuracy``, ``test_loss`` and
    ``test_accuracy`` (0 to 1), so that ModelCheckpoint, EarlyStopping and loggers work.

    Args:
        model_name: a name of ``models.MODELS``, ``timm:NAME``, or the import path of your own.
        num_classes: outputs of the head.
        norm: a name of ``models.NORMS``.
        channels: of the images.
        mode: "body", "head" or "full": what trains.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        model_seed: seed of the initial weights, which are drawn in float32.
        dtype: "float32" or "float64": of the weights.
        image_size: height and width of the images in pixels.
        head: "etf" for a frame of classes, as of ``simplex.SimplexHead``; empty: the model's own.
        trainable: what of the body trains, as of ``trainable.restrict``.
        neighbors: of kNN-Per k, the number of stored features, and of numbers in each; empty: none vote.
    """

    provenance: dict[str, Any]
    """Where these weights come from, and what images and outputs mean. It travels in checkpoints."""
    loss: Loss | None
    """What is trained on in place of the cross-entropy, as long as one ``Trainer.fit``."""
    steps: PrivateSteps | None
    """What makes the gradients of one ``Trainer.fit`` with noise, of those of single images; None: Lightning does."""

    def __init__(  # noqa: PLR0913 - each is a hyper-parameter
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
        image_size: int = 32,
        head: str = "",
        trainable: str = "all",
        neighbors: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.provenance = {}
        self.loss = self.steps = None
        self.model = classifier(self.hparams)
        self.frozen = frozenset(name for name, weight in self.model.named_parameters() if not weight.requires_grad)
        nan = float("nan")
        self.train_loss = MeanMetric(nan_strategy=nan)  # a loss that is not a number stays one
        self.test_loss = MeanMetric(nan_strategy=nan)
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_calibration_error = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
        self.set_mode(mode)

    @property
    def members(self) -> Sequence["LitFedBABU"]:
        return [self]

    @property
    def backbone(self) -> nn.Module:
        """The body, under the name that Lightning's BackboneFinetuning looks for."""
        return self.model.get_submodule("body")

    @property
    def _is_listened_to(self) -> bool:
        return not isinstance(self.trainer, ClientTrainer)

    @property
    def base(self) -> dict[str, Tensor]:
        """What the model's maker froze."""
        return base_of(self.model)

    def copy(self) -> "LitFedBABU":
        """Another one with the same weights, of which those of the base are shared."""
        return copied(self, self.base.values())

    @property
    def named(self) -> nn.Module:
        """The model of body and head."""
        return self.model

    @property
    def own_rate(self) -> float:
        """None: the run says at which rate it trains."""
        return 0.0

    @property
    def rest(self) -> dict[str, Tensor]:
        """What it has in neither part: nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Lay a state of body and head, or some of it, over its own; raises ValueError where it is of another model."""
        load_state(self.model, {**state_of(self.model), **state})

    @contextmanager
    def with_provenance(self) -> Iterator[L.LightningModule]:
        """What a checkpoint is written of: this module, which adds its provenance itself."""
        yield self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, channels, image_size, image_size)."""
        logits: Tensor = self.model(images)
        return logits

    def on_fit_start(self) -> None:
        for metric in (self.train_loss, self.test_loss):  # a metric loses its type when it is moved to the device
            metric.set_dtype(self.weights_dtype)

    def on_test_start(self) -> None:
        self.on_fit_start()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.steps is not None:
            return self._private_step(self.steps, images, labels)
        if self.loss is None:
            loss = functional.cross_entropy(self(images), labels)
        else:
            features = self.model.get_submodule("body")(images)
            loss = self.loss(Batch(images, features, self.model.get_submodule("head")(features), labels))
        self.train_loss.update(loss.detach(), weight=len(labels))
        if self._is_listened_to:
            self.log("train_loss", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def _private_step(self, steps: PrivateSteps, images: Tensor, labels: Tensor) -> Tensor:
        """Give clipped gradients of all images; returns a loss that no weight has a gradient of."""
        numbers = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        size, losses = max(1, AT_ONCE // max(numbers, 1)), [torch.zeros(0, device=images.device)]
        for some in range(0, len(labels), size):
            own, gradients = self.by_image(images[some : some + size], labels[some : some + size])
            losses.append(own)
            steps.add(gradients)
        total = torch.cat(losses).sum()
        if len(labels):
            self.train_loss.update(total / len(labels), weight=len(labels))
        return total.requires_grad_()

    def by_image(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy (N,) of each image, and its gradient (N, ...) by weights that train, as a batch of one."""
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        places = {place: name for place, name in places_of(self.model).items() if name in trained}

        def loss_of(own: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            held = {place: own[name] for place, name in places.items()}
            logits = functional_call(self.model, held, (image[None],), tie_weights=False)
            return functional.cross_entropy(logits, label[None])

        each = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different")
        gradients, losses = each({name: weight.detach() for name, weight in trained.items()}, images, labels)
        return losses, gradients

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._observed(batch, "test")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._observed(batch, "val")

    def _observed(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        self.observe(logits, labels)
        if self._is_listened_to:
            logits = logits.to(self.weights_dtype)
            accuracy = (logits.argmax(1) == labels).to(self.weights_dtype).mean()
            loss = functional.cross_entropy(logits, labels)
            self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}, batch_size=len(labels))

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, num_classes) and labels (N,) of test images to the measures."""
        logits = logits.to(self.weights_dtype)
        self.test_loss.update(functional.cross_entropy(logits, labels), weight=len(labels))
        self.test_accuracy.update(logits, labels)
        self.test_calibration_error.update(logits, labels)

    def predict_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, F) of the body, logits (N, num_classes) and labels (N,)."""
        images, labels = batch
        features = self.model.get_submodule("body")(images)
        return self.in_weights_dtype(features.flatten(1), self.model.get_submodule("head")(features), labels)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in base_names(self.model):
            del checkpoint["state_dict"][f"model.{name}"]
        # Pickle writes an object that it has seen before as a reference. Copied, equal contents make equal bytes.
        checkpoint["lit_fedbabu"] = json.loads(json.dumps(self.provenance))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.provenance = checkpoint.get("lit_fedbabu", {})
        whole = self.model.state_dict()
        if lacking := {name for name in base_names(self.model) if f"model.{name}" not in checkpoint["state_dict"]}:
            put_under(self.model, self.base, self.provenance)
            checkpoint["state_dict"] |= {f"model.{name}": whole[name] for name in lacking}
