"""The process that speaks with Ray, with actors that are none of Ray's: nodes that join, fail and say nothing."""

from concurrent.futures import Future

import pytest

from lit_fedbabu.engines import ray_driver
from lit_fedbabu.engines.ray_driver import Cluster, LostError, RefusedError, _Node, is_shared, line_of
from lit_fedbabu.ground import system


class Method:
    """Of an actor: what it returns comes at once; None: never."""

    def __init__(self, function):
        self.function = function

    def remote(self, *arguments):
        found: Future[object] = Future()
        value = self.function(*arguments)
        if value is not None:
            found.set_result(value)
        reference = type("Reference", (), {"future": lambda self: found})
        return reference()


class Actor:
    """A node of two workers.

    Args:
        answer: to each request, by its bytes; None: it says nothing.
    """

    def __init__(self, answer=lambda request: (True, request, [])):
        self.asked: list[bytes] = []

        def answered(number, request, timeout_s):
            self.asked.append(request)
            return answer(request)

        self.answer, self.take = Method(answered), Method(lambda number, shared: True)
        self.introduce = Method(lambda waits: system.installed())
        self.sees = Method(lambda file: True)


@pytest.fixture
def started(monkeypatch):
    """A function that makes a cluster of these actors by their names, which judges nodes so, after its first call."""
    for name, value in {"put": lambda value: value, "kill": lambda actor: None}.items():
        monkeypatch.setattr(ray_driver.ray, name, value)
    monkeypatch.setattr(ray_driver, "LOOK_S", 0.01)
    monkeypatch.setattr(Cluster, "_look", lambda self: None)
    monkeypatch.setattr(ray_driver.ray, "init", lambda *_, **__: None)

    def start(judge=lambda *introduced: "", **actors):
        cluster = Cluster("auto", 1, [], "", "", judge)
        for name, actor in actors.items():
            join(cluster, name, actor)
        assert list(cluster.answers(b"who", "", [b"who"], None, 5.0)) == [("answered", 0, b"who")]
        return cluster

    return start


def join(cluster, name, actor):
    cluster._nodes[name] = _Node(actor, 2, name)
    cluster._nodes[name].is_ready = True


def called(cluster, *requests, timeout_s=5.0):
    return list(cluster.answers(b"who", "", requests, None, timeout_s))


ROUND = [b"1", b"2", b"3", b"4"]
ANSWERED = {("answered", place, request) for place, request in enumerate(ROUND)}


def test_a_node_that_joins_later_and_cannot_take_part_is_left_out_with_a_note_and_asked_for_no_client(started):
    late = Actor()
    cluster = started(judge=lambda name, *answer: "no dataset" * (name == "late"), first=Actor())
    join(cluster, "late", late)
    told = called(cluster, *ROUND)
    assert set(told) == {*ANSWERED, ("note", "note: late is left out: no dataset")}
    assert late.asked == [b"who"] and set(cluster._nodes) == {"first"}
    assert set(called(cluster, *ROUND)) == ANSWERED


def test_a_node_that_joins_later_does_work_once_it_was_judged_and_holds_up_nobody_before(started):
    silent, good = Actor(lambda request: None), Actor()
    cluster = started(first=Actor())
    join(cluster, "silent", silent)
    assert set(called(cluster, *ROUND)) == ANSWERED and silent.asked == [b"who"]
    join(cluster, "good", good)
    assert set(called(cluster, *ROUND)) == ANSWERED
    assert set(called(cluster, *ROUND)) == ANSWERED
    assert good.asked[0] == b"who" and set(good.asked[1:]) & set(ROUND) and silent.asked == [b"who"]


def test_before_the_run_one_that_cannot_take_part_ends_it(started):
    with pytest.raises(RefusedError, match="other: no dataset"):
        started(judge=lambda name, *answer: "no dataset" * (name == "other"), first=Actor(), other=Actor())


def test_a_run_whose_actors_do_not_start_again_is_lost_and_does_not_wait_for_ever(started, monkeypatch):
    cluster = started(first=Actor())
    monkeypatch.setattr(ray_driver, "HOST_TIMEOUT_S", 0.1)
    cluster._nodes["first"].is_ready = False
    with pytest.raises(LostError, match="within 0 s no workers were started on first"):
        called(cluster, *ROUND, timeout_s=None)


def test_a_folder_is_shared_where_another_machine_sees_at_once_what_is_written(tmp_path):
    from pathlib import Path

    absent: set[str] = set()

    def remembers(file):
        """As a disk that for a while does not look again for what was not there."""
        if not Path(file).exists():
            absent.add(file)
        return file not in absent

    assert is_shared(tmp_path, lambda file: Path(file).exists())
    assert not is_shared(tmp_path, remembers) and absent
    assert not is_shared(tmp_path, lambda file: False)
    assert not list(tmp_path.iterdir())


def test_the_remedy_where_ray_finds_no_cluster_or_has_a_token_is_one_of_this_command():
    """Ray's own names a flag that there is not."""
    told = line_of(ConnectionError("Could not find any running Ray instance. Please set the `--address` flag"))
    assert "host:port" in told and "--address" not in told
    assert "RAY_AUTH_TOKEN" in line_of(ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"))
    assert line_of(ValueError("a\n  b")) == "a b"
