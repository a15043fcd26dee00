"""What privacy a run has spent, and how much is left: by who was asked, also as a stand-in and in repeated rounds."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import append_json_line, read_json_lines
from lit_fedbabu.records.run_folder import ASKED
from lit_fedbabu.server.pace import Pace
from lit_fedbabu.server.sampling import drawn_anew, participants
from lit_fedbabu.server.schedule import Schedule
from lit_fedbabu.training.privacy import TRUST, Course, central_epsilon, course_of, epsilon, guarantee, steps_epsilon

Asked = list[tuple[int, list[int]]]
"""Rounds, and the clients that were asked in them, in the order in which they were asked."""


class Ledger:
    """What a run spends of the privacy of its clients. It stands on ``asked.jsonl`` in the run's folder.

    A line is written before clients are asked, so that a run that is killed has counted what they may have sent.

    Args:
        config: the experiment.
        folder: the run's.
        done: rounds that the run that is resumed has done.
        sizes: training and test samples of each client, of which privacy of samples needs to know.

    Raises:
        InputError: ``max-epsilon`` is less than what the first round spends, or the file is damaged.
    """

    def __init__(
        self, config: Config, folder: Path, done: int = 0, sizes: Mapping[int, tuple[int, int]] = MappingProxyType({})
    ) -> None:
        self.config, self._folder, self._done = config, folder, done
        self._courses: dict[int, Course] = {}
        self._known: dict[tuple[Course, int], float] = {}
        self._steps: list[list[int]] = []
        if config.is_buffered and config.protection != "none":
            schedule = Schedule(config, Pace(config, sizes).seconds_of)
            self._steps = [schedule.step(each) for each in range(1, config.num_server_rounds + 1)]
        if config.protection == "sample":
            algorithm = algorithm_of(config)
            self._courses = {client: course_of(config, algorithm, count) for client, (count, _) in sizes.items()}
        self._of_each = config.protection in ("local", "sample")
        self.last_round = self._last_round()
        """The last round that ``max-epsilon`` has room for: the last one of all where it has no limit."""
        self.stop = self._stop()
        """Before which round the run ends, and why, in a line; empty where it has all of its rounds."""

    def drawn(self, server_round: int) -> list[int]:
        """The clients that train in a round, by the seed; with central privacy by chance, once for each round."""
        if self.config.protection != "central":
            return participants(self.config, server_round)
        before = [clients for each, clients in _read(self._folder) if each == server_round]
        return before[0] if before else drawn_anew(self.config)

    def note(self, server_round: int, clients: Sequence[int]) -> None:
        """Write down, before they are asked, which clients will share what they train."""
        if self.config.protection != "none":
            append_json_line(self._folder / ASKED, {"round": server_round, "clients": list(clients)})

    def epsilon(self, server_round: int) -> float | None:
        """What was spent by the end of a round, of the client that spent most; None without noise."""
        if self.config.protection == "none":
            return None
        return self._epsilon(self._lines(server_round, server_round))

    def epsilons(self, server_round: int) -> dict[int, float]:
        """What each client has spent by the end of a round; nothing with central privacy, which is all clients'."""
        if not self._of_each:
            return {}
        counts = _times(self._lines(server_round, server_round))
        return {client: self._own(client, counts[client]) for client in range(self.config.num_clients)}

    def exhausted(self, server_round: int) -> list[int]:
        """The clients that may not stand in for others in a round, for the rounds to come will spend what they have."""
        if not self._of_each or not self.config.max_epsilon:
            return []
        counts = _times(self._lines(server_round, self.last_round))
        most = self.config.max_epsilon
        everyone = range(self.config.num_federated)
        return [client for client in everyone if self._own(client, counts[client] + 1) > most]

    def facts(self, done: int) -> dict[str, str]:
        """What protection the shared weights have, and epsilon after the last round, for config.toml.

        Args:
            done: rounds that are over. Of those to come it is counted what will be asked.
        """
        if not self.config.clipping_norm:
            return {}
        if self.config.protection == "none":
            return {"privacy": guarantee(self.config, 0.0, 0.0, 0)}
        lines = self._lines(done, self.last_round)
        once, whole = self._epsilon([(1, [*_times(lines)])]), self._epsilon(lines)
        most = max(_times(lines).values()) if self._of_each else self.last_round
        return {"privacy": guarantee(self.config, once or 0.0, whole or 0.0, most), "epsilon": f"{whole:.6g}"}

    def results(self, server_round: int) -> dict[str, Any]:
        """The entry of results.json: the kind of privacy, its trust model, and what was spent."""
        kind, rounds = self.config.protection, self.config.num_server_rounds
        if kind == "none":
            return {"kind": kind, "trust": TRUST[kind]}
        return {
            "kind": kind,
            "trust": TRUST[kind],
            "epsilon": self.epsilon(server_round),
            "delta": self.config.delta,
            **({"max_epsilon": self.config.max_epsilon} if self.config.max_epsilon else {}),
            **({"stopped_before": server_round + 1} if server_round == self.last_round < rounds else {}),
        }

    def _stop(self) -> str:
        config, next_round = self.config, self.last_round + 1
        if next_round > config.num_server_rounds:
            return ""
        more = self._epsilon(self._lines(self._done, next_round))
        return (
            f"max-epsilon = {config.max_epsilon:g} ends the run before round {next_round} of"
            f" {config.num_server_rounds}, after which epsilon would be {more:.4g}"
        )

    def _last_round(self) -> int:
        most, everything = self.config.max_epsilon, self.config.num_server_rounds
        if not most:
            return everything
        rounds = range(self._done + 1, everything + 1)
        last = self._done + bisect_right(rounds, most, key=lambda each: self._epsilon(self._lines(self._done, each)))
        if not last:
            first = self._epsilon(self._lines(0, 1))
            remedy = f"the first round alone spends {first:.4g}; take more, or a larger noise-multiplier"
            raise InputError("max-epsilon", most, remedy)
        return last

    def _lines(self, done: int, last: int) -> Asked:
        """Who was asked by the end of the round ``last``: of rounds that are done what was written, else also the draw.

        Runs of earlier versions have written nothing.
        """
        asked = [(each, clients) for each, clients in _read(self._folder) if each <= last]
        rounds = {each for each, _ in asked}
        to_come = [each for each in range(1, last + 1) if each > done or each not in rounds]
        return [*((each, self._foreseen(each)) for each in to_come), *asked]

    def _foreseen(self, server_round: int) -> list[int]:
        """Who will be asked in a round if none fails."""
        return self._steps[server_round - 1] if self._steps else participants(self.config, server_round)

    def _epsilon(self, lines: Asked) -> float:
        if self.config.protection == "central":
            times = Counter(each for each, _ in lines)
            return central_epsilon(self.config, Counter(times.values()))
        times = _times(lines)
        if self.config.protection == "local":  # where all clients are alike
            return self._own(0, max(times.values(), default=0))
        most: dict[float, tuple[int, int]] = {}  # by rates, with which epsilon grows as it does with steps
        for client, count in times.items():
            rate, _, each = self._courses[client]
            most[rate] = max(most.get(rate, (0, client)), (each * count, client))
        spend, steps = [], 0
        for rate in sorted(most, reverse=True):
            if most[rate][0] > steps:
                steps, client = most[rate]
                spend.append(self._own(client, times[client]))
        return max(spend, default=0.0)

    def _own(self, client: int, times: int) -> float:
        """What a client spends that is asked so often."""
        if not times:
            return 0.0
        if self.config.protection == "sample":
            key = self._courses[client], times
            if key not in self._known:
                self._known[key] = steps_epsilon([key[0]] * times, self.config.delta)
            return self._known[key]
        return epsilon(self.config.noise_multiplier, times, self.config.delta)


def _times(lines: Asked) -> Counter[int]:
    """How often each client was asked."""
    return Counter(client for _, clients in lines for client in clients)


def _read(folder: Path) -> Asked:
    """Rounds and the clients that were asked; runs of earlier versions have none."""
    lines = read_json_lines(folder / ASKED, {"round": int, "clients": list})
    asked = [(line["round"], line["clients"]) for line in lines]
    for _, clients in asked:
        if not all(type(each) is int and each >= 0 for each in clients):
            remedy = f"has clients = {clients}, which are no numbers of clients; put the old file back"
            raise InputError("file", str(folder / ASKED), remedy)
    return asked
