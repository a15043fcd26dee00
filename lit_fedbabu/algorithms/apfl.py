"""APFL: a client's own model is a mixture of the shared one and of another that it trains as a part of the mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu.algorithms.algorithm import Algorithm, Cohort, Participant, Update, refuse_of_trainer
from lit_fedbabu.algorithms.steps import refuse_but_sgd, trained_weights
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import Learner, state_of, view_of

MIXING = "mixing"
ALPHA = f"{MIXING}.a"


@dataclasses.dataclass(frozen=True)
class Apfl(Algorithm):
    """Adaptive personalized federated learning (Deng et al. 2020, Algorithm 1).

    A client trains the shared w by the gradient of f(w), as FedAvg does, and on the same batches v, which it keeps, by
    the gradient with respect to v of f(a v + (1 - a) w). On the first batch of a round a moves by -eta <v - w, the
    gradient at the mixture>, and stays within 0 and 1. The mixture is what is evaluated and fine-tuned. v begins as the
    initial model, and its steps are those of w's SGD, with a momentum of its own. Buffers, as running statistics, of
    the mixture are v's. The training loss of images is the mean of both models'.
    """

    state: tuple[str, ...] = (MIXING,)
    in_cohorts: bool = False

    @property
    def kept(self) -> tuple[str, ...]:
        return (*self.parts, *self.state)

    def check(self, config: Config) -> None:
        why = f"{config.algorithm} trains a second model, which Lightning does not see"
        refuse_of_trainer(config, {"accumulate_grad_batches", "devices", "gradient_clip_val"}, why)

    def check_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        refuse_but_sgd(name, optimizer)

    def check_steps(self, name: str, by_hand: bool) -> None:
        if by_hand:
            remedy = "takes a second step on each batch, and the task's module takes steps by hand; take another"
            raise InputError("algorithm", name, f"{remedy}, as ditto")

    def start(self, client: Participant) -> Learner:
        return client.module(client.received)

    def callbacks(self, cohort: Cohort, modules: Sequence[Learner]) -> list[L.Callback]:
        (client,), first = cohort.participants, cohort.config.mixing_alpha
        own = {name: value.clone() for name, value in state_of(client.module(client.memory).model).items()}
        a = float(client.memory.get(ALPHA, first))
        cohort.notes[MIXING] = mixed = Mixed(cohort.config.algorithm, own, a)
        return [mixed]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (module,), mixed = modules, cohort.notes[MIXING]
        a = torch.tensor(mixed.a, dtype=torch.float64)
        return [Update(cohort.shared(module), {**mixed.own, ALPHA: a})]

    def own_model(self, client: Participant) -> Learner:
        module = client.module(client.received)
        if not client.memory:
            return module
        weights, a = dict(module.model.named_parameters()), float(client.memory[ALPHA])
        own = {name: client.memory[name] for name in client.received}
        mixture = mixture_of(a, {name: own[name] for name in own.keys() & weights.keys()}, client.received)
        return client.module(client.received, own, mixture)


def mixture_of(a: float, own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mixture a v + (1 - a) w, of the weights of v."""
    return {name: a * value + (1 - a) * shared[name] for name, value in own.items()}


class Mixed(L.Callback):
    """Before w takes its step on a batch, v takes one on the same batch, by the gradient at the mixture of both.

    Args:
        name: of the method, which refuses other optimizers than SGD.
        own: v and the buffers of the mixture, by their names in the model.
        a: the part of v in the mixture.
    """

    def __init__(self, name: str, own: dict[str, Tensor], a: float) -> None:
        self._name, self._own, self.a = name, own, a
        self._optimizers: list[tuple[torch.optim.Optimizer, torch.optim.Optimizer]] = []
        self._is_first = True

    @property
    def own(self) -> dict[str, Tensor]:
        """What the client keeps: v and the buffers of the mixture."""
        return {name: value.detach().cpu() for name, value in self._own.items()}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        names = {id(weight): name for name, weight in view_of(module).named_parameters() if name in self._own}
        self._own = {name: value.to(module.device) for name, value in self._own.items()}
        for optimizer in trainer.optimizers:
            refuse_but_sgd(self._name, optimizer)
            groups = []
            for group in optimizer.param_groups:
                named = [names[id(weight)] for weight in group["params"] if id(weight) in names]
                groups.append({**group, "params": [self._own[name] for name in named]})
            self._optimizers.append((optimizer, torch.optim.SGD(groups)))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        weights, buffers = trained_weights(module), dict(view_of(module).named_buffers())
        w = {name: weight.detach().clone() for name, weight in weights.items()}
        others = {name: value.clone() for name, value in buffers.items()}
        v = {name: self._own[name] for name in w}
        _set(weights, mixture_of(self.a, v, w))
        _set(buffers, {name: self._own.get(name, value) for name, value in others.items()})
        with trainer.precision_plugin.train_step_context():
            outputs: Any = module.training_step(batch, batch_idx)
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = {name: each for name, each in zip(weights, found, strict=True) if each is not None}
        self._own.update({name: value.clone() for name, value in buffers.items() if name in self._own})
        _set(weights, w)
        _set(buffers, others)
        slope = sum(((v[name] - w[name]) * gradient).sum().item() for name, gradient in gradients.items())
        self._step({name: self.a * gradient for name, gradient in gradients.items()})
        if self._is_first:
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            self.a, self._is_first = min(max(self.a - rate * slope, 0.0), 1.0), False

    def _step(self, gradients: Mapping[str, Tensor]) -> None:
        for name, value in self._own.items():
            value.grad = gradients.get(name)
        for theirs, ours in self._optimizers:
            for group, own in zip(theirs.param_groups, ours.param_groups, strict=True):
                own["lr"] = group["lr"]  # which a schedule may change
            ours.step()


def _set(values: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        value.data.copy_(state[name])
