"""The engine ``ray``: a Ray that is started for the run, and a cluster of two nodes, which are on this machine."""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
from flwr.app import Message

from lit_fedbabu import run
from lit_fedbabu.config import Config
from lit_fedbabu.engines import ray as engine
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground import system
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.protocol.handshake import Code, Place
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.workers.serving import pickled
from lit_fedbabu.workers.worker import WorkerDiedError
from tests.engines.test_run import ROOT, TINY, temp  # noqa: F401
from tests.support import NARROW, failures_of, files_that_decide, of_folder, partition, tiny_config, wait_for


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", "here:port", ":6379"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="ray-address = .*must be host:port"):
        Config(engine="ray", ray_address=address)


def test_an_address_where_nobody_listens_is_refused_before_anything_is_started(tmp_path):
    config = tiny_config(engine="ray", ray_address=f"127.0.0.1:{superlink.free_port()}", output_dir=str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"ray-address = .*no Ray answers there \(Connection refused\)"):
        run(config)
    assert time.monotonic() - begun < 5 and not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'engine = "ray": .*pip install \'flwr\[simulation\]\''):
        run(tiny_config(engine="ray", output_dir=str(tmp_path)))


def test_of_what_ray_prints_the_last_error_is_told():
    told = (
        "[2026-11-29 14:31:30,5 E 16 17] rpc.h:203: Failed to connect\n[2026-11-29 14:31:31,5 I 16 17] rpc.h:2: Going\n"
        "[2026-11-29 14:31:30,5 C 16 17] (raylet) rpc.h:203: It is gone\nTip: try again\n"
    )
    assert engine.ERROR.findall(told) == ["Failed to connect", "It is gone"]
    assert engine.ERROR.findall("Traceback:\n  File x\nValueError: no\n") == ["ValueError: no"]


def place(**changes):
    """What a node answers when it is asked for its place."""
    return Place(**{"node": 0, "nodes": 2, "trains_on": "cpu", **changes})


@pytest.mark.parametrize(
    ("second", "why", "note"),
    [
        (place(), "", ""),
        (place(trains_on="a GPU"), "", "note: b trains on a GPU, and others on cpu; the last bits of results depend"),
        (
            place(trains_on="x", precision="bf16"),
            "",
            "others on cpu; results depend .* give precision, as in precision=32",
        ),
        (place(refusal="no dataset"), "no dataset", ""),
        (place(initial_weights="01"), "its initial-weights is another file", ""),
        (place(base="01"), "it has another base", ""),
    ],
)
def test_a_node_that_says_something_else_than_the_first_is_noted_or_takes_no_part(second, why, note, tmp_path):
    identify_process()
    ours, theirs = Pipe()
    config, lines = tiny_config(engine="ray"), Lines()
    said: list[str] = []
    lines.say = said.append
    workers = engine.Workers(None, ours, tmp_path / "log", config, tmp_path / "run")
    message = Message(Code.here().to_record(), 1, "query.place")
    replies = [pickled(Message(each.to_record(), reply_to=message)) for each in (place(), second)]
    for sent in (("ready", 2), *(("introduced", name, True, reply) for name, reply in zip("ab", replies, strict=True))):
        theirs.send(sent)
    for sent in (
        ("introduced", "c", False, "it died"),
        ("failed", 0, "it died"),
        ("over",),
        ("refused", "c: other code"),
    ):
        theirs.send(sent)
    with workers.grid(Experiment(config), lines) as grid:
        assert len(grid.get_node_ids()) == config.num_clients
        ((at, died),) = workers.answers("a:b", [(message,)])
        with pytest.raises(RunError, match="a node cannot take part: c: other code"):
            list(workers.answers("a:b", [(message,)]))
    assert at == 0 and isinstance(died, WorkerDiedError) and str(died) == "it died"
    _, *judged = (theirs.recv() for _ in range(4))
    assert judged[0] == "" and judged[1].startswith(why) and bool(judged[1]) == bool(why) and judged[2] == "it died"
    assert len(said) == bool(note) and re.search(note, "".join(said))
    theirs.close()
    with pytest.raises(RunError, match="the Ray cluster was lost"):
        list(workers.answers("a:b", [(message,)]))


NOISE = {"privacy": "sample", "norm": "group", "noise_multiplier": 1.0, "clipping_norm": 1.0}


