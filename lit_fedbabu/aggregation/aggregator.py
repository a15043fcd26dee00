"""What an aggregator is, and those that are built in: the mean, and means that a few clients cannot move far."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from torch import Tensor

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.wire import Arrays
from lit_fedbabu.training.privacy import update_norm

CLIPPING_RATE, MOST_GROWTH, BOUND = 0.2, 1.05, "bound"
"""Of adaptive clipping: its rate, by how much the noise on updates may grow for it, and the name of what it keeps."""

AT_ONCE = 2**18
"""Numbers of an array that are averaged together, so that sums in float64 do not take more memory than the model."""


class Trained(NamedTuple):
    """What one client made of the shared weights.

    Args:
        client: its number.
        num_train: its training samples.
        arrays: the shared weights, by name.
    """

    client: int
    num_train: int
    arrays: Arrays


class Aggregator(Protocol):
    """Makes one model of those of a round's clients."""

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        """The shared weights of the next round, with the names, shapes and types of ``before``.

        Args:
            server_round: number of the round, from 1.
            before: the weights that the clients started from.
            updates: of one client or more, by their numbers.

        Raises:
            RunError: there is no such model.
        """
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What it keeps between rounds, for the run's folder; empty for most."""
        ...


class Mean:
    """The mean, weighted by training samples (McMahan et al. 2017, Algorithm 1)."""

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        return average([(update.num_train, update.arrays) for update in updates], before)

    def state(self) -> Mapping[str, Tensor]:
        return {}


class NoisedMean(Mean):
    """The mean of updates, with Gaussian noise on their sum (McMahan et al. 2018, Algorithm 1, with a fixed divisor).

    Every client counts once. The divisor is known before the round, so that one client more or less moves the sum by
    no more than the bound. The noise comes from the system's entropy.

    Args:
        bound: the largest L2 norm of an update; longer ones are scaled down.
        noise_multiplier: standard deviation of the noise on the sum, as a multiple of the bound.
        divisor: how many clients a round draws, on average.
    """

    def __init__(self, bound: float, noise_multiplier: float, divisor: int) -> None:
        self.bound, self.noise_multiplier, self.divisor = bound, noise_multiplier, divisor

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        rng, deviation, total = np.random.default_rng(), self.bound * self.noise_multiplier, self.total(before, updates)
        noised = {name: value + rng.normal(0, deviation, value.shape) for name, value in total.items()}
        with np.errstate(over="ignore"):  # it is refused below
            moved = _moved(before, {name: Array(np.asarray(value / self.divisor)) for name, value in noised.items()})
        if not all(np.isfinite(array.numpy()).all() for array in moved.values()):
            raise RunError(f"round {server_round}: weights with noise are not finite; take a smaller clipping-norm")
        return moved

    def total(self, before: ArrayRecord, updates: Sequence[Trained]) -> dict[str, npt.NDArray[np.float64]]:
        """The sum of the updates, none longer than the bound, without noise; zeros where there are none."""
        received = [array.numpy() for array in before.values()]
        total = {name: np.zeros(array.shape) for name, array in before.items()}
        for update in updates:
            norm = update_norm([update.arrays[name] for name in before], received)
            for name, move in _move(update.arrays, before).items():
                total[name] += move * min(1.0, self.bound / norm) if norm else move
        return total


