"""Federations with secure aggregation, through real messages."""

import dataclasses
import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from lit_fedbabu import client_app
from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.protocol.secure import SECURE
from lit_fedbabu.records import results, run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.secure.masks import LEVELS
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import OF_SUMS
from tests.secure import plain
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, FakeGrid, failures_of, files_that_decide, tiny, tiny_config

RANGE = 4.0


def secure_config(**changes):
    options = {"secure_aggregation": True, "quantization_range": RANGE, "model_name": NARROW, "fraction_train": 1.0}
    sizes = {"partitioner": "dirichlet", "min_client_images": 5, "learning_rate_decay": 1.0}
    return tiny_config(**{**options, **sizes, **changes})


def step_of(message):
    """Of a message the step that it asks for."""
    kind = message.metadata.message_type
    return str(message.content["config"]["step"]) if kind == SECURE else kind


class Dropping(FakeGrid):
    """A grid in which clients are gone before a step: {"unmask": {3}}; each client has a node of its own."""

    def __init__(self, config, gone, server_round=None):
        super().__init__(config, config.num_clients)
        self.gone, self.only = gone, server_round

    def send_and_receive(self, messages, *, timeout=None):
        left = [each for each in messages if not self.is_lost(each)]
        return super().send_and_receive(left, timeout=timeout)

    def is_lost(self, message):
        if self.only and message.metadata.group_id != str(self.only):
            return False
        return bool(self.gone.get(step_of(message), set()) & set(message.content["config"].get("clients", ())))


def clear_mean(experiment, received, server_round, asked, summed):
    """The weights after a round by a loop in the clear, in Python's whole numbers and floats."""
    rate = experiment.config.learning_rate
    updates = {client: client_update(experiment, client, server_round, received, rate) for client in asked}
    total = sum(update.num_train for update in updates.values())
    weight = sum(updates[client].num_train for client in summed)
    moved = {}
    for name, value in received.items():
        numbers = np.zeros(value.shape, object)
        for client in summed:
            update = updates[client]
            change = update.state[name].double().numpy() - value.double().numpy()
            scale = update.num_train / total * LEVELS / experiment.config.quantization_range
            numbers += np.vectorize(lambda each, scale=scale: round(each * scale), otypes=[object])(change)
        step = experiment.config.quantization_range * total / (LEVELS * weight)
        moved[name] = torch.from_numpy(value.double().numpy() + numbers.astype(float) * step).to(value.dtype)
    return moved, sum(updates[each].num_train * updates[each].train_loss for each in summed) / weight


def weights_of(folder):
    model = run_folder.read_config(folder).model_name
    return read_federation(folder / run_folder.LAST_CHECKPOINT, model).shared


def check_by_hand(config, folder, asked, summed):
    """Compare the run's weights and losses with the loop; asked and summed are those of each round."""
    experiment = Experiment(config)
    state, losses = experiment.initial_shared(), []
    for server_round in range(1, config.num_server_rounds + 1):
        state, loss = clear_mean(experiment, state, server_round, asked(server_round), summed(server_round))
        losses.append(loss)
    found = weights_of(folder)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    written = results.read_results(folder)["rounds"]
    assert [each["train_loss"] for each in written] == losses


def test_the_result_is_the_quantized_mean_of_a_loop_in_the_clear(federate, capsys):
    config = secure_config(fraction_train=0.7)
    folder, _ = federate(config)
    drawn = {server_round: participants(config, server_round) for server_round in (1, 2)}
    check_by_hand(config, folder, drawn.get, drawn.get)
    assert {len(clients) for clients in drawn.values()} == {4}
    clear, _ = federate(dataclasses.replace(config, secure_aggregation=False))
    for name, value in weights_of(clear).items():
        assert torch.allclose(weights_of(folder)[name], value, rtol=0, atol=4 / 2 * RANGE / LEVELS * 2 + 1e-6), name
    assert f"{OF_SUMS}; of 4 clients it takes 3\n" in capsys.readouterr().out
    assert results.read_results(folder)["privacy"]["secure_aggregation"] == OF_SUMS
    assert OF_SUMS.capitalize() in (folder / "README.md").read_text()
    (first, *_) = results.read_results(folder).costs
    assert first["bytes_up"] > 4 * sum(value.numel() for value in weights_of(folder).values()) * 4


