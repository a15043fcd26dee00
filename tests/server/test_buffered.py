"""The buffered server (FedBuff) against a plain loop of its own in float64, and against rounds."""

import dataclasses
import heapq
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from lit_fedbabu.aggregation.table import check
from lit_fedbabu.ground import waits
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server import patience
from lit_fedbabu.server.federate import federate as federate_on
from lit_fedbabu.server.sampling import participants, substitutes
from lit_fedbabu.server.spent import Ledger
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.server.test_federate import stopped_and_resumed
from tests.server.test_pace import only
from tests.sites import Sites, site_config, write_site
from tests.support import NARROW, FakeGrid, curves, failures_of, state_digest, tiny_config

OPTIONS = {"model_name": NARROW, "num_clients": 10, "fraction_train": 0.4, "num_server_rounds": 5, "evaluate_every": 9}
OPTIONS |= {"num_finetune_epochs": 0}
BUFFERED = {**OPTIONS, "server_mode": "buffered", "client_speeds": "lognormal:1.0", "buffer_size": 2}


def weights_of(folder):
    return read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared


def by_hand(config, failing=()):
    """FedBuff by a queue of events: the weights, and of every step its simulated end and its clients' staleness.

    Those that fail are given as (step, client).
    """
    experiment = Experiment(config)
    slowness = np.exp(np.random.default_rng(config.derived_seed("speeds")).standard_normal(config.num_clients))
    took = [experiment.task.sizes[client][0] / 1000 * slowness[client] for client in range(config.num_clients)]
    now, queue, history = 0.0, list[tuple[Any, ...]](), []
    body = experiment.initial_shared()
    for step in range(1, config.num_server_rounds + 1):
        buffer, gone, draws = list[tuple[Any, ...]](), set[int](), 0
        while len(buffer) < config.buffer_size:
            busy = {client for *_, client, _, _ in queue} | {client for client, *_ in buffer} | gone
            free = config.clients_per_round - len(queue)
            if free:
                drawn = substitutes(config, step, draws, busy, free) if busy else participants(config, step)
                draws += 1
                for client in drawn:
                    heapq.heappush(queue, (now + took[client], client, step, body))
            now, client, began, start = heapq.heappop(queue)
            if (step, client) in failing:
                gone.add(client)
            else:
                buffer.append((client, began, start))
        total, moved = 0, {name: torch.zeros_like(value, dtype=torch.float64) for name, value in body.items()}
        for client, began, start in sorted(buffer, key=lambda each: each[0]):
            trained = client_update(experiment, client, step, start, config.learning_rate_in(began))
            total += trained.num_train
            for name in moved:
                difference = trained.state[name].double() - start[name].double()
                moved[name] += trained.num_train * (1 / math.sqrt(1 + step - began)) * difference
        body = {name: (value.double() + moved[name] / total).float() for name, value in body.items()}
        history.append((now, [step - began for _, began, _ in buffer]))
    return body, history


def test_a_buffered_run_is_that_of_a_queue_of_events(federate):
    config = tiny_config(**BUFFERED)
    folder, _ = federate(config)
    expected, history = by_hand(config)
    assert max(max(stale) for _, stale in history) >= 2 and any(0 in stale for _, stale in history)
    found = weights_of(folder)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=2e-7), name
    rounds = read_results(folder).rounds
    assert [each["simulated_seconds"] for each in rounds] == pytest.approx([now for now, _ in history])
    assert [each["staleness"] for each in rounds] == [sum(stale) / 2 for _, stale in history]
    assert [value for _, value in curves(folder)["train/staleness"]] == pytest.approx([sum(s) / 2 for _, s in history])


class Failing(FakeGrid):
    """The updates of some clients are lost in some steps."""

    def __init__(self, config, lost):
        super().__init__(config)
        self.lost = lost

    def answer(self, message, context):
        reply = super().answer(message, context)
        lost = [client for step, client in self.lost if str(step) == message.metadata.group_id]
        return (
            Message(only(reply.content, lost), reply_to=message) if message.metadata.message_type == "train" else reply
        )


