import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from lit_fedbabu import system
from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.records import run_folder
from tests.engines import soak
from tests.support import curves, files_that_decide, ours, tiny_config

ROOT = Path(__file__).parent.parent.parent
TINY = {
    "dataset": "digits",
    "num-clients": 4,
    "num-server-rounds": 1,
    "num-local-epochs": 1,
    "fraction-train": 0.5,
    "num-finetune-epochs": 1,
}


@pytest.fixture
def temp():
    """A folder for a run's own files, short enough for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="lfb-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def words(**options):
    return [f"{key.replace('_', '-')}={value}" for key, value in {**TINY, **options}.items()]


def test_flwr_run_from_command_to_personal_accuracies(tmp_path, temp):
    """The real thing: a process tree of Flower and Ray, as a user starts it, and its offline twin."""
    environment = {**os.environ, "TMPDIR": str(temp)}
    command = [sys.executable, "-m", "lit_fedbabu.run", *words(run_name="tiny", output_dir=tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("round 1/1  training loss", "personalized", "worst decile", "tensorboard --logdir"):
        assert expected in done.stdout, done.stdout
    folder = tmp_path / "out" / "tiny"
    assert len(json.loads((folder / "results.json").read_text())["clients"]) == 4
    assert "[ROUND 1/1]" in (folder / "flower.log").read_text()
    assert ours(str(temp)) == [] and list(temp.iterdir()) == [], "something was left behind"
    command = [sys.executable, "-m", "lit_fedbabu.finetune", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = folder.glob("finetune/*/results.json")
    assert again.read_text() == (folder / "results.json").read_text()


@pytest.mark.slow
def test_ctrl_c_stops_the_run_and_leaves_nothing(tmp_path, temp):
    command = [sys.executable, "-m", "lit_fedbabu.run", *words(output_dir=tmp_path / "out", num_server_rounds=1000)]
    process = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(temp)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "run folder" in line:
            break
    assert ours(str(temp))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read().splitlines()[-1] == "stopped"
    assert ours(str(temp)) == []
    assert list(temp.iterdir()) == []


def only(home, name):
    """The process of Flower or Ray in the home that has this name, the first of several."""
    return next(process for process in ours(home) if name in " ".join(process.cmdline()))


STOPS = {
    "Ctrl-C": (lambda launcher, home: launcher.send_signal(signal.SIGINT), 130),
    "the launcher is killed": (lambda launcher, home: launcher.kill(), -signal.SIGKILL),
    "the server is killed": (lambda launcher, home: only(home, "flwr-simulation").kill(), 1),
    "a worker is killed": (lambda launcher, home: only(home, "ClientAppActor").kill(), 1),
    "the SuperLink is killed": (lambda launcher, home: only(home, "flower-superlink").kill(), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
def test_a_stopped_run_is_resumed_by_a_command_to_the_same_bytes(how, tmp_path, temp, federate):
    options = {**TINY, "num-server-rounds": 120, "evaluate-every": 60, "num-clients": 8}
    whole, _ = federate(Config.from_run_config(options))
    environment = {**os.environ, "TMPDIR": str(temp)}
    command = [sys.executable, "-m", "lit_fedbabu.run"]
    place = {"output-dir": tmp_path / "out", "run-name": "tiny"}
    first = [*command, *(f"{key}={value}" for key, value in (options | place).items())]
    process = subprocess.Popen(first, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("round 2/"):
            break
    else:
        pytest.fail(f"it ended by itself: {process.communicate()[1]}")
    stop, status = STOPS[how]
    stop(process, str(temp))
    _, told = process.communicate(timeout=200)
    assert process.returncode == status, told
    if status == 1:
        assert told.startswith("error: ") and told.count("\n") == 1, told
    deadline = time.monotonic() + 30
    while (left := ours(str(temp))) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, "processes were left running"
    folder = tmp_path / "out" / "tiny"
    assert not (folder / "results.json").exists()
    resume = [*command, "--resume", str(folder)]
    refused = subprocess.run([*resume, "seed=7"], env=environment, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and "seed = 7: the run in" in refused.stderr, refused.stderr
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and "resumed after round" in done.stdout, done.stdout + done.stderr
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "the run is finished" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_twenty_times_ends_where_an_unkilled_one_ends(tmp_path):
    """Killed at random moments: while it starts, trains, averages, evaluates, writes."""

    def start(place):
        command = [sys.executable, "-m", "tests.engines.endure", tiny_config.dataset, str(tmp_path / place)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    whole = start("whole")
    told, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, told
    random, kills = np.random.default_rng(), 0
    while True:
        process = start("killed")
        for line in process.stdout:
            if line.startswith(f"{system.LOG_MARK} run folder"):
                break
        if kills < 20:
            time.sleep(random.uniform(0, 0.8))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            process.stdout.close()
            continue
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
        break
    ends = [tmp_path / place / "run" for place in ("whole", "killed")]
    assert files_that_decide(ends[0]) == files_that_decide(ends[1])
    assert curves(ends[0]) == curves(ends[1])
    assert (ends[0] / run_folder.PARTITION).read_bytes() == (ends[1] / run_folder.PARTITION).read_bytes()


@pytest.mark.slow
def test_plain_flwr_run_with_its_default_nodes(tmp_path):
    """``flwr run .`` as Flower's users type it: two nodes, Flower's own SuperLink, its own environment."""
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(superlink.free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    options = " ".join(
        f"{key}={json.dumps(value)}" for key, value in {**TINY, "output-dir": str(tmp_path), "run-name": "tiny"}.items()
    )
    try:
        subprocess.run(
            ["flwr", "run", str(ROOT), "--stream", "--run-config", options], env=environment, check=True, timeout=900
        )
        assert len(json.loads((tmp_path / "tiny" / "results.json").read_text())["clients"]) == 4
    finally:
        for process in ours(str(tmp_path)):
            process.kill()


@pytest.mark.slow
def test_a_run_that_fails_has_a_failing_exit_status(tmp_path):
    """The server refuses what only it can see: a folder that appeared after the first look."""
    script = (
        "import sys; from lit_fedbabu.records import run_folder; from lit_fedbabu.run import main; "
        "run_folder.refuse_existing = lambda folder: folder.mkdir(parents=True);"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *words(output_dir=tmp_path, run_name="taken")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'error: run-name = "taken"' in done.stderr
    assert time.monotonic() - started < 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_rounds_leak_nothing_and_lose_no_failure(tmp_path):
    seen = soak.soak(500, str(tmp_path))
    assert seen["status"] == 0, seen["told"]
    assert not any(seen["left"].values()), seen["left"]
    written = (tmp_path / "soak" / run_folder.FAILURES).read_text().splitlines()
    assert len(written) == seen["injected"] > 0
    for kind in soak.KINDS:
        for what, share in (("MB", 0.01), ("files", 0.05), ("ports", 0.1)):
            grown = soak.growth(seen["samples"], kind, what, first=100)
            assert grown, f"no {kind} was seen"
            for mean, slope in grown:
                assert 100 * slope < share * mean, f"{kind}: {what} grow by {100 * slope:.2f} in 100 rounds"