def test_a_run_is_the_same_byte_for_byte_on_any_number_of_nodes_in_any_order(federate):
    config = secure_config(algorithm="fedper", num_clients=4, num_server_rounds=1)
    outcomes = []
    for nodes, shuffle in ((1, False), (2, True), (5, True)):
        folder, _ = federate(config, FakeGrid(config, nodes, shuffle))
        outcomes.append(files_that_decide(folder))
    assert all(outcome == outcomes[0] for outcome in outcomes) and any("memory" in name for name in outcomes[0])


@pytest.mark.parametrize(
    ("gone", "asked", "summed"),
    [
        ({"keys": {1}}, {0, 2, 3, 4, 5}, {0, 2, 3, 4, 5}),
        ({"shares": {0}}, {1, 2, 3, 4, 5}, {1, 2, 3, 4, 5}),
        ({"train": {2, 5}}, {0, 1, 2, 3, 4, 5}, {0, 1, 3, 4}),
        ({"unmask": {3, 4}}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}),
        ({"train": {4}, "unmask": {5}}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 5}),
        ({"shares": {2}, "train": {3}}, {0, 1, 3, 4, 5}, {0, 1, 4, 5}),
    ],
    ids=str,
)
def test_clients_that_are_gone_at_any_step_are_left_out_and_the_rest_is_exact(gone, asked, summed, federate):
    config = secure_config(num_server_rounds=1, max_round_retries=0, secure_threshold=4)
    grid = Dropping(config, gone)
    folder, _ = federate(config, grid)
    check_by_hand(config, folder, lambda _: sorted(asked), lambda _: sorted(summed))
    lost = {client for clients in gone.values() for client in clients}
    assert {each["client"] for each in failures_of(folder)} == lost


@pytest.mark.parametrize(
    ("step", "words"), [("keys", "sent keys"), ("shares", "sent shares"), ("train", "trained"),
                        ("unmask", "gave shares to unmask the sum")]
)  # fmt: skip
def test_a_round_with_fewer_than_the_threshold_ends_the_run_and_says_so(step, words, federate):
    config = secure_config(max_round_retries=1, secure_threshold=5)
    with pytest.raises(RunError, match=rf"round 1: 4 clients {words} and 5 are needed; .*The last: client 5 on node 5"):
        federate(config, Dropping(config, {step: {0, 5}}))
    config = secure_config(min_clients_per_round=6)
    with pytest.raises(RunError, match="round 1: 5 clients trained and 6 are needed"):
        federate(config, Dropping(config, {"train": {0}}))


class Slow(Dropping):
    """A client answers the second time that it is asked to unmask."""

    def is_lost(self, message):
        lost = super().is_lost(message)
        if lost:
            self.gone = {}
        return lost


def test_those_who_do_not_answer_to_unmask_are_asked_again(federate, capsys):
    config = secure_config(secure_threshold=6, num_server_rounds=1)
    folder, _ = federate(config, Slow(config, {"unmask": {2}}))
    everyone = list(range(6))
    check_by_hand(config, folder, lambda _: everyone, lambda _: everyone)
    assert "round 1  asking clients [2] again in 0 s\n" in capsys.readouterr().out


def record_bytes(content):
    """Everything in the content of a message."""
    found = []
    for name, record in content.items():
        for key, value in record.items():
            values = value if isinstance(value, list) else [value]
            data = [value.data] if isinstance(value, Array) else [
                each if isinstance(each, bytes) else repr(each).encode() for each in values
            ]  # fmt: skip
            found += [name.encode(), key.encode(), *data]
    return b"\n".join(found)


