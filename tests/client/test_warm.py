"""The process that stays between a site's messages."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from lit_fedbabu.client import handlers, warm
from lit_fedbabu.handshake import PLACE, Code
from tests.sites import site_config, write_site

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")


def alive(folder):
    """Warm processes and their forks whose sockets are in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.fixture(scope="module")
def node():
    """A process that stands for a SuperNode, and the folder of sockets."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", folder)
            patch.setattr(os, "getppid", lambda: process.pid)
            yield Path(folder)
        process.kill()
        process.wait()
        assert wait_for(lambda: not alive(folder)), "it ends with the SuperNode"
        assert not list(Path(folder).glob("*/*")), "and takes its socket along"


def wait_for(look, seconds=30):
    """What a look finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def question(tmp_path, **node_config):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    config = site_config(tmp_path, model_name="FourConvNet")
    message = Message(Code.here().to_record(), 1, PLACE)
    return message, Context(1, 1, node_config, RecordDict(), config.to_run_config())


def test_it_answers_what_the_worker_answers_and_is_started_once(node, tmp_path, monkeypatch):
    images = write_site(tmp_path / "images", ["red", "green"])
    asked = question(tmp_path, **{"client-id": 1, "data-path": str(images)})
    expected = handlers.place(*asked).content["place"]
    answers = []
    several = [
        threading.Thread(target=lambda: answers.append(warm.answer("place", *asked).content["place"])) for _ in range(3)
    ]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert answers == [expected] * 3
    time.sleep(1)  # those that came too late for the socket are gone by now
    (process,) = alive(node)
    monkeypatch.setattr(subprocess, "Popen", None)  # a second start would raise
    assert warm.answer("place", *asked).content["place"] == expected
    assert wait_for(lambda: alive(node) == [process])


def test_what_the_worker_raises_is_raised(node, tmp_path):
    with pytest.raises(RuntimeError, match="ValueError: the node-config of .* has no client-id and no data-path"):
        warm.answer("place", *question(tmp_path))
    with pytest.raises(RuntimeError, match="KeyError"):
        warm.answer("nothing", *question(tmp_path))


def test_a_fork_that_is_killed_is_told_and_one_whose_asker_is_gone_ends(node, tmp_path, monkeypatch):
    images = write_site(tmp_path / "images", ["red", "green"])
    asked = question(tmp_path, **{"client-id": 1, "data-path": str(images)})
    warm.answer("place", *asked)
    (process,) = wait_for(lambda: [each for each in alive(node) if each.ppid() == os.getpid()])

    def forks():
        return [fork for fork in process.children() if fork.status() != psutil.STATUS_ZOMBIE]

    def connected(address, connect=warm._connected):
        connection = connect(address)
        (fork,) = wait_for(forks)
        fork.kill()
        return connection

    assert wait_for(lambda: not forks()), "the one that answered"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the process that was to place was killed"):
        patch.setattr(warm, "_connected", connected)
        warm.answer("place", *asked)
    connection = warm._connected(warm._address())
    (fork,) = wait_for(forks)
    connection.close()
    assert wait_for(lambda: not forks())


def test_a_folder_that_others_can_enter_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"lit_fedbabu-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(RuntimeError, match="must be a folder of yours that others cannot enter"):
        warm.answer("place", *question(tmp_path))
