"""The server's strategy: seeded sampling of clients, aggregation in a fixed order, evaluation of all clients."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lit_fedbabu import failures, runs
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.board import Board
from lit_fedbabu.config import Config
from lit_fedbabu.nodes import RunError
from lit_fedbabu.partition import summary

MESSAGE_TIMEOUT_S = 12 * 3600.0


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
        self._order = {
            "source-digest": runs.source_digest(),
            "source-folder": str(runs.package_folder()),
            "memory": str(folder / runs.MEMORY),
        }
        self._before = len(self.rounds)
        self._started = 0.0
        self._seconds = 0.0
        self._bytes_down = self._bytes_up = 0

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
        return sorted(rng.choice(self.config.num_clients, self.config.clients_per_round, replace=False).tolist())

    def substitutes(self, server_round: int, attempt: int, asked: Iterable[int], count: int) -> list[int]:
        """Clients, drawn from those that a round has not asked yet, in place of ``count`` that failed."""
        rest = sorted(set(range(self.config.num_clients)) - set(asked))
        rng = np.random.default_rng(self.config.derived_seed("sampling", server_round, attempt))
        return sorted(rng.choice(rest, min(count, len(rest)), replace=False).tolist())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._before
        self._started = time.monotonic()
        self._grid, self._arrays = grid, arrays
        self._bytes_down = self._bytes_up = 0
        return self._training(server_round, self.participants(server_round))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, None]:
        server_round += self._before
        updates = self._updates(server_round, replies)
        total = sum(update.count for update in updates)

        def average(name: str, array: Array) -> np.ndarray:
            weighted = sum(update.count * update.state[name].astype(np.float64) for update in updates)
            return np.asarray(weighted / total).astype(array.dtype)  # counts of batches are 0-d

        averaged = ArrayRecord({name: Array(average(name, array)) for name, array in self._arrays.items()})
        loss = sum(update.count * update.loss for update in updates) / total
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

    def _updates(self, server_round: int, replies: Iterable[Message]) -> list[failures.Update]:
        """What the clients of a round trained, by their numbers; failed clients are replaced by others.

        Raises:
            RunError: too few were left after all retries.
        """
        asked = self.participants(server_round)
        needed = min(self.config.min_clients_per_round or len(asked), len(asked))
        waiting, updates = asked, []
        for attempt in range(self.config.max_round_retries + 1):
            if attempt:
                waiting = self.substitutes(server_round, attempt, asked, needed - len(updates))
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

    def _sound(self, server_round: int, clients: list[int], replies: Iterable[Message]) -> Iterator[failures.Update]:
        """The updates among the replies that can be averaged; every other client has failed, and that is written."""
        answered: set[int] = set()
        for reply in replies:
            node = self._place(reply)
            if reply.has_error():
                answered |= self._note_lost(server_round, clients, reply)
                continue
            self._bytes_up += _size(reply.content["arrays"])
            for client, reason, trace in failures.rows(reply.content.get("failures"), "client", "reason", "traceback"):
                answered.add(client)
                self.failures.note(server_round, client, node, reason, trace)
            stacks = {name: array.numpy() for name, array in reply.content["arrays"].items()}
            for place, told in enumerate(failures.rows(reply.content["metrics"], "client", "num_train", "train_loss")):
                update = failures.Update(*told, {name: stack[place] for name, stack in stacks.items()})
                answered.add(update.client)
                if wrong := failures.fault(update, self._arrays):
                    self.failures.note(server_round, update.client, node, wrong)
                else:
                    yield update
        self._note_silent(server_round, set(clients) - answered)

    def _note_lost(self, server_round: int, clients: Iterable[int], reply: Message) -> set[int]:
        """Write down the failure of all clients that a node was asked for and sent an error instead."""
        lost = {client for client in clients if self._host(client) == reply.metadata.src_node_id}
        for client in sorted(lost):
            self.failures.note(server_round, client, self._place(reply), reply.error.reason)
        return lost

    def _note_silent(self, server_round: int, clients: Iterable[int]) -> None:
        for client in sorted(clients):
            self.failures.note(server_round, client, "?", "no answer")

    def _host(self, client: int) -> int:
        return self.nodes[client % len(self.nodes)]

    def _place(self, reply: Message) -> str:
        node = reply.metadata.src_node_id
        return str(self.nodes.index(node)) if node in self.nodes else "?"

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

    def _checked(self, server_round: int, clients: Iterable[int], replies: Iterable[Message]) -> Iterator[Message]:
        """The replies, if there is one for every asked client and none is an error."""
        missing = set(clients)
        for reply in replies:
            if reply.has_error():
                self._note_lost(server_round, clients, reply)
                raise RunError(f"round {server_round}: node {self._place(reply)} failed: {reply.error.reason}")
            missing -= set(reply.content["metrics"]["client"])
            yield reply
        self._note_silent(server_round, missing)
        if missing:
            raise RunError(f"round {server_round}: no answer for clients {sorted(missing)}")


def _size(arrays: ArrayRecord) -> int:
    """Bytes of the numbers in a record, without Flower's framing."""
    return sum(array.numpy().nbytes for array in arrays.values())
