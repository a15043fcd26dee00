"""What crosses the wire."""

import ast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.handshake import PLACE, VERSION, Code, Place, WireError
from lit_fedbabu.protocol.wire import ClientUpdate, EvaluateReply, Failure, Order, TrainReply
from lit_fedbabu.server.nodes import find_nodes
from tests.ground.test_house import FILES, NAMES
from tests.support import NARROW, FakeGrid, failures_of, tiny_config

ARRAYS = {
    "body.weight": np.array([[0.0, -0.0, np.nan], [np.inf, 1e-45, 1 / 3]], np.float32),
    "body.count": np.array(3),
}
CODE = Code("0123", "/somewhere")


def bits(arrays):
    """Names, types, shapes and bytes: equal for not-a-number too, and different for 0.0 and -0.0."""
    return [(name, array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()]


def test_an_order_arrives_as_it_was_sent_with_the_arrays_and_the_servers_code():
    order = Order(3, (1, 4), "memory", learning_rate=0.1, personalize=True)
    content = order.to_record(ArrayRecord({name: Array(array) for name, array in ARRAYS.items()}), CODE)
    received, arrays = Order.from_record(content)
    assert received == order
    assert bits({name: array.numpy() for name, array in arrays.items()}) == bits(ARRAYS)
    assert Code.from_record(content) == CODE
    assert Order.from_config(order.to_config()) == order
    assert Order.from_config({"server-round": 3}) == Order(3)


def test_updates_arrive_with_each_array_once_for_all_clients():
    updates = [
        ClientUpdate(client, 10 * client, client / 2, {n: a * client for n, a in ARRAYS.items()}) for client in (2, 5)
    ]
    reply = TrainReply(updates, [Failure(7, "boom", "somewhere")])
    content = reply.to_record()
    assert {name: array.numpy().shape for name, array in content["arrays"].items()} == {
        "body.weight": (2, 2, 3), "body.count": (2,),
    }  # fmt: skip
    received = TrainReply.from_record(content)
    assert received.failures == [Failure(7, "boom", "somewhere")]
    assert received.clients == {2, 5, 7}
    assert received.nbytes == 2 * (24 + 8)
    for sent, got in zip(updates, received.updates, strict=True):
        assert (sent.client, sent.num_train, sent.train_loss) == (got.client, got.num_train, got.train_loss)
        assert bits(got.arrays) == bits(sent.arrays)
    nobody = TrainReply.from_record(TrainReply([], reply.failures).to_record())
    assert (nobody.updates, nobody.clients) == ([], {7})
    none_evaluated = EvaluateReply.from_record(EvaluateReply([], reply.failures).to_record())
    assert (none_evaluated.rows, none_evaluated.clients) == ([], {7})
    assert none_evaluated.failures == reply.failures


def test_evaluations_and_places_arrive_as_they_were_sent():
    rows = [
        {
            "client": client,
            "num_test": 4,
            "initial_accuracy": client / 4,
            "hits": [client, 2],
            "sums": [0.5, client / 3],
        }
        for client in (0, 3)
    ]
    received = EvaluateReply.from_record(EvaluateReply(rows).to_record())
    assert (received.rows, received.clients) == (rows, {0, 3})
    place = Place(1, 3, "cpu")
    assert Place.from_record(place.to_record()) == place


CONTENTS = {
    "order": (lambda: Order(3).to_record(ArrayRecord({}), CODE), Order.from_record, "config"),
    "code": (CODE.to_record, Code.from_record, "config"),
    "place": (Place(1, 3, "cpu").to_record, Place.from_record, "place"),
    "updates": (TrainReply([ClientUpdate(1, 2, 0.5, ARRAYS)]).to_record, TrainReply.from_record, "reply"),
    "failed": (TrainReply([], [Failure(7, "boom")]).to_record, TrainReply.from_record, "reply"),
    "evaluations": (EvaluateReply([{"client": 1, "num_test": 4}]).to_record, EvaluateReply.from_record, "reply"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_another_version_and_what_is_missing_are_refused_by_name(what):
    make, read, name = CONTENTS[what]
    content = make()
    content[name]["version"] = 99
    with pytest.raises(WireError, match=f"a message of version 99, and this program reads version {VERSION}"):
        read(content)
    for key in list(content[name]):
        content = make()
        if what == "order" and key.startswith("source"):
            continue  # read as a Code
        del content[name][key]
        with pytest.raises(WireError, match=f"a message whose '{name}' has no {key}"):
            read(content)
    content = make()
    del content[name]
    with pytest.raises(WireError, match=f"a message without '{name}'"):
        read(content)


@pytest.mark.parametrize(
    ("reply", "record", "key"),
    [
        *[("updates", "metrics", key) for key in ("client", "num_train", "train_loss")],
        *[("failed", "failures", key) for key in ("client", "reason", "traceback")],
        *[("evaluations", "metrics", key) for key in ("client", "num_test")],
    ],
)
def test_replies_without_a_value_of_their_clients_are_refused_by_its_name(reply, record, key):
    make, read, _ = CONTENTS[reply]
    content = make()
    read(content)
    del content[record][key]
    with pytest.raises(WireError, match=f"a message whose '{record}' has no {key}"):
        read(content)


def test_lists_of_clients_that_are_not_equally_long_are_refused():
    content = EvaluateReply([{"client": client, "num_test": 4, "hits": [1, 2]} for client in (0, 3)]).to_record()
    content["lists"]["hits"] = [1, 2, 3]
    with pytest.raises(WireError, match="whose 'hits' has 3 values for 2 clients"):
        EvaluateReply.from_record(content)


def test_clients_that_do_not_each_have_a_value_are_refused():
    content = TrainReply([ClientUpdate(client, 2, 0.5, ARRAYS) for client in (1, 2)]).to_record()
    content["metrics"]["num_train"] = [2]
    with pytest.raises(WireError, match="'metrics' has not one value of each of client, num_train, train_loss"):
        TrainReply.from_record(content)


WITHOUT = {
    "an order without arrays": (lambda: Order(3).to_record(ArrayRecord({}), CODE), Order.from_record, "arrays"),
    "updates without arrays": (lambda: TrainReply([]).to_record(), TrainReply.from_record, "arrays"),
    "updates without metrics": (lambda: TrainReply([]).to_record(), TrainReply.from_record, "metrics"),
    "evaluations without metrics": (CONTENTS["evaluations"][0], EvaluateReply.from_record, "metrics"),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_record_that_is_missing_is_refused_by_name(what):
    make, read, name = WITHOUT[what]
    content = make()
    del content[name]
    with pytest.raises(WireError, match=f"a message without '{name}'"):
        read(content)


def test_arrays_of_another_number_of_clients_are_refused():
    content = TrainReply([ClientUpdate(client, 2, 0.5, ARRAYS) for client in (1, 2)]).to_record()
    for value in (np.zeros(3, np.float32), np.float32(1)):
        content["arrays"]["body.weight"] = Array(np.asarray(value))
        with pytest.raises(WireError, match="whose array 'body.weight' is .*, and it speaks of 2 clients"):
            TrainReply.from_record(content)


def test_a_place_that_is_no_number_is_refused():
    content = Place(1, 3, "cpu").to_record()
    content["place"]["node"] = "first"
    with pytest.raises(WireError, match="the node 'first' of 3, which are no whole numbers"):
        Place.from_record(content)


class OtherVersion(FakeGrid):
    """Node 1 answers messages of a type as another version would."""

    def __init__(self, config, kind):
        super().__init__(config, 3)
        self.kind = kind

    def answer(self, message, context) -> Message:
        reply = super().answer(message, context)
        if message.metadata.message_type == self.kind and context.node_config["partition-id"] == 1:
            reply.content["place" if self.kind == PLACE else "reply"]["version"] = 99
        return reply


def test_clients_of_a_node_of_another_version_have_failed_by_that_reason(federate):
    config = tiny_config(model_name=NARROW, num_clients=9, fraction_train=0.34, num_server_rounds=3)
    folder, _ = federate(config, OtherVersion(config, "train"))
    failures = failures_of(folder)
    assert failures and {failure["client"] % 3 for failure in failures} == {1}
    assert all("sent a message of version 99" in failure["reason"] for failure in failures)
    grid = OtherVersion(config, PLACE)
    with pytest.raises(RunError, match="a node cannot take part, for it sent a message of version 99"):
        find_nodes(grid, print)
    with pytest.raises(RunError, match="version 99"):
        federate(config, grid)


KEYS = {
    "source-digest", "source-folder", "server-round", "learning-rate", "personalize", "trains-on",
    "metrics", "lists", "failures", "place", "reply",
}  # fmt: skip
"""Of messages. Left out are words with other meanings all over the package, as client, train_loss and config."""
ELSEWHERE = {
    "client/handlers": {"place"},  # names of handlers
    "client_app": {"place"},
    "config/derived": {"learning-rate"},  # an option
    "records/tensorboard": {"failures", "learning-rate"},  # a tag, and an option
    "records/model_card": {"learning-rate"},  # an option
    "body": {"trains-on"},  # of config.toml
    "aggregation/aggregator": {"metrics"},  # of replies made for Flower's strategies
    "aggregation/optimizer": {"metrics"},
    "server/federate": {"trains-on"},  # of config.toml
    "reporting/runs": {"trains-on"},  # of config.toml
    "reporting/facts": {"trains-on", "failures"},  # of config.toml, and a column
    "reporting/sections": {"failures"},  # a table
    "records/sites": {"failures"},  # of sites.json
}


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_no_other_file_knows_a_key_of_a_message(path):
    if NAMES[path] in ("protocol/wire", "protocol/handshake", "protocol/plain", "protocol/secure"):
        return
    tree = ast.parse(path.read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert words & KEYS == ELSEWHERE.get(NAMES[path], set())
