"""What the hooks of an algorithm see of clients: one in a round or after one, and those that are trained together."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from lit_fedbabu.algorithms.rows import own
from lit_fedbabu.algorithms.steps import STEPS, Still
from lit_fedbabu.config import Config
from lit_fedbabu.learning.cohort import stack
from lit_fedbabu.learning.losses import Loss
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import Learner, load_state, state_of
from lit_fedbabu.tasks.protocol import Data
from lit_fedbabu.training import memory
from lit_fedbabu.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Participation:
    """A client in a round, or after one, as the hooks of an algorithm see it: ``algorithm.Participant``.

    Args:
        experiment: with the algorithm and the client's data.
        client: its number.
        received: the shared weights.
        memory: what it kept when it took part last; empty if it never did.
        extras: what the server sent besides.
    """

    experiment: Experiment
    client: int
    received: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.experiment.config

    def module(self, *states: Mapping[str, Tensor]) -> Learner:
        names = self.experiment.names
        return self.experiment.new_module(*({name: each[name] for name in names & each.keys()} for each in states))

    def features(self, *states: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        data = self.experiment.client_data(self.client, 0)
        (((features, _, labels), *_),) = self.experiment.classifier.predictions([self.module(*states)], [data])
        return features.cpu(), labels.cpu()

    def training_loss(self, *states: Mapping[str, Tensor]) -> float:
        """Order, augmentation and random layers draw the same numbers for every module and round."""
        experiment, config = self.experiment, self.config
        data = experiment.client_data(self.client, config.derived_seed("loss", self.client))
        with seeded(config.derived_seed("loss-draws", self.client)):
            (loss,) = experiment.task.fit(
                [self.module(*states)], [data], mode="full", epochs=1, learning_rate=0.0, callbacks=[Still()]
            )
        return float(loss)


@dataclasses.dataclass(frozen=True)
class CohortRound:
    """The clients that are trained together in a round, as the hooks of an algorithm see them: ``algorithm.Cohort``.

    Args:
        experiment: with the algorithm.
        participants: the clients.
        data: theirs, in the order of this round.
        server_round: number of the round, from 1.
        learning_rate: of this round.
        notes: what one hook leaves for the next.
        private: whether its steps are those of DP-SGD.
    """

    experiment: Experiment
    participants: Sequence[Participation]
    data: Sequence[Data]
    server_round: int
    learning_rate: float
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    private: bool = False

    @property
    def config(self) -> Config:
        return self.experiment.config

    @property
    def class_counts(self) -> Sequence[Tensor]:
        return [each.class_counts for each in self.data]

    def step(self, name: str, modules: Sequence[Learner]) -> list[L.Callback]:
        return STEPS[name](self.config, self.server_round, stack(modules))

    def fit(
        self,
        modules: Sequence[Learner],
        part: str,
        field: str,
        callbacks: Sequence[L.Callback] = (),
        losses: Sequence[Loss] = (),
    ) -> list[float]:
        epochs, steps = self.config.length(field)
        return self.experiment.task.fit(
            modules, self.data, mode=part, epochs=epochs, steps=steps, learning_rate=self.learning_rate,
            callbacks=callbacks, losses=losses, private=self.private,
        )  # fmt: skip

    def show(
        self, modules: Sequence[Learner], callbacks: Sequence[L.Callback] = (), losses: Sequence[Loss] = ()
    ) -> list[float]:
        states = [{name: value.clone() for name, value in state_of(module.model).items()} for module in modules]
        rate, watching = self.learning_rate, [*callbacks, Still()]
        found = self.experiment.task.fit(
            modules, self.data, mode="full", epochs=1, learning_rate=rate, callbacks=watching, losses=losses
        )
        for module, state in zip(modules, states, strict=True):
            load_state(module.model, state)
        return found

    def shared(self, module: Learner) -> dict[str, Tensor]:
        return self.experiment.shared(state_of(module.model))

    def kept(self, module: Learner) -> dict[str, Tensor]:
        return self.experiment.kept(state_of(module.model))


def participation(
    experiment: Experiment,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None,
    extras: Mapping[str, Tensor],
) -> Participation:
    """A client with what it had kept at the end of a round.

    Raises:
        ValueError: what was received is not exactly what the algorithm shares.
        LookupError: what the server sent has no row of this client.
    """
    experiment.check_received(received)
    kept = bool(experiment.algorithm.kept)
    remembered = memory.recall(needed(memories, experiment), client, server_round) if kept else {}
    return Participation(experiment, client, received, remembered, own(experiment.algorithm, extras, client))


def needed(memories: Path | None, experiment: Experiment) -> Path:
    """The folder of what clients keep; raises ValueError where none was given."""
    if memories is None:
        raise ValueError(f"{experiment.config.algorithm} keeps models between rounds and was given no folder for them")
    return memories
