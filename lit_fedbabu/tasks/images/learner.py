"""Classifiers of images: trained, evaluated and made personal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.base import moved
from lit_fedbabu.learning.cohort import LitCohort
from lit_fedbabu.learning.evaluation import Evaluation, FeatureProbe, Personalization
from lit_fedbabu.learning.losses import Loss
from lit_fedbabu.learning.models import by_batch
from lit_fedbabu.learning.module import LitFedBABU, PartModule
from lit_fedbabu.learning.neighbors import best_share, store, with_neighbors
from lit_fedbabu.learning.private_steps import PrivateSteps
from lit_fedbabu.learning.state import not_finite
from lit_fedbabu.learning.trainer import new_trainer
from lit_fedbabu.tasks.images.cohort_data import CohortData
from lit_fedbabu.tasks.images.datamodule import ClientData
from lit_fedbabu.tasks.images.measures import Predicted, feature_probe

NAN = float("nan")
Say = Callable[[Sequence[Evaluation]], None]
"""Is told of the evaluations of a module: before training, and after every epoch until now."""


def fit(
    modules: Sequence[LitFedBABU],
    data: Sequence[ClientData],
    *,
    mode: str,
    epochs: float,
    learning_rate: float,
    steps: int = 0,
    curves: Sequence[list[Evaluation]] = (),
    callbacks: Sequence[L.Callback] = (),
    losses: Sequence[Loss] = (),
    private: bool = False,
    say: Say = lambda _: None,
) -> list[float]:
    """Train a part of every module in place, with a fresh optimizer; arguments and losses (nats) as of ``AnyTask.fit``.

    Callbacks see weights as ``cohort.stack`` gives them. Of ``curves``, where there are any, each client's gets an
    evaluation after every epoch, and ``say`` is told of the first.
    """
    for each in modules:
        each.train_loss.reset()
    module, datamodule = _together(modules, data)
    module.set_mode(mode)
    module.hparams["learning_rate"] = learning_rate
    if epochs == steps == 0:
        return [NAN] * len(modules)
    for each, loss in zip(modules if losses else (), losses, strict=True):
        each.loss = loss
    watch = [_Curves(curves, datamodule, say)] if curves else []
    max_epochs = datamodule.allow(epochs, steps)
    trainer = new_trainer(
        datamodule.config,
        max_epochs=max_epochs,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if watch else 0,
        callbacks=[*_private(modules[0], data[0], private), *callbacks, *watch],
    )
    moved(modules[0].model)  # notes how the base is
    trainer.fit(module, datamodule=datamodule)
    _private(modules[0], data[0], False)
    if name := moved(modules[0].model):
        remedy = "is frozen by its maker and changes in training; make it a buffer of a layer that trains"
        raise InputError("model-name", modules[0].hparams["model_name"], f"its {name} {remedy}")
    for each in modules if losses else ():
        del each.loss  # and no None in the place of a module
        each.loss = None
    if isinstance(module, LitCohort):
        module.unstack()
    return [each.train_loss.compute().item() if each.train_loss.update_called else NAN for each in modules]


def _private(module: LitFedBABU, data: ClientData, on: bool) -> list[L.Callback]:
    """Let a fit take steps of DP-SGD, by this callback, or plain ones again."""
    config, module.steps, data.poisson = data.config, None, on
    if not on:
        return []
    size = min(config.batch_size, data.num_train)
    module.steps = PrivateSteps(config.clipping_norm, config.noise_multiplier, size, int(data.left))
    return [module.steps]


def evaluate(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[Evaluation]:
    """Loss, accuracy and calibration error of every module on its client's test images."""
    module, datamodule = _together(modules, data)
    new_trainer(datamodule.config).test(module, datamodule=datamodule, verbose=False)
    return _evaluations(module, datamodule)


def personalize(
    modules: Sequence[LitFedBABU],
    data: Sequence[ClientData],
    *,
    part: str,
    epochs: int,
    learning_rate: float,
    losses: Sequence[Loss] = (),
    turns: Sequence[tuple[str, int, float]] = (),
    say: Say = lambda _: None,
) -> list[Personalization]:
    """Fine-tune a part of the modules in place; evaluate before, and after every epoch.

    ``say`` is told of the first module before training and after every epoch, as soon as it is known. ``losses`` and
    ``turns`` are as of ``AnyTask.personalize``.
    """
    curves = [[evaluation] for evaluation in evaluate(modules, data)]
    say(curves[0])
    before = probe(modules, data)
    fit(
        modules, data, mode=part, epochs=epochs, learning_rate=learning_rate, curves=curves, losses=losses, say=say
    )  # fmt: skip
    for named, length, rate in turns:
        fit(modules, data, mode=named, epochs=length, learning_rate=rate)
    if turns:
        for curve, evaluation in zip(curves, evaluate(modules, data), strict=True):
            curve.append(evaluation)
        say(curves[0])
    after = probe(modules, data)
    return [_course(*each) for each in zip(modules, curves, before, after, strict=True)]