def test_a_client_that_fails_is_in_no_buffer_and_others_come(federate):
    config = tiny_config(**BUFFERED)
    whole, _ = federate(config, grid := FakeGrid(config))
    lost = [(2, client) for client in orders(grid, 2)]
    folder, _ = federate(config, Failing(config, lost))
    expected, history = by_hand(config, lost)
    assert all(torch.allclose(value, expected[name], rtol=0, atol=2e-7) for name, value in weights_of(folder).items())
    assert [each["simulated_seconds"] for each in read_results(folder).rounds] == pytest.approx(
        [at for at, _ in history]
    )
    assert [(each["round"], each["client"]) for each in failures_of(folder)] == lost
    assert weights_of(whole).keys() == expected.keys()
    none = dataclasses.replace(config, max_round_retries=0)
    with pytest.raises(RunError, match="round 2: 0 clients trained and 2 are needed"):
        federate(none, Failing(none, lost))


def orders(grid, step):
    """The clients that were asked to train for a step."""
    messages = [each for each in grid.messages if each.metadata.message_type == "train"]
    return [c for each in messages if each.metadata.group_id == str(step) for c in each.content["config"]["clients"]]


def test_of_equal_clients_that_are_as_many_as_the_buffer_it_is_the_run_in_rounds(federate):
    options = {**OPTIONS, "num_server_rounds": 3, "partitioner": "iid", "client_speeds": "lognormal:0.0"}
    rounds, _ = federate(tiny_config(**options))
    buffered, _ = federate(tiny_config(**options, server_mode="buffered"))
    assert state_digest(weights_of(buffered)) == state_digest(weights_of(rounds))
    assert read_results(buffered).clients == read_results(rounds).clients
    for found, expected in zip(read_results(buffered).rounds, read_results(rounds).rounds, strict=True):
        assert found.pop("staleness") == 0 and found == expected


def test_a_run_that_is_resumed_ends_with_the_same_bytes(federate):
    config = tiny_config(**BUFFERED, algorithm="fedper", server_optimizer="momentum")
    whole, folder = stopped_and_resumed(config, federate, server_round=4)
    (name,) = {path.name for path in (whole / run_folder.SERVER).glob("*_0005.*")}
    assert (folder / run_folder.SERVER / name).read_bytes() == (whole / run_folder.SERVER / name).read_bytes()


def test_noise_of_clients_is_counted_by_the_steps_that_they_are_in(federate):
    config = tiny_config(**BUFFERED, clipping_norm=1.0, noise_multiplier=2.0)
    folder, grid = federate(config)
    ledger = Ledger(config, folder / "nothing", sizes=Experiment(config).task.sizes)
    foreseen = {each: sorted(clients) for each, clients in ledger._lines(0, 5)}
    assert foreseen == {step: sorted(orders(grid, step)) for step in range(1, 6)}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"client_speeds": ""}, "server-mode = .buffered.: needs to know how long"),
        ({"buffer_size": 11}, "buffer-size = 11: a client is in a step once"),
        ({"over_selection": 1.5}, "over-selection = 1.5: is of rounds"),
        ({"round_deadline_s": 1.0}, "round-deadline-s = 1.0: is of rounds"),
        ({"min_clients_per_round": 2}, "min-clients-per-round = 2: is of rounds"),
        ({"privacy": "central", "clipping_norm": 1.0, "noise_multiplier": 1.0}, "server-mode = .buffered.: .*chance"),
        ({"clipping_norm": 1.0, "noise_multiplier": 1.0, "max_epsilon": 9.0}, "max-epsilon = 9.0: server-mode"),
        ({"algorithm": "fedas"}, "server-mode = .buffered.: fedas needs each client's update by itself"),
        ({"algorithm": "feddbe"}, "server-mode = .buffered.: feddbe "),
        ({"algorithm": "local"}, "server-mode = .buffered.: local has no sum of clients' updates"),
        ({"aggregator": "krum"}, "aggregator = .krum.: krum needs 5 or more .*a step of the buffered server has 2"),
    ],
)
def test_what_it_cannot_be_together_with_is_refused_by_name(options, line):
    with pytest.raises(InputError, match=line):
        experiment = Experiment(tiny_config(**{**BUFFERED, **options}))
        experiment.check()
        check(experiment)


