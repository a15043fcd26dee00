"""Who answers in time, against an account of simulated seconds of its own; and rounds that repeat."""

import dataclasses
import math
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from lit_fedbabu.config import Config
from lit_fedbabu.ground import waits
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.protocol.handshake import Code
from lit_fedbabu.protocol.wire import ClientUpdate, Order, TrainReply
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import COSTS
from lit_fedbabu.server import patience
from lit_fedbabu.server.answers import LATE, SPARE, read
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, FakeGrid, curves, failures_of, files_that_decide, tiny_config

OPTIONS = {"model_name": NARROW, "num_clients": 10, "fraction_train": 0.5, "num_server_rounds": 3}
SPEEDS = {**OPTIONS, "client_speeds": "lognormal:1.0"}


def seconds(config, client):
    """As the documentation has it: a thousand samples a second at the median, and exp(S z) times as long."""
    slowness = np.exp(1.0 * np.random.default_rng(config.derived_seed("speeds")).standard_normal(config.num_clients))
    return Experiment(config).task.sizes[client][0] * config.num_local_epochs / 1000 * slowness[client]


def by_time(config, server_round):
    return sorted(participants(config, server_round), key=lambda client: seconds(config, client))


def test_a_round_lasts_as_long_as_its_slowest_client(federate):
    config = tiny_config(**SPEEDS)
    folder, _ = federate(config)
    rounds, total = read_results(folder).rounds, 0.0
    for entry, cost in zip(rounds, read_results(folder).costs, strict=True):
        longest = max(seconds(config, client) for client in participants(config, entry["round"]))
        total += longest
        assert cost["simulated_seconds"] == pytest.approx(longest)
        assert entry["simulated_seconds"] == pytest.approx(total) and "late" not in entry
    shown = curves(folder)
    assert [value for _, value in shown["time/simulated_seconds"]] == pytest.approx(
        [entry["simulated_seconds"] for entry in rounds]
    )
    assert len(shown["accuracy/initial_mean_over_simulated_time"]) == 3
    plain, _ = federate(tiny_config(**OPTIONS))
    assert read_results(plain).clients == read_results(folder).clients, "speeds alone change nothing"
    assert "simulated_seconds" not in read_results(plain).rounds[0]


def test_the_first_of_more_clients_count_and_the_others_change_nothing(federate):
    config = tiny_config(**SPEEDS, over_selection=1.5)
    folder, grid = federate(config)
    asked = [set(order.clients) for order in orders(grid)]
    for entry, cost, clients in zip(read_results(folder).rounds, read_results(folder).costs, asked, strict=True):
        expected = by_time(config, entry["round"])
        assert clients == set(expected) and len(clients) == 8
        assert entry["late"] == sorted(expected[5:])
        assert cost["simulated_seconds"] == pytest.approx(seconds(config, expected[4]))
    again, _ = federate(config, FakeGrid(config, nodes=3, shuffle=True))
    assert files_that_decide(again).keys() == files_that_decide(folder).keys()
    assert read_results(again).clients == read_results(folder).clients
    assert read_results(again).rounds == read_results(folder).rounds

    class Without(FakeGrid):
        """The late ones say that they have failed."""

        def answer(self, message, context):
            reply = super().answer(message, context)
            if message.metadata.message_type != MessageType.TRAIN:
                return reply
            number = Order.from_record(message.content)[0].server_round
            late = by_time(config, number)[5:]
            return Message(only(reply.content, late), reply_to=message)

    other, _ = federate(config, Without(config))
    assert read_results(other).clients == read_results(folder).clients


def only(content, late):
    """A reply without these clients."""
    reply = TrainReply.from_record(content)
    return TrainReply([update for update in reply.updates if update.client not in late]).to_record()


def orders(grid):
    trained = [message for message in grid.messages if message.metadata.message_type == MessageType.TRAIN]
    return [Order.from_record(message.content)[0] for message in trained]


def test_who_comes_after_the_deadline_is_recorded_and_not_counted(federate):
    config = tiny_config(**SPEEDS)
    times = sorted(seconds(config, client) for client in range(10))
    deadline = float(times[5] + times[6]) / 2
    config = tiny_config(**SPEEDS, round_deadline_s=deadline)
    folder, grid = federate(config)
    outcome, found = read_results(folder), set()
    for entry, cost in zip(outcome.rounds, outcome.costs, strict=True):
        drawn = participants(config, entry["round"])
        late = [client for client in drawn if seconds(config, client) > deadline]
        assert entry.get("late", []) == late and len(late) < len(drawn)
        longest = max(seconds(config, client) for client in drawn)
        assert cost["simulated_seconds"] == pytest.approx(min(longest, deadline))
        found |= {(entry["round"], client) for client in late}
    assert found and {(each["round"], each["client"]) for each in failures_of(folder)} == found
    assert all(each["reason"].startswith("late: ") for each in failures_of(folder))
    assert len(orders(grid)) == 3, "nobody is asked in place of who is late"


