"""The server's strategy: seeded sampling of clients, aggregation in a fixed order, evaluation of all clients."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lit_fedbabu import runs
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.board import Board
from lit_fedbabu.config import Config
from lit_fedbabu.partition import summary

NODES_TIMEOUT_S = 600.0


class RunError(RuntimeError):
    """The run cannot go on; the message says in one line why and what to do."""


class Node(NamedTuple):
    """A Flower node: its id, which is random, and what it says its device and precision are."""

    id: int
    trains_on: str


def find_nodes(grid: Grid, timeout_s: float = NODES_TIMEOUT_S) -> list[Node]:
    """All nodes, ordered by the place that each says it has.

    Waits until all nodes have registered: simulated ones appear while the server already runs.

    Raises:
        RunError: they did not all come in time, or they disagree about their number.
    """
    deadline = time.monotonic() + timeout_s
    asked: list[int] = []
    while True:
        ids = sorted(grid.get_node_ids())
        if ids and ids == asked:  # nobody came since the last look: ask them all
            places = _places(grid, ids, timeout_s)
            expected = max(place["nodes"] for place in places)
            if len(places) >= expected:
                break
            while len(ids) < expected and time.monotonic() < deadline:
                time.sleep(0.1)
                ids = sorted(grid.get_node_ids())
        if time.monotonic() > deadline:
            raise RunError(f"only {len(ids)} nodes came within {timeout_s:.0f} s; start the others first")
        asked = ids
        time.sleep(0.5)
    by_place = {place["node"]: Node(node, place["trains-on"]) for place, node in zip(places, asked, strict=True)}
    if sorted(by_place) != list(range(expected)):
        raise RunError(f"nodes say they are {sorted(by_place)} of {expected}; give each its own partition-id")
    return [by_place[place] for place in range(expected)]


def _places(grid: Grid, nodes: list[int], timeout_s: float) -> list[ConfigRecord]:
    """What the nodes answer to "query.place", in the order of ``nodes``."""
    messages = [Message(RecordDict(), node, "query.place") for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout_s)}
    for node in nodes:
        if node not in replies or replies[node].has_error():
            reason = replies[node].error.reason if node in replies else f"no answer within {timeout_s:.0f} s"
            raise RunError(f"a node did not say which clients it hosts: {reason}")
    return [replies[node].content["place"] for node in nodes]


class SharedParts(Strategy):
    """Federated averaging of whatever parts the clients share, over clients and not over nodes.

    Clients are drawn by (seed, round), and their arrays are summed in float64 in the order of client
    ids, so the result does not depend on the number of nodes, on their ids or on who answers first.

    Args:
        config: the experiment.
        nodes: Flower's node ids; client c lives on ``nodes[c % len(nodes)]``.
        folder: the run's folder.
        board: where scalars go.
        finished: called with (round, arrays) when a round and its evaluation are over.
        say: prints a line for the person who watches.
        rounds: the history of a run that is resumed: Flower counts from 1 what comes after it.
    """

    def __init__(
        self,
        config: Config,
        nodes: list[int],
        folder: Path,
        board: Board,
        finished: Callable[[int, ArrayRecord], None],
        say: Callable[[str], None],
        rounds: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.config = config
        self.nodes = nodes
        self.folder = folder
        self.board = board
        self.finished = finished
        self.say = say
        self.rounds = list(rounds)
        """One entry for every round: number, learning rate, training loss and, where evaluated, initial accuracy."""
        self.clients: list[dict[str, Any]] = []
        """Of the last evaluation with personal models: one dict per client, as in results.json."""
        self._order = {
            "source-digest": runs.source_digest(),
            "source-folder": str(runs.package_folder()),
            "memory": str(folder / runs.MEMORY),
        }
        self._before = len(self.rounds)
        self._started = 0.0
        self._seconds = 0.0
        self._bytes_down = 0

    def summary(self) -> None:
        """Say what is about to run."""
        config = self.config
        drawn = len(self.participants(1))
        self.say(f"{config.dataset} by {config.partitioner}: {summary(config)}")
        self.say(
            f"{config.algorithm}: {config.num_server_rounds} rounds, {drawn} of {config.num_clients} clients each,"
            f" {config.num_local_epochs} local epochs, on {len(self.nodes)} nodes"
            + (f"; resumed after round {self._before}" if self._before else "")
        )

    def participants(self, server_round: int) -> list[int]:
        """The clients that train in a round, drawn without replacement: int(f * N), at least one.

        Where all images are in one place, it is client 0 that has them.
        """
        if algorithm_of(self.config).pooled:
            return [0]
        rng = np.random.default_rng(self.config.derived_seed("sampling", server_round))
        count = max(1, int(self.config.fraction_train * self.config.num_clients + 1e-9))
        return sorted(rng.choice(self.config.num_clients, count, replace=False).tolist())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._before
        self._started = time.monotonic()
        clients = self.participants(server_round)
        order = {"learning-rate": self.config.learning_rate_in(server_round)}
        messages = self._messages(MessageType.TRAIN, server_round, arrays, clients, order)
        self._bytes_down = len(messages) * _size(arrays)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, None]:
        server_round += self._before
        replies = list(self._checked(server_round, self.participants(server_round), replies))
        rows = []
        for reply in replies:
            stacks = {name: array.numpy() for name, array in reply.content["arrays"].items()}
            for place, told in enumerate(_columns(reply, "client", "num_train", "train_loss")):
                rows.append((*told, {name: stack[place] for name, stack in stacks.items()}))
        rows.sort(key=lambda row: row[0])
        total = sum(count for _, count, _, _ in rows)

        def average(name: str) -> np.ndarray:
            weighted = sum(count * state[name].astype(np.float64) for _, count, _, state in rows)
            return np.asarray(weighted / total).astype(rows[0][3][name].dtype)  # counts of batches are 0-d

        averages = {name: average(name) for name in rows[0][3]}
        averaged = ArrayRecord({name: Array(values) for name, values in averages.items()})
        if not all(np.isfinite(values).all() for values in averages.values()):
            raise RunError(
                f"round {server_round}: the average is not finite; lower learning-rate = {self.config.learning_rate}"
            )
        loss = sum(count * loss for _, count, loss, _ in rows) / total
        seconds = time.monotonic() - self._started
        self._seconds += seconds
        mean_seconds = self._seconds / (server_round - self._before)
        left = timedelta(seconds=round(mean_seconds * (self.config.num_server_rounds - server_round)))
        rate = self.config.learning_rate_in(server_round)
        self.rounds.append({"round": server_round, "learning_rate": rate, "train_loss": loss})
        self.board.round(
            server_round,
            {
                "train/loss": loss,
                "train/learning_rate": rate,
                "communication/bytes_down": self._bytes_down,
                "communication/bytes_up": sum(_size(reply.content["arrays"]) for reply in replies),
                "time/seconds_per_round": seconds,
            },
        )
        self.say(
            f"round {server_round}/{self.config.num_server_rounds}  training loss {loss:.4f}"
            f"  learning rate {rate:.3g}  {seconds:.1f} s"
            f"  {left} of training left"
        )
        return averaged, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._before
        last = server_round == self.config.num_server_rounds
        if not last and server_round % self.config.evaluate_every:
            return []
        clients = range(self.config.num_clients)
        if last:
            self.say(f"fine-tuning {len(clients)} clients for {self.config.num_finetune_epochs} epochs each")
        return self._messages(MessageType.EVALUATE, server_round, arrays, clients, {"personalize": last})

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        server_round += self._before
        replies = list(replies)
        if not replies:
            return
        rows = [
            dict(zip(reply.content["metrics"], values, strict=True))
            for reply in self._checked(server_round, range(self.config.num_clients), replies)
            for values in _columns(reply, *reply.content["metrics"])
        ]
        for name in ("initial", "personalized"):
            if f"{name}_accuracy" in rows[0]:
                values = [row[f"{name}_accuracy"] for row in rows]
                over = runs.spread(values)
                self.board.accuracies(name, server_round, values)
                self.say(
                    f"round {server_round}  {name} accuracy {100 * over['mean']:.2f} ± {100 * over['std']:.2f} %"
                    f" over {len(values)} clients"
                )
                if name == "initial":
                    self.rounds[-1]["initial_accuracy"] = over
        self.clients = rows

    def end_of_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Flower's place for an evaluation on the server: here a round is over, and is kept."""
        if server_round > 0:  # Flower also asks before the first round
            self.finished(server_round + self._before, arrays)

    def _messages(
        self, kind: str, server_round: int, arrays: ArrayRecord, clients: Iterable[int], order: dict[str, Any]
    ) -> list[Message]:
        hosted: dict[int, list[int]] = {}
        for client in clients:
            hosted.setdefault(self.nodes[client % len(self.nodes)], []).append(client)
        return [
            Message(
                RecordDict(
                    {
                        "arrays": arrays,
                        "config": ConfigRecord({**self._order, **order, "server-round": server_round, "clients": ids}),
                    }
                ),
                node,
                kind,
                group_id=str(server_round),
            )
            for node, ids in hosted.items()
        ]

    def _checked(self, server_round: int, clients: Iterable[int], replies: Iterable[Message]) -> Iterator[Message]:
        """The replies, if there is one for every asked client and none is an error."""
        answered: list[int] = []
        for reply in replies:
            if reply.has_error():
                place = (
                    self.nodes.index(reply.metadata.src_node_id) if reply.metadata.src_node_id in self.nodes else "?"
                )
                runs.record_failure(self.folder, server_round, str(place), reply.error.reason)
                raise RunError(f"round {server_round}: node {place} failed: {reply.error.reason}")
            answered += reply.content["metrics"]["client"]
            yield reply
        missing = sorted(set(clients) - set(answered))
        if missing:
            runs.record_failure(self.folder, server_round, "?", f"no answer for clients {missing}")
            raise RunError(f"round {server_round}: no answer for clients {missing}")


def _columns(reply: Message, *keys: str) -> Iterator[tuple]:
    """Per client, the values of a reply's metrics under the keys."""
    metrics: MetricRecord = reply.content["metrics"]
    return zip(*(metrics[key] for key in keys), strict=True)


def _size(arrays: ArrayRecord) -> int:
    """Bytes of the numbers in a record, without Flower's framing."""
    return sum(array.numpy().nbytes for array in arrays.values())
