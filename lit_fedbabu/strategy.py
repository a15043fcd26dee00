"""The server's strategy: seeded sampling of clients, aggregation in a fixed order, evaluation of all clients."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lit_fedbabu import failures, runs
from lit_fedbabu.aggregation import Update, average, fault
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.board import Board
from lit_fedbabu.config import Config
from lit_fedbabu.nodes import RunError
from lit_fedbabu.partition import summary
from lit_fedbabu.sampling import participants, substitutes

MESSAGE_TIMEOUT_S = 12 * 3600.0
SITE_PAUSE_S = 30
"""Before sites that did not answer are asked again."""


class SharedParts(Strategy):
    """Federated averaging of whatever parts the clients share, over clients and not over nodes.

    Clients are drawn by (seed, round), and their arrays are summed in float64 in the order of client
    ids, so the result does not depend on the number of nodes, on their ids or on who answers first.
    A client that fails is left out of the round, written down, and replaced by another one.

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
        self.failures = failures.Failures(folder, board, say)
        self.finished = finished
        self.say = say
        self.rounds = list(rounds)
        """One entry for every round: number, learning rate, training loss and, where evaluated, initial accuracy."""
        self.clients: list[dict[str, Any]] = []
        """Of the last evaluation with personal models: one dict per client, as in results.json."""
        self._order = {**runs.own_code(), "memory": runs.memory_of(folder, config)}
        self._before = len(self.rounds)
        self._started = 0.0
        self._seconds = 0.0
        self._bytes_down = self._bytes_up = 0

    def summary(self) -> None:
        """Say what is about to run."""
        config = self.config
        drawn = f"{len(participants(config, 1))} of {config.num_clients} clients each"
        who = "one participant with all training images" if algorithm_of(config).pooled else drawn
        self.say(f"{config.dataset} by {config.partitioner}: {summary(config)}")
        self.say(
            f"{config.algorithm}: {config.num_server_rounds} rounds, {who},"
            f" {config.num_local_epochs} local epochs, on {len(self.nodes)} nodes"
            + (f"; resumed after round {self._before}" if self._before else "")
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._before
        self._started = time.monotonic()
        self._grid, self._arrays = grid, arrays
        self._bytes_down = self._bytes_up = 0
        return self._training(server_round, participants(self.config, server_round))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, None]:
        server_round += self._before
        averaged, loss = average(self._updates(server_round, replies), self._arrays)
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
                "communication/bytes_up": self._bytes_up,
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
        if not self._is_evaluated(server_round):
            return []
        clients = range(self.config.num_clients)
        if self._is_last(server_round):
            self.say(f"fine-tuning {len(clients)} clients for {self.config.num_finetune_epochs} epochs each")
        self._grid, self._arrays = grid, arrays
        return self._evaluation(server_round, clients)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        server_round += self._before
        if not self._is_evaluated(server_round):
            return
        rows = [
            dict(zip(reply.content["metrics"], values, strict=True))
            for reply in self._answers(server_round, replies)
            for values in failures.rows(reply.content["metrics"], *reply.content["metrics"])
        ]
        for name in runs.KINDS:
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

    def _training(self, server_round: int, clients: Iterable[int]) -> list[Message]:
        order = {"learning-rate": self.config.learning_rate_in(server_round)}
        messages = self._messages(MessageType.TRAIN, server_round, self._arrays, clients, order)
        self._bytes_down += len(messages) * _size(self._arrays)
        return messages

    def _updates(self, server_round: int, replies: Iterable[Message]) -> list[Update]:
        """What the clients of a round trained, by their numbers; failed clients are replaced by others.

        Raises:
            RunError: too few were left after all retries.
        """
        asked = participants(self.config, server_round)
        needed = min(self.config.min_clients_per_round or len(asked), len(asked))
        waiting, updates = asked, []
        for attempt in range(self.config.max_round_retries + 1):
            if attempt:
                waiting = substitutes(self.config, server_round, attempt, asked, needed - len(updates))
                if not waiting:
                    break
                self.say(f"round {server_round}  asking clients {waiting} in place of failed ones")
                asked = [*asked, *waiting]
                messages = self._training(server_round, waiting)
                replies = self._grid.send_and_receive(messages, timeout=MESSAGE_TIMEOUT_S)
            updates += self._sound(server_round, waiting, replies)
            if len(updates) >= needed:
                return sorted(updates, key=lambda update: update.client)
        raise RunError(
            f"round {server_round}: {len(updates)} clients trained and {needed} are needed;"
            f" {self.folder / runs.FAILURES} says why the others failed. The last: {self.failures.last}"
        )

    def _sound(self, server_round: int, clients: list[int], replies: Iterable[Message]) -> Iterator[Update]:
        """The updates among the replies that can be averaged; every other client has failed, and that is written."""
        for reply in self._whole(server_round, clients, replies):
            node = self._place(reply.metadata.src_node_id)
            self._bytes_up += _size(reply.content["arrays"])
            for client, reason, trace in failures.rows(reply.content.get("failures"), "client", "reason", "traceback"):
                self.failures.note(server_round, client, node, reason, trace)
            stacks = {name: array.numpy() for name, array in reply.content["arrays"].items()}
            for place, told in enumerate(failures.rows(reply.content["metrics"], "client", "num_train", "train_loss")):
                update = Update(*told, {name: stack[place] for name, stack in stacks.items()})
                if wrong := fault(update, self._arrays):
                    self.failures.note(server_round, update.client, node, wrong)
                else:
                    yield update

    def _whole(self, server_round: int, clients: Iterable[int], replies: Iterable[Message]) -> list[Message]:
        """The replies that are no errors. A client that none of them speaks of has failed, and that is written."""
        replies = list(replies)
        whole = [reply for reply in replies if not reply.has_error()]
        errors = {reply.metadata.src_node_id: reply.error.reason for reply in replies if reply.has_error()}
        # Flower's own errors, as of a node that is gone, do not say whose they are.
        flowers = "; ".join(reason for node, reason in errors.items() if node not in self.nodes)
        for client in sorted(set(clients) - _clients_in(whole)):
            node = self._host(client)
            self.failures.note(server_round, client, self._place(node), errors.get(node) or flowers or "no answer")
        return whole

    def _host(self, client: int) -> int:
        return self.nodes[client % len(self.nodes)]

    def _place(self, node: int) -> str:
        return str(self.nodes.index(node))

    def end_of_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Flower's place for an evaluation on the server: here a round is over, and is kept."""
        if server_round > 0:  # Flower also asks before the first round
            self.finished(server_round + self._before, arrays)

    def _messages(
        self, kind: str, server_round: int, arrays: ArrayRecord, clients: Iterable[int], order: dict[str, Any]
    ) -> list[Message]:
        hosted: dict[int, list[int]] = {}
        for client in clients:
            hosted.setdefault(self._host(client), []).append(client)
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

    def _answers(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """The replies to an evaluation of all clients.

        Sites may be away: in the last round they are asked again, and who still is away is left out.

        Raises:
            RunError: a simulated client is missing, or all sites are.
        """
        missing, answers = set(range(self.config.num_clients)), []
        patience = self.config.max_round_retries if self._is_last(server_round) and self.config.on_sites else 0
        for attempt in range(patience + 1):
            if attempt:
                self.say(f"round {server_round}  asking clients {sorted(missing)} again in {SITE_PAUSE_S} s")
                time.sleep(SITE_PAUSE_S)
                messages = self._evaluation(server_round, sorted(missing))
                replies = self._grid.send_and_receive(messages, timeout=MESSAGE_TIMEOUT_S)
            answers += self._whole(server_round, missing, replies)
            missing = missing - _clients_in(answers)
            if not missing:
                return answers
        if answers and self.config.on_sites:
            return answers
        raise RunError(f"round {server_round}: clients {sorted(missing)} were not evaluated: {self.failures.last}")

    def _evaluation(self, server_round: int, clients: Iterable[int]) -> list[Message]:
        order = {"personalize": self._is_last(server_round)}
        return self._messages(MessageType.EVALUATE, server_round, self._arrays, clients, order)

    def _is_evaluated(self, server_round: int) -> bool:
        return self._is_last(server_round) or server_round % self.config.evaluate_every == 0

    def _is_last(self, server_round: int) -> bool:
        return server_round == self.config.num_server_rounds


def _clients_in(replies: Iterable[Message]) -> set[int]:
    """The clients that replies speak of, trained or evaluated or failed."""
    records = (reply.content.get(name) for reply in replies for name in ("metrics", "failures"))
    return {client for record in records for (client,) in failures.rows(record, "client")}


def _size(arrays: ArrayRecord) -> int:
    """Bytes of the numbers in a record, without Flower's framing."""
    return sum(array.numpy().nbytes for array in arrays.values())
