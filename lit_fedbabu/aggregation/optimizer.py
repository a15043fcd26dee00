"""The server's optimizer: what it makes of the mean of the clients' weights, by Flower's own strategies."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi
from torch import Tensor

from lit_fedbabu.config import Config

NDArray = npt.NDArray[Any]
MOMENTUM, FIRST, SECOND = "momentum.", "first.", "second."
"""How names begin in the file of what the optimizer keeps: its moments, by the names of the weights."""


class ServerOptimizer:
    """Moves shared weights by the difference between them and the clients' mean, taken for a gradient.

    Reddi et al. 2021, Algorithm 2, and Hsu et al. 2019 for momentum, as Flower computes them. Buffers, as running
    statistics, are not optimized: they are the clients' mean.

    Args:
        config: of which ``server-*`` is read.
        names: of the weights that it moves, in order.
        kept: its ``moments`` after the last round of a run that is resumed.
    """

    def __init__(self, config: Config, names: Collection[str], kept: Mapping[str, Tensor]) -> None:
        self._names = list(names)
        rate = config.server_learning_rate or (1.0 if config.server_optimizer == "momentum" else 0.01)
        first, second, tau = config.server_momentum, config.server_second_momentum, config.server_tau
        self._flower: FedAvgM | FedAdam | FedYogi | None = None
        if config.server_optimizer == "momentum":
            self._flower = FedAvgM(server_learning_rate=rate, server_momentum=first)
        elif config.server_optimizer == "adam":
            self._flower = FedAdam(eta=rate, beta_1=first, beta_2=second, tau=tau)
        elif config.server_optimizer == "yogi":
            self._flower = FedYogi(eta=rate, beta_1=first, beta_2=second, tau=tau)
        self._read(kept)

    def step(self, server_round: int, before: ArrayRecord, mean: ArrayRecord) -> ArrayRecord:
        """The shared weights of the next round.

        Args:
            server_round: number of the round, from 1.
            before: the shared weights that the clients started from.
            mean: of what they made of them.
        """
        if self._flower is None:
            return mean
        current = {name: before[name] for name in self._names}
        self._flower.current_arrays = (
            ArrayRecord(current)
            if isinstance(self._flower, FedAvgM)
            else {name: array.numpy() for name, array in current.items()}
        )
        found = ArrayRecord({name: mean[name] for name in self._names})
        content = RecordDict({"arrays": found, "metrics": MetricRecord({"num-examples": 1})})
        reply = Message(content, 0, "train")
        moved, _ = self._flower.aggregate_train(server_round, [reply])
        assert moved is not None, "there was a reply"
        typed = {name: Array(moved[name].numpy().astype(before[name].dtype)) for name in self._names}
        return ArrayRecord({name: typed.get(name, array) for name, array in mean.items()})

    def moments(self) -> dict[str, Tensor]:
        """What it keeps between rounds; nothing where the mean is the new model."""
        flower = self._flower
        if flower is None:
            return {}
        if isinstance(flower, FedAvgM):
            return _named(MOMENTUM, dict(zip(self._names, flower.momentum_vector or [], strict=False)))
        return {**_named(FIRST, flower.m_t or {}), **_named(SECOND, flower.v_t or {})}

    def _read(self, moments: Mapping[str, Tensor]) -> None:
        flower = self._flower
        if isinstance(flower, FedAvgM):
            found = _of(MOMENTUM, moments)
            flower.momentum_vector = [found[name] for name in self._names] if found else None
        elif flower is not None:
            flower.m_t, flower.v_t = _of(FIRST, moments) or None, _of(SECOND, moments) or None


def _named(prefix: str, arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
    return {prefix + name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def _of(prefix: str, moments: Mapping[str, Tensor]) -> dict[str, NDArray]:
    return {name.removeprefix(prefix): value.numpy() for name, value in moments.items() if name.startswith(prefix)}