def test_all_bytes_that_the_server_gets_make_the_sum_and_no_update(federate):
    """With what it gets, a server that takes off every mask that it can make has noise for each part of the sum."""
    config = secure_config(num_server_rounds=1, num_clients=5, secure_threshold=3)
    grid = Dropping(config, {"train": {4}})
    grid.replies = []
    folder, _ = federate(config, grid)
    experiment, initial = Experiment(config), Experiment(config).initial_shared()
    updates = {client: client_update(experiment, client, 1, initial, config.learning_rate) for client in range(5)}
    got = b"\n".join(record_bytes(reply.content) for reply in grid.replies)
    secure = [reply.content for reply in grid.replies if "secure" in reply.content]
    for update in updates.values():
        for name, value in update.state.items():
            change = value.double() - initial[name].double()
            own = [value.numpy().ravel(), change.numpy().ravel(), change.float().numpy().ravel()]
            assert not any(data[:4].tobytes() in got for data in own if data.size >= 4 and data[:4].any()), name
    rows = [
        row
        for content in secure
        for row in zip(*(content["secure"].get(key, ()) for key in ("client", "other", "data")), strict=True)
    ]
    keys: dict[int, bytes] = {}
    shares: dict[int, dict[int, bytes]] = {client: {} for client in range(5)}
    for client, other, data in rows:
        if len(data) > 100 and data.startswith(b"-----BEGIN PUBLIC KEY") and other == 0:
            keys[client] = data
        elif len(data) < 100 and not data.startswith(b"-----") and len(data) != 32:
            shares[client][other] = data
    masked = {}
    for reply in grid.replies:
        if "arrays" in reply.content and "masked" in reply.content["arrays"]:
            (client,) = reply.content["metrics"]["client"]
            masked[client] = reply.content["arrays"]["masked"].numpy()[0]
    assert masked.keys() == {0, 1, 2, 3} and all(own.keys() == {0, 1, 2, 3, 4} for own in shares.values() if own)
    length = len(masked[0])
    total = sum(update.num_train for update in updates.values())
    true, without = {}, {}
    for client, numbers in masked.items():
        change = np.concatenate(
            [np.ravel(updates[client].state[n].double() - initial[n].double()) for n in sorted(initial)]
        )
        scale = updates[client].num_train / total * LEVELS / RANGE
        true[client] = np.rint(change * scale).astype(np.int64)
        seed = plain.secret_of([shares[each][client] for each in (1, 2, 3)])
        without[client] = numbers.astype(np.int64) - np.array(plain.stream(seed, length))
        gone = int.from_bytes(plain.secret_of([shares[each][4] for each in (0, 1, 3)]), "big")
        without[client] += np.array(plain.stream(plain.key_of_pair(gone, keys[client]), length))
    for subset in [{0}, {1}, {2}, {3}, {0, 1}, {0, 2}, {1, 3}, {0, 1, 2}, {1, 2, 3}]:
        found = sum(without[each] for each in subset) % 2**32
        assert np.count_nonzero(found == sum(true[each] for each in subset) % 2**32) <= 2, subset
        assert abs(found.mean() / 2**31 - 1) < 0.2 and len(set((found >> 28).tolist())) == 16
    assert (sum(without.values()) % 2**32 == sum(true.values()) % 2**32).all()
    assert results.read_results(folder)["rounds"]


def test_two_runs_have_the_same_result_and_send_nothing_alike(federate):
    config = secure_config(num_server_rounds=1, num_clients=3, secure_threshold=2)
    grids = [FakeGrid(config), FakeGrid(config)]
    folders = [federate(config, grid)[0] for grid in grids]
    assert files_that_decide(folders[0]) == files_that_decide(folders[1])
    masked = [
        np.concatenate([each.content["arrays"]["masked"].numpy() for each in grid.replies if "arrays" in each.content])
        for grid in grids
    ]
    assert masked[0].shape[0] == 3 and np.count_nonzero(masked[0] == masked[1]) <= 2
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.count_nonzero(masked[0][first] == masked[0][second]) <= 2


