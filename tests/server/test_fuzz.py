"""A client's true answer, changed anywhere: no exception leaves the server, and no other client is hurt."""

import copy
import json
import math
import unicodedata
from contextlib import redirect_stdout, suppress
from io import StringIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.fields import LARGEST, LONGEST
from lit_fedbabu.protocol.wire import TrainReply
from lit_fedbabu.server.aggregation import FAR
from lit_fedbabu.server.nodes import find_nodes
from lit_fedbabu.server.patience import PatientGrid
from lit_fedbabu.training.experiment import Experiment
from tests.server.hostile import CLIENTS, LIAR, OPTIONS, Course, Replayed
from tests.support import FakeGrid, tiny_config


class Inflated(Replayed):
    """The same, in which answers are put together from the objects that Flower carries, with the liar's bytes changed.

    Args:
        objects: changes them, by their ids, before they are put together.
    """

    def __init__(self, config, kind, lie, known, objects):
        super().__init__(config, kind, lie, known)
        self.objects, self.sent = objects, []

    def push_messages(self, messages):
        self.sent = list(messages)
        return [str(place) for place, _ in enumerate(self.sent)]

    def pull_messages(self, names):
        message = self.sent[int(names[0])]
        context = self.contexts[message.metadata.dst_node_id]
        reply = self.answer(message, context)
        contents = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
        if message.metadata.message_type == self.kind and context.node_config["partition-id"] == LIAR:
            self.objects(contents)
        return [inflate_object_from_contents(reply.object_id, contents)]


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\x1b[2J", "a\nb\r\u202e", "ActorDied", "<script>", "client", "x" * 30_000, ""]),
)
WHOLE = st.one_of(
    st.sampled_from([0, 1, -1, LIAR, 2**31, 2**62, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1)
)
REAL = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 1e308, 5e-324, -0.0, 0.5]), st.floats())
ONE = st.one_of(WHOLE, REAL, st.booleans(), TEXTS, st.binary(max_size=20))
VALUES = st.one_of(ONE, *(st.lists(each, max_size=5) for each in (WHOLE, REAL, TEXTS, st.booleans())))
HEADERS = st.builds(
    "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}".format,
    st.sampled_from(["<f4", "<f8", "|O", "<i8", "|V0", "<U9", ">f4", "zz"]),
    st.booleans(),
    st.lists(st.sampled_from([-1, 0, 1, 2, 8, 10**12]), max_size=4).map(tuple),
)
RECORDS = st.sampled_from([MetricRecord, ConfigRecord, lambda: ArrayRecord({}), lambda: ArrayRecord([np.zeros(3)])])
AT = st.integers(0, 10**6)


def _field(content, at):
    """A record that has fields, and one of these, by a number."""
    fields = [(record, key) for record in content.values() for key in record]
    return fields[at % len(fields)] if fields else ({}, "")


def _array(content, at):
    arrays = [(record, key) for record in content.array_records.values() for key in record]
    return arrays[at % len(arrays)] if arrays else None


def _remove(content, at, spot, value):
    name = list(content)[at % len(content)] if content else ""
    content.pop(name, None)


def _rename(content, at, spot, value):
    if content:
        content[str(value)] = content.pop(list(content)[at % len(content)])


def _replace(content, at, spot, value):
    if content:
        content[list(content)[at % len(content)]] = value()


def _remove_field(content, at, spot, value):
    record, key = _field(content, at)
    record.pop(key, None)


def _rename_field(content, at, spot, value):
    record, key = _field(content, at)
    if key:
        record[str(value)] = record.pop(key)


def _set_field(content, at, spot, value):
    record, key = _field(content, at)
    record[key] = value


def _set_element(content, at, spot, value):
    record, key = _field(content, at)
    found = record.get(key)
    if isinstance(found, list) and found:
        changed = list(found)
        changed[spot % len(found)] = value
        record[key] = changed


def _claim(content, at, spot, value):
    """Another client's number."""
    records = [record for record in content.values() if isinstance(record.get("client"), list)]
    for record in records:
        record["client"] = [value for _ in record["client"]]


def _set_bytes(change):
    def changed(content, at, spot, value):
        if where := _array(content, at):
            record, key = where
            array = record[key]
            record[key] = Array(array.dtype, array.shape, array.stype, change(array.data, spot, value))

    return changed


def _about(content, at, spot, value):
    """What Flower says of an array beside its bytes."""
    if where := _array(content, at):
        record, key = where
        array = record[key]
        told = [array.dtype, array.shape, array.stype]
        told[spot % 3] = (spot,) if spot % 3 == 1 else str(value)
        record[key] = Array(*told, array.data)


