"""The workers of a machine that are asked from another one."""

import os
import pickle
import sys
import threading

import pytest

from lit_fedbabu.ground import system
from lit_fedbabu.workers import host as hosts
from lit_fedbabu.workers.host import Host
from lit_fedbabu.workers.serving import pickled
from tests.workers.functions import Heavy
from tests.workers.test_pool import FUNCTIONS, LIGHT


@pytest.fixture
def host(monkeypatch):
    """A host of two workers, which its process ends with; here the test does it."""
    monkeypatch.setattr(hosts, "PREPARE", LIGHT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    started = Host(2, 1, [], os.getcwd(), "")
    yield started
    started._warm.close()


def request(function, *arguments, shared=None):
    return pickled((f"{FUNCTIONS}:{function}", arguments), shared)


def test_answers_come_from_as_many_workers_as_there_are_and_what_is_shared_is_waited_for(host):
    heavy, found = Heavy(5), {}

    def ask(number):
        packed = request("same_object", heavy, heavy, shared=heavy)
        found[number] = host.answer(2, packed, None)

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for each in asking:
        each.start()
    host.take(2, pickled(heavy))
    host.take(1, pickled(Heavy(4)))  # came late
    for each in asking:
        each.join()
    assert found == dict.fromkeys(range(2), (True, pickled((True, 5)), []))
    assert host.answer(1, request("twice", 3), None) == (False, "it is too late", [])


def test_a_request_that_kills_two_workers_is_told_with_a_note_and_the_host_goes_on(host):
    is_answer, why, notes = host.answer(0, request("kill_itself", 3), None)
    assert (is_answer, why) == (False, "its process was killed by SIGKILL")
    assert notes == ["note: a worker died (its process was killed by SIGKILL); another one does its work again"]
    assert host.answer(0, request("refuse", 3), None) == (False, "ValueError: 3 is odd", [])
    assert host.answer(0, pickled(("time:sleep", (60,))), 0.5) == (False, "no answer within 0 s", [])
    assert host.answer(0, request("kill_itself", 4), None) == (True, pickled(4), [])


def test_workers_have_gpus_in_turn_folders_and_a_log_where_its_folder_is(monkeypatch, tmp_path):
    monkeypatch.setattr(hosts, "PREPARE", LIGHT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.chdir(tmp_path)
    host = Host(2, 1, [str(tmp_path)], str(tmp_path / "elsewhere"), str(tmp_path / "run" / "log"))
    try:
        (tmp_path / "run").mkdir()
        devices = {unpacked(host.answer(0, request("surroundings"), None))[0] for _ in range(2)}
        assert devices == {"3", "5"} and sys.path[-1] == str(tmp_path)
        host.answer(0, request("twice", 1), None)
        assert (tmp_path / "run" / "log").read_text() == "printed by a worker\n"
    finally:
        host._warm.close()


def unpacked(told):
    assert told[0], told
    return pickle.loads(told[1])


def test_a_host_says_what_is_installed_and_whether_it_sees_a_file(host, tmp_path):
    assert host.introduce(True) == host.introduce(False) == system.installed()
    file = tmp_path / "mark"
    assert not host.sees(str(file))
    file.touch()
    assert host.sees(str(file))


def test_what_shares_nothing_is_answered_whatever_round_it_is(host):
    host.take(3, pickled(Heavy(5)))
    assert unpacked(host.answer(0, request("twice", 3), None))[1] == 6
