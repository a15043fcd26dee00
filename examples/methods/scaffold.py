"""SCAFFOLD as a file of one's own: ``lit-fedbabu run demo momentum=0 algorithm=examples.methods.scaffold:scaffold``.

Karimireddy et al. 2020, Algorithm 1, option II, with a global rate of 1: every step of a client adds c - c_i to its
gradient, so that clients whose data differ do not drift apart. The mean of weights is that of the run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu import Algorithm, Beginning, Cohort, Combined, Config, InputError, Update, trained_weights

BODY, FULL = (("body", "num_local_epochs"),), (("full", "num_local_epochs"),)


class Correct(L.Callback):
    """Adds c - c_i to each gradient, and counts the steps K."""

    def __init__(self, correction: Mapping[str, Tensor]) -> None:
        self.correction, self.steps = correction, 0

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        self.steps += 1
        for name, weight in trained_weights(module).items():
            assert weight.grad is not None, f"{name} has no gradient"
            weight.grad.add_(self.correction[name].to(weight.device))


class Scaffold(Algorithm):
    """A client keeps its control c_i under ``control.``; the server keeps c."""

    def check(self, config: Config) -> None:
        if config.momentum and not config.task:
            raise InputError("momentum", config.momentum, "SCAFFOLD's controls are of plain SGD; take 0")

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight) for name, weight in start.weights.items()}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        return self.server_state(start)

    def callbacks(self, cohort: Cohort, modules: Sequence[Any]) -> list[L.Callback]:
        (client,) = cohort.participants
        c = client.extras
        own = {name: client.memory.get(f"control.{name}", torch.zeros_like(c[name])) for name in c}
        correct = Correct({name: c[name] - own[name] for name in c})
        cohort.notes.update(own=own, correct=correct)
        return [correct]

    def finish(self, cohort: Cohort, modules: Sequence[Any]) -> list[Update]:
        (client,), (module,) = cohort.participants, modules
        own, c, shared = cohort.notes["own"], client.extras, cohort.shared(module)
        length = cohort.notes["correct"].steps * cohort.learning_rate  # K eta
        new = {name: own[name] - c[name] + (client.received[name] - shared[name].cpu()) / length for name in c}
        kept = {f"control.{name}": value for name, value in new.items()}
        return [Update(shared, {**cohort.kept(module), **kept}, {name: new[name] - own[name] for name in c})]

    def combine(self, server: Any, updates: Sequence[Any]) -> Combined:
        moved = {name: sum(each.extras[name] for each in updates) for name in server.state}
        state = {name: c + moved[name] / server.config.num_federated for name, c in server.state.items()}
        return Combined(server.aggregate(updates), state)


scaffold = Scaffold("SCAFFOLD", "full", FULL, state=("control",), in_cohorts=False)
scaffold_babu = Scaffold("SCAFFOLD+BABU", "body", BODY, state=("control",), in_cohorts=False)