def secrets_of(folder):
    return sorted((folder / run_folder.MEMORY).glob("client_*/secure.json"))


class Looking(FakeGrid):
    """Looks at the files of secrets when clients have trained."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and step_of(messages[0]) == "train":
            files = secrets_of(Path(messages[0].content["config"]["memory"]).parent)
            self.modes = {stat.S_IMODE(path.stat().st_mode) for path in files}
            self.keys = sum(bool(json.loads(path.read_text())["secrets"][0]) for path in files)
        return replies


def test_secrets_are_their_users_alone_and_gone_after_the_round(federate):
    config = secure_config(num_server_rounds=1)
    grid = Looking(config)
    folder, _ = federate(config, grid)
    assert len(secrets_of(folder)) == 6
    assert grid.modes == {0o600} and grid.keys == 6
    for path in secrets_of(folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        left = json.loads(path.read_text())
        assert (left["secrets"], left["shares"], left["sent"]) == (["", "", ""], {}, "over")
    assert not [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "server_round"), [(SECURE, 2), ("train", 2), ("evaluate", 2)])
def test_a_stopped_run_ends_byte_for_byte_where_an_unstopped_one_ends(kind, server_round, federate):
    """Stopped in an evaluation, the round is begun anew, and its sum is unmasked for the same clients again."""
    config = secure_config(algorithm="fedper", num_clients=3)
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, kind, server_round))
    resumed = dataclasses.replace(config, resume=str(whole.parent / "run2"))
    folder, _ = federate(resumed, FakeGrid(resumed, 3, shuffle=True))
    assert files_that_decide(folder) == files_that_decide(whole)


class StoppedDropping(Dropping):
    def answer(self, message, context):
        if step_of(message) == "evaluate":
            raise KeyboardInterrupt
        return super().answer(message, context)


def test_a_round_that_is_begun_anew_is_not_unmasked_for_others(federate, tmp_path):
    """The difference of the two sums would be the update of client 3."""
    config = secure_config(num_server_rounds=1, num_clients=4, secure_threshold=3, max_round_retries=0)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedDropping(config, {}))
    resumed = dataclasses.replace(config, resume=str(tmp_path / "run1"))
    with pytest.raises(RunError, match=r"0 clients gave shares .* go on when clients 0, 1, 2, 3 are there again"):
        federate(resumed, Dropping(resumed, {"train": {3}}))
    found, _ = federate(resumed)
    whole, _ = federate(config)
    assert files_that_decide(found) == files_that_decide(whole)


class Lying(FakeGrid):
    """Client 2 changes its answer to a step."""

    def __init__(self, config, step, change):
        super().__init__(config, config.num_clients)
        self.step, self.change = step, change

    def answer(self, message, context):
        reply = super().answer(message, context)
        if step_of(message) == self.step and list(message.content["config"]["clients"]) == [2]:
            self.change(reply.content)
        return reply


def garbage_key(content):
    content["secure"]["data"] = [b"garbage", *content["secure"]["data"][1:]]


def one_key(content):
    for key in ("client", "other", "data"):
        content["secure"][key] = content["secure"][key][:1]


def other_shares(content):
    content["secure"]["other"] = [each + 10 for each in content["secure"]["other"]]


def short(content):
    content["arrays"] = ArrayRecord({"masked": Array(np.zeros((1, 5), np.uint32))})


def floats(content):
    content["arrays"] = ArrayRecord({"masked": Array(content["arrays"]["masked"].numpy().astype(np.float32))})


def in_the_clear(content):
    content["arrays"] = ArrayRecord({"body.0.weight": Array(np.zeros((1, 5), np.float32))})


def more_images(content):
    content["metrics"]["num_train"] = [10**6]


LIES = {
    "a garbage key": ("keys", garbage_key, "sent something else than its keys"),
    "one key": ("keys", one_key, "sent a message of a client without one of its keys"),
    "too long": ("keys", lambda content: content["secure"].update(data=[bytes(10**4)] * 3), "none, or too long"),
    "shares for others": ("shares", other_shares, "sent shares for others than the clients of the round"),
    "few numbers": ("train", short, r"sent something else than \d+ masked numbers"),
    "floats": ("train", floats, r"sent something else than \d+ masked numbers"),
    "an update": ("train", in_the_clear, r"sent something else than \d+ masked numbers"),
    "other images": ("train", more_images, "says that it has 1000000 training samples, and it has"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_client_sends_in_place_of_the_protocols_messages_hurts_no_other(lie, federate):
    step, change, words = LIES[lie]
    config = secure_config(num_server_rounds=1, num_clients=4)
    folder, _ = federate(config, Lying(config, step, change))
    (failure,) = failures_of(folder)
    assert failure["client"] == 2 and re.search(words, failure["reason"])
    left = [0, 1, 3]
    asked = sorted([*left, 2]) if step == "train" else left
    check_by_hand(config, folder, lambda _: asked, lambda _: left)


def test_a_client_whose_shares_nobody_can_read_is_named(federate):
    """Its own mask cannot be taken off: such a round ends, as one whose sum is garbage."""
    config = secure_config(num_server_rounds=1, secure_threshold=4)
    grid = Lying(config, "shares", lambda content: content["secure"].update(data=[b"garbage"] * 5))
    with pytest.raises(RunError, match="round 1: the sum is not unmasked: of client 2 there are 1 shares, and 4 are"):
        federate(config, grid)


def test_numbers_that_are_no_update_are_seen_in_the_sum(federate):
    def noise(content):
        numbers = content["arrays"]["masked"].numpy()
        content["arrays"] = ArrayRecord({"masked": Array(numbers ^ np.uint32(0x5A5A5A5A))})

    config = secure_config(num_server_rounds=1)
    with pytest.raises(RunError, match="round 1: the sum is larger than updates can make it: a client sent something"):
        federate(config, Lying(config, "train", noise))


OWN_SUM = type("OwnSum", (Algorithm,), {"combine": lambda self, server, updates: None})(
    "Own", "body", (("body", "num_local_epochs"),)
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "engine": ({"engine": "ray"}, "secure-aggregation = true: is not built for engine=ray"),
    "central": (
        {"privacy": "central", "clipping_norm": 1.0, "noise_multiplier": 1.0},
        "secure-aggregation = true: privacy=central adds noise .*; take local",
    ),
    "aggregator": ({"aggregator": "median"}, 'aggregator = "median": secure-aggregation hides single updates'),
    "more": (
        {"over_selection": 1.3, "client_speeds": "lognormal:1.0"},
        "over-selection = 1.3: draws more clients than secure-threshold is counted of",
    ),
    "speeds": ({"client_speeds": "lognormal:1.0"}, "client-speeds = .*: is not built for secure-aggregation"),
    "few": ({"fraction_train": 0.4}, "secure-aggregation = true: a round has 2 clients, .*larger fraction-train"),
    "half": ({"secure_threshold": 3}, "secure-threshold = 3: must be more than half of the 6 clients"),
    "all": ({"secure_threshold": 7}, "secure-threshold = 7: must be more than half of the 6 clients"),
    "noise": (
        {"privacy": "local", "clipping_norm": 1.0, "noise_multiplier": 1.0},
        "quantization-range = 4.0: has no room for updates with noise, which reach 9; take that or more",
    ),
    "local": ({"algorithm": "local"}, "secure-aggregation = true: local has no sum of clients' updates; leave it out"),
    "centralized": ({"algorithm": "centralized"}, "secure-aggregation = true: centralized has no sum"),
    "counters": (
        {"algorithm": "fedavg", "norm": "batch-running"},
        "secure-aggregation = true: the model shares .*num_batches_tracked, which are no fractions; take other layers",
    ),
    **{
        name: ({"algorithm": name}, f"secure-aggregation = true: {name} needs each client's update by itself; take")
        for name in ("scaffold", "feddyn", "fednova", "ifca", "pfedfda", "fedas", "fedpac", "feddbe")
    },
    "own": ({"algorithm": "tests.server.test_secure:OWN_SUM"}, "needs each client's update by itself"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_more_than_the_sum_is_refused_before_a_run(what):
    options, words = REFUSED[what]
    with pytest.raises(InputError, match=words):
        tiny(**{**SHAPE, **options}).check()


SHAPE = {"secure_aggregation": True, "quantization_range": RANGE, "model_name": NARROW, "fraction_train": 1.0}


@pytest.mark.parametrize("algorithm", ["fedavg", "fedrep", "ditto", "fedprox-babu", "fedrod", "apfl", "fedetf"])
def test_methods_whose_server_takes_the_mean_pass(algorithm):
    tiny(**SHAPE, algorithm=algorithm).check()


def test_local_noise_is_added_before_masks(federate):
    config = secure_config(
        privacy="local", clipping_norm=0.1, noise_multiplier=1.0, quantization_range=1.0, num_server_rounds=1,
        server_optimizer="momentum",
    )  # fmt: skip
    folder, _ = federate(config)
    initial = Experiment(config).initial_shared()
    moved = torch.cat([(value - initial[name]).flatten() for name, value in weights_of(folder).items()])
    updates = [client_update(Experiment(config), client, 1, initial, config.learning_rate) for client in range(6)]
    share = [update.num_train / sum(each.num_train for each in updates) for update in updates]
    expected = 0.1 * sum(each**2 for each in share) ** 0.5
    assert moved.std().item() == pytest.approx(expected, rel=0.1)
    assert results.read_results(folder)["privacy"]["epsilon"] > 1


def test_a_client_whose_update_is_larger_than_the_range_fails_and_says_so(federate):
    config = secure_config(quantization_range=1e-4, num_server_rounds=1)
    words = "nothing is sent: its update moves a weight by .*, and quantization-range is 0.0001; take a larger one"
    with pytest.raises(RunError, match=rf"0 clients trained and 4 are needed.*{words}"):
        federate(config)


def test_a_client_sends_nothing_where_the_protocol_is_left_out(federate):
    """Not to Flower's own strategies, and not in answer to an order without shares, or with those of a former one."""
    config = secure_config(num_clients=3, secure_threshold=2, num_server_rounds=1)
    everyone = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    initial = ArrayRecord(Experiment(config).initial_shared())
    with pytest.raises(ValueError, match="secure-aggregation has steps that Flower's own strategies do not take"):
        FedAvg(fraction_train=1.0, **everyone).start(FakeGrid(config, nodes=3), initial, num_rounds=1)
    grid = FakeGrid(config)
    federate(config, grid)
    order = next(message for message in grid.messages if step_of(message) == "train")
    (node,) = grid.contexts
    reply = grid.answer(Message(order.content, node, "train"), grid.contexts[node])
    assert "arrays" not in reply.content or not reply.content["arrays"]
    assert all("each once" in reason for reason in reply.content["failures"]["reason"])
    assert len(reply.content["failures"]["reason"]) == 3
    without = RecordDict({name: record for name, record in order.content.items() if name != "secure"})
    reply = grid.answer(Message(without, node, "train"), grid.contexts[node])
    assert not reply.content["arrays"] and len(reply.content["failures"]["client"]) == 3
    plain_run = dataclasses.replace(config, secure_aggregation=False)
    step = next(message for message in grid.messages if step_of(message) == "keys")
    context = FakeGrid(plain_run).contexts.popitem()[1]
    with pytest.raises(ValueError, match="this run has no secure aggregation"):
        client_app.app(Message(step.content, 1, SECURE), context)