@pytest.mark.parametrize(
    ("options", "keeps"),
    [({}, False), ({"algorithm": "fedper"}, True), ({"algorithm": "scaffold"}, True), (NOISE, True)],
)
def test_nodes_must_share_the_folder_where_clients_keep_something(options, keeps, tmp_path):
    """Also what they spent of their privacy, which they count for themselves."""
    ours, theirs = Pipe()
    config = tiny_config(engine="ray", **options)
    workers = engine.Workers(None, ours, tmp_path / "log", config, tmp_path / "run")
    for sent in (("ready", 2), ("over",)):
        theirs.send(sent)
    with workers.grid(Experiment(config), Lines()):
        assert not list(workers.answers("a:b", [(1,)]))
    assert theirs.recv()[1] == (str(tmp_path / "run") if keeps else "")


@pytest.fixture
def cluster(monkeypatch):
    """A function that starts a Ray cluster with these nodes, each by its CPUs and the environment of its workers."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("SPT_NOENV", "1")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        started = []

        def start(*nodes):
            # On all addresses: Ray's drivers ask at the machine's own, also where nodes listen on 127.0.0.1 alone.
            first = {"num_cpus": 0, "include_dashboard": False}
            started.append(Cluster(initialize_head=True, head_node_args=first))
            return started[0], [started[0].add_node(num_cpus=cpus, env_vars=env) for cpus, env in nodes]

        yield start
        for each in started:
            each.shutdown()
        monkeypatch.undo()
        for each in of_folder(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def named(word, folder):
    """Processes of Ray that have this temporary folder, by their name."""
    return [process for process in of_folder(folder) if process.name() == word]


def actors():
    return named("ray::Host", os.environ["TMPDIR"])


def command(folder, **options):
    named = {**options, "output-dir": folder, "engine": "ray"}
    return [sys.executable, "-m", "lit_fedbabu.run", *(f"{key}={value}" for key, value in named.items())]


def ended(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_a_ray_of_its_own_and_a_cluster_of_two_nodes_write_the_bytes_of_one_process(
    algorithm, cluster, federate, tmp_path
):
    options = {**TINY, "algorithm": algorithm, "num-clients": 6, "num-server-rounds": 2}
    whole, _ = federate(Config.from_run_config(options))
    two, _ = cluster((1, {}), (2, {}))
    for name, address in {"own": "", "two": two.address}.items():
        done = ended(command(tmp_path, **options, **{"ray-address": address, "run-name": name}), cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done
        assert not re.search(r"\bRay\b|raylet|gcs_|INFO|WARN", done.stdout), "Ray prints nothing here"
        assert files_that_decide(tmp_path / name) == files_that_decide(whole)
    assert "on 6 nodes" in done.stdout
    assert wait_for(lambda: not actors(), 20)


KILLED = {
    "actor": (lambda nodes, cluster: actors()[0].kill(), "its worker process has died"),
    "node": (lambda nodes, cluster: cluster.remove_node(nodes[0], allow_graceful=False), ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", KILLED)
def test_an_actor_or_a_node_that_is_killed_in_a_round_changes_nothing_but_a_note(what, cluster, federate, tmp_path):
    kill, why = KILLED[what]
    options = {**TINY, "algorithm": "fedper", "num-clients": 8, "num-server-rounds": 12, "evaluate-every": 12}
    whole, _ = federate(Config.from_run_config(options))
    two, nodes = cluster((1, {}), (1, {}))
    words = command(tmp_path, **options, **{"ray-address": two.address, "run-name": "killed"})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("round 2/"):
            time.sleep(0.2)  # in the middle of the next one
            kill(nodes, two)
    assert process.wait(60) == 0, process.stderr.read()
    (note,) = [line for line in told if line.startswith("note: the actor")]
    assert why in note and note.endswith("its work is done again\n"), note
    assert not (tmp_path / "killed" / run_folder.FAILURES).exists()
    assert files_that_decide(tmp_path / "killed") == files_that_decide(whole)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "1"])
def test_a_node_that_joins_in_a_run_takes_part_or_is_left_out_with_a_note_and_changes_no_byte(
    broken, cluster, federate, tmp_path
):
    rounds = 300
    options = {**TINY, "algorithm": "fedper", "num-server-rounds": rounds, "evaluate-every": rounds}
    options["model-name"] = "tests.own_models:not_everywhere"
    whole, _ = federate(Config.from_run_config(options))
    one, _ = cluster((1, {}))
    words = command(tmp_path, **options, **{"ray-address": one.address, "run-name": "joined"})
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told, most = [], 0
    for line in process.stdout:
        told.append(line)
        if line.startswith("round 2/"):
            one.add_node(num_cpus=1, env_vars={"BROKEN": broken})
        if line.startswith("round"):
            most = max(most, len(actors()))
    assert process.wait(60) == 0, process.stderr.read()
    notes = [line for line in told if line.startswith("note:")]
    assert most == 2 and len(notes) == bool(broken)
    assert all(note.startswith(f"note: {platform.node()} is left out: model-name") for note in notes), notes
    assert files_that_decide(tmp_path / "joined") == files_that_decide(whole)


@pytest.mark.slow
def test_a_client_that_kills_its_workers_has_failed_and_the_run_goes_on(tmp_path):
    config = tiny_config(
        model_name="tests.engines.deadly:model", num_server_rounds=1, fraction_train=1.0, min_clients_per_round=1,
        output_dir=str(tmp_path), run_name="deadly", batch_size=50, partitioner="dirichlet", dirichlet_alpha=0.3,
        min_client_images=2, num_finetune_epochs=0, engine="ray",
    )  # fmt: skip
    sizes = [len(images) for images in partition(config).train]
    deadly = {client for client, size in enumerate(sizes) if 0 < size % 50 < 30}
    assert 0 < len(deadly) < config.num_clients
    assert len(run(config)["clients"]) == config.num_clients
    failed = failures_of(tmp_path / "deadly")
    assert {each["client"] for each in failed} == deadly
    assert {each["reason"] for each in failed} == {"its process was killed by SIGKILL"}


@pytest.mark.slow
def test_a_node_with_other_code_is_refused_before_the_run(cluster, tmp_path):
    shutil.copytree(system.package_folder(), tmp_path / "mine" / "lit_fedbabu")
    with (tmp_path / "mine" / "lit_fedbabu" / "algorithms" / "steps.py").open("a") as changed:
        changed.write("\n# mine\n")
    two, _ = cluster((1, {}), (1, {"PYTHONPATH": str(tmp_path / "mine")}))
    done = ended(command(tmp_path / "out", **TINY, **{"ray-address": two.address, "run-name": "a"}), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith(f'error: ray-address = "{two.address}": ') and "code differs" in done.stderr
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.slow
def test_a_cluster_without_room_for_a_worker_and_one_that_is_no_ray_are_refused(cluster, tmp_path, monkeypatch):
    one, _ = cluster((1, {}))
    options = {**TINY, "run-name": "a"}
    config = {**options, "engine": "ray", "output-dir": str(tmp_path)}
    with pytest.raises(InputError, match="ray-address = .*num-threads = 2 free CPU"):
        run(Config.from_run_config({**config, "ray-address": one.address, "num-threads": 2}))
    monkeypatch.setattr(engine, "START_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(InputError, match="ray-address = .*nothing was heard within 5 s"):
            run(Config.from_run_config({**config, "ray-address": address}))
    assert time.monotonic() - begun < 30 and not (tmp_path / "a").exists()


STOPS = {
    "Ctrl-C": (lambda launcher, place: launcher.send_signal(signal.SIGINT), 130),
    "SIGTERM": (lambda launcher, place: launcher.send_signal(signal.SIGTERM), 143),
    "killed": (lambda launcher, place: launcher.kill(), -signal.SIGKILL),
    "Ray is lost": (lambda launcher, place: named("raylet", place)[0].kill(), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
def test_a_stopped_run_leaves_nothing_and_goes_on_to_the_same_bytes(how, tmp_path, temp, federate):  # noqa: F811
    stop, status = STOPS[how]
    options = {**TINY, "num-server-rounds": 20, "evaluate-every": 20, "model-name": NARROW}
    whole, _ = federate(Config.from_run_config(options))
    environment = {**os.environ, "TMPDIR": str(temp)}
    words = command(tmp_path / "out", **options, **{"run-name": "tiny"})
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("round 2/"):
            break
    else:
        pytest.fail(f"it ended by itself: {process.communicate()[1]}")
    stop(process, temp)
    _, told = process.communicate(timeout=100)
    assert process.returncode == status, told
    assert told.count("\n") == (status > 0), told
    assert wait_for(lambda: not of_folder(temp) and not list(temp.iterdir()), 30), of_folder(temp)
    folder = Path(tmp_path / "out" / "tiny")
    done = ended([*words[:3], "--resume", str(folder), f"model-name={NARROW}"], cwd=ROOT, env=environment)
    assert done.returncode == 0 and "resumed after round" in done.stdout, done
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
