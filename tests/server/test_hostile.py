"""One of four clients lies: it is left out with a line, and the others go on as they do without it."""

import io
import math
import threading
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_fedbabu.config import Config
from lit_fedbabu.ground import waits
from lit_fedbabu.protocol.fields import decoded
from lit_fedbabu.protocol.handshake import PLACE, VERSION, Place, WireError
from lit_fedbabu.protocol.wire import ClientUpdate, EvaluateReply, TrainReply
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server import patience
from lit_fedbabu.server.aggregation import FAR, outliers
from lit_fedbabu.server.nodes import find_nodes
from lit_fedbabu.training.experiment import Experiment
from tests.server.hostile import CLIENTS, LIAR, OPTIONS, ROUNDS, Course, Replayed
from tests.support import FakeGrid, failures_of, tiny_config


@pytest.fixture(scope="module")
def run(machine, tmp_path_factory):
    """The course of a federation with a liar."""
    experiment = Experiment(tiny_config(**OPTIONS))
    known: dict[tuple[str, str, int], RecordDict] = {}

    def course(kind="", lie=None):
        grid = Replayed(experiment.config, kind, lie, known)
        return Course(experiment, tmp_path_factory.mktemp("hostile"), grid)

    return course


@pytest.fixture(scope="module")
def without(run):
    """The course in which the liar fails in every round."""
    course = run("train", lambda content, message: Error(code=2, reason="<class 'ValueError'>:<'gone'>"))
    assert {failure["reason"] for failure in failures_of(course.folder)} == {"gone"}
    return course


@pytest.fixture(scope="module")
def honest(run):
    """The course in which nobody lies."""
    return run()


def metric(name, value):
    def lie(content, message):
        content["metrics"] = MetricRecord({**content["metrics"], name: [value]})

    return lie


def arrays(change):
    """Let a lie change an array (1, ...), given it and what was received."""

    def lie(content, message):
        received = message.content["arrays"]
        values = {name: change(array.numpy(), received[name].numpy()) for name, array in content["arrays"].items()}
        content["arrays"] = ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})

    return lie


def first_array(change):
    """Let a lie change the bytes of the first array."""

    def lie(content, message):
        name, array = next(iter(content["arrays"].items()))
        content["arrays"][name] = Array(array.dtype, array.shape, array.stype, change(array.data))

    return lie