class AdaptiveNoisedMean(NoisedMean):
    """The same with a bound that follows the median norm of updates (Andrew et al. 2021, Algorithm 1).

    After a round the bound is multiplied by exp(-0.2 (s - 0.5)), where s is the share of clients whose update was no
    longer, with noise. That noise and that on the updates cost as much as ``noise_multiplier`` alone would (Theorem 1).
    It is a twentieth of the divisor, as in the paper, and where clients are few as much more as keeps the noise on
    updates from growing by more than 5 %.

    Args:
        bound: in the first round.
        noise_multiplier: what both together cost.
        divisor: how many clients a round draws, on average.
        kept: its ``state`` after the last round of a run that is resumed.
    """

    def __init__(self, bound: float, noise_multiplier: float, divisor: int, kept: Mapping[str, Tensor]) -> None:
        self.count_noise = max(divisor / 20, noise_multiplier / 2 / math.sqrt(1 - MOST_GROWTH**-2))
        shared = (noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5
        super().__init__(float(kept[BOUND]) if kept else bound, shared, divisor)

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        moved = super().aggregate(server_round, before, updates)
        received = [array.numpy() for array in before.values()]
        norms = [update_norm([update.arrays[name] for name in before], received) for update in updates]
        halves = sum(0.5 if norm <= self.bound else -0.5 for norm in norms)  # one client moves it by half
        surplus = (halves + np.random.default_rng().normal(0, self.count_noise)) / self.divisor
        self.bound *= math.exp(-CLIPPING_RATE * surplus)
        return moved

    def state(self) -> Mapping[str, Tensor]:
        return {BOUND: torch.tensor(self.bound, dtype=torch.float64)}


class NormBound(Mean):
    """The mean of updates, each scaled down to a largest L2 norm (Sun et al. 2019, section 5).

    Args:
        bound: the largest norm; 0: the median of the round's.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        received = [array.numpy() for array in before.values()]
        norms = [update_norm([update.arrays[name] for name in before], received) for update in updates]
        moves = [_move(update.arrays, before) for update in updates]
        bound = self.bound or float(np.median(norms))
        shorter = [
            {name: move * min(1.0, bound / norm) if norm else move for name, move in each.items()}
            for each, norm in zip(moves, norms, strict=True)
        ]
        wide = {name: Array(array.numpy().astype(np.float64)) for name, array in before.items()}
        mean = average([(update.num_train, move) for update, move in zip(updates, shorter, strict=True)], wide)
        return _moved(before, mean)


class Robust(Mean):
    """One of Flower's robust strategies, on the differences to what the clients started from, in float64.

    The papers speak of differences. Of weights, as Flower takes them, the distance between two clients would be a small
    difference of large numbers.

    Args:
        name: of the aggregator.
        num_malicious: clients of a round that may send anything, f.
        trim_fraction: of the clients, cut off at either end by ``trimmed-mean``.
    """

    def __init__(self, name: str, num_malicious: int, trim_fraction: float) -> None:
        self.name, self.num_malicious, self.trim_fraction = name, num_malicious, trim_fraction

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        if problem := too_few(self.name, len(updates), self.num_malicious, self.trim_fraction):
            raise RunError(f"round {server_round}: {len(updates)} clients trained, and {problem}")
        moves = [update._replace(arrays=_move(update.arrays, before)) for update in updates]
        mean, _ = self._flower(len(updates)).aggregate_train(server_round, replies_of(moves))
        assert mean is not None, "there are enough replies"
        return _moved(before, mean)

    def _flower(self, count: int) -> Strategy:
        """The strategy for so many clients."""
        if self.name == "median":  # Yin et al. 2018, Definition 1
            return FedMedian()
        if self.name == "trimmed-mean":  # Yin et al. 2018, Definition 2
            return FedTrimmedAvg(beta=self.trim_fraction)
        if self.name == "krum":  # Blanchard et al. 2017, section 4
            return Krum(num_malicious_nodes=self.num_malicious)
        if self.name == "multi-krum":  # Blanchard et al. 2017, section 4; as many as the scores count
            selected = count - self.num_malicious - 2
            return MultiKrum(num_malicious_nodes=self.num_malicious, num_nodes_to_select=selected)
        return Bulyan(num_malicious_nodes=self.num_malicious)  # El Mhamdi et al. 2018, section 4


def too_few(name: str, count: int, num_malicious: int, trim_fraction: float) -> str:
    """Why an aggregator cannot work with so many clients; empty if it can."""
    of_krum = 2 * num_malicious + 3
    needed = {"median": 3, "krum": of_krum, "multi-krum": of_krum, "bulyan": 4 * num_malicious + 3}
    if count < needed.get(name, 1):
        of = "" if name == "median" else f" of which {num_malicious} may be malicious"
        return f"{name} needs {needed[name]} or more{of}"
    if name == "trimmed-mean" and int(trim_fraction * count) < 1:
        return f"trimmed-mean with trim-fraction={trim_fraction:g} would leave out none of them"
    return ""


def replies_of(updates: Sequence[Trained]) -> list[Message]:
    """A reply in Flower's standard form for each client: ``arrays``, and ``metrics`` with ``num-examples``."""
    replies = []
    for update in updates:
        arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in update.arrays.items()})
        metrics = MetricRecord({"num-examples": update.num_train})
        asked = Message(RecordDict(), update.client, "train")
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked))
    return replies


def average(updates: Sequence[tuple[int, Arrays]], arrays: Mapping[str, Array]) -> ArrayRecord:
    """The mean of shared arrays, weighted by training images (McMahan et al. 2017, Algorithm 1).

    Sums are in float64 and in the order of the updates, so the result does not depend on who answered first.

    Args:
        updates: training images and arrays of one client or more.
        arrays: what the updates were trained from, with the names, shapes and types of the result.
    """
    total = sum(count for count, _ in updates)

    def mean(name: str, array: Array) -> npt.NDArray[Any]:
        made = np.empty(array.shape, array.dtype)
        flat = made.reshape(-1)
        for start in range(0, flat.size, AT_ONCE):
            of = slice(start, start + AT_ONCE)
            weighted = np.zeros(len(flat[of]))
            scaled = np.empty_like(weighted)
            for count, trained in updates:
                np.multiply(trained[name].reshape(-1)[of], count, out=scaled, dtype=np.float64)
                weighted += scaled
            flat[of] = (weighted / total).astype(array.dtype)
        return made

    return ArrayRecord({name: Array(mean(name, array)) for name, array in arrays.items()})


def _move(arrays: Arrays, before: ArrayRecord) -> Arrays:
    return {name: value.astype(np.float64) - before[name].numpy().astype(np.float64) for name, value in arrays.items()}


def _moved(before: ArrayRecord, move: Mapping[str, Array]) -> ArrayRecord:
    moved = {name: array.numpy() + move[name].numpy() for name, array in before.items()}
    return ArrayRecord({name: Array(np.asarray(value).astype(before[name].dtype)) for name, value in moved.items()})
