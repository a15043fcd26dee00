"""Who is asked in a round, who stands in for a client that failed, and what of the answers can be used."""

import time
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from lit_fedbabu.algorithms.algorithm import EXTRA
from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.learning.evaluation import ACCURACY, Score
from lit_fedbabu.protocol.handshake import Code
from lit_fedbabu.protocol.wire import ClientUpdate, EvaluateReply, Order, TrainReply
from lit_fedbabu.records.run_folder import FAILURES
from lit_fedbabu.server.aggregation import FAR, misstatement, outliers, rejection_reason
from lit_fedbabu.server.answers import Reply, read
from lit_fedbabu.server.failures import FailureLog
from lit_fedbabu.server.pace import Pace
from lit_fedbabu.server.parked import Park
from lit_fedbabu.server.patience import PatientGrid
from lit_fedbabu.server.sampling import substitutes
from lit_fedbabu.server.server_state import for_clients, received
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.tasks.entries import row_problem
from lit_fedbabu.training.privacy import update_norm

TTL_MORE_S = 10.0
"""Seconds that a message lives longer than its round."""
SITE_PAUSE_S = 30
"""Seconds before sites that did not answer are asked again."""


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
        sizes: training and test samples of clients, where they are known.
        score: what clients are compared by.
        classifies: whether that is an accuracy, of which the other measures are known too.
        ledger: of the run; None: one is made.
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
        sizes: Mapping[int, tuple[int, int]] = MappingProxyType({}),
        score: Score = ACCURACY,
        classifies: bool = True,
        ledger: Ledger | None = None,
    ) -> None:
        self.config, self._algorithm = config, algorithm_of(config)
        self.ledger = ledger or Ledger(config, folder, sizes=sizes)
        self.pace = Pace(config, sizes)
        self.nodes = nodes
        self.memory = memory
        self.folder = folder
        self.failures = failures
        self.say = say
        self._rate_in = rate_in
        self._sizes, self._score, self._classifies = sizes, score, classifies
        self.refused: set[int] = set()
        """Clients whose last answer to an evaluation could not be true."""
        self.asked: list[int] = []
        """Clients that were asked to train in this round."""
        self.bytes_down = self.bytes_up = 0
        self._code = Code.here()

    def begin(
        self, server_round: int, arrays: ArrayRecord, grid: Grid, expected: Mapping[str, Array] | None = None
    ) -> None:
        """A round begins, with the arrays that its messages carry, and in training those that replies must have."""
        self.server_round, self.arrays, self.grid = server_round, arrays, grid
        self.expected = expected or arrays
        if expected is not None:  # else clients are evaluated
            self.asked = []
        self._park = Park(self.folder)
        self.pace.begin()
        self.bytes_down = self.bytes_up = 0

    def drawn(self) -> list[int]:
        """The clients that train in this round."""
        return self.ledger.drawn(self.server_round)

    def state(self) -> dict[str, Tensor]:
        """What must be known to go on after this round, for the server's file."""
        return {}

    def training(self, clients: Iterable[int]) -> list[Message]:
        """Messages that ask clients to train."""
        clients = list(clients)
        if isinstance(self.grid, PatientGrid):
            over = self.config.over_selection > 1
            self.grid.enough = min(len(clients), self.config.clients_per_round) if over else None
        return self._training(clients, self.arrays, self._rate_in(self.server_round))

    def _training(self, clients: list[int], arrays: ArrayRecord, rate: float) -> list[Message]:
        """Messages that ask clients to train from these arrays."""
        self.asked += clients
        self.ledger.note(self.server_round, clients)
        messages = self._messages(MessageType.TRAIN, clients, arrays, learning_rate=rate)
        for message in messages:
            sent = message.content.array_records["arrays"].values()
            self.bytes_down += sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in sent)
        return messages

    def updates(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """What the clients of the round trained, by their numbers. Failed clients are replaced by others.

        With central privacy they are not, for nothing but chance may decide who is in the sum: they add nothing to it,
        and its divisor stays.

        Raises:
            RunError: too few were left after all retries.
        """
        asked, central = self.ledger.drawn(self.server_round), self.config.protection == "central"
        full = min(len(asked), self.config.clients_per_round) if self.config.over_selection > 1 else len(asked)
        least = 1 if central or self.config.round_deadline_s else full
        needed = min(self.config.min_clients_per_round or least, full)
        waiting, updates = asked, list[ClientUpdate]()
        for attempt in range(1 if central else self.config.max_round_retries + 1):
            if attempt:
                spent = self.ledger.exhausted(self.server_round)
                waiting = substitutes(self.config, self.server_round, attempt, {*asked, *spent}, needed - len(updates))
                if not waiting:
                    break
                self.say(
                    f"round {self.server_round}  asking clients {self.failures.who(waiting)} in place of failed ones"
                )
                asked = [*asked, *waiting]
                replies = self.grid.send_and_receive(self.training(waiting), timeout=self.config.timeout_s)
            valid = self.pace.in_time(self._valid_updates(waiting, replies), self._record)
            before, left = {update.client for update in updates}, self._ordinary([*updates, *valid])
            updates, new = ([each for each in left if (each.client in before) is was] for was in (True, False))
            updates += self.pace.first(waiting, new, full - len(updates))
            if len(updates) >= needed:
                return sorted(updates, key=lambda update: update.client)
        raise self._too_few(len(updates), "trained", needed)

    def evaluation(self, clients: Iterable[int], personalize: bool) -> list[Message]:
        """Messages that ask clients to evaluate, and to personalize as well."""
        return self._messages(MessageType.EVALUATE, clients, self.arrays, personalize=personalize)

    def rows(self, clients: Iterable[int], replies: Iterable[Message], personalize: bool) -> list[dict[str, Any]]:
        """The answers to an evaluation: for each client its number and its entry in results.json.

        A client that failed is recorded and left out. In the last round sites, which may be away, and clients whose
        answer cannot be true are asked again.

        Raises:
            RunError: none of the clients was evaluated.
        """
        missing, rows, asked = set(clients), list[dict[str, Any]](), sorted(clients)
        length = self._algorithm.tuning_length(self.config)
        self.refused = set()
        for attempt in range((self.config.max_round_retries if personalize else 0) + 1):
            if attempt:
                asked = sorted(missing if self.config.on_sites else missing & self.refused)
                if not asked:
                    break
                pause = SITE_PAUSE_S if self.config.on_sites else 0
                self.say(f"round {self.server_round}  asking clients {self.failures.who(asked)} again in {pause} s")
                time.sleep(pause)
                messages = self.evaluation(asked, personalize)
                replies = self.grid.send_and_receive(messages, timeout=self.config.timeout_s)
            rows += self._valid_rows(asked, replies, length if personalize else None)
            missing = missing - {row["client"] for row in rows}
            if not missing:
                return rows
        if rows:
            return rows
        who = self.failures.who(sorted(missing))
        raise RunError(f"round {self.server_round}: clients {who} were not evaluated: {self.failures.last}")

    def _too_few(self, count: int, what: str, needed: int) -> RunError:
        return RunError(
            f"round {self.server_round}: {count} clients {what} and {needed} are needed;"
            f" {self.folder / FAILURES} says why the others failed. The last: {self.failures.last}"
        )

    def _messages(self, kind: str, clients: Iterable[int], arrays: ArrayRecord, **options: Any) -> list[Message]:
        def content(own: list[int]) -> RecordDict:
            order = Order(self.server_round, tuple(own), self.memory, **options)
            return order.to_record(for_clients(self._algorithm, arrays, own), self._code)

        return self._to_nodes(kind, clients, content)

    def _to_nodes(self, kind: str, clients: Iterable[int], content: Callable[[list[int]], RecordDict]) -> list[Message]:
        """A message to each node that hosts some of the clients, with what is sent to those."""
        hosted: dict[int, list[int]] = {}
        for client in clients:
            hosted.setdefault(self._node_of(client), []).append(client)
        return [
            Message(
                content(own),
                node,
                kind,
                # A site that comes back does not begin with a round that is over; Flower does not say so before we do.
                ttl=self.config.timeout_s + TTL_MORE_S,
                group_id=str(self.server_round),
            )
            for node, own in hosted.items()
        ]

    def _valid_updates(self, clients: list[int], replies: Iterable[Message]) -> list[ClientUpdate]:
        """The updates that can be averaged. Every other client has failed, and that is recorded."""
        valid: list[ClientUpdate] = []
        for reply in self._readable(TrainReply, clients, replies, self._park):
            self.bytes_up += reply.nbytes
            for update in reply.updates:
                reason = self._misstatement(update) or rejection_reason(update, self.expected)
                if reason := reason or self._algorithm.problem(received(update)) or self._too_long(update):
                    self._record(update.client, reason)
                else:
                    valid.append(update)
        return valid

    def _misstatement(self, update: ClientUpdate) -> str:
        """Why what a client says of its training cannot be true; empty if it can."""
        size = self._sizes.get(update.client, (None, None))[0]
        return misstatement(update, size, may_see_none=self.config.protection == "sample")

    def _too_long(self, update: ClientUpdate) -> str:
        """With central privacy why an update was not clipped as it should be; empty if it was."""
        if self.config.protection != "central" or self.config.adaptive_clipping:
            return ""
        shared = {name: array.numpy() for name, array in self.arrays.items() if not name.startswith(EXTRA)}
        norm = update_norm([update.arrays[name] for name in shared], list(shared.values()))
        if norm <= self.config.clipping_norm * (1 + 1e-9):
            return ""
        return f"its update has the norm {norm:.4g}, and clipping-norm is {self.config.clipping_norm:g}"

    def _ordinary(self, updates: list[ClientUpdate]) -> list[ClientUpdate]:
        """The updates without those that are too long to be averaged with the others; these have failed.

        Aggregators other than the mean have rules of their own. With central privacy whether a client counts may not
        depend on others.
        """
        if not self._algorithm.alike or self.config.aggregator != "mean" or self.config.protection == "central":
            return updates
        shared = {name: array for name, array in self.arrays.items() if not name.startswith(EXTRA)}
        far = outliers(updates, shared, per_sample=not self.config.num_local_steps)
        for client, times in far.items():
            words = (
                f"its update is {times} times as long as those of the others, and at most {FAR:g} times are averaged"
            )
            self._record(client, f"{words}; it is left out")
        return [update for update in updates if update.client not in far]

    def _valid_rows(self, clients: list[int], replies: Iterable[Message], epochs: int | None) -> list[dict[str, Any]]:
        """The entries that can be true. Every other client has failed, and that is recorded."""
        rows: list[dict[str, Any]] = []
        for reply in self._readable(EvaluateReply, clients, replies):
            for row in reply.rows:
                client: int = row["client"]
                num_test = self._sizes.get(client, (None, None))[1]
                if reason := row_problem(row, self._score, self._classifies, epochs, num_test):
                    self.refused.add(client)
                    self._record(client, reason)
                else:
                    self.refused.discard(client)
                    rows.append(dict(row))
        return rows

    def _readable(
        self,
        form: type[Reply],
        clients: Iterable[int],
        replies: Iterable[Message],
        kept: Callable[[Reply], Reply] = lambda reply: reply,
    ) -> list[Reply]:
        """The replies that can be read. Clients that failed, or that none of these speaks of, are recorded."""
        answers = read(form, {client: self._node_of(client) for client in clients}, replies, kept)
        self.refused |= answers.refused
        for failure in (failure for reply in answers.readable for failure in reply.failures):
            self._record(failure.client, failure.reason, failure.traceback)
        self.pace.late |= answers.late
        if answers.spare:
            self.say(
                f"round {self.server_round}  not waited for: clients {sorted(answers.spare)}, for others were enough"
            )
        for client, reason in answers.unanswered.items():
            if client not in answers.spare:
                self._record(client, reason)
        if answers.lost_worker and not self.config.on_sites:
            raise RunError(f"round {self.server_round}: a worker process died; go on with resume = {self.folder}")
        return answers.readable

    def _record(self, client: int, reason: str, traceback: str = "") -> None:
        node = str(self.nodes.index(self._node_of(client)))
        self.failures.record(self.server_round, client, node, reason, traceback)

    def _node_of(self, client: int) -> int:
        return self.nodes[client % len(self.nodes)]
