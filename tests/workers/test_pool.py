"""Workers: that they answer, what becomes of those that die, and that nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from lit_fedbabu.config import Config
from lit_fedbabu.engines.resources import worker_environments
from lit_fedbabu.workers import worker as workers
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import StartError, Warm, WorkerDiedError, WorkerRaisedError
from tests.support import wait_for
from tests.workers.functions import Heavy

LIGHT = "lit_fedbabu.ground.system:versions"
"""Prepares a worker in no time."""
FUNCTIONS = "tests.workers.functions"
WAYS = [pytest.param(True, marks=pytest.mark.skipif(not workers.FORKS, reason="forks")), False]


@pytest.fixture(params=WAYS, ids=["forked", "spawned"])
def warm(request, monkeypatch):
    monkeypatch.setattr(workers, "FORKS", request.param)
    with Warm(LIGHT) as started:
        yield started
    left = [each for each in psutil.Process().children(recursive=True) if "lit_fedbabu" in " ".join(each.cmdline())]
    assert not left


def answers(pool, function, *requests, **options):
    return dict(pool.answers(f"{FUNCTIONS}:{function}", requests, **options))


def test_every_request_is_answered_by_few_processes(warm):
    with Pool(warm, 2) as pool:
        answered = answers(pool, "twice", *[(number,) for number in range(12)])
        assert {place: value for place, (_, value) in answered.items()} == {place: 2 * place for place in range(12)}
        first = {process for process, _ in answered.values()}
        assert len(first) <= 2 and os.getpid() not in first
        again = {process for process, _ in answers(pool, "twice", *[(1,)] * 12).values()}
        assert first <= again and len(again) <= 2


def test_a_worker_answers_once_where_it_is_asked_to(warm):
    with Pool(warm, 2, once=True) as pool:
        answered = answers(pool, "twice", *[(number,) for number in range(5)])
    assert [answered[place][1] for place in range(5)] == [0, 2, 4, 6, 8]
    assert len({process for process, _ in answered.values()}) == 5


@pytest.mark.parametrize(
    ("visible", "gpus", "bound"),
    [
        ("", 3, ["0", "1", "2"]),
        ("5,GPU-8f3a", 2, ["5", "GPU-8f3a"]),
        ("1,9", 1, ["1"]),  # as CUDA does, which leaves out what is not there
    ],
)
def test_workers_are_bound_to_gpus_in_turn(visible, gpus, bound, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    environments = worker_environments(Config(num_threads=1))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == bound
    with Warm(LIGHT) as warm, Pool(warm, len(environments), environments) as pool:
        for _ in range(9):  # until every worker has had a request
            found = dict(answers(pool, "gpu", *[(number,) for number in range(6 * gpus)]).values())
            if len(found) == gpus:
                break
    assert sorted(found.values()) == sorted(bound)


def test_files_of_the_current_folder_do_not_stand_for_pythons_own(warm, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise ImportError('the file of a user')")
    monkeypatch.chdir(tmp_path)
    with Pool(warm, 1) as pool:
        ((_, twice),) = answers(pool, "twice", (4,)).values()
    assert twice == 8


def test_what_many_requests_share_is_sent_once_to_each_worker(warm):
    heavy = Heavy(5)
    with Pool(warm, 2) as pool:
        answered = answers(pool, "same_object", *[(heavy, heavy)] * 10, shared=heavy)
        assert answered == dict.fromkeys(range(10), (True, 5))
        assert heavy.pickled == 2
        other = Heavy(6)
        assert answers(pool, "same_object", *[(other, other)] * 3, shared=other) == dict.fromkeys(range(3), (True, 6))
        assert (heavy.pickled, other.pickled) == (2, 2)


def test_what_a_function_raises_is_its_answer_and_the_worker_lives(warm):
    with Pool(warm, 1) as pool:
        (refused,) = answers(pool, "refuse", (3,)).values()
        assert isinstance(refused, WorkerRaisedError) and str(refused) == "ValueError: 3 is odd"
        (unsent,) = answers(pool, "unpicklable", ()).values()
        assert isinstance(unsent, WorkerRaisedError) and "pickle" in str(unsent)
        (missing,) = answers(pool, "nothing", ()).values()
        assert isinstance(missing, WorkerRaisedError) and str(missing).startswith("AttributeError")
        assert answers(pool, "exit_with", (0,))[0].args == ("its process ended with exit status 0",)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_hang_up_are_for_the_asker_alone(warm, number):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Pool(warm, 2) as pool:
        before = {process for process, _ in answers(pool, "twice", *[(1,)] * 12).values()}
        for child in psutil.Process().children(recursive=True):
            if "lit_fedbabu" in " ".join(child.cmdline()):
                child.send_signal(number)
        assert {process for process, _ in answers(pool, "twice", *[(1,)] * 12).values()} <= before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_dead_worker_is_replaced_and_its_request_is_asked_again(warm, tmp_path):
    said: list[str] = []
    with Pool(warm, 2, say=said.append) as pool:
        requests = [(tmp_path / "marker", number) for number in range(5)]
        assert answers(pool, "kill_itself_once", *requests) == {place: place for place in range(5)}
    assert said == ["note: a worker died (its process was killed by SIGKILL); another one does its work again"]


def test_a_request_that_kills_two_workers_has_failed_and_the_others_have_not(warm):
    said: list[str] = []
    with Pool(warm, 2, say=said.append) as pool:
        answered = answers(pool, "kill_itself", *[(number,) for number in range(6)])
        died = answered.pop(3)
        assert isinstance(died, WorkerDiedError) and str(died) == "its process was killed by SIGKILL"
        assert answered == {0: 0, 1: 1, 2: 2, 4: 4, 5: 5}
        assert len(said) == 1
        (status,) = answers(pool, "exit_with", (7,)).values()
        assert str(status) == "its process ended with exit status 7"


def test_a_kill_for_want_of_memory_is_named(warm, tmp_path, monkeypatch):
    counter = tmp_path / "vmstat"
    counter.write_text("pgfault 17\noom_kill 4\n")
    monkeypatch.setattr(workers, "OOM_COUNTERS", (tmp_path / "nothing", counter))
    worker = warm.worker()
    worker.ask("time:sleep", (60,))
    counter.write_text("pgfault 18\noom_kill 5\n")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="killed because memory ran out"):
        worker.answer()


def test_answers_that_take_too_long_are_not_waited_for(warm):
    with Pool(warm, 1) as pool:
        (late, unasked) = dict(pool.answers("time:sleep", [(60,), (60,)], timeout_s=0.5)).values()
        assert str(late) == str(unasked) == "no answer within 0 s"
        assert answers(pool, "twice", (4,))[0][1] == 8


def test_a_worker_has_its_environment_path_and_log(warm, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with Pool(warm, 1, [{"CUDA_VISIBLE_DEVICES": "5"}], str(tmp_path / "log")) as pool:
        ((device, first, _),) = answers(pool, "surroundings", ()).values()
        answers(pool, "twice", (4,))
    assert (device, first) == ("5", str(tmp_path))
    assert (tmp_path / "log").read_text() == "printed by a worker\n"


def test_workers_that_cannot_be_prepared_are_an_error_and_not_tried_for_ever(capfd):
    with Warm(f"{FUNCTIONS}:fail_to_prepare") as warm, Pool(warm, 2) as pool:
        if not workers.FORKS:
            pytest.skip("nothing is prepared where nothing is forked")
        with pytest.raises(StartError, match="has failed; what it printed"):
            answers(pool, "twice", *[(1,)] * 50)
    assert 1 <= capfd.readouterr().err.count("ImportError: no such module") <= 2


forks = pytest.mark.skipif(not workers.FORKS, reason="forks")


@forks
def test_nobody_else_can_connect_to_a_warm_process_or_its_workers():
    """They have no address and no listening socket: a stranger, of the same user or not, has nothing to write to."""
    with Warm(LIGHT) as warm, Pool(warm, 2) as pool:
        ((_, _, forker),) = answers(pool, "surroundings", ()).values()
        processes = [psutil.Process(forker), *psutil.Process(forker).children()]
        assert len(processes) == 2
        sockets = {row.split()[6]: row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]}
        for process in processes:
            links = [os.readlink(each) for each in Path(f"/proc/{process.pid}/fd").iterdir()]
            own = [sockets[link[8:-1]] for link in links if link.startswith("socket:[")]
            assert own and all(len(row) == 7 and row[3] == "00000000" for row in own), "a name, or it accepts"


@forks
def test_a_worker_has_workers_of_its_own_from_the_process_it_was_forked_from():
    with Warm(LIGHT) as warm, Pool(warm, 1) as pool:
        ((_, _, forker),) = answers(pool, "surroundings", ()).values()
        assert answers(pool, "forked_again", ()) == {0: [forker, forker]}


@forks
def test_a_killed_warm_process_takes_its_workers_along_and_is_started_again():
    with Warm(LIGHT) as warm, Pool(warm, 2, say=print) as pool:
        ((_, _, forker),) = answers(pool, "surroundings", ()).values()
        workers_of_it = psutil.Process(forker).children()
        os.kill(forker, signal.SIGKILL)
        assert wait_for(lambda: not any(each.is_running() for each in workers_of_it), 20)
        ((_, _, another),) = answers(pool, "surroundings", ()).values()
        assert another != forker


@forks
@pytest.mark.parametrize("moment", [0.0, 0.05, 1.0])
def test_nothing_is_left_of_an_asker_that_is_killed(moment):
    script = (
        "from lit_fedbabu.workers.worker import Warm; from lit_fedbabu.workers.pool import Pool;"
        f"warm = Warm({LIGHT!r}); warm.start(); print(warm._started.pid, flush=True);"
        "list(Pool(warm, 2).answers('time:sleep', [(60,)] * 4))"
    )
    asker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    session = int(asker.stdout.readline())  # of the warm process and its workers
    time.sleep(moment)
    asker.kill()
    asker.communicate()

    def left():
        return [each for each in psutil.pids() if _session(each) == session]

    assert wait_for(lambda: not left(), 10), left()


def _session(process):
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return None


@pytest.mark.skipif(not workers.FORKS, reason="forks")
def test_a_base_is_in_memory_once_for_all_workers():
    seeds = [4, 4, 4, 4, 5, 5]  # another base than the first one stays each worker's own
    with Warm(LIGHT) as warm, Pool(warm, 2) as pool:
        answered = answers(pool, "where_a_base_lies", *[(seed,) for seed in seeds])
    assert {place: inside for place, (inside, *_) in answered.items()} == {0: 1, 1: 1, 2: 1, 3: 1, 4: 0, 5: 0}
    assert all(before == after for _, before, after in answered.values())
    assert len({str(before) for _, before, _ in answered.values()}) == 2


@pytest.mark.skipif(not workers.FORKS, reason="forks")
def test_temporary_folders_of_workers_that_were_ended_go_with_who_forked_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Warm(LIGHT) as warm, Pool(warm, 1, once=True) as pool:
        folder = Path(answers(pool, "leave_folder", ())[0])
        assert folder.is_dir() and tmp_path in folder.parents
    assert not list(tmp_path.iterdir())
