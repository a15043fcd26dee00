"""APFL as a file of one's own: ``lit-fedbabu run demo momentum=0 algorithm=examples.methods.apfl:apfl``.

Deng et al. 2020, Algorithm 1: the client trains the shared w, and a model v of its own by the gradient of the mixture
a v + (1 - a) w, which is what is evaluated. a moves once a round, on its first batch, and stays within 0 and 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu import Algorithm, Cohort, Config, InputError, Participant, Update, trained_weights

FULL = (("full", "num_local_epochs"),)


def mixture(a: float, own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """a v + (1 - a) w."""
    return {name: a * value + (1 - a) * shared[name] for name, value in own.items()}


class Mix(L.Callback):
    """Before w takes its step on a batch, v takes one on the same batch, at the mixture of both."""

    def __init__(self, own: dict[str, Tensor], a: float, rate: float) -> None:
        self.own, self.a, self.rate, self.is_first = own, a, rate, True

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        weights = trained_weights(module)
        w = {name: weight.detach().clone() for name, weight in weights.items()}
        self.own = {name: self.own[name].to(w[name].device) for name in w}
        for name, value in mixture(self.a, self.own, w).items():
            weights[name].data.copy_(value)
        with trainer.precision_plugin.train_step_context():
            outputs: Any = module.training_step(batch, batch_idx)
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        slope = sum(((self.own[name] - w[name]) * gradient).sum().item() for name, gradient in gradients.items())
        for name, gradient in gradients.items():
            weights[name].data.copy_(w[name])
            self.own[name] = self.own[name].sub(self.a * gradient, alpha=self.rate)
        if self.is_first:
            self.a, self.is_first = min(max(self.a - self.rate * slope, 0.0), 1.0), False


@dataclasses.dataclass(frozen=True)
class Apfl(Algorithm):
    """A client keeps v, and a as ``mixing.a``."""

    a: float = 0.5

    def check(self, config: Config) -> None:
        if config.momentum and not config.task:
            raise InputError("momentum", config.momentum, "APFL's own model takes steps of plain SGD; take 0")

    def start(self, client: Participant) -> Any:
        return client.module(client.received)

    def callbacks(self, cohort: Cohort, modules: Sequence[Any]) -> list[L.Callback]:
        (client,) = cohort.participants
        own = dict(client.module(client.memory).model.named_parameters())
        a = float(client.memory.get("mixing.a", torch.tensor(self.a)))
        mix = Mix({name: value.detach() for name, value in own.items()}, a, cohort.learning_rate)
        cohort.notes["mix"] = mix
        return [mix]

    def finish(self, cohort: Cohort, modules: Sequence[Any]) -> list[Update]:
        (module,), mix = modules, cohort.notes["mix"]
        kept = {name: value.cpu() for name, value in mix.own.items()}
        return [Update(cohort.shared(module), {**kept, "mixing.a": torch.tensor(mix.a, dtype=torch.float64)})]

    def own_model(self, client: Participant) -> Any:
        own = {name: value for name, value in client.memory.items() if name in client.received}
        a = float(client.memory.get("mixing.a", torch.tensor(0.0)))
        return client.module(client.received, mixture(a, own, client.received))


apfl = Apfl("APFL", "full", FULL, state=("mixing",), in_cohorts=False)
