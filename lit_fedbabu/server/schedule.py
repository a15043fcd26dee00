"""Who trains when under a buffered server: of simulated clients in simulated seconds, of sites as they come."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lit_fedbabu.config import Config
from lit_fedbabu.server.sampling import substitutes


class Training(NamedTuple):
    """A client in training.

    Args:
        step: that it began in, with the weights of that step.
        ends: simulated seconds from the beginning of this step to its end.
    """

    step: int
    ends: float


class Schedule:
    """Who trains when, in simulated seconds; it follows from the seed, speeds and numbers of samples alone.

    As many clients as a round has train at once. Where one has come, another is drawn from those that neither train nor
    have come in this step, and begins with the weights of the moment. Of those that come at once the step takes first
    who has the lower number, and all who come at once are taken before others begin.

    Args:
        config: the experiment.
        seconds_of: a client's training takes.
    """

    def __init__(self, config: Config, seconds_of: Callable[[int], float]) -> None:
        self._config, self._seconds_of = config, seconds_of
        self.training: dict[int, Training] = {}
        self.begin(1)

    def begin(self, step: int) -> None:
        """A step begins."""
        self._step, self._draws = step, 0
        self.came: dict[int, int] = {}
        """Clients that have come in this step, and the steps that they began in."""
        self.seconds = 0.0
        """Of this step until the last client came."""

    def next(self, count: int) -> list[int]:
        """The clients that come next, so many; fewer where there are no more in this step."""
        found: list[int] = []
        while len(found) < count:
            self._fill()
            if not self.training:
                break
            self.seconds = min(each.ends for each in self.training.values())
            together = sorted(client for client, each in self.training.items() if each.ends == self.seconds)
            for client in together[: count - len(found)]:
                self.came[client] = self.training.pop(client).step
                found.append(client)
        return sorted(found)

    def step(self, step: int) -> list[int]:
        """The clients whose updates make a step, where none fails."""
        self.begin(step)
        found = self.next(self._config.updates_per_step)
        self.end()
        return found

    def end(self) -> None:
        """The step is over: seconds count from its end."""
        for client, each in self.training.items():
            self.training[client] = each._replace(ends=each.ends - self.seconds)

    def _fill(self) -> None:
        """Others begin in place of those that have come."""
        free = self._config.clients_per_round - len(self.training)
        drawn = substitutes(self._config, self._step, self._draws, {*self.training, *self.came}, free) if free else []
        self._draws += bool(free)
        for client in drawn:
            self.training[client] = Training(self._step, self.seconds + self._seconds_of(client))


class SiteSchedule(Schedule):
    """The same of sites: who comes next is said by ``arrived``.

    Args:
        config: the experiment.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config, lambda _: 0.0)

    def next(self, count: int) -> list[int]:
        """The sites that begin now; none where as many train as can, or none is left in this step."""
        before = set(self.training)
        self._fill()
        return sorted(self.training.keys() - before)

    def arrived(self, clients: Iterable[int]) -> None:
        """Sites have answered."""
        for client in clients:
            self.came[client] = self.training.pop(client).step