def _multiplied(content, at, spot, value):
    """The bytes of an array read as numbers, of which one, or all, are multiplied."""
    if where := _array(content, at):
        record, key = where
        values = record[key].numpy().copy()
        with np.errstate(all="ignore"):
            if spot % 2:
                values *= np.asarray(value).astype(values.dtype)
            else:
                values.reshape(-1)[spot % max(values.size, 1)] *= np.asarray(value).astype(values.dtype)
        record[key] = Array(values)


def _flipped(data, spot, value):
    place = spot % max(len(data), 1)
    return data[:place] + bytes([data[place] ^ (1 << spot % 8)]) + data[place + 1 :] if data else data


CHANGES = st.one_of(
    st.tuples(st.just(_remove), AT, AT, st.none()),
    st.tuples(st.just(_rename), AT, AT, st.one_of(TEXTS, st.sampled_from(["lists", "failures", "metrics"]))),
    st.tuples(st.just(_replace), AT, AT, RECORDS),
    st.tuples(st.just(_remove_field), AT, AT, st.none()),
    st.tuples(st.just(_rename_field), AT, AT, TEXTS),
    st.tuples(st.just(_set_field), AT, AT, VALUES),
    st.tuples(st.just(_set_element), AT, AT, ONE),
    st.tuples(st.just(_set_bytes(_flipped)), AT, AT, st.none()),
    st.tuples(st.just(_set_bytes(lambda data, spot, _: data[: spot % (len(data) + 1)])), AT, AT, st.none()),
    st.tuples(st.just(_set_bytes(lambda data, _, value: data + value)), AT, AT, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just(_set_bytes(lambda data, _, value: data[:10] + value.encode() + data[10:])), AT, AT, HEADERS),
    st.tuples(st.just(_about), AT, AT, TEXTS),
    st.tuples(st.just(_multiplied), AT, AT, st.one_of(REAL, st.floats(-1e4, 1e4))),
    st.tuples(st.just(_claim), AT, AT, st.integers(0, CLIENTS)),
)
LIES = st.one_of(
    st.lists(CHANGES, min_size=1, max_size=3),
    st.builds(Error, st.integers(1, 2000), st.one_of(TEXTS, st.none())),  # 0 is Flower's own simulation
)
OBJECTS: st.SearchStrategy[list[tuple[str, int, int]]] = st.one_of(
    st.just([]), st.lists(st.tuples(st.sampled_from(["flip", "cut", "add", "lose", "swap"]), AT, AT), max_size=3)
)


def lie_of(changes):
    """A lie that makes these changes; what cannot be sent stays as it is."""

    def lie(content, message):
        if isinstance(changes, Error):
            return changes
        for change, at, spot, value in changes:
            with suppress(Exception):  # Flower's records do not take everything, and numbers are not read from garbage
                change(content, at, spot, value)
        return content

    return lie


def bytes_of(changes):
    """What changes the bytes of objects that Flower carries."""

    def changed(contents):
        for what, at, spot in changes:
            names = list(contents)
            name, other = names[at % len(names)], names[spot % len(names)]
            if what == "flip":
                contents[name] = _flipped(contents[name], spot, None)
            elif what == "cut":
                contents[name] = contents[name][: spot % (len(contents[name]) + 1)]
            elif what == "add":
                contents[name] += bytes([spot % 256])
            elif what == "lose" and len(names) > 1:
                del contents[name]
            elif what == "swap":
                contents[name], contents[other] = contents[other], contents[name]

    return changed


def steers_nothing(text):
    """Whether a text has no controls, ends of lines, halves of characters or marks that turn text around."""
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(each) in turning
        or each in "\u061c\u200e\u200f"
        for each in text
    )


@pytest.fixture(scope="module")
def course(machine, tmp_path_factory):
    """What a round and the last evaluation become where the liar's answers of a kind are changed."""
    experiment = Experiment(tiny_config(**{**OPTIONS, "num_server_rounds": 1, "max_round_retries": 1}))
    known: dict[tuple[str, str, int], RecordDict] = {}

    def of(kind="", lie=None, objects=None):
        folder, printed = tmp_path_factory.mktemp("fuzz"), StringIO()
        with redirect_stdout(printed):
            grid = Replayed(experiment.config, kind, lie, known)
            if objects is not None:
                grid = PatientGrid(Inflated(experiment.config, kind, lie, known, objects), print)
            found = Course(experiment, folder, grid)
        found.known, found.experiment, found.printed = known, experiment, printed.getvalue()
        assert steers_nothing(found.printed.replace("\n", ""))
        assert set(found.told) <= {(1, LIAR)}, "nobody else has failed"
        for failure in found.failures:
            assert len(failure["reason"]) <= LONGEST["reason"] + 100 and steers_nothing(failure["reason"])
            assert len(failure["traceback"]) <= LONGEST["traceback"] + 100
        return found

    return of


