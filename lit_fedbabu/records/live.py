"""report.html of a run or a study while it goes on: one file, which a browser reads anew without a server."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from lit_fedbabu.algorithms.table import title_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.files import write_whole
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.learning.evaluation import STAGES, Score
from lit_fedbabu.records import sites
from lit_fedbabu.records.live_page import TEMPLATE

PAGE = "report.html"
EVERY_S = 5
POINTS = 400
"""Of a curve at most."""
CLIENTS, FAILURES = 200, 20
"""Rows at most: of clients the first, of failures the last."""


class Table(NamedTuple):
    """Rows under their columns, a line below them, and the columns of numbers, which stand to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    more: str = ""
    right: Sequence[str] = ()


class Curve(NamedTuple):
    """A curve in a drawing of 600 by 220."""

    title: str
    points: Sequence[tuple[float, float]]
    low: str
    high: str
    first: int
    last: int


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: in_line(value) if type(value) is str else value,
    )
    return environment.from_string(TEMPLATE)


def write(
    folder: Path,
    title: str,
    state: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    curves: Sequence[Curve] = (),
    done: tuple[int, int] = (0, 0),
    going: bool = True,
    bad: bool = False,
) -> None:
    """Write the page.

    Args:
        folder: for it.
        title: of the run or the study.
        state: what is done now, or how it ended.
        facts: the most important numbers by their names.
        tables: those without rows are left out.
        curves: over rounds.
        done: how much of how much.
        going: whether it goes on, so that the page is to read itself anew.
        bad: whether it ended badly.
    """
    text = _template().render(
        title=title,
        state=state,
        facts=facts,
        tables=[table for table in tables if table.rows],
        curves=curves,
        done=done[0],
        of=done[1],
        going=going,
        bad=bad,
        every_s=EVERY_S,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    write_whole(folder / PAGE, text)


def curve_of(title: str, values: Mapping[int, float], scale: float = 1.0) -> list[Curve]:
    """A curve of finite values by their rounds, of many rounds every so many; none without values."""
    rounds = list(values)
    if not rounds:
        return []
    step = -(-len(rounds) // POINTS)
    shown = sorted({*rounds[::step], rounds[-1]})
    first, last, low, high = rounds[0], rounds[-1], min(values.values()), max(values.values())
    points = [
        (
            round(60 + 530 * (each - first) / max(1, last - first), 1),
            round(190 - 175 * (values[each] - low) / (high - low or 1.0), 1),
        )
        for each in shown
    ]
    return [Curve(title, points, f"{scale * low:.4g}", f"{scale * high:.4g}", first, last)]


class RunPage:
    """The page of a run, and of a run on sites ``sites.json``.

    Args:
        folder: the run's.
        config: its options.
        score: what clients are compared by.
        last_round: of the run.
        sizes: training and test samples of clients, where they are known.
        names: of clients by their numbers; empty: they have none.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        score: Score,
        last_round: int,
        sizes: Mapping[int, tuple[int, int]],
        names: Sequence[str] = (),
    ) -> None:
        self._folder, self._config, self._score, self._last_round = folder, config, score, last_round
        self._sizes, self._names = sizes, names
        self._title = f"{title_of(config.algorithm)} on {config.kind.short_name(config)}, seed {config.seed}"
        self._begun = time.monotonic()
        self._state = "starting"
        self._left: timedelta | None = None
        self._trained: Counter[int] = Counter()
        self._newest: dict[int, int] = {}
        self._failed: Counter[int] = Counter()
        self._failures: deque[tuple[int, str]] = deque(maxlen=FAILURES)
        self._rows: dict[int, Mapping[str, Any]] = {}
        self._rounds: Sequence[Mapping[str, Any]] = ()
        self._asked: list[int] = []
        self._sites = sites.Sites(folder, names or [""] * config.num_clients) if config.on_sites else None

    def begins(
        self,
        state: str,
        rounds: Sequence[Mapping[str, Any]],
        left: timedelta | None = None,
        asked: Iterable[int] = (),
    ) -> None:
        """Something begins, as a round; ``left``: the time that training will still take; ``asked``: the clients."""
        self._state, self._rounds, self._left, self._asked = state, rounds, left, list(asked)
        self._write()

    def saw(self, there: Mapping[int, sites.Seen]) -> None:
        """Sites were looked for, and these are there."""
        if self._sites:
            self._sites.saw(there)
            self._write()

    def trained(
        self, server_round: int, clients: Iterable[int], epsilons: Mapping[int, float] = MappingProxyType({})
    ) -> None:
        """Clients trained in a round, by whose end clients have spent so much of their privacy."""
        clients = list(clients)
        self._trained.update(clients)
        self._newest |= dict.fromkeys(clients, server_round)
        if self._sites:
            self._sites.trained(server_round, clients, epsilons)

    def failed(self, server_round: int, client: int, told: str, reason: str = "") -> None:
        """A client failed, for a reason as in failures.jsonl."""
        self._failed[client] += 1
        self._failures.append((server_round, told))
        if self._sites:
            self._sites.failed(client, sites.kind_of(reason))

    def evaluated(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Clients were evaluated; rows are their entries in results.json."""
        self._rows |= {row["client"]: row for row in rows}

    def over(self, rounds: Sequence[Mapping[str, Any]], why: str = "") -> None:
        """The run is over; ``why``: it did not finish."""
        self._state, self._rounds, self._left, self._asked = why or "finished", rounds, None, []
        self._write(going=False, bad=bool(why))

    def _write(self, going: bool = True, bad: bool = False) -> None:
        rounds = self._rounds
        key, score = f"initial_{self._score.name}", self._score
        initial = {each["round"]: each[key]["mean"] for each in rounds if key in each}
        losses = {each["round"]: each["train_loss"] for each in rounds if each["train_loss"] is not None}
        facts = {
            "rounds done": f"{len(rounds)} of {self._last_round}",
            "clients": str(self._config.num_clients),
            "client failures": str(sum(self._failed.values())),
            "since the start": str(timedelta(seconds=round(time.monotonic() - self._begun))),
        }
        if going and self._left is not None:
            facts["of training left"] = str(self._left)
        if losses:
            facts["training loss"] = f"{list(losses.values())[-1]:.4f}"
        if initial:
            facts[f"initial {score.name}"] = f"{score.shown(list(initial.values())[-1])}{score.unit}"
        last = f"personalized_{score.name}"
        tuned = [row[last] for row in self._rows.values() if row.get(last) is not None]
        if tuned:
            facts[f"personalized {score.name}"] = f"{score.shown(sum(tuned) / len(tuned))}{score.unit}"
        if rounds and "epsilon" in rounds[-1]:
            facts["epsilon spent"] = f"{rounds[-1]['epsilon']:.3g}"
        curves = [
            *curve_of("training loss", losses),
            *curve_of(f"initial {score.name}, mean over clients", initial, score.scale),
        ]
        failures = Table("Failures", ("round", "what failed"), list(reversed(self._failures)), "Newest first.")
        tables = [failures, self._clients()]
        if self._sites:
            self._sites.write(self._state, self._asked, going, bad)
            tables.insert(0, Table("Sites", *sites.cells(self._sites.rows)))
        done = len(rounds), self._last_round
        write(self._folder, self._title, self._state, facts, tables, curves, done, going, bad)

    def _clients(self) -> Table:
        named, score = bool(self._names), self._score
        columns = ["client", *(["name"] if named else []), "training samples", "rounds trained", "last in round"]
        columns += ["failed", *(f"{stage} {score.axis}" for stage in STAGES)]
        rows = []
        for client in range(min(self._config.num_clients, CLIENTS)):
            row = self._rows.get(client, {})
            values = (row.get(f"{stage}_{score.name}") for stage in STAGES)
            rows.append(
                [
                    client,
                    *([self._names[client]] if named else []),
                    self._sizes.get(client, ("", ""))[0],
                    self._trained[client],
                    self._newest.get(client, ""),
                    self._failed[client],
                    *("" if value is None else score.shown(value) for value in values),
                ]
            )
        more = self._config.num_clients - len(rows)
        right = [column for column in columns if column != "name"]
        return Table("Clients", columns, rows, f"And {more} more clients." if more else "", right)
