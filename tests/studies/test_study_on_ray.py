"""Studies whose runs are spread over the nodes of a Ray cluster, here two on this machine."""

import contextlib
import subprocess
import sys
import time
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from lit_fedbabu import study as door
from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground.system import installed
from lit_fedbabu.studies import nodes
from lit_fedbabu.studies.nodes import MARK
from lit_fedbabu.studies.on_node import work
from lit_fedbabu.studies.plan import read_study
from tests.engines.test_ray import cluster  # noqa: F401
from tests.support import NARROW, files_that_decide, tiny_config, write_study

REFUSED = {"127.0.0.1:PORT": "no Ray answers there", "10.0.0.1": "must be host:port"}


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_of_no_cluster_is_refused_before_a_run_is_done(address, tmp_path, capsys):
    path, folder = write_study(tmp_path)
    given = address.replace("PORT", str(superlink.free_port()))
    assert door.main([str(path), "--ray", given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: ray-address = "{given}": ') and REFUSED[address] in error, error
    assert error.count("\n") == 1 and not list(folder.rglob("*"))


def test_a_node_with_other_code_or_versions_or_without_the_folder_takes_no_part(tmp_path):
    path, folder = write_study(tmp_path)
    study = read_study(path)
    own = installed()
    told = work(study, str(tmp_path), [], "/nowhere", {**own, "machine": "asker", "source": "other"}, 2)
    assert f"takes no part: it runs {own['folder']} and asker runs" in told and "their code differs" in told
    told = work(study, str(tmp_path), [], "/nowhere", {**own, "versions": {**own["versions"], "torch": "1.0"}}, 2)
    assert f"takes no part: it has torch {own['versions']['torch']} and not 1.0" in told
    told = work(study, str(folder / f"{MARK}1"), [], "/nowhere", own, 2)
    assert told.endswith(f"takes no part: it does not share {folder}; take an output-dir that all nodes have")


class Told:
    """Stands for the process that speaks with Ray, which has said this and then ended.

    Args:
        said: by it.
        log: what it printed.
    """

    def __init__(self, said, log):
        self.said, self.log = said, log

    @contextlib.contextmanager
    def __call__(self, address, module):
        ours, theirs = Pipe()
        for each in self.said:
            theirs.send(each)
        theirs.close()
        yield None, SimpleNamespace(send=lambda _: None, poll=ours.poll, recv=ours.recv), self.log


@pytest.mark.parametrize("fails", [False, True])
def test_notes_of_nodes_come_also_where_the_study_fails_and_that_ray_was_lost_is_said(
    fails, tmp_path, monkeypatch, capsys
):
    log = tmp_path / "ray.log"
    log.write_text("RuntimeError: the head is gone\n")
    monkeypatch.setattr(nodes.ray, "driver", Told([("ready", ["a"]), "a takes no part: it is old"], log))
    study = read_study(write_study(tmp_path)[0])
    with contextlib.suppress(ZeroDivisionError), nodes.joined(study, "auto") as count:
        assert count == 1 and 1 / (not fails)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note: a takes no part: it is old",
        "note: the Ray cluster was lost, and its nodes did no more runs: RuntimeError: the head is gone",
    ]


@pytest.mark.slow
def test_a_node_does_runs_of_a_study_to_the_bytes_of_a_run_alone_and_may_be_killed(cluster, federate, tmp_path):  # noqa: F811
    two, others = cluster((1, {}))
    options = {"seed": [1, 2, 3, 4], "num-server-rounds": 12, "evaluate-every": 12}
    path, folder = write_study(tmp_path, **options)
    command = [sys.executable, "-m", "lit_fedbabu.study", str(path), "--plain", "--ray", two.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    logs = lambda: [log for log in folder.glob("ray-*.log") if "1/8" in log.read_text()]  # noqa: E731
    deadline = time.monotonic() + 300
    while not logs() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert logs(), process.communicate()
    two.remove_node(others[0], allow_graceful=False)
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 0 and "8 of 8 runs are done" in told, told
    assert "with the nodes" in told and not list(folder.glob(f"{MARK}*"))
    for algorithm, seed in (("fedbabu", 1), ("fedper", 4)):
        config = (
            tiny_config(model_name=NARROW, algorithm=algorithm, seed=seed).to_run_config() | options | {"seed": seed}
        )
        whole, _ = federate(Config.from_run_config(config))
        assert files_that_decide(folder / f"{algorithm}-seed_{seed}") == files_that_decide(whole)
