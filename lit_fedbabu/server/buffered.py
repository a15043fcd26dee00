"""The buffered server (FedBuff, Nguyen et al. 2022, Algorithm 1): clients train all the time, and K updates are a step.

A step has the number of a round, and takes its place in all that is written.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.wire import Arrays, ClientUpdate
from lit_fedbabu.server.exchange import Exchange
from lit_fedbabu.server.parked import Lazy
from lit_fedbabu.server.schedule import Schedule, SiteSchedule, Training

CLIENTS, STEPS, SECONDS, BODY = "clients", "steps", "seconds", "body."
"""Names of what is kept of clients in training: numbers, the steps that they began in, seconds left, and bodies."""


class BufferedExchange(Exchange):
    """The messages of one step after another. Arguments are as of ``Exchange``.

    A client is asked when its update is due, with the weights that it began with and the learning rate of then. The
    round in its message is the step that its update is for.
    """

    schedule: Schedule
    weights: frozenset[str]
    """Names of shared weights that are no buffers."""
    _due: Sequence[int] = ()
    """Clients that the next replies are of."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.schedule = Schedule(self.config, self.pace.seconds_of)
        self._bodies: dict[int, ArrayRecord] = {}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Go on with the clients in training, as of ``state``.

        Raises:
            RunError: that is not what was kept.
        """
        try:
            columns = (kept[name].tolist() for name in (CLIENTS, STEPS, SECONDS))
            self.schedule.training = {client: Training(step, ends) for client, step, ends in zip(*columns, strict=True)}
        except (KeyError, ValueError):
            raise RunError(f"{self.folder / 'server'} does not have the clients in training; put it back") from None
        for name, value in kept.items():
            if name.startswith(BODY):
                step, _, weight = name.removeprefix(BODY).partition(".")
                self._bodies.setdefault(int(step), ArrayRecord())[weight] = Array(value.numpy())

    def state(self) -> dict[str, Tensor]:
        clients, each = [*self.schedule.training], [*self.schedule.training.values()]
        return {
            CLIENTS: torch.tensor(clients, dtype=torch.int64),
            STEPS: torch.tensor([one.step for one in each], dtype=torch.int64),
            SECONDS: torch.tensor([one.ends for one in each], dtype=torch.float64),
            **{
                f"{BODY}{step}.{name}": torch.from_numpy(array.numpy())
                for step, body in self._bodies.items()
                for name, array in body.items()
            },
        }

    def begin(
        self, server_round: int, arrays: ArrayRecord, grid: Any, expected: Mapping[str, Array] | None = None
    ) -> None:
        super().begin(server_round, arrays, grid, expected)
        if expected is not None:  # else clients are evaluated
            self.schedule.begin(server_round)
            self._bodies[server_round] = arrays

    def drawn(self) -> list[int]:
        return self.schedule.next(self.config.updates_per_step)

    def training(self, clients: Iterable[int]) -> list[Message]:
        began = {client: self.schedule.came[client] for client in clients}
        self._due = list(began)
        return [
            message
            for step in sorted(set(began.values()))
            for message in self._training(
                [client for client in began if began[client] == step], self._bodies[step], self._rate_in(step)
            )
        ]

    def updates(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """The updates of the step by the clients' numbers, each as of its age. More come in place of failed ones.

        Raises:
            RunError: none could come any more, or more have failed than train at once, ``max-round-retries`` times.
        """
        config, came = self.config, self.schedule.came
        found, most = list[ClientUpdate](), config.clients_per_round * config.max_round_retries
        while True:
            found += map(self._aged, self._valid_updates([*self._due], replies))
            if len(found) == config.updates_per_step:
                found = self._ordinary(found)
            missing = config.updates_per_step - len(found)
            if not missing:
                break
            due = self.schedule.next(missing) if len(came) - len(found) <= most else []
            if not due and (len(came) - len(found) > most or not self.schedule.training):
                raise self._too_few(len(found), "trained", config.updates_per_step)
            replies = self.grid.send_and_receive(self.training(due), timeout=config.timeout_s)
        self.schedule.end()
        self.pace.round_s = self.schedule.seconds
        self.pace.staleness = [self.server_round - came[update.client] for update in found]
        in_use = {each.step for each in self.schedule.training.values()}
        self._bodies = {step: body for step, body in self._bodies.items() if step in in_use}
        return sorted(found, key=lambda update: update.client)

    def _aged(self, update: ClientUpdate) -> ClientUpdate:
        """The update as one of the weights of this step: its difference to what it began with, times 1 / sqrt(1 + tau).

        tau are the steps that the server has taken since. Buffers, as running statistics, stay as they are.
        """
        began = self.schedule.came[update.client]
        if began == self.server_round:
            return update
        weight, body = (1 + self.server_round - began) ** -0.5, self._bodies[began]

        def moved(name: str) -> npt.NDArray[Any]:
            if name not in self.weights:
                return update.arrays[name]
            difference = update.arrays[name].astype(np.float64) - body[name].numpy()
            return np.asarray(self.arrays[name].numpy() + weight * difference)

        arrays: Arrays = Lazy(update.arrays, moved)
        return dataclasses.replace(update, arrays=arrays)


class BufferedSites(BufferedExchange):
    """The same of sites, which are asked when they begin.

    ``OpenGrid`` gives one answer after the other, of any of them. A run that is resumed has none in training.
    """

    schedule: SiteSchedule

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.schedule = SiteSchedule(self.config)

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """There is nothing to go on with."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def training(self, clients: Iterable[int]) -> list[Message]:
        self.grid.is_training = True  # type: ignore[attr-defined] # of OpenGrid
        return self._training(list(clients), self.arrays, self._rate_in(self.server_round))

    def _valid_updates(self, clients: list[int], replies: Iterable[Message]) -> list[ClientUpdate]:
        replies = list(replies)
        nodes = {reply.metadata.src_node_id for reply in replies}
        came = [client for client in self.schedule.training if self._node_of(client) in nodes]
        self.schedule.arrived(came)
        return super()._valid_updates(came, replies)
