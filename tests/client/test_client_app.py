"""A real node's messages: each is answered by a worker of the process that stays warm between them."""

import os
import subprocess

import pytest
from flwr.app import Context, Message, RecordDict

from lit_fedbabu import client_app
from lit_fedbabu.client import handlers
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.protocol.handshake import PLACE, Code
from lit_fedbabu.workers import worker as workers
from tests.sites import site_config, write_site

pytestmark = pytest.mark.skipif(not workers.FORKS, reason="forks")


@pytest.fixture(scope="module")
def node():
    """This process answers as that of a real node."""
    with workers.Warm("lit_fedbabu.client_app:prepare") as client_app.warm:
        yield client_app.warm
    client_app.warm = None


def question(tmp_path, kind=PLACE, **node_config):
    identify_process()
    config = site_config(tmp_path, model_name="FourConvNet")
    message = Message(Code.here().to_record(), 1, kind)
    return message, Context(1, 1, node_config, RecordDict(), config.to_run_config())


@pytest.mark.slow
def test_a_node_answers_as_the_handlers_do_from_one_warm_process(node, tmp_path, monkeypatch):
    images = write_site(tmp_path / "images", ["red", "green"])
    asked = question(tmp_path, **{"client-id": 1, "data-path": str(images)})
    expected = handlers.place(*asked).content["place"]
    answers = []

    def ask():
        answers.append(client_app.app(*asked).content["place"])

    ask()
    ask()
    assert answers == [expected] * 2
    process = node._started
    monkeypatch.setattr(subprocess, "Popen", None)  # a second start would raise
    monkeypatch.setattr(handlers, "ANSWERS", {})  # an answer in this process too
    ask()
    assert answers[-1] == expected
    assert node._started is process and process.poll() is None


def test_what_the_handlers_raise_is_raised(node, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: the node-config of .* has no client-id and no data-path"):
        client_app.app(*question(tmp_path, kind="train"))


def test_a_worker_that_is_killed_is_an_error_by_name(node, tmp_path, monkeypatch):
    def ask_and_kill(worker, *request, ask=workers.Worker.ask):
        os.kill(worker.pid, 9)
        ask(worker, *request)

    monkeypatch.setattr(workers.Worker, "ask", ask_and_kill)
    with pytest.raises(RuntimeError, match="no answer to 'place': its process was killed by SIGKILL"):
        client_app.app(*question(tmp_path))


def test_elsewhere_the_handlers_answer_in_this_process(node, tmp_path, monkeypatch):
    monkeypatch.setattr(client_app, "warm", None)
    monkeypatch.setattr(handlers, "ANSWERS", {"place": lambda *asked: asked})
    asked = question(tmp_path)
    assert client_app.app(*asked) == asked
