import io
import itertools
import socket
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lit_fedbabu.engines import node


class _SuperNode:
    """Gives two messages, of which the first never comes whole: its run was stopped while it was under way."""

    def __init__(self):
        self.clients, self.given, self.pushed, self.over = itertools.count(), itertools.count(), [], threading.Event()

    def client(self, *_):
        return SimpleNamespace(number=next(self.clients), AcquireTask=self.acquire, close=lambda: None)

    def acquire(self, _):
        given = next(self.given)
        return SimpleNamespace(HasField=lambda _: given < 2, token="token")

    def pull(self, client):
        if client.number == 1:
            threading.Event().wait()
        return f"message {client.number}", SimpleNamespace(run_config={}, node_config={}), None, None

    def push(self, _, reply, context):
        self.pushed.append(reply)
        self.over.set()


def test_a_message_that_never_comes_does_not_keep_a_site_from_the_next(monkeypatch):
    """As where the server's process was killed: for Flower the site would wait for more than an hour."""
    there = _SuperNode()
    monkeypatch.setattr("sys.argv", ["node", "127.0.0.1:1"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(bytes(node.SECRET_BYTES))))
    monkeypatch.setattr(node, "_tell", lambda: None)
    monkeypatch.setattr(node, "_listen", lambda _: None)
    monkeypatch.setattr(node.signal, "signal", lambda *_: None)
    monkeypatch.setattr(node, "_client", there.client)
    monkeypatch.setattr(node, "Warm", lambda _: nullcontext(SimpleNamespace(start=lambda: None)))
    monkeypatch.setattr(node, "HeartbeatSender", lambda _: SimpleNamespace(start=lambda: None, stop=lambda: None))
    monkeypatch.setattr(node, "pull_task_input", there.pull)
    monkeypatch.setattr(node.client_app, "app", lambda message, context: message)
    monkeypatch.setattr(node.client_app, "warm", None)
    monkeypatch.setattr(node, "push_message", there.push)
    monkeypatch.setattr(node, "push_task_output", lambda *_: None)
    threading.Thread(target=node.main, daemon=True).start()
    assert there.over.wait(20)
    assert there.pushed == ["message 2"]


@pytest.fixture
def pair(monkeypatch):
    """The process that answers as a quick node sees it: the node's end of a pair of sockets, and its own."""
    inside = node.start_client_internal
    for name in ("_pull_and_store_message", "time"):
        monkeypatch.setattr(inside, name, getattr(inside, name))
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def test_a_look_comes_soon_and_then_less_often_and_who_answers_is_told(pair, monkeypatch):
    slept: list[float] = []
    runs = iter([None] * 30 + [7])
    monkeypatch.setattr(node.start_client_internal, "_pull_and_store_message", lambda: next(runs))
    node._be_quick(pair[0])
    monkeypatch.setattr(node, "time", SimpleNamespace(sleep=slept.append))
    assert node.start_client_internal._pull_and_store_message() == 7
    assert len(slept) == 30 and slept[0] == 0.1 and slept[-1] == 3.0 and sum(slept[:10]) < 3.0 < sum(slept[:12])
    assert pair[1].recv(100) == node.DONE


def test_an_answer_is_looked_for_when_it_is_there(pair, monkeypatch):
    node._be_quick(pair[0])
    begun = time.monotonic()
    node.start_client_internal.time.sleep(0.2)
    assert time.monotonic() - begun >= 0.2, "while nothing is told, waits are Flower's"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(fileno=pair[1].fileno))
    node._tell()
    node.start_client_internal.time.sleep(100)
    assert time.monotonic() - begun < 50


def test_a_word_of_the_supernode_has_the_queue_looked_at(monkeypatch):
    whole, ended = node.Whole(), threading.Event()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(2 * node.DONE)))
    monkeypatch.setattr(node.os, "_exit", lambda _: ended.set())
    node._listen(whole)
    assert [whole.get_nowait(), whole.get_nowait()] == [None, None] and whole.empty() and ended.is_set()
