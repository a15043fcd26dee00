"""A real node's messages: each is answered by a worker of the process that stays warm between them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lit_fedbabu import client_app, system
from lit_fedbabu.client import handlers
from lit_fedbabu.handshake import PLACE, Code
from lit_fedbabu.workers import worker as workers
from tests.sites import site_config, write_site
from tests.support import wait_for

pytestmark = pytest.mark.skipif(not workers.FORKS, reason="forks")


def alive(node):
    """Warm processes of a node, and their workers."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "lit_fedbabu.workers.warm" in words and str(node.pid) in words:
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.fixture(scope="module")
def node():
    """A process that stands for a SuperNode, and this one for the process of its message."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/somewhere/flwr-clientapp"])
        patch.setattr(os, "getppid", lambda: process.pid)
        yield process
    process.kill()
    process.wait()
    assert wait_for(lambda: not alive(process), 30), "it ends with the SuperNode"
    assert f"-{process.pid}-{system.source_digest()}" not in Path("/proc/net/unix").read_text()


def question(tmp_path, **node_config):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    config = site_config(tmp_path, model_name="FourConvNet")
    message = Message(Code.here().to_record(), 1, PLACE)
    return message, Context(1, 1, node_config, RecordDict(), config.to_run_config())


def test_a_node_answers_as_the_handlers_do_from_one_warm_process(node, tmp_path, monkeypatch):
    images = write_site(tmp_path / "images", ["red", "green"])
    asked = question(tmp_path, **{"client-id": 1, "data-path": str(images)})
    expected = handlers.place(*asked).content["place"]
    answers = []

    def ask():
        answers.append(client_app.app(*asked).content["place"])

    several = [threading.Thread(target=ask) for _ in range(3)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert answers == [expected] * 3
    (process,) = wait_for(lambda: len(alive(node)) == 1 and alive(node), 30)
    monkeypatch.setattr(subprocess, "Popen", None)  # a second start would raise
    monkeypatch.setattr(handlers, "ANSWERS", {})  # an answer in this process too
    ask()
    assert answers[-1] == expected
    assert wait_for(lambda: alive(node) == [process], 30)


def test_what_the_handlers_raise_is_raised(node, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: the node-config of .* has no client-id and no data-path"):
        client_app.app(*question(tmp_path))


def test_a_worker_that_is_killed_is_an_error_by_name(node, tmp_path, monkeypatch):
    def ask_and_kill(worker, *request, ask=workers.Worker.ask):
        os.kill(worker.pid, 9)
        ask(worker, *request)

    monkeypatch.setattr(workers.Worker, "ask", ask_and_kill)
    with pytest.raises(RuntimeError, match="no answer to 'place': its process was killed by SIGKILL"):
        client_app.app(*question(tmp_path))


def test_elsewhere_the_handlers_answer_in_this_process(node, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/flwr-simulation"])
    monkeypatch.setattr(handlers, "ANSWERS", {"place": lambda *asked: asked})
    monkeypatch.setattr(client_app, "_by_worker", None)
    asked = question(tmp_path)
    assert client_app.app(*asked) == asked