class AsyncSites(Sites):
    """Sites whose answers come after so many others have come, by their numbers; None: never."""

    def __init__(self, config, node_configs, delays):
        super().__init__(config, node_configs)
        self.delays = dict(zip(self.contexts, delays, strict=True))
        self.pushed, self.came = dict[str, Any](), list[Any]()

    def push_messages(self, messages):
        names = []
        for message in messages:
            names.append(str(len(self.pushed)))
            self.pushed[names[-1]] = message
        return names

    def pull_messages(self, names):
        message = self.pushed[names[0]]
        node, is_training = message.metadata.dst_node_id, message.metadata.message_type == "train"
        with self.lock:
            if is_training and (self.delays[node] is None or len(self.came) < self.delays[node]):
                return []
            reply = self.answer(message, self.contexts[node])
            if is_training:
                self.came.append((message.content["config"]["clients"][0], int(message.metadata.group_id)))
        return [reply]

    lock = threading.Lock()


@pytest.mark.parametrize("delays", [(0, 0, 5), (0, 0, None)])
def test_sites_make_a_step_whenever_enough_have_come(delays, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waits, "FIRST_S", 0.01)
    config = site_config(tmp_path, num_server_rounds=4, server_mode="buffered", buffer_size=2, evaluate_every=9)
    colours = (("red", "green"), ("blue", "green"), ("red", "blue"))
    nodes = [
        {"client-id": site, "data-path": str(write_site(tmp_path / f"{site}", own)), "state-path": str(tmp_path)}
        for site, own in enumerate(colours)
    ]
    grid = AsyncSites(config, nodes, delays)
    folder = federate_on(patience.OpenGrid(grid, print), experiment := Experiment(config))
    assert "does not repeat to the same bytes" in capsys.readouterr().out
    states = [experiment.task.of_site(config, site, nodes[site]["data-path"]) for site in range(3)]
    bodies, came = [experiment.initial_shared()], iter(grid.came)
    for step in range(1, 5):
        total, moved = 0, {name: torch.zeros_like(value, dtype=torch.float64) for name, value in bodies[0].items()}
        for site, began in sorted(next(came) for _ in range(2)):
            start = bodies[began - 1]
            own = Experiment(config, states[site])
            trained = client_update(own, site, began, start, config.learning_rate_in(began))
            total += trained.num_train
            for name in moved:
                difference = trained.state[name].double() - start[name].double()
                moved[name] += trained.num_train / math.sqrt(1 + step - began) * difference
        bodies.append({name: (value.double() + moved[name] / total).float() for name, value in bodies[-1].items()})
    found = weights_of(folder)
    assert all(torch.allclose(found[name], value, rtol=0, atol=2e-7) for name, value in bodies[-1].items())
    assert {site for site, _ in grid.came[:8]} == ({0, 1, 2} if delays[2] else {0, 1})
    pairs = [[step - began for _, began in grid.came[2 * step - 2 : 2 * step]] for step in range(1, 5)]
    assert [each["staleness"] for each in read_results(folder).rounds] == [sum(pair) / 2 for pair in pairs]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"secure_aggregation": True}, "secure-aggregation masks the updates of a round"),
        ({"clipping_norm": 1.0, "noise_multiplier": 1.0}, "how often a site takes part is not known"),
    ],
)
def test_what_it_cannot_be_on_sites_is_refused_by_name(options, words, tmp_path):
    with pytest.raises(InputError, match=f"server-mode = .buffered.: {words}"):
        site_config(tmp_path, server_mode="buffered", **options)
