"""A LightningModule of the user's own: trained, evaluated and made personal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from lit_fedbabu.config.length import steps_of
from lit_fedbabu.learning.evaluation import LoggedEvaluation, Personalization
from lit_fedbabu.learning.state import load_state, not_finite, state_of
from lit_fedbabu.tasks.custom.data import CustomData
from lit_fedbabu.tasks.custom.module import CustomModule
from lit_fedbabu.tasks.custom.private import by_sample, poisson_batches
from lit_fedbabu.tasks.custom.training import train, trainer_of
from lit_fedbabu.tasks.custom.watch import Watch


def short(metric: str) -> str:
    """A metric's name in results.json: "f1" of "test_f1" and "test/f1"."""
    return metric.removeprefix("test_").removeprefix("test/")


def fit(
    modules: Sequence[CustomModule],
    data: Sequence[CustomData],
    *,
    mode: str,
    epochs: float,
    learning_rate: float,
    steps: int = 0,
    curves: Sequence[list[LoggedEvaluation]] = (),
    callbacks: Sequence[L.Callback] = (),
    private: bool = False,
) -> list[float]:
    """Train a part of the one module in place, with the optimizer that it configures; arguments as of ``AnyTask.fit``.

    Callbacks come before those of the task. A curve, where there is one, gets an evaluation after every epoch, of which
    the last is that of the trained module. The loss is also nan where the module gives none.
    """
    (module,), (own,) = modules, data
    module.set_rate(learning_rate)
    if epochs == steps == 0:
        return [math.nan]
    limit = math.inf
    if private or steps or epochs % 1:
        batches = (poisson_batches(own) if private else own.batches) or 1  # of a stream: an epoch has one at least
        limit = steps_of(batches, epochs, steps)
        epochs = math.ceil(limit / batches)
    watch = Watch(module, mode, int(epochs), limit, keep=bool(curves))
    if private:
        with by_sample(module, own, int(limit)) as made:
            train(module, own, watch, [made, *callbacks])
    else:
        train(module, own, watch, callbacks)
    for curve in curves:
        trained = {name: value.clone() for name, value in state_of(module.model).items()}
        for state in [*watch.epochs[:-1], trained]:
            load_state(module.model, state)
            curve.extend(evaluate(modules, data))
        curve.extend([curve[-1]] * (int(epochs) - len(watch.epochs)))  # a callback may have stopped the training
        load_state(module.model, trained)
    return [watch.mean_loss]


def evaluate(modules: Sequence[CustomModule], data: Sequence[CustomData]) -> list[LoggedEvaluation]:
    """What the one module logs of its client's test samples; errors as of ``tested``."""
    (module,), (own,) = modules, data
    return [tested(module, own)]


def tested(module: CustomModule, own: CustomData, **options: Any) -> LoggedEvaluation:
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
        raise own.task.refused(remedy)
    names: dict[str, str] = {}
    for name in logged:
        if (first := names.setdefault(short(name), name)) != name:
            remedy = f"it logs {first} and {name}, which would both be {short(name)} in results.json; rename one"
            raise own.task.refused(remedy)
    return LoggedEvaluation({short(name): value for name, value in logged.items()}, logged[score], own.num_test)


def personalize(
    modules: Sequence[CustomModule],
    data: Sequence[CustomData],
    *,
    part: str,
    epochs: int,
    learning_rate: float,
    say: Callable[[Sequence[LoggedEvaluation]], None] = lambda _: None,
) -> list[Personalization]:
    """Fine-tune a part of the one module in place; evaluate before, and after every epoch.

    ``say`` is told of the evaluations until now.
    """
    curve = evaluate(modules, data)
    say(curve)
    fit(modules, data, mode=part, epochs=epochs, learning_rate=learning_rate, curves=[curve])
    if not_finite(modules[0].model.state_dict()):  # what is measured of such a model means nothing
        nothing = dict.fromkeys(curve[0].measures, math.nan)
        curve[-1] = LoggedEvaluation(nothing, math.nan, curve[-1].count)
    for known in range(2, len(curve) + 1):
        say(curve[:known])
    return [Personalization(tuple(curve), name=data[0].task.score.name)]
