"""Which answers of a round come in time: those of sites by the clock, those of simulated clients by their speeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.config.length import steps_of
from lit_fedbabu.protocol.wire import ClientUpdate

SIMULATED = "simulated_seconds"
SAMPLES_PER_S = 1_000
"""Training samples that a simulated client of the median speed sees in a second."""


def slowness(config: Config) -> list[float]:
    """How many times as long as at the median speed each client takes for a sample, by its number: exp(S z)."""
    rng = np.random.default_rng(config.derived_seed("speeds"))
    factors: list[float] = np.exp(config.speed_sigma * rng.standard_normal(config.num_federated)).tolist()
    return factors


class Pace:
    """The time of rounds, and who was late.

    Of a simulated client it is known when it would answer: after as many seconds as it takes for the samples that it
    trains on. Messages and evaluations take none. Of sites ``PatientGrid`` says who was late.

    Args:
        config: the experiment.
        sizes: training and test samples of clients.
    """

    def __init__(self, config: Config, sizes: Mapping[int, tuple[int, int]]) -> None:
        self._config, self._sizes = config, sizes
        self._slowness = slowness(config) if config.client_speeds else []
        self._lengths = algorithm_of(config).lengths
        self.late: set[int] = set()
        """Clients whose answer in this round came too late to count."""
        self.round_s = 0.0
        """Simulated seconds of this round."""
        self.staleness: list[int] = []
        """Of the updates of a buffered server: the steps that it has taken since each one's client began."""

    def begin(self) -> None:
        """A round begins."""
        self.late, self.round_s = set(), 0.0

    def seconds_of(self, client: int) -> float:
        """Simulated seconds in which a client trains."""
        count = self._sizes[client][0]
        batches = math.ceil(count / self._config.batch_size)
        steps = sum(steps_of(batches, *self._config.length(field)) for field in self._lengths)
        return steps / batches * count * self._slowness[client] / SAMPLES_PER_S

    def in_time(self, updates: Sequence[ClientUpdate], record: Callable[[int, str], None]) -> list[ClientUpdate]:
        """The updates that come before the deadline; that of the others is recorded as late."""
        deadline = self._config.round_deadline_s
        if not self._slowness or not deadline:
            return list(updates)
        found = [update for update in updates if self.seconds_of(update.client) <= deadline]
        for client in sorted({update.client for update in updates} - {update.client for update in found}):
            self.late.add(client)
            what = f"late: it answers after {self.seconds_of(client):.4g} simulated seconds"
            record(client, f"{what}, and round-deadline-s is {deadline:g}")
        return found

    def first(self, asked: Sequence[int], updates: Sequence[ClientUpdate], count: int) -> list[ClientUpdate]:
        """The first updates to come, so many at most; the time passes until there are so many, or all have answered.

        Args:
            asked: the clients that were asked together.
            updates: theirs that are in time and can be averaged.
            count: that are needed.
        """
        if not self._slowness:
            return list(updates)
        ordered = sorted(updates, key=lambda update: (self.seconds_of(update.client), update.client))
        taken = ordered[:count]
        self.late |= {update.client for update in ordered[count:]}
        awaited = [taken[-1].client] if len(taken) == count and taken else asked
        seconds = max((self.seconds_of(client) for client in awaited), default=0.0)
        self.round_s += min(seconds, self._config.round_deadline_s or math.inf)
        return taken

    def history(self, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the history says of the round: simulated seconds of all rounds so far, who was late, mean staleness.

        Args:
            rounds: the entries of those before it.
        """
        before = rounds[-1].get(SIMULATED, 0.0) if rounds else 0.0
        simulated = {SIMULATED: before + self.round_s} if self._slowness else {}
        late = {"late": sorted(self.late)} if self.late else {}
        stale = {"staleness": sum(self.staleness) / len(self.staleness)} if self.staleness else {}
        return {**simulated, **late, **stale}
