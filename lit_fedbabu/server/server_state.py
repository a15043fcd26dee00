"""What the server keeps between rounds: moments of its optimizer, and the state of the algorithm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from lit_fedbabu.aggregation.aggregator import AdaptiveNoisedMean, Trained
from lit_fedbabu.aggregation.optimizer import ServerOptimizer
from lit_fedbabu.aggregation.table import aggregator_of
from lit_fedbabu.algorithms.algorithm import EXTRA, STATE, Algorithm, Received
from lit_fedbabu.algorithms.rows import NUMBERS, numbered, rows_in
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.learning.parts import behind
from lit_fedbabu.protocol.wire import Arrays, ClientUpdate
from lit_fedbabu.records.run_folder import SERVER
from lit_fedbabu.server.aggregation import mean_loss
from lit_fedbabu.server.parked import Lazy
from lit_fedbabu.training import memory
from lit_fedbabu.training.experiment import Experiment

OF_AGGREGATOR, OF_EXCHANGE = "aggregator.", "exchange."
"""How the names of what the aggregator and the exchange keep begin in the server's file."""


class ServerRounds:
    """The server of one round after another, as the hooks of an algorithm see it: ``algorithm.Server``.

    What it keeps lies in ``server/round_0012.safetensors`` of the run's folder.

    Args:
        experiment: with the algorithm.
        folder: the run's.
        resumed_after: rounds that the run has done.
    """

    def __init__(self, experiment: Experiment, folder: Path, resumed_after: int) -> None:
        self.experiment = experiment
        self._place = folder / SERVER
        kept = memory.recall_from(self._place, resumed_after, "the server") if resumed_after else {}
        weights = experiment.weights
        self.weights = tuple(weights)
        start = experiment.algorithm.server_state(experiment)
        self.state: Mapping[str, Tensor] = behind(STATE, kept) if resumed_after else dict(start)
        if self.state.keys() != start.keys():
            raise RunError(f"{self._place} does not have what {self.config.algorithm} keeps; put it back")
        self._aggregator = aggregator_of(self.config, behind(OF_AGGREGATOR, kept))
        self.exchange = behind(OF_EXCHANGE, kept)
        """What the exchange kept after the last round of a run that is resumed."""
        self._optimizer = ServerOptimizer(self.config, list(weights), kept)
        self.server_round = resumed_after
        self._arrays = ArrayRecord()

    @property
    def config(self) -> Config:
        return self.experiment.config

    @property
    def shared(self) -> Mapping[str, Tensor]:
        return {name: torch.from_numpy(array.numpy()) for name, array in self._arrays.items()}

    def sent(self, arrays: ArrayRecord) -> ArrayRecord:
        """The shared weights, and what the algorithm sends besides."""
        algorithm = self.experiment.algorithm
        return _beside(arrays, numbered(algorithm, self.config, algorithm.broadcast(self.state)))

    def sent_after(self, arrays: ArrayRecord) -> ArrayRecord:
        """The same when a round is over."""
        algorithm = self.experiment.algorithm
        return _beside(arrays, numbered(algorithm, self.config, algorithm.broadcast_after(self.state)))

    def expected(self, arrays: ArrayRecord) -> ArrayRecord:
        """What a client answers with, as examples of shapes and types."""
        return _beside(arrays, self.experiment.extras.up)

    def combine(
        self,
        server_round: int,
        arrays: ArrayRecord,
        updates: Sequence[ClientUpdate],
        exchange: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[ArrayRecord, float]:
        """The shared weights of the next round, and the mean training loss in nats; what is kept is written.

        Of no clients, as a round of central privacy can have, and of none that saw a sample, as can be with privacy of
        samples, the loss is not a number.

        Args:
            server_round: number of the round, from 1.
            arrays: the shared weights that the clients began with.
            updates: of the clients.
            exchange: what the exchange keeps.

        Raises:
            RunError: what the server keeps is no longer finite.
        """
        self.server_round, self._arrays = server_round, arrays
        combined = self.experiment.algorithm.combine(self, [received(update) for update in updates])
        self.state = dict(combined.state)
        kept = {
            **self._optimizer.moments(),
            **{STATE + name: value for name, value in self.state.items()},
            **{OF_AGGREGATOR + name: value for name, value in self._aggregator.state().items()},
            **{OF_EXCHANGE + name: value for name, value in exchange.items()},
        }
        try:
            if kept:
                memory.keep_in(self._place, server_round, kept)
        except ValueError as error:
            raise RunError(f"round {server_round}: the server: {error}") from None
        typed = {name: _array(combined.shared[name], array.dtype) for name, array in arrays.items()}
        return ArrayRecord(typed), mean_loss(updates)

    @property
    def clipping(self) -> dict[str, float]:
        """With adaptive clipping the largest norm of updates in the next round, as ``clipping_norm``; else nothing."""
        if isinstance(self._aggregator, AdaptiveNoisedMean):
            return {"clipping_norm": self._aggregator.bound}
        return {}

    def aggregate(self, updates: Sequence[Received]) -> dict[str, Tensor]:
        """What the aggregator makes of the clients' weights, and the server's optimizer of that."""
        trained = [Trained(each.client, each.num_train, _arrays(each.shared)) for each in updates]
        combined = self._aggregator.aggregate(self.server_round, self._arrays, trained)
        moved = self._optimizer.step(self.server_round, self._arrays, combined)
        return {name: torch.from_numpy(array.numpy()) for name, array in moved.items()}


def received(update: ClientUpdate) -> Received:
    """What a client sent, as the hooks of an algorithm see it."""
    arrays, extras = update.arrays, [name.removeprefix(EXTRA) for name in update.arrays if name.startswith(EXTRA)]
    shared = [name for name in arrays if not name.startswith(EXTRA)]
    return Received(
        update.client,
        update.num_train,
        Lazy(shared, lambda name: torch.from_numpy(np.asarray(arrays[name]))),
        Lazy(extras, lambda name: torch.from_numpy(np.asarray(arrays[EXTRA + name]))),
    )


def for_clients(method: Algorithm, arrays: ArrayRecord, clients: Sequence[int]) -> ArrayRecord:
    """What is sent to some clients: of arrays with a row for each client, theirs alone."""
    names = rows_in(method, (name.removeprefix(EXTRA) for name in arrays if name.startswith(EXTRA)))
    if not names:
        return arrays
    rows = {EXTRA + name: Array(arrays[EXTRA + name].numpy()[list(clients)]) for name in (*names, NUMBERS)}
    return ArrayRecord({name: rows.get(name, array) for name, array in arrays.items()})


def _beside(arrays: ArrayRecord, extras: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({**arrays, **{EXTRA + name: _array(value) for name, value in extras.items()}})


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return Lazy(tensors, lambda name: tensors[name].numpy())


def _array(value: Tensor, dtype: str | None = None) -> Array:
    array = value.detach().cpu().contiguous().numpy()
    return Array(array.astype(dtype) if dtype else array)
