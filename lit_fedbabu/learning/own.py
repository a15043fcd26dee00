"""A LightningModule of the user's own: trained, evaluated and made personal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from lit_fedbabu.errors import InputError
from lit_fedbabu.learning.own_module import OwnModule
from lit_fedbabu.learning.own_training import train, trainer_of
from lit_fedbabu.learning.own_watch import Watch
from lit_fedbabu.learning.state import load_state, not_finite, state_of
from lit_fedbabu.length import steps_of
from lit_fedbabu.tasks.evaluation import OwnEvaluation, Personalization
from lit_fedbabu.tasks.own import short
from lit_fedbabu.tasks.own_data import OwnData


def fit(
    modules: Sequence[OwnModule],
    data: Sequence[OwnData],
    *,
    mode: str,
    epochs: float,
    learning_rate: float,
    steps: int = 0,
    curves: Sequence[list[OwnEvaluation]] = (),
    callbacks: Sequence[L.Callback] = (),
) -> list[float]:
    """Train a part of the one module in place, with the optimizer that it configures.

    Args:
        modules: one module.
        data: the client's.
        mode: "body", "head" or "full".
        epochs: over the client's training samples; of a fraction of an epoch its first batches, rounded up.
        learning_rate: written to the module's hyper-parameters; 0: the module's own stands.
        steps: mini-batches, in place of ``epochs``; 0: the epochs.
        curves: one list, which gets an evaluation after every epoch; the last is that of the trained module. Empty:
            nothing is evaluated.
        callbacks: Lightning's, before those of the task.

    Returns:
        The mean training loss over all samples seen; nan if there was no epoch or no loss.
    """
    (module,), (own,) = modules, data
    module.set_rate(learning_rate)
    if epochs == steps == 0:
        return [math.nan]
    limit = math.inf
    if steps or epochs % 1:
        batches = own.batches or 1  # of a stream: an epoch has one at least
        limit = steps_of(batches, epochs, steps)
        epochs = math.ceil(limit / batches)
    watch = Watch(module, mode, int(epochs), limit, keep=bool(curves))
    train(module, own, watch, callbacks)
    for curve in curves:
        trained = {name: value.clone() for name, value in state_of(module.model).items()}
        for state in [*watch.epochs[:-1], trained]:
            load_state(module.model, state)
            curve.extend(evaluate(modules, data))
        curve.extend([curve[-1]] * (int(epochs) - len(watch.epochs)))  # a callback may have stopped the training
        load_state(module.model, trained)
    return [watch.mean_loss]


def evaluate(modules: Sequence[OwnModule], data: Sequence[OwnData]) -> list[OwnEvaluation]:
    """What the one module logs of its client's test samples.

    Raises:
        InputError: as of ``tested``.
    """
    (module,), (own,) = modules, data
    return [tested(module, own)]


def tested(module: OwnModule, own: OwnData, **options: Any) -> OwnEvaluation:
    """What a user's module logs of a client's test samples, by a Trainer with these options.

    Raises:
        InputError: the task's score is not among it, or two metrics have one name in results.json.
    """
    with trainer_of(module, own, **options) as trainer:
        found = trainer.test(module.lightning, datamodule=own.module, verbose=False)
    logged = {name: float(value) for of_loader in found for name, value in of_loader.items()}
    score = own.task.task.score
    if score not in logged:
        remedy = f"its score {score} is not logged in test_step; {', '.join(logged) or 'nothing'} is logged"
        raise InputError("task", own.config.task, remedy)
    names: dict[str, str] = {}
    for name in logged:
        if (first := names.setdefault(short(name), name)) != name:
            remedy = f"it logs {first} and {name}, which would both be {short(name)} in results.json; rename one"
            raise InputError("task", own.config.task, remedy)
    return OwnEvaluation({short(name): value for name, value in logged.items()}, logged[score], own.num_test)


def personalize(
    modules: Sequence[OwnModule], data: Sequence[OwnData], *, part: str, epochs: int, learning_rate: float
) -> list[Personalization]:
    """Fine-tune a part of the one module in place; evaluate before, and after every epoch."""
    curve = evaluate(modules, data)
    fit(modules, data, mode=part, epochs=epochs, learning_rate=learning_rate, curves=[curve])
    if not_finite(modules[0].model.state_dict()):  # what is measured of such a model means nothing
        nothing = dict.fromkeys(curve[0].measures, math.nan)
        curve[-1] = OwnEvaluation(nothing, math.nan, curve[-1].count)
    return [Personalization(tuple(curve), name=data[0].task.score.name)]
