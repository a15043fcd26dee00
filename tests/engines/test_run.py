import dataclasses
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from lit_fedbabu import run
from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground.system import program
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from tests.engines import soak
from tests.engines.deadly import FEW
from tests.support import (
    NARROW,
    curves,
    failures_of,
    files_that_decide,
    of_folder,
    ours,
    partition,
    tiny_config,
    wait_for,
)  # fmt: skip

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


def flwr_run(tmp_path, **options):
    """``flwr run .`` as Flower's users type it: two nodes, Flower's own SuperLink, its own environment."""
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(superlink.free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    named = " ".join(f"{key}={json.dumps(value)}" for key, value in {**options, "run-name": "tiny"}.items())
    try:
        subprocess.run(
            ["flwr", "run", str(ROOT), "--stream", "--run-config", named], env=environment, check=True, timeout=900
        )
    finally:
        for process in ours(str(tmp_path)):
            process.kill()


def left_in(temp):
    """What a run has left: processes, and with them their addresses, and files."""
    return [*of_folder(temp), *temp.iterdir()]


@pytest.mark.parametrize("engine", ["local", pytest.param("flower", marks=pytest.mark.slow)])
def test_a_run_from_command_to_personal_accuracies(engine, tmp_path, temp):
    """As a user starts it, and its offline twin. Afterwards nothing is left of it but its folder."""
    environment = {**os.environ, "TMPDIR": str(temp)}
    place = {"run_name": "tiny", "output_dir": tmp_path / "out"}
    command = [sys.executable, "-m", "lit_fedbabu.run", *words(engine=engine, **place)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("round 1/1  training loss", "personalized", "worst decile", "tensorboard --logdir"):
        assert expected in done.stdout, done.stdout
    assert done.stderr == ""
    folder = tmp_path / "out" / "tiny"
    assert len(json.loads((folder / "results.json").read_text())["clients"]) == 4
    if engine == "flower":
        assert "[ROUND 1/1]" in (folder / "flower.log").read_text()
    assert left_in(temp) == []
    command = [sys.executable, "-m", "lit_fedbabu.finetune", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = folder.glob("finetune/*/results.json")
    assert again.read_text() == (folder / "results.json").read_text()
    assert left_in(temp) == []


COLOURS = """
from torchvision.transforms import v2
augment = v2.Compose([v2.ColorJitter(0.2), v2.RandomHorizontalFlip()])
"""
ODD = {"TMPDIR": "with a space", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "http_proxy": "http://127.0.0.1:9"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "flower"])
def test_the_users_environment_does_not_reach_into_the_engine(engine, tmp_path, temp):
    """No PATH, a dead proxy, an encoding without umlauts; model and augmentation lie beside the user's shell."""
    (tmp_path / "my_own.py").write_text((ROOT / "tests" / "own_models.py").read_text())
    (tmp_path / "my_colours.py").write_text(COLOURS)
    (temp / ODD["TMPDIR"]).mkdir()
    users = {name: value for name, value in os.environ.items() if name not in ("PATH", "PYTHONPATH")}
    environment = {**users, **ODD, "RAY_ADDRESS": "auto", "TMPDIR": str(temp / ODD["TMPDIR"])}
    own = {"model_name": "my_own:plain", "augmentation": "my_colours:augment"}
    place = {"run_name": "tiny", "output_dir": tmp_path / "out", "engine": engine, **own}
    command = [sys.executable, "-P", "-m", "lit_fedbabu", "run", *words(**place)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_results(tmp_path / "out" / "tiny")["clients"]) == 4


@pytest.mark.parametrize("algorithm", [pytest.param("fedbabu", marks=pytest.mark.slow), "fedper"])
def test_the_local_engine_writes_the_bytes_of_one_process(algorithm, tmp_path, federate):
    """Workers, and what they are sent, change nothing."""
    config = tiny_config(algorithm=algorithm, model_name=NARROW)
    whole, _ = federate(config)
    place = {"output_dir": str(tmp_path), "run_name": "local"}
    result = run(dataclasses.replace(config, engine="local", **place))
    assert result == read_results(whole)
    assert files_that_decide(tmp_path / "local") == files_that_decide(whole)
    assert curves(tmp_path / "local") == curves(whole)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_both_engines_and_flwr_run_write_the_same_bytes(algorithm, tmp_path):
    options = {**TINY, "algorithm": algorithm, "num-server-rounds": 2, "output-dir": str(tmp_path)}
    for engine in ("local", "flower"):
        names = [f"{key}={value}" for key, value in {**options, "engine": engine, "run-name": engine}.items()]
        subprocess.run([sys.executable, "-m", "lit_fedbabu.run", *names], check=True, timeout=400)
    flwr_run(tmp_path, **options)
    local = files_that_decide(tmp_path / "local")
    assert len(local) > 3
    assert local == files_that_decide(tmp_path / "flower") == files_that_decide(tmp_path / "tiny")


def only(home, name):
    """The process of Flower or Ray in the home that has this name, the first of several."""
    return next(process for process in ours(home) if name in " ".join(process.cmdline()))


def worker(launcher):
    """A worker of the local engine."""
    (warm,) = psutil.Process(launcher.pid).children()
    return warm.children()[0]


STOPS = {
    "Ctrl-C": ("local", lambda launcher, home: launcher.send_signal(signal.SIGINT), 130),
    "the launcher is killed": ("local", lambda launcher, home: launcher.kill(), -signal.SIGKILL),
    "Ctrl-C of Flower": ("flower", lambda launcher, home: launcher.send_signal(signal.SIGINT), 130),
    "the launcher of Flower is killed": ("flower", lambda launcher, home: launcher.kill(), -signal.SIGKILL),
    "the server is killed": ("flower", lambda launcher, home: only(home, "flwr-simulation").kill(), 1),
    "a worker of Ray is killed": ("flower", lambda launcher, home: only(home, "ClientAppActor").kill(), 1),
    "the SuperLink is killed": ("flower", lambda launcher, home: only(home, "lit_fedbabu.engines.guard").kill(), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
def test_a_stopped_run_is_resumed_by_a_command_to_the_same_bytes(how, tmp_path, temp, federate):
    engine, stop, status = STOPS[how]
    options = {**TINY, "num-server-rounds": 40, "evaluate-every": 20, "num-clients": 8, "engine": engine}
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
    stop(process, str(temp))
    _, told = process.communicate(timeout=200)
    assert process.returncode == status, told
    folder = tmp_path / "out" / "tiny"
    if status == 1:
        assert told.startswith("error: ") and told.count("\n") == 1, told
    if status == 130:
        assert told == f"stopped; the run goes on with: {program('lit-fedbabu')} run --resume {folder}\n"
    wait_for(lambda: not left_in(temp), 30)
    assert left_in(temp) == []
    assert not (folder / "results.json").exists()
    resume = [*command, "--resume", str(folder)]
    refused = subprocess.run([*resume, "seed=7"], env=environment, capture_output=True, text=True, timeout=100)
    assert refused.returncode == 2 and "seed = 7: the run in" in refused.stderr, refused.stderr
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "resumed after round" in done.stdout, done.stdout + done.stderr
    assert (folder / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "the run is finished" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_but_a_note(tmp_path, federate):
    options = {**TINY, "num-server-rounds": 40, "evaluate-every": 40, "model-name": NARROW}
    whole, _ = federate(Config.from_run_config(options))
    names = [f"{key}={value}" for key, value in {**options, "output-dir": tmp_path, "run-name": "killed"}.items()]
    command = [sys.executable, "-m", "lit_fedbabu.run", *names]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("round 2/"):
            worker(process).kill()
    assert process.wait(60) == 0, process.stderr.read()
    notes = [line for line in told if line.startswith("note: ")]
    assert notes == ["note: a worker died (its process was killed by SIGKILL); another one does its work again\n"]
    assert not (tmp_path / "killed" / run_folder.FAILURES).exists()
    assert files_that_decide(tmp_path / "killed") == files_that_decide(whole)


@pytest.mark.slow
def test_a_client_that_kills_its_workers_has_failed_and_the_run_goes_on(tmp_path):
    config = tiny_config(
        model_name="tests.engines.deadly:model", num_server_rounds=1, fraction_train=1.0, min_clients_per_round=1,
        output_dir=str(tmp_path), run_name="deadly", batch_size=50, partitioner="dirichlet", dirichlet_alpha=0.3,
        min_client_images=2, num_finetune_epochs=0,
    )  # fmt: skip
    sizes = [len(images) for images in partition(config).train]
    deadly = {client for client, size in enumerate(sizes) if 0 < size % 50 < FEW}
    assert 0 < len(deadly) < config.num_clients
    assert len(run(config)["clients"]) == config.num_clients
    failed = failures_of(tmp_path / "deadly")
    assert {each["client"] for each in failed} == deadly
    assert {each["reason"] for each in failed} == {"its process was killed by SIGKILL"}


KILLS = 100


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_a_run_that_is_killed_a_hundred_times_ends_where_an_unkilled_one_ends(tmp_path, temp):
    """Killed at random moments: while it starts, trains, averages, evaluates, writes. Nothing is left of any."""
    config = tiny_config(
        model_name=NARROW, algorithm="fedper", num_server_rounds=200, evaluate_every=10, output_dir=str(tmp_path)
    )
    environment = {**os.environ, "TMPDIR": str(temp)}
    random, kills, runs = np.random.default_rng(), 0, 0

    def start(folder):
        words = ["--resume", str(folder), f"model-name={NARROW}"] if folder.exists() else []
        words = words or [f"{k}={v}" for k, v in {**config.to_run_config(), "run-name": folder.name}.items() if v != ""]
        command = [sys.executable, "-m", "lit_fedbabu.run", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def finish(folder):
        process = start(folder)
        told, _ = process.communicate(timeout=400)
        assert process.returncode == 0 or "the run is finished" in told, told
        return files_that_decide(folder), curves(folder), (folder / run_folder.PARTITION).read_bytes()

    whole = finish(tmp_path / "whole")
    while kills < KILLS:
        runs += 1
        folder, killed = tmp_path / f"killed{runs}", True
        while kills < KILLS and killed:
            process = start(folder)
            if random.random() < 0.9:  # most moments are after the start, for the start writes nothing
                for line in process.stdout:
                    if line.startswith("run folder"):
                        break
                time.sleep(random.uniform(0, 1.5))
            else:
                time.sleep(random.uniform(0, 8))
            process.kill()
            killed = process.wait() == -signal.SIGKILL
            kills += killed
            process.stdout.close()
            assert wait_for(lambda: not left_in(temp), 30), left_in(temp)
        assert finish(folder) == whole
    print(f"{kills} kills of {runs} runs")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "status"), [("local", 2), ("flower", 1)])
def test_a_run_that_fails_has_a_failing_exit_status(engine, status, tmp_path):
    """The server refuses what only it can see: a folder that appeared after the first look."""
    script = (
        "import sys; from lit_fedbabu.records import run_folder; from lit_fedbabu.run import main\n"
        "real = run_folder.refuse_existing\n"
        "def first_look(folder):\n"
        "    run_folder.refuse_existing = real; folder.mkdir(parents=True)\n"
        "run_folder.refuse_existing = first_look; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *words(output_dir=tmp_path, run_name="taken", engine=engine)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    assert 'error: run-name = "taken"' in done.stderr
    assert time.monotonic() - started < 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_rounds_leak_nothing_and_lose_no_failure(tmp_path):
    seen = soak.soak(2000, str(tmp_path))
    assert seen["status"] == 0, seen["told"]
    assert not any(seen["left"].values()), seen["left"]
    written = (tmp_path / "soak" / run_folder.FAILURES).read_text().splitlines()
    assert len(written) == seen["injected"] > 0
    for kind in soak.KINDS["local"]:
        for what, share in (("MB", 0.01), ("files", 0.05), ("ports", 0.1)):
            grown = soak.growth(seen["samples"], kind, what, first=400)
            assert grown, f"no {kind} was seen"
            for mean, slope in grown:
                assert 100 * slope <= share * mean, f"{kind}: {what} grow by {100 * slope:.2f} in 100 rounds"


@pytest.mark.parametrize("key", ["task", "model-name", "augmentation", "algorithm"])
def test_code_that_a_runs_folder_names_is_repeated_to_be_trusted(key, tmp_path, capsys, monkeypatch):
    """Whoever sends a folder could have written anything into it."""
    (tmp_path / "strangers.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = run_folder.create(
        Config.from_run_config(
            {"dataset": "digits", key: "strangers:it", "output-dir": str(tmp_path), "run-name": "a b"}
        )
    )
    door = importlib.import_module("lit_fedbabu.run")
    for words in ([], [f"{key}=mine:it"], ["seed=42"]):
        assert door.main(["--resume", str(folder), *words]) == 2
        told = capsys.readouterr().err
        assert f'{key} = "strangers:it": is code that {folder / run_folder.CONFIG} names' in told
        assert told.endswith(f"run --resume '{folder}' {key}=strangers:it\n") and told.count("\n") == 1
    assert door.main(["--resume", str(folder), f"{key}=strangers:it"]) == 2
    assert "imported" in capsys.readouterr().err


def test_a_stopped_run_prints_the_command_that_goes_on(tmp_path, capsys, monkeypatch):
    def stopped(config, folder, plain):
        run_folder.create(config)
        raise KeyboardInterrupt

    door = importlib.import_module("lit_fedbabu.run")
    monkeypatch.setitem(door.ENGINES, "local", stopped)
    assert door.main(["dataset=digits", f"output-dir={tmp_path}", "run-name=my run"]) == 130
    told = capsys.readouterr().err
    assert told == f"stopped; the run goes on with: {program('lit-fedbabu')} run --resume '{tmp_path / 'my run'}'\n"


def test_a_run_ends_with_a_line_for_tensorboard_that_can_be_pasted(tmp_path, capsys, monkeypatch):
    door = importlib.import_module("lit_fedbabu.run")
    monkeypatch.setitem(door.ENGINES, "local", lambda config, folder, plain: 0)
    runs = tmp_path / "my runs" / "a & b"
    assert door.main(["dataset=digits", f"output-dir={runs}"]) == 0
    line, *following = capsys.readouterr().out.splitlines()[-3:]
    line = line.removeprefix("TensorBoard: ")
    assert shlex.split(line) == [program("tensorboard"), "--logdir", str(runs)]
    assert line.endswith(f" --logdir '{runs}'")
    commands = [shlex.split(each.partition("next: ")[2])[1:] for each in following]
    assert [each[0] for each in commands] == ["finetune", "report"] and commands[0][2:] == ["--save"]
    assert all(Path(each[1]).parent == runs for each in commands)
