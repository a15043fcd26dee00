"""FedALA: a client begins a round with a mixture, weight by weight, of what it received and what it had trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import pstdev
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_fedbabu.algorithms.algorithm import EPOCHS, Algorithm, Cohort, Participant, Update, refuse_of_trainer
from lit_fedbabu.algorithms.steps import stepped
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import Learner, state_of

MIXING = "mixing"
LOCAL, SHARES = f"{MIXING}.local.", f"{MIXING}.share."
"""How the names of trained weights begin in what a client keeps, and those of W."""
STEADY, LAST, MOST = 0.1, 10, 100
"""W is learned for the first time until the mean losses of the last ten passes have a standard deviation below 0.1,
which are the numbers of the authors' code; here at most a hundred passes."""


@dataclasses.dataclass(frozen=True)
class FedAla(Algorithm):
    """Adaptive local aggregation (Zhang et al. 2023 (FedALA), Algorithm 1, Eq. 4 to 6).

    The weights of the last ``num-mixing-layers`` layers begin as l + (x - l) * W, where x was received and l is what
    the client trained last, all others as x. W is 1 at first and within 0 and 1; on every batch of a pass it moves by
    -eta (gradient at the mixture) * (x - l), Eq. 5. Its first passes end when the loss is steady; in later rounds there
    is one pass. Where x is l, as in a first round, there is nothing to learn. A client that had no part yet has the
    initial weights as its l.

    What is evaluated is the mixture of the shared model with l, by the W that the client learned last. Buffers, as
    running statistics, begin a round as received.
    """

    state: tuple[str, ...] = (MIXING,)
    in_cohorts: bool = False

    @property
    def lengths(self) -> tuple[str, ...]:
        return ("num_mixing_epochs", EPOCHS)

    def check(self, config: Config) -> None:
        why = f"counts batches, of which {config.algorithm} takes a part to learn how to mix"
        refuse_of_trainer(config, {"accumulate_grad_batches", "limit_train_batches"}, why)

    def check_steps(self, name: str, by_hand: bool) -> None:
        if by_hand:
            remedy = "learns how to mix from gradients alone, and the task's module takes steps by hand; take another"
            raise InputError("algorithm", name, f"{remedy}, as ditto")

    def start(self, client: Participant) -> Learner:
        return client.module(client.received)

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        (client,), (module,) = cohort.participants, modules
        mixed = Mixed(*_mixture(client, module), cohort.config.mixing_learning_rate)
        mixed.is_learned = any(name.startswith(SHARES) for name in client.memory)
        cohort.notes[MIXING] = mixed
        if cohort.config.num_mixing_epochs and mixed.has_to_learn:
            mixed.lay_over(module)
            self._learn(cohort, modules, mixed)
            state = state_of(module.model)
            for name, value in client.received.items():
                state[name].copy_(value)
        mixed.lay_over(module)
        return super().train(cohort, modules)

    def _learn(self, cohort: Cohort, modules: Sequence[Learner], mixed: Mixed) -> None:
        losses: list[float] = []
        while len(losses) < (1 if mixed.is_learned else MOST) and not (
            len(losses) >= LAST and pstdev(losses[-LAST:]) < STEADY
        ):
            losses += cohort.fit(modules, "full", "num_mixing_epochs", [mixed])
        mixed.is_learned = True

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        (module,), mixed = modules, cohort.notes[MIXING]
        shared = cohort.shared(module)
        kept = {f"{LOCAL}{name}": shared[name] for name in mixed.shares}
        shares = {f"{SHARES}{name}": value for name, value in mixed.shares.items()} if mixed.is_learned else {}
        return [Update(shared, {**kept, **shares})]

    def own_model(self, client: Participant) -> Learner:
        module = client.module(client.received)
        if client.memory:
            Mixed(*_mixture(client, module), 0.0).lay_over(module)
        return module


def _mixture(client: Participant, module: Learner) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Of the weights that are mixed, by their names in the model: l, x and W."""
    names = weights_of(module.model, client.config.num_mixing_layers)
    x = {name: client.received[name] for name in names}
    initial = {} if client.memory else state_of(client.module().model)
    local = {name: client.memory.get(f"{LOCAL}{name}", initial.get(name, x[name])) for name in names}
    shares = {name: client.memory.get(f"{SHARES}{name}", torch.ones_like(x[name])) for name in names}
    return local, x, shares


def weights_of(model: nn.Module, count: int) -> list[str]:
    """The names of the weights of the last layers that have any, of all if there are fewer."""
    named = dict(model.named_parameters())
    layers = [name for name, layer in model.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    return [name for name in named if name.rpartition(".")[0] in layers[-count:]]


class Mixed(L.Callback):
    """Moves W in the place of the weights, which are the mixture after each batch as before it.

    Args:
        local: l, by the names of weights; what it lacks is not mixed and stays.
        received: x.
        shares: W.
        rate: of W, eta.
    """

    def __init__(
        self, local: Mapping[str, Tensor], received: Mapping[str, Tensor], shares: Mapping[str, Tensor], rate: float
    ) -> None:
        self._local, self._received, self.shares, self._rate = local, received, dict(shares), rate
        self.is_learned = False

    @property
    def has_to_learn(self) -> bool:
        """Whether l and x differ."""
        return any(not torch.equal(value, self._received[name]) for name, value in self._local.items())

    def lay_over(self, module: Learner) -> None:
        """Give a module the mixture."""
        state = state_of(module.model)
        for name in self._local:
            state[name].copy_(self._of(name))

    def _of(self, name: str) -> Tensor:
        local, received, share = self._local[name], self._received[name], self.shares[name]
        return torch.where(share == 1, received, local + (received - local) * share)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        for name, weight, gradient in stepped(module, optimizer):
            if name in self._local:
                moved = gradient.cpu() * (self._received[name] - self._local[name])
                self.shares[name] = (self.shares[name] - self._rate * moved).clamp(0, 1)
                weight.data.copy_(self._of(name))
            weight.grad = None  # so that the optimizer leaves it alone, and its weight decay too