def header(shape, dtype="<f4"):
    """The bytes of an array's header that claims this, without its numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def zipped(data):
    file = io.BytesIO()
    np.savez(file, np.zeros(3))
    return file.getvalue()


def renamed(content, message):
    content["arrays"] = ArrayRecord({f"{name}\x1b[2J": array for name, array in content["arrays"].items()})


def of_others(content, message):
    (own,) = TrainReply.from_record(content).updates
    updates = [ClientUpdate(client, own.num_train, 0.5, own.arrays) for client in range(CLIENTS)]
    return TrainReply(updates).to_record()


def twice(content, message):
    (own,) = TrainReply.from_record(content).updates
    return TrainReply([own, own]).to_record()


def failed(reason):
    def lie(content, message):
        record = {"client": [LIAR], "reason": reason, "traceback": [""]}
        content = TrainReply([]).to_record()
        content["failures"] = ConfigRecord(record)
        return content

    return lie


HUGE = float(np.finfo(np.float32).max)
TRAINING = {
    **{f"{count} images": metric("num_train", count) for count in (10**9, 2**62, -5, 0, 49, math.nan, math.inf, 48.0)},
    "images are no list": lambda content, message: content["metrics"].update(num_train=3),
    "weights of 1e30": arrays(lambda sent, received: np.full_like(sent, 1e30)),
    "the largest float": arrays(lambda sent, received: np.full_like(sent, HUGE)),
    "weights of 1e15": arrays(lambda sent, received: np.full_like(sent, 1e15)),
    "flipped 10 times": arrays(lambda sent, received: received - 10 * (sent - received)),
    "flipped 100 times": arrays(lambda sent, received: received - 100 * (sent - received)),
    "not a number": arrays(lambda sent, received: sent * np.float32(math.nan)),
    "loss 1e308": metric("train_loss", 1e308),
    "loss inf": metric("train_loss", math.inf),
    "updates of others": of_others,
    "an update twice": twice,
    "garbage": first_array(lambda data: b"garbage" * 30),
    "nothing": first_array(lambda data: b""),
    "truncated": first_array(lambda data: data[:-5]),
    "longer": first_array(lambda data: data + b"12345"),
    "npz": first_array(zipped),
    "a pickle": first_array(lambda data: header((3,), "|O") + b"\x80\x04N."),
    "10^12 numbers": first_array(lambda data: header((10**12,))),
    "10^12 times nothing": first_array(lambda data: header((10**12, 0))),
    "another serializer": lambda content, message: content["arrays"].update(
        {name: Array(each.dtype, each.shape, "torch", each.data) for name, each in content["arrays"].items()}
    ),
    "another dtype": arrays(lambda sent, received: sent.astype(np.float64)),
    "another shape": arrays(lambda sent, received: sent[..., None]),
    "other names": renamed,
    "no arrays": lambda content, message: content.update(arrays=ArrayRecord({})),
    "records of other types": lambda content, message: RecordDict({"reply": content["metrics"]}),
    "another client": metric("client", 0),
    "client 2^40": metric("client", 2**40),
    "empty": lambda content, message: RecordDict(),
    "a dead worker": failed(["<class 'ray.exceptions.ActorDiedError'>: gone"]),
    "a reason that is a number": failed([7]),
    "an error of a dead worker": lambda content, message: Error(code=2, reason="ActorDied"),
}


@pytest.mark.parametrize("what", TRAINING)
def test_a_client_that_lies_in_training_is_left_out_of_every_round(what, run, without, capsys):
    course = run("train", TRAINING[what])
    told = capsys.readouterr().out
    assert (course.digests, course.scalars) == (without.digests, without.scalars)
    assert course.outcome == without.outcome and course.told == without.told == [(1, LIAR), (2, LIAR), (3, LIAR)]
    assert told.count(f"failed: client {LIAR} on node {LIAR}: ") == ROUNDS and "\x1b" not in told


def one_list(name, value):
    def lie(content, message):
        if name in content.get("lists", ()):
            content["lists"][name] = value

    return lie


EVALUATION = {
    "accuracy -5": metric("initial_accuracy", -5.0),
    "accuracy 1.1": metric("initial_accuracy", 1.1),
    "loss -1": metric("initial_loss", -1.0),
    "loss 1e308": metric("initial_loss", 1e308),
    "test images 10^9": metric("num_test", 10**9),
    "test images nan": metric("num_test", math.nan),
    "a list as a client": lambda content, message: content.update(lists=MetricRecord({"client": [LIAR]})),
    "a list as an accuracy": lambda content, message: content.update(lists=MetricRecord({"initial_accuracy": [0.5]})),
    "an odd name": metric("accuracy_epoch_x", 0.5),
    "an epoch too many": metric("accuracy_epoch_7", 0.5),
    "another name": metric("initial_\x1b[2J", 0.5),
    "no accuracy": lambda content, message: content["metrics"].pop("initial_accuracy"),
    "arrays in place of numbers": lambda content, message: RecordDict(
        {"reply": content["reply"], "metrics": ArrayRecord({"client": Array(np.zeros(1))})}
    ),
    "empty": lambda content, message: RecordDict(),
    "another client": metric("client", 1),
    "nobody": lambda content, message: EvaluateReply([]).to_record(),
    "bins of another length": one_list("initial_bin_images", [1] * 14),
    "bins below zero": one_list("personalized_bin_hits", [-1] * 15),
}


def spoil(lie):
    """The lie, whatever it returns besides a message's content."""

    def told(content, message):
        found = lie(content, message)
        return found if isinstance(found, RecordDict) else None

    return told


@pytest.mark.parametrize("what", EVALUATION)
def test_others_results_are_final_where_a_client_lies_in_evaluations(what, run, honest, capsys):
    course = run("evaluate", spoil(EVALUATION[what]))
    told = capsys.readouterr().out
    assert course.digests == honest.digests and course.told == [(3, LIAR)] * 2
    assert course.outcome["clients"] == honest.outcome["clients"][:LIAR]
    assert course.outcome["missing"] == [LIAR] and "missing" not in honest.outcome
    assert "asking clients [3] again" in told and "clients [3] are missing from the results" in told
    assert "initial accuracy -" not in told and "\x1b" not in told


def test_a_whole_run_with_a_liar_ends_with_its_files_and_names_who_is_missing(federate, capsys):
    config = tiny_config(**OPTIONS)
    known: dict[tuple[str, str, int], RecordDict] = {}

    folder, _ = federate(config, Replayed(config, "train", TRAINING["loss 1e308"], known))
    outcome = read_results(folder)
    assert len(outcome["clients"]) == CLIENTS and "Infinity" not in (folder / "results.json").read_text()
    folder, _ = federate(config, Replayed(config, "evaluate", EVALUATION["an odd name"], known))
    assert read_results(folder)["missing"] == [LIAR]
    assert "missing, for they were not evaluated: clients 3" in capsys.readouterr().out


def test_an_update_is_compared_with_what_the_others_send():
    received = {"w": Array(np.zeros(4, np.float32)), "seen": Array(np.array(0))}

    def far(lengths, counts=None, per_sample=True):
        updates = [
            ClientUpdate(
                client, count, 0.5, {"w": np.full(4, length / 2, np.float32), "seen": np.array(10**6 * client)}
            )
            for client, (length, count) in enumerate(zip(lengths, counts or [10] * len(lengths), strict=True))
        ]
        return set(outliers(updates, received, per_sample))

    assert far([1, 1, 1, 1.01 * FAR]) == {3} and far([1, 1, 1, 0.99 * FAR]) == set()
    assert far([1, 100]) == far([0, 0, 0, 1]) == set(), "of two, and where nobody moves, nobody can say"
    assert far([1] * 6 + [1e6, 20]) == {6, 7}, "two of eight"
    assert far([1, 1, 1, 20], [10, 10, 10, 100]) == set(), "ten times the steps"
    assert far([1, 1, 1, 20], [10, 10, 10, 100], per_sample=False) == {3}


NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.just(LIAR))
NAMES = st.sampled_from(["client", "num_train", "train_loss", "num_test", "reason", "traceback", "version", "w", "x"])
WORDS = st.one_of(NUMBERS, st.text(max_size=5), st.binary(max_size=5), st.booleans(), st.just(VERSION))


def lists_of(values):
    return st.one_of(values, st.lists(values, max_size=3).filter(lambda found: len({type(each) for each in found}) < 2))


HEADERS = st.builds(
    header,
    st.lists(st.sampled_from([-1, 0, 1, 2, 10**12]), max_size=3).map(tuple),
    st.sampled_from(["<f4", "|O", "|V0"]),
)
BYTES = st.one_of(st.binary(max_size=300), st.builds(bytes.__add__, HEADERS, st.binary(max_size=20)))
RECORDS = st.one_of(
    st.builds(MetricRecord, st.dictionaries(NAMES, lists_of(NUMBERS), max_size=4)),
    st.dictionaries(NAMES, lists_of(WORDS), max_size=4).map(ConfigRecord),
    st.dictionaries(NAMES, BYTES.map(lambda data: Array("float32", (1,), "numpy.ndarray", data)), max_size=2).map(
        ArrayRecord
    ),
)
RIGHT = TrainReply([ClientUpdate(LIAR, 10, 0.5, {"w": np.zeros(2, np.float32)})]).to_record()
CONTENTS = st.dictionaries(
    st.sampled_from(["arrays", "metrics", "reply", "failures", "lists", "place"]), RECORDS, max_size=6
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CONTENTS, form=st.sampled_from([TrainReply, EvaluateReply, Place]))
def test_whatever_a_reply_is_it_is_read_or_refused(changes, form):
    try:
        form.from_record(RecordDict({**RIGHT, **changes}))
    except WireError as error:
        assert len(str(error)) < 2000


@settings(max_examples=100, deadline=None)
@given(data=BYTES)
def test_no_array_is_larger_than_what_was_sent(data):
    with suppress(WireError):
        assert decoded("w", Array("float32", (1,), "numpy.ndarray", data)).nbytes <= len(data)


@pytest.mark.parametrize(
    "changes", [{"nodes": 10**12}, {"nodes": 0}, {"node": "b"}, {"node": True}, {"num-train": -1}, {"trains-on": 7}]
)
def test_a_node_that_lies_about_its_place_is_refused_in_a_line(changes):
    grid = FakeGrid(tiny_config())
    answer = grid.answer

    def lie(message, context):
        reply = answer(message, context)
        reply.content["place"].update(changes)
        return reply

    grid.answer = lie
    with pytest.raises(RuntimeError, match="a node cannot take part") as refused:
        find_nodes(grid, print, timeout_s=1, most=6)
    assert "\n" not in str(refused.value)


class Slow(FakeGrid):
    """A grid as Flower's: client 1 sends what cannot be put together, 2 begins an answer, 3 says that it is 0."""

    def __init__(self):
        super().__init__(Config(), CLIENTS)
        self.pushed = {}

    def push_messages(self, messages):
        names = [str(number) for number, _ in enumerate(messages)]
        self.pushed = dict(zip(names, messages, strict=True))
        return names

    def pull_messages(self, names):
        (name,) = names
        if name == "1":
            raise ValueError("Unexpected set of `children`")
        if name == "2":
            threading.Event().wait()
        return [Message(RecordDict(), reply_to=self.pushed["0" if name == "3" else name])]


def test_a_site_that_never_answers_is_waited_for_until_the_deadline(monkeypatch, capsys):
    monkeypatch.setattr(waits, "FIRST_S", 0.01)
    monkeypatch.setattr(patience, "SAY_EVERY_S", 0.5)
    grid = Slow()
    messages = [Message(Place(0, 1, "").to_record(), node, PLACE) for node in grid.contexts]
    replies = list(patience.PatientGrid(grid, print).send_and_receive(messages, timeout=0.4))
    reasons = [reply.error.reason for reply in replies if reply.has_error()]
    assert len(replies) == CLIENTS and len(reasons) == 2
    assert reasons[0].startswith("its answer cannot be read: ValueError") and "no answer within" in reasons[1]
    assert {reply.metadata.src_node_id for reply in replies} == set(grid.contexts)
    assert capsys.readouterr().out.startswith("waiting for nodes for 0 min; gives up at ")
