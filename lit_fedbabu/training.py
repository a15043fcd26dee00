"""The only place that builds a Lightning Trainer: fit, evaluate, personalize, save."""

import dataclasses
import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import registry
from torch import Tensor

from lit_fedbabu import runs
from lit_fedbabu.batches import ClientData
from lit_fedbabu.cohort import CohortData, LitCohort
from lit_fedbabu.config import Config
from lit_fedbabu.module import LitFedBABU
from lit_fedbabu.preflight import resolve_precision

# A Trainer is built for every client and round: its greetings and advice are silenced here, once.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
# Each Trainer would read the metadata of every installed package anew: that is most of what making one costs.
registry.entry_points = lru_cache(registry.entry_points)


AUTOMATIC_COHORT = 10
"""Clients trained together on a GPU where the configuration leaves it open: a round of the reference experiment."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """On a client's test images, of which there are ``count``.

    Args:
        loss: cross-entropy in nats.
        accuracy: 0 to 1.
        calibration_error: expected calibration error (Guo et al. 2017, Eq. 3) over 15 bins, 0 to 1.
        count: of the images.
    """

    loss: float
    accuracy: float
    calibration_error: float
    count: int


@dataclasses.dataclass(frozen=True)
class Reach:
    """What a client's model knows beyond its own test images and its own head; accuracies from 0 to 1.

    Args:
        template_accuracy: on the client's test images without the head: the class whose mean feature over the client's
            training images is nearest by Euclidean distance (the paper's "without
            classifier").
        other_classes_accuracy: on test images of the classes that the client has no training image of; nan if it has
            all classes.
    """

    template_accuracy: float
    other_classes_accuracy: float


@dataclasses.dataclass(frozen=True)
class Personal:
    """A client's model while it is fine-tuned on its own data: evaluated before, and after every epoch."""

    curve: tuple[Evaluation, ...]
    reach: tuple[Reach, Reach]
    """Before and after."""

    @property
    def initial(self) -> Evaluation:
        """Of the model as received."""
        return self.curve[0]

    @property
    def personalized(self) -> Evaluation:
        """Of the model after the last epoch."""
        return self.curve[-1]

    def as_row(self) -> dict[str, float]:
        """As a client's entry in results.json, without the client's number."""
        row = {"num_test": self.initial.count}
        for kind in ("accuracy", "loss", "calibration_error"):
            row |= {f"{name}_{kind}": getattr(getattr(self, name), kind) for name in runs.KINDS}
        for kind in ("template_accuracy", "other_classes_accuracy"):
            row |= {f"{name}_{kind}": getattr(reach, kind) for name, reach in zip(runs.KINDS, self.reach)}
        return row | {f"accuracy_epoch_{epoch}": evaluation.accuracy for epoch, evaluation in enumerate(self.curve)}


def cohort_size(config: Config) -> int:
    """How many clients are trained together on this machine."""
    return config.cohort_size or (AUTOMATIC_COHORT if torch.cuda.is_available() else 1)


def cohorts(config: Config, clients: Sequence[int]) -> list[list[int]]:
    """The clients, in their order, as those that are trained together."""
    size = cohort_size(config)
    return [list(clients[first : first + size]) for first in range(0, len(clients), size)]


def new_module(config: Config, num_classes: int, model_seed: int, channels: int = 3) -> LitFedBABU:
    """The module with its initial weights, not yet told what to train."""
    return LitFedBABU(
        model_name=config.model_name,
        num_classes=num_classes,
        norm=config.norm,
        channels=channels,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        model_seed=model_seed,
        dtype="float64" if config.precision == "64-true" else "float32",
    )


def fit(
    modules: Sequence[LitFedBABU],
    data: Sequence[ClientData],
    *,
    mode: str,
    epochs: int,
    learning_rate: float,
    curves: Sequence[list[Evaluation]] = (),
    callbacks: Sequence[L.Callback] = (),
) -> list[float]:
    """Train a part of every module in place, with a fresh optimizer; several are trained together, as a cohort.

    Args:
        modules: what to train, one for each client.
        data: the clients' images.
        mode: "body", "head" or "full".
        epochs: over each client's training images.
        learning_rate: of SGD.
        curves: take an evaluation on the client's test images after every epoch; none evaluate nothing.
        callbacks: Lightning's, as of ``steps.STEPS``; they see weights as ``cohort.stacked`` gives them.

    Returns:
        For every client the mean training loss over all images seen, in nats; nan if there was no epoch.
    """
    for module in modules:
        module.train_loss.reset()
    module, datamodule = _together(modules, data)
    module.set_mode(mode)
    module.hparams.learning_rate = learning_rate
    if epochs == 0:
        return [float("nan")] * len(modules)
    watch = [_Curves(curves)] if curves else []
    trainer = _trainer(
        datamodule.config,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if watch else 0,
        callbacks=[*callbacks, *watch],
    )
    trainer.fit(module, datamodule=datamodule)
    if isinstance(module, LitCohort):
        module.hand_out()
    return [module.train_loss.compute().item() for module in modules]


def evaluate(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[Evaluation]:
    """Loss and accuracy of every module on its client's test images."""
    module, datamodule = _together(modules, data)
    _trainer(datamodule.config).test(module, datamodule=datamodule, verbose=False)
    return _evaluations(module, datamodule)


def personalize(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[Personal]:
    """Fine-tune the modules in place as the data's configuration says; evaluate before and after every epoch."""
    config = data[0].config
    curves = [[evaluation] for evaluation in evaluate(modules, data)]
    before = reach(modules, data)
    fit(
        modules,
        data,
        mode=config.finetune_part,
        epochs=config.num_finetune_epochs,
        learning_rate=config.finetune_learning_rate,
        curves=curves,
    )
    after = reach(modules, data)
    return [Personal(tuple(curve), reaches) for curve, reaches in zip(curves, zip(before, after))]


def predictions(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[list[list[Tensor]]]:
    """Of every client features (N, F), logits (N, num_classes) and labels (N,) of its training images, its test images
    and its ``others``."""
    module, datamodule = _together(modules, data)
    predicted = _trainer(datamodule.config).predict(module, datamodule=datamodule)
    if isinstance(module, LitCohort):
        everyone = [_of_client(client, predicted) for client in range(len(modules))]
    else:
        everyone = [predicted]
    return [[[torch.cat(values) for values in zip(*batches, strict=True)] for batches in own] for own in everyone]


def _of_client(client: int, predicted: Sequence[Sequence[Mapping[int, tuple]]]) -> list[list[tuple]]:
    own = [[batch[client] for batch in batches if client in batch] for batches in predicted]
    return [batches for batches in own if batches]


def reach(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[Reach]:
    """Accuracy of every module without its head, and on classes that its client does not have."""
    return [_reach(predicted) for predicted in predictions(modules, data)]


def _reach(predicted: list[list[Tensor]]) -> Reach:
    (features, _, labels), (test_features, _, test_labels), *others = predicted
    classes = labels.unique()
    templates = torch.stack([features[labels == label].mean(0) for label in classes])
    nearest = classes[torch.cdist(test_features, templates).argmin(1)]
    other = [_share_equal(logits.argmax(1), foreign) for _, logits, foreign in others]
    return Reach(_share_equal(nearest, test_labels), *(other or [math.nan]))


def with_running_statistics(module: LitFedBABU, data: ClientData) -> LitFedBABU:
    """A copy whose batch norm no longer looks at the batch, but uses the statistics of the client's training images.

    They are taken from the images as they are, without augmentation.
    """
    fixed = LitFedBABU(**{**module.hparams, "norm": "batch-running"})
    fixed.about = module.about
    fixed.model.load_state_dict(module.model.state_dict(), strict=False)
    _trainer(data.config, callbacks=[_Estimation()]).predict(fixed, datamodule=data)
    return fixed


def save_checkpoint(module: LitFedBABU, path: Path) -> None:
    """Write a Lightning checkpoint, whole or not at all; ``LitFedBABU.load_from_checkpoint(path)`` reads it."""
    trainer = _trainer(Config(precision="64-true" if module.hparams.dtype == "float64" else "32-true"))
    trainer.strategy.connect(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    trainer.save_checkpoint(scratch, weights_only=True)
    os.replace(scratch, path)


class _Estimation(L.Callback):
    """Lets batch norm take its running statistics from the training images, as plain means over their batches."""

    def on_predict_batch_start(
        self, trainer: L.Trainer, module: LitFedBABU, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1 / (batch_idx + 1)
                layer.train(dataloader_idx == 0)  # the training images come first


class _Curves(L.Callback):
    """Notes an evaluation of every client after every epoch."""

    def __init__(self, curves: Sequence[list[Evaluation]]) -> None:
        self.curves = curves

    def on_validation_epoch_end(self, trainer: L.Trainer, module: LitFedBABU) -> None:
        for curve, evaluation in zip(self.curves, _evaluations(module, trainer.datamodule), strict=True):
            curve.append(evaluation)


def _together(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> tuple[LitFedBABU, ClientData | CohortData]:
    return (modules[0], data[0]) if len(modules) == 1 else (LitCohort.of(modules), CohortData(data))


def _share_equal(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()


def _evaluations(module: LitFedBABU, data: ClientData | CohortData) -> list[Evaluation]:
    return [_evaluation(*pair) for pair in zip(module.members, data.members, strict=True)]


def _evaluation(module: LitFedBABU, data: ClientData) -> Evaluation:
    """What the module's metrics say of the test images since the last time."""
    count = len(data.test_set)
    hits = round(module.test_accuracy.compute().item() * count)  # the metric divides in float32
    loss, calibration_error = module.test_loss.compute().item(), module.test_calibration_error.compute().item()
    for metric in (module.test_loss, module.test_accuracy, module.test_calibration_error):
        metric.reset()
    return Evaluation(loss, hits / count, calibration_error, count)


def _trainer(config: Config, **options: Any) -> L.Trainer:
    torch.set_num_threads(config.num_threads)
    return L.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=resolve_precision(config.precision),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
