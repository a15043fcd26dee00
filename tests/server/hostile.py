"""A federation on the server's side alone, in which one of four clients sends something else than its answer."""

import copy
import json
from types import SimpleNamespace

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.records.incomplete import INCOMPLETE
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import FAILURES
from lit_fedbabu.server.aggregation import digest_of
from lit_fedbabu.server.strategy import SharedParts
from tests.support import NARROW, FakeGrid, failures_of

LIAR, CLIENTS, ROUNDS = 3, 4, 3
OPTIONS = {
    "model_name": NARROW, "num_clients": CLIENTS, "fraction_train": 1.0, "num_server_rounds": ROUNDS,
    "min_clients_per_round": CLIENTS - 1, "max_round_retries": 1,
}  # fmt: skip


class Replayed(FakeGrid):
    """Four nodes of a client each, whose true answers are worked out once; the liar's are changed before they are sent.

    Args:
        config: of the run.
        kind: of the messages that it lies to.
        lie: changes the content of a reply in place, or returns another one or an Error; is also given the message.
        known: true answers by kind, round and client, which are filled here.
    """

    def __init__(self, config, kind, lie, known):
        super().__init__(config, CLIENTS)
        self.kind, self.lie, self.known = kind, lie, known

    def answer(self, message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        key = message.metadata.message_type, message.metadata.group_id, client
        if key not in self.known:
            self.known[key] = super().answer(message, context).content
        content = copy.deepcopy(self.known[key])
        if key[0] == self.kind and client == LIAR:
            told = self.lie(content, message)
            content = content if told is None else told
        return Message(content, reply_to=message)


class Course:
    """All rounds and the last evaluation of a federation, on the server's side alone.

    Args:
        experiment: of the run.
        folder: of the run.
        grid: that carries messages.
    """

    def __init__(self, experiment, folder, grid):
        rounds = experiment.config.num_server_rounds
        self.folder = folder
        self.scalars: list[float] = []
        board = SimpleNamespace(
            round=lambda number, scalars: self.scalars.append(scalars["train/loss"]),
            failure=lambda *_: None,
            scores=lambda *_: None,
        )
        place = list(grid.get_node_ids()), folder, str(folder / "memory"), board, None, Lines()
        self.strategy = SharedParts(experiment, *place, sizes=experiment.task.sizes)
        arrays = ArrayRecord({name: Array(value.numpy()) for name, value in experiment.initial_shared().items()})
        self.digests = []
        for server_round in range(1, rounds + 1):
            messages = self.strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
            arrays, _ = self.strategy.aggregate_train(server_round, grid.send_and_receive(messages, timeout=60))
            self.digests.append(digest_of(arrays))
        self.arrays = {name: array.numpy() for name, array in arrays.items()}
        messages = self.strategy.configure_evaluate(rounds, arrays, ConfigRecord(), grid)
        self.stopped = ""
        try:
            self.strategy.aggregate_evaluate(rounds, grid.send_and_receive(messages, timeout=60))
        except RunError as error:  # clients that say that they have failed are to be asked again
            self.stopped = str(error)

    @property
    def outcome(self):
        strategy = self.strategy
        if self.stopped:
            return json.loads((self.folder / INCOMPLETE).read_text())
        return results(strategy.config, strategy.log.rounds, strategy.clients, missing=strategy.missing)

    @property
    def failures(self):
        return failures_of(self.folder) if (self.folder / FAILURES).exists() else []

    @property
    def told(self):
        return [(failure["round"], failure["client"]) for failure in self.failures]