@pytest.fixture(scope="module")
def honest(course):
    return course()


@pytest.fixture(scope="module")
def without(course):
    return course("train", lambda content, message: Error(code=2, reason="gone"))


def refuse_far(found):
    """Assert that a liar whose update was averaged has moved the mean by no more than is said."""
    received = {name: value.numpy() for name, value in found.experiment.initial_shared().items()}
    others = [
        TrainReply.from_record(copy.deepcopy(content)).updates[0]
        for (kind, _, client), content in found.known.items()
        if kind == "train" and client != LIAR
    ]
    sizes = found.experiment.task.sizes
    total = sum(sizes[client][0] for client in range(CLIENTS))

    def length(arrays):
        return math.sqrt(sum(float(np.square(arrays[name].astype(float) - received[name]).sum()) for name in received))

    false = {
        name: (value.astype(float) * total - sum(each.arrays[name].astype(float) * each.num_train for each in others))
        / sizes[LIAR][0]
        for name, value in found.arrays.items()
    }
    longest, own = length(false), sizes[LIAR][0]
    most = max(max(length(each.arrays), length(each.arrays) / each.num_train * own) for each in others)
    assert longest <= FAR * most * (1 + 1e-4), "no longer than the server says"


def train(course, honest, without, changes, objects):
    found = course("train", lie_of(changes), bytes_of(objects) if objects else None)
    if found.told:
        assert (found.digests, found.scalars) == (without.digests, without.scalars)
        return
    assert abs(found.scalars[0]) <= LARGEST
    if found.digests != honest.digests:
        refuse_far(found)


def evaluate(course, honest, changes, objects):
    found = course("evaluate", lie_of(changes), bytes_of(objects) if objects else None)
    assert found.digests == honest.digests
    clients = {row["client"]: row for row in json.loads(json.dumps(found.outcome, allow_nan=False))["clients"]}
    for row in honest.outcome["clients"]:
        if row["client"] != LIAR:
            assert clients[row["client"]] == row
        elif LIAR in clients:
            assert clients[LIAR].keys() == row.keys() and 0 <= clients[LIAR]["initial_accuracy"] <= 1
            assert clients[LIAR]["num_test"] == row["num_test"]
    assert (LIAR in clients) != (LIAR in found.outcome.get("missing", ()))
    if found.stopped:
        assert f"clients [{LIAR}] were not evaluated" in found.stopped, "it said that it failed"


def handshake(grid, changes):
    """Nodes are found, or the reason why they are not is a line."""
    answer = FakeGrid.answer

    def changed(message, context):
        reply = answer(grid, message, context)
        if context.node_config["partition-id"] != 1:
            return reply
        return Message(lie_of(changes)(reply.content, message), reply_to=message)

    grid.answer = changed
    try:
        nodes = find_nodes(grid, print, timeout_s=0.3, most=2)
        assert len(nodes) == 2
    except RunError as error:
        assert steers_nothing(str(error)) and len(str(error)) < 11_000


def fuzz(count, **strategies):
    def decorate(test):
        return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(
            given(**strategies)(test)
        )

    return decorate


@fuzz(40, changes=LIES, objects=OBJECTS)
def test_whatever_is_changed_in_an_answer_to_training(course, honest, without, changes, objects):
    train(course, honest, without, changes, objects)


@fuzz(25, changes=LIES, objects=OBJECTS)
def test_whatever_is_changed_in_an_answer_to_evaluation(course, honest, changes, objects):
    evaluate(course, honest, changes, objects)


@fuzz(15, changes=LIES)
def test_whatever_is_changed_in_the_handshake(machine, changes):
    handshake(FakeGrid(tiny_config(**OPTIONS), 2), changes)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "evaluate", "place"])
def test_five_hundred_changed_answers(what, course, honest, without, machine):
    if what == "train":
        lies = fuzz(250, changes=LIES, objects=OBJECTS)
        lies(lambda changes, objects: train(course, honest, without, changes, objects))()
    elif what == "evaluate":
        lies = fuzz(150, changes=LIES, objects=OBJECTS)
        lies(lambda changes, objects: evaluate(course, honest, changes, objects))()
    else:
        grid = FakeGrid(tiny_config(**OPTIONS), 2)
        fuzz(100, changes=LIES)(lambda changes: handshake(grid, changes))()
