"""Who is asked in a round, who stands in for a client that failed, and what of the answers can be used."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from lit_fedbabu.config import Config
from lit_fedbabu.errors import RunError
from lit_fedbabu.handshake import Code, WireError
from lit_fedbabu.records.run_folder import FAILURES
from lit_fedbabu.server.aggregation import rejection_reason
from lit_fedbabu.server.failures import FailureLog
from lit_fedbabu.server.sampling import participants, substitutes
from lit_fedbabu.wire import ClientUpdate, EvaluateReply, Order, TrainReply

MESSAGE_TIMEOUT_S = 12 * 3600.0
SITE_PAUSE_S = 30
"""Seconds before sites that did not answer are asked again."""

Reply = TypeVar("Reply", TrainReply, EvaluateReply)


class Exchange:
    """The messages of one round after another. Client c is asked through ``nodes[c % len(nodes)]``.

    Args:
        config: the experiment.
        nodes: Flower's node ids.
        memory: folder of what clients keep, as nodes see it.
        folder: the run's.
        failures: where failed clients are recorded.
        say: prints a line.
        rate_in: the learning rate of a round.
    """

    def __init__(
        self,
        config: Config,
        nodes: list[int],
        memory: str,
        folder: Path,
        failures: FailureLog,
        say: Callable[[str], None],
        rate_in: Callable[[int], float],
    ) -> None:
        self.config = config
        self.nodes = nodes
        self.memory = memory
        self.folder = folder
        self.failures = failures
        self.say = say
        self._rate_in = rate_in
        self.bytes_down = self.bytes_up = 0
        self._code = Code.here()

    def begin(
        self, server_round: int, arrays: ArrayRecord, grid: Grid, expected: Mapping[str, Array] | None = None
    ) -> None:
        """A round begins, with the arrays that all its messages carry, and in training those that replies must have."""
        self.server_round, self.arrays, self.grid = server_round, arrays, grid
        self.expected = expected or arrays
        self.bytes_down = self.bytes_up = 0

    def training(self, clients: Iterable[int]) -> list[Message]:
        """Messages that ask clients to train."""
        rate = self._rate_in(self.server_round)
        messages = self._messages(MessageType.TRAIN, clients, learning_rate=rate)
        self.bytes_down += len(messages) * sum(array.numpy().nbytes for array in self.arrays.values())
        return messages

    def updates(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """What the clients of the round trained, by their numbers. Failed clients are replaced by others.

        Raises:
            RunError: too few were left after all retries.
        """
        asked = participants(self.config, self.server_round)
        needed = min(self.config.min_clients_per_round or len(asked), len(asked))
        waiting, updates = asked, list[ClientUpdate]()
        for attempt in range(self.config.max_round_retries + 1):
            if attempt:
                waiting = substitutes(self.config, self.server_round, attempt, asked, needed - len(updates))
                if not waiting:
                    break
                self.say(f"round {self.server_round}  asking clients {waiting} in place of failed ones")
                asked = [*asked, *waiting]
                replies = self.grid.send_and_receive(self.training(waiting), timeout=MESSAGE_TIMEOUT_S)
            updates += self._valid_updates(waiting, replies)
            if len(updates) >= needed:
                return sorted(updates, key=lambda update: update.client)
        raise RunError(
            f"round {self.server_round}: {len(updates)} clients trained and {needed} are needed;"
            f" {self.folder / FAILURES} says why the others failed. The last: {self.failures.last}"
        )

    def evaluation(self, clients: Iterable[int], personalize: bool) -> list[Message]:
        """Messages that ask clients to evaluate, and to personalize as well."""
        return self._messages(MessageType.EVALUATE, clients, personalize=personalize)

    def rows(self, clients: Iterable[int], replies: Iterable[Message], personalize: bool) -> list[dict[str, Any]]:
        """The answers to an evaluation: for each client its number and its entry in results.json.

        A client that failed is recorded and left out. Sites may be away: in the last round they are asked again.

        Raises:
            RunError: none of the clients was evaluated.
        """
        missing, rows = set(clients), list[dict[str, Any]]()
        patience = self.config.max_round_retries if personalize and self.config.on_sites else 0
        for attempt in range(patience + 1):
            if attempt:
                self.say(f"round {self.server_round}  asking clients {sorted(missing)} again in {SITE_PAUSE_S} s")
                time.sleep(SITE_PAUSE_S)
                messages = self.evaluation(sorted(missing), personalize)
                replies = self.grid.send_and_receive(messages, timeout=MESSAGE_TIMEOUT_S)
            for node, answer in self._successful_replies(EvaluateReply, missing, replies):
                rows += [dict(row) for row in answer.rows]
                for failure in answer.failures:
                    self._record(failure.client, node, failure.reason, failure.traceback)
            missing = missing - {row["client"] for row in rows}
            if not missing:
                return rows
        if rows:
            return rows
        raise RunError(f"round {self.server_round}: clients {sorted(missing)} were not evaluated: {self.failures.last}")

    def _messages(self, kind: str, clients: Iterable[int], **options: Any) -> list[Message]:
        hosted: dict[int, list[int]] = {}
        for client in clients:
            hosted.setdefault(self._node_of(client), []).append(client)
        return [
            Message(
                Order(self.server_round, tuple(own), self.memory, **options).to_record(self.arrays, self._code),
                node,
                kind,
                group_id=str(self.server_round),
            )
            for node, own in hosted.items()
        ]

    def _valid_updates(self, clients: list[int], replies: Iterable[Message]) -> Iterator[ClientUpdate]:
        """The updates that can be averaged. Every other client has failed, and that is recorded."""
        for node, reply in self._successful_replies(TrainReply, set(clients), replies):
            self.bytes_up += reply.nbytes
            for failure in reply.failures:
                self._record(failure.client, node, failure.reason, failure.traceback)
            for update in reply.updates:
                if reason := rejection_reason(update, self.expected):
                    self._record(update.client, node, reason)
                else:
                    yield update

    def _successful_replies(
        self, form: type[Reply], clients: set[int], replies: Iterable[Message]
    ) -> list[tuple[int, Reply]]:
        """Nodes and their replies that could be read. Clients that no reply speaks of have failed: that is recorded."""
        successful: list[tuple[int, Reply]] = []
        errors: dict[int, str] = {}
        for message in replies:
            node = message.metadata.src_node_id
            if message.has_error():
                errors[node] = message.error.reason or "an error without a reason"
                continue
            try:
                successful.append((node, form.from_record(message.content)))
            except WireError as error:
                errors[node] = f"sent {error}; install the same version as the server's"
        # Errors of Flower itself, as of a node that is gone, do not say whose they are.
        of_flower = "; ".join(reason for node, reason in errors.items() if node not in self.nodes)
        answered = {client for _, reply in successful for client in reply.clients}
        for client in sorted(clients - answered):
            node = self._node_of(client)
            self._record(client, node, errors.get(node) or of_flower or "no answer")
        return successful

    def _record(self, client: int, node: int, reason: str, traceback: str = "") -> None:
        self.failures.record(self.server_round, client, str(self.nodes.index(node)), reason, traceback)

    def _node_of(self, client: int) -> int:
        return self.nodes[client % len(self.nodes)]
