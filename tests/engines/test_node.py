import io
import itertools
import threading
from contextlib import nullcontext
from types import SimpleNamespace

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
    monkeypatch.setattr(node, "_end_with_node", lambda: None)
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


def test_a_look_comes_soon_and_then_less_often(monkeypatch):
    slept: list[float] = []
    runs = iter([None] * 30 + [7])
    monkeypatch.setattr(node.time, "sleep", slept.append)
    assert node._pulled(lambda: next(runs))() == 7
    assert len(slept) == 30 and slept[0] == 0.1 and slept[-1] == 3.0 and sum(slept[:10]) < 3.0 < sum(slept[:12])
