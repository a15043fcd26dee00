"""SharedParts, the strategy: seeded sampling of clients, averaging in a fixed order, evaluation of all clients."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.records import incomplete, results
from lit_fedbabu.records.live import RunPage
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.run_folder import FAILURES
from lit_fedbabu.records.tensorboard import Board
from lit_fedbabu.server.aggregation import digest_of
from lit_fedbabu.server.buffered import BufferedExchange, BufferedSites
from lit_fedbabu.server.exchange import Exchange
from lit_fedbabu.server.failures import FailureLog
from lit_fedbabu.server.nodes import seen
from lit_fedbabu.server.patience import PatientGrid
from lit_fedbabu.server.round_log import RoundLog
from lit_fedbabu.server.secure import SecureExchange
from lit_fedbabu.server.server_state import ServerRounds
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.tasks.protocol import Classifies
from lit_fedbabu.training.experiment import Experiment


class SharedParts(Strategy):
    """Federated averaging of the parts that clients share, over clients and not over nodes.

    Clients are drawn by (seed, round), and their arrays are summed in float64 in the order of client numbers. So the
    result does not depend on the number of nodes, on their ids or on who answers first. A client that fails is left
    out of the round, recorded, and replaced by another one. With central privacy clients are drawn by chance, the sum
    has noise, and nobody takes the place of a client that fails.

    Args:
        experiment: with the configuration and the algorithm.
        nodes: Flower's node ids; client c lives on ``nodes[c % len(nodes)]``.
        folder: the run's.
        memory: folder of what clients keep, as of ``run_folder.memory_of``.
        board: where scalars go.
        finished: called with (round, arrays) when a round and its evaluation are over.
        progress: shows a person what is done.
        rounds: the history of a run that is resumed. Flower counts from 1 what comes after it.
        sizes: training and test samples of clients, where they are known: answers that say otherwise are refused.
        ledger: of the run's privacy; None: one is made.
        names: of clients by their numbers; empty: they have none.
    """

    def __init__(
        self,
        experiment: Experiment,
        nodes: list[int],
        folder: Path,
        memory: str,
        board: Board,
        finished: Callable[[int, ArrayRecord], None],
        progress: Lines,
        rounds: Sequence[dict[str, Any]] = (),
        sizes: Mapping[int, tuple[int, int]] = MappingProxyType({}),
        ledger: Ledger | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.experiment = experiment
        self.folder, self.names = folder, names
        self.config = config = experiment.config
        self.finished = finished
        self.progress = progress
        self.ledger = ledger or Ledger(config, folder, len(rounds), sizes)
        classes, score = len(experiment.task.class_names) or 1, experiment.task.score
        say, rate_in = progress.say, experiment.rate_in
        last, classifies = self.ledger.last_round, isinstance(experiment.task, Classifies)
        self.log = RoundLog(config, folder, board, say, rounds, classes, score, rate_in, last, names)
        self.page = RunPage(folder, config, score, last, sizes, names)
        failures = FailureLog(folder, board, say, names, self.page.failed)
        buffered = BufferedSites if config.on_sites else BufferedExchange
        kind = SecureExchange if config.secure_aggregation else buffered if config.is_buffered else Exchange
        self.exchange = kind(
            config, nodes, memory, folder, failures, say, rate_in, sizes, score, classifies, self.ledger
        )
        self.clients: list[dict[str, Any]] = []
        """Of the last evaluation: one entry for each client, as in results.json."""
        self.missing: list[int] = []
        """Clients that it asked and that were not evaluated."""
        self._kept: list[dict[str, Any]] = []
        """Of the last round: entries of clients that were evaluated before the run was stopped by others' failures."""
        self._resumed_after = len(rounds)
        self.server = ServerRounds(experiment, folder, self._resumed_after)
        if isinstance(self.exchange, BufferedExchange):
            self.exchange.weights = frozenset(self.server.weights)
            if rounds:
                self.exchange.restore(self.server.exchange)
        self._shared = ArrayRecord()

    def summary(self) -> None:
        """Say what is about to run."""
        config = self.config
        count = config.num_federated
        central = config.protection == "central"
        many = config.clients_per_round if central else len(self.ledger.drawn(config.num_server_rounds))
        average = " on average" if central and config.client_sampling == "poisson" else ""
        drawn = f"{many} of {count} clients each{average}"
        if config.over_selection > 1:
            drawn += f", of which the first {config.clients_per_round} count"
        if config.is_buffered:
            drawn = (
                f"after {config.updates_per_step} updates each, {config.clients_per_round} of {count} clients at once"
            )
        who = "one participant with all training images" if self.experiment.algorithm.pooled else drawn
        what = self.experiment.task.title
        self.progress.say(f"{what}: {self.experiment.task.summary()}")
        self.progress.say(
            f"{config.algorithm}: {config.num_server_rounds} rounds, {who},"
            f" {config.local_length}, on {len(self.exchange.nodes)} nodes"
            + (f"; {config.num_new_clients} new clients have no part" if config.num_new_clients else "")
            + (f"; resumed after round {self._resumed_after}" if self._resumed_after else "")
        )
        if config.is_buffered and config.on_sites:
            self.progress.say(
                "note: sites come when they come, so that a buffered run does not repeat to the same bytes"
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._resumed_after
        self.log.begin()
        self._shared = arrays
        self._begin(server_round, self.server.sent(arrays), grid, self.server.expected(arrays))
        clients = self.exchange.drawn()
        now = self.log.headline(f"round {server_round}/{self.config.num_server_rounds}")
        self.progress.begin(now, len(clients), self.log.left)
        self.page.begins(f"round {server_round}: {len(clients)} clients train", self.log.rounds, self.log.left, clients)
        return self.exchange.training(clients)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, None]:
        server_round += self._resumed_after
        clipping = self.server.clipping
        updates = self.exchange.updates(replies)
        shared, loss = self.server.combine(server_round, self._shared, updates, self.exchange.state())
        spent = self.ledger.epsilon(server_round)
        self.page.trained(server_round, (update.client for update in updates), self._spent(server_round, spent))
        privacy = {**({} if spent is None else {"epsilon": spent}), **clipping}
        self.progress.moved(self.exchange.bytes_down + self.exchange.bytes_up)
        self.log.trained(
            server_round, loss, self.exchange.bytes_down, self.exchange.bytes_up, privacy, self.exchange.pace
        )
        return shared, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        server_round += self._resumed_after
        if not self._is_evaluated(server_round):
            return []
        self._begin(server_round, self.server.sent_after(arrays), grid)
        last = self._is_last(server_round)
        self._kept = incomplete.read_incomplete(self.folder, digest_of(self.exchange.arrays)) if last else []
        clients = self._to_evaluate(last)
        if last:
            how, rate = results.tuned_words(self.config)
            how = f"for {self.config.num_finetune_epochs} epochs each" if rate else f"by {how}"
            self.progress.say(f"fine-tuning {len(clients)} clients {how}")
        what = "fine-tuning" if last else f"evaluation after round {server_round}"
        self.progress.begin(self.log.headline(what), len(clients))
        self.page.begins(f"{what}: {len(clients)} clients", self.log.rounds, self.log.left, clients)
        return self.exchange.evaluation(clients, personalize=last)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        server_round += self._resumed_after
        if not self._is_evaluated(server_round):
            return
        last = self._is_last(server_round)
        rows = [*self._kept, *self.exchange.rows(self._to_evaluate(last), replies, personalize=last)]
        missing = sorted(set(self._asked(last)) - {row["client"] for row in rows})
        if last and not self.config.on_sites and not self.exchange.refused.issuperset(missing):
            outcome = results.results(self.config, self.log.rounds, rows, self.log.score)
            who = self.exchange.failures.who(missing)
            path = incomplete.write_incomplete(self.folder, outcome, missing, digest_of(self.exchange.arrays))
            raise RunError(
                f"round {server_round}: clients {who} were not evaluated, and {path} has the results of the others."
                f" Resume the run to ask them again. The last: {self.exchange.failures.last}"
            )
        self.missing = missing
        if missing and last:
            who = self.exchange.failures.who(missing)
            self.progress.say(f"round {server_round}  clients {who} are missing from the results: {FAILURES} says why")
        self.clients = rows
        self.log.evaluated(server_round, rows)
        self.page.evaluated(rows)
        if last:
            self.progress.wait("writing results")

    def finish(self, grid: Grid, arrays: ArrayRecord) -> None:
        """Evaluate after the last round where that is over already, of a run that may not have another one."""
        self.summary()
        messages = self.configure_evaluate(0, arrays, ConfigRecord(), grid)
        self.aggregate_evaluate(0, grid.send_and_receive(messages, timeout=self.config.timeout_s))
        self.finished(self._resumed_after, arrays)

    def end_of_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Where Flower evaluates on the server: a round is over here, and is saved."""
        if server_round > 0:  # Flower also calls this before the first round
            self.finished(server_round + self._resumed_after, arrays)

    def _begin(self, server_round: int, arrays: ArrayRecord, grid: Grid, *expected: Mapping[str, Array]) -> None:
        """Begin the messages of a round, or of its evaluation; while sites are waited for, they are looked for."""
        self.exchange.begin(server_round, arrays, grid, *expected)
        if isinstance(grid, PatientGrid):
            grid.look = partial(self._look, grid)

    def _look(self, grid: Grid) -> None:
        """Take down which sites are there: Flower names the nodes that have sent a heartbeat within a minute."""
        try:
            nodes = {node.node_id: node for node in grid.get_nodes()}
        except Exception:  # the server is busy, or gone, which the run finds out otherwise
            return
        sites = ((client, nodes[node]) for client, node in enumerate(self.exchange.nodes) if node in nodes)
        self.page.saw({client: seen(node) for client, node in sites})

    def _spent(self, server_round: int, spent: float | None) -> Mapping[int, float]:
        """What each site has spent of its privacy by the end of a round; simulated clients are many."""
        if spent is None or not self.config.on_sites:
            return {}
        return self.ledger.epsilons(server_round) or dict.fromkeys(range(self.config.num_clients), spent)

    def _asked(self, last: bool) -> list[int]:
        """The clients that an evaluation asks: new ones after the last round alone."""
        return self.config.evaluated_last if last else self.config.evaluated

    def _to_evaluate(self, last: bool) -> list[int]:
        done = {row["client"] for row in self._kept}
        return [client for client in self._asked(last) if client not in done]

    def _is_evaluated(self, server_round: int) -> bool:
        return self._is_last(server_round) or server_round % self.config.evaluate_every == 0

    def _is_last(self, server_round: int) -> bool:
        return server_round == self.ledger.last_round