class Stopped(FakeGrid):
    """The server is stopped in the third round."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if len(orders(self)) == 2 and messages[0].metadata.message_type == MessageType.TRAIN:
            raise KeyboardInterrupt
        return super().send_and_receive(messages, timeout=timeout)


def test_a_run_that_is_resumed_ends_with_the_same_bytes(federate, tmp_path):
    config = tiny_config(**SPEEDS, over_selection=1.5, round_deadline_s=1.0)
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, Stopped(config))
    stopped = tmp_path / "run2"
    assert len((stopped / COSTS).read_text().splitlines()) == 2
    folder, _ = federate(dataclasses.replace(config, resume=str(stopped)))
    assert folder == stopped and read_results(folder).rounds == read_results(whole).rounds
    assert read_results(folder).clients == read_results(whole).clients
    assert [each["simulated_seconds"] for each in read_results(folder).costs] == [
        each["simulated_seconds"] for each in read_results(whole).costs
    ]


class Sites(FakeGrid):
    """Four sites as Flower carries their answers, which come after so many seconds; None: never."""

    def __init__(self, delays):
        super().__init__(Config(), len(delays))
        self.delays, self.begun, self.sent = delays, 0.0, []

    def push_messages(self, messages):
        self.begun, self.sent = time.monotonic(), list(messages)
        return [str(place) for place, _ in enumerate(self.sent)]

    def pull_messages(self, names):
        place = int(names[0])
        delay = self.delays[place]
        if delay is None or time.monotonic() - self.begun < delay:
            return []
        update = ClientUpdate(place, 10, 0.5, {"w": np.zeros(2, np.float32)})
        content = RecordDict() if delay == math.inf else TrainReply([update]).to_record()
        return [Message(content, reply_to=self.sent[place])]


def asked(grid):
    order = Order(1, (0,), learning_rate=0.1).to_record
    return [Message(order(ArrayRecord({}), Code.here()), node, MessageType.TRAIN) for node in grid.contexts]


@pytest.mark.parametrize(
    ("delays", "enough", "came", "code"),
    [
        ([0.0, 0.1, None, 0.2], 2, {0, 1}, SPARE),
        ([0.0, 0.1, None, 0.2], None, {0, 1, 3}, LATE),
        ([0.0, None, None, None], 2, {0}, LATE),
    ],
)
def test_sites_are_waited_for_until_there_are_enough_or_the_deadline_is_over(delays, enough, came, code, monkeypatch):
    monkeypatch.setattr(waits, "FIRST_S", 0.01)
    grid = Sites(delays)
    patient = patience.PatientGrid(grid, print, "round-deadline-s")
    patient.enough = enough
    replies = list(patient.send_and_receive(asked(grid), timeout=1.5))
    nodes = list(grid.contexts)
    found = {nodes.index(reply.metadata.src_node_id) for reply in replies if reply.has_content()}
    assert found == came and {reply.error.code for reply in replies if reply.has_error()} == {code}
    answers = read(TrainReply, dict(enumerate(nodes)), replies)
    assert answers.late == set(range(4)) - came and answers.spare == (answers.late if code == SPARE else set())


def test_what_is_open_is_answered_once_or_late_once(monkeypatch):
    monkeypatch.setattr(waits, "FIRST_S", 0.01)
    grid = Sites([0.0, None])
    patient = patience.OpenGrid(grid, print)
    found = []
    for count in (2, 0, 0):
        patient.is_training = True
        found.append(list(patient.send_and_receive(asked(grid)[:count], timeout=0.3)))
    (answered,), (late,), nothing = found
    one, other = grid.contexts
    assert answered.has_content() and answered.metadata.src_node_id == one
    assert late.error.code == LATE and late.metadata.src_node_id == other and not nothing
    assert list(patient.send_and_receive([], timeout=0.3)) == [], "of others than to train"


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"client_speeds": "fast"}, "client-speeds", "lognormal"),
        ({"client_speeds": "lognormal:-1"}, "client-speeds", "lognormal"),
        ({"round_deadline_s": 5.0}, "round-deadline-s", "client-speeds"),
        ({"over_selection": 1.3}, "over-selection", "client-speeds"),
        ({**SPEEDS, "over_selection": 1.3, "fraction_train": 1.0}, "over-selection", "fraction-train"),
        ({**SPEEDS, "secure_aggregation": True}, "client-speeds", "secure-aggregation"),
        ({**SPEEDS, "round_deadline_s": 5.0, "aggregator": "median"}, "round-deadline-s", "min-clients-per-round"),
        (
            {**SPEEDS, "over_selection": 1.3, "privacy": "central", "clipping_norm": 1.0, "noise_multiplier": 1.0},
            "over-selection",
            "privacy",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options, key, words):
    with pytest.raises(InputError, match=words) as refused:
        tiny_config(**options)
    assert str(refused.value).startswith(key)


def test_a_method_that_says_itself_who_trains_is_refused(machine):
    experiment = Experiment(tiny_config(**SPEEDS, over_selection=1.3, algorithm="feddbe"))
    with pytest.raises(InputError, match="over-selection = 1.3: feddbe itself says who trains"):
        experiment.check()