def vote(
    modules: Sequence[LitFedBABU],
    data: Sequence[ClientData],
    neighbors: int,
    weight: float,
    say: Say = lambda _: None,
) -> list[Personalization]:
    """Let the nearest training images vote beside each module, which is changed in place, one after the other.

    Arguments as of ``Classifies.vote``. ``say`` is told of the first module.
    """
    found = []
    for module, own in zip(modules, data, strict=True):
        curve = evaluate([module], [own])
        (before,) = predictions([module], [own])
        features, logits, labels = before[0]
        share = weight
        if weight < 0:
            share = best_share(features, logits, labels, neighbors, own.config.derived_seed("neighbors", own.client))
        module.hparams["neighbors"] = [neighbors, *features.shape]
        with_neighbors(module.model, module.hparams["neighbors"])
        store(module.model, features, labels, share)
        curve += evaluate([module], [own])
        found.append(_course(module, curve, feature_probe(before), *probe([module], [own])))
        for known in (1, 2) if module is modules[0] else ():
            say(curve[:known])
    return found


def _course(module: LitFedBABU, curve: list[Evaluation], before: FeatureProbe, after: FeatureProbe) -> Personalization:
    """The course of a module's fine-tuning; what is measured of a model that is not finite means nothing."""
    if not_finite(module.model.state_dict()):
        curve[-1], after = Evaluation(NAN, NAN, NAN, curve[-1].count), FeatureProbe(NAN, NAN, NAN, NAN)
    return Personalization(tuple(curve), (before, after))


def predictions(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[list[Predicted]]:
    """For every client, what its module predicts of its training images, its test images and its ``others``."""
    module, datamodule = _together(modules, data)
    predicted = cast(list[list[Any]], new_trainer(datamodule.config).predict(module, datamodule=datamodule))
    if isinstance(module, LitCohort):
        everyone = [_of_client(client, predicted) for client in range(len(modules))]
    else:
        everyone = [predicted]
    return [[_joined(batches) for batches in own] for own in everyone]


def probe(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> list[FeatureProbe]:
    """Accuracy of every module without its head, and on classes that its client does not have."""
    return [feature_probe(predicted) for predicted in predictions(modules, data)]


def features(module: LitFedBABU, data: ClientData) -> tuple[Tensor, Tensor]:
    """What a body makes of all test images as one batch (N, F), and their classes (N,)."""
    images, labels = data.test_set.tensors
    with torch.inference_mode():  # one batch, whose statistics batch norm may use
        found = module.eval().model.get_submodule("body")(data.prepare(images, None)).flatten(1)
    return found, labels


def with_running_statistics(module: LitFedBABU, data: ClientData) -> LitFedBABU:
    """A copy whose batch norm uses statistics of the client's training images, and not those of the batch.

    They are taken from the images as they are, without augmentation. Layers that had running statistics keep theirs.
    """
    fixed = LitFedBABU(**{**module.hparams, "norm": "batch-running"})
    fixed.provenance = module.provenance
    fixed.model.load_state_dict(module.model.state_dict(), strict=False)
    layers = [fixed.model.get_submodule(name) for name in by_batch(module.model)]
    new_trainer(data.config, callbacks=[_Estimation(layers)]).predict(fixed, datamodule=data)
    if fixed.hparams["neighbors"]:
        ((features, _, labels), *_) = predictions([fixed], [data])[0]
        store(fixed.model, features, labels)
    return fixed


class _Estimation(L.Callback):
    """Takes running statistics of these layers from the training images, as plain means over their batches."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers

    def on_predict_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for layer in self._layers:
            layer.momentum = 1 / (batch_idx + 1)  # type: ignore[assignment]
            layer.train(dataloader_idx == 0)  # the training images come first


class _Curves(L.Callback):
    """Adds an evaluation of every client after every epoch."""

    def __init__(self, curves: Sequence[list[Evaluation]], datamodule: ClientData | CohortData, say: Say) -> None:
        self.curves = curves
        self.datamodule = datamodule
        self.say = say

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        evaluations = _evaluations(cast(PartModule, module), self.datamodule)
        for curve, evaluation in zip(self.curves, evaluations, strict=True):
            curve.append(evaluation)
        self.say(self.curves[0])


def _together(modules: Sequence[LitFedBABU], data: Sequence[ClientData]) -> tuple[PartModule, ClientData | CohortData]:
    return (modules[0], data[0]) if len(modules) == 1 else (LitCohort(modules), CohortData(data))


def _of_client(client: int, predicted: list[list[Mapping[int, Predicted]]]) -> list[list[Predicted]]:
    own = [[batch[client] for batch in batches if client in batch] for batches in predicted]
    return [batches for batches in own if batches]


def _joined(batches: list[Predicted]) -> Predicted:
    features, logits, labels = (torch.cat(values) for values in zip(*batches, strict=True))
    return features, logits, labels


def _evaluations(module: PartModule, data: ClientData | CohortData) -> list[Evaluation]:
    return [_evaluation(*pair) for pair in zip(module.members, data.members, strict=True)]


def _evaluation(module: LitFedBABU, data: ClientData) -> Evaluation:
    """What the module's metrics have counted of the test images since the last time."""
    count = data.num_test
    hits = round(module.test_accuracy.compute().item() * count)  # the metric divides in float32
    loss, calibration_error = module.test_loss.compute().item(), module.test_calibration_error.compute().item()
    accuracy = NAN if math.isnan(loss) else hits / count  # of logits that are not numbers
    for metric in (module.test_loss, module.test_accuracy, module.test_calibration_error):
        metric.reset()
    return Evaluation(loss, accuracy, NAN if math.isnan(loss) else calibration_error, count)
