"""Runs of a study: done once, in any process, to the bytes of a run alone; claimed by one worker at a time."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_fedbabu import study as door
from lit_fedbabu.config import Config
from lit_fedbabu.records.results import read_results
from lit_fedbabu.studies import work
from tests.support import NARROW, files_that_decide, tiny_config

ROOT = Path(__file__).parent.parent.parent


def write(tmp_path, **options):
    """A study of two methods and two seeds on the tiny dataset; returns its file and its folder."""
    base = {
        key: value
        for key, value in tiny_config(model_name=NARROW).to_run_config().items()
        if value != Config().to_run_config()[key]
    }
    base |= {"algorithm": ["fedbabu", "fedper"], "seed": [1, 2], "output-dir": str(tmp_path / "out")}
    base |= {key.replace("_", "-"): value for key, value in options.items()}
    path = tmp_path / "study.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in base.items()))
    return path, tmp_path / "out" / "study"


def test_a_study_does_every_run_once_to_the_bytes_of_a_run_alone_and_reports(tmp_path, federate, capsys):
    path, folder = write(tmp_path)
    assert door.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert "4 of 4 runs are done" in told and "4/4" in told
    names = [f"{algorithm}-seed_{seed}" for algorithm in ("fedbabu", "fedper") for seed in (1, 2)]
    left = {each.name for each in folder.iterdir()}
    assert left == {*names, "report", work.TIMES, "workers.log"} - ({"workers.log"} - left)
    for algorithm, seed in (("fedbabu", 1), ("fedper", 2)):
        whole, _ = federate(tiny_config(model_name=NARROW, algorithm=algorithm, seed=seed))
        assert files_that_decide(folder / f"{algorithm}-seed_{seed}") == files_that_decide(whole)
    page = (folder / "report" / "report.html").read_text()
    assert "FedPer" in page and "FedBABU" in page
    before = {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")}
    assert door.main([str(path)]) == 0
    assert {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")} == before, "nothing was done again"


def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path, capsys):
    path, folder = write(tmp_path, seed=[1], algorithm=["fedbabu", "ditto"], proximal_mu=1e30)
    assert door.main([str(path)]) == 1
    told = capsys.readouterr()
    assert "1 of 2 runs are done" in told.out
    assert told.err.startswith("error: ditto-seed_1: RunError: ") and "not finite" in told.err
    assert (folder / "ditto-seed_1.log").read_text().startswith("run folder")
    assert read_results(folder / "fedbabu-seed_1")["clients"]


def test_a_dry_run_writes_nothing_and_estimates_by_what_is_done(tmp_path, capsys):
    path, folder = write(tmp_path)
    assert door.main([str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "to do  fedbabu-seed_1  unknown" and told[-1] == "0 of 4 runs are done; the others take: unknown"
    assert not folder.exists()
    (folder / "fedbabu-seed_1").mkdir(parents=True)
    (folder / work.TIMES).write_text(
        '{"run": "fedbabu-seed_1", "seconds": 60}\n{"run": "fedper-seed_1", "seconds": 90}\n'
    )
    assert door.main([str(path), "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == [
        "begun  fedbabu-seed_1  0:01:00",
        "to do  fedbabu-seed_2  0:01:00",
        "to do  fedper-seed_1  0:01:30",
    ]


def test_a_run_is_claimed_by_one_process_and_a_dead_ones_claim_is_free(tmp_path, monkeypatch):
    claim = tmp_path / "run.claim"
    with work.claimed(claim) as ours:
        assert ours
        with work.claimed(claim) as second:
            assert not second
        assert claim.exists()
    assert not claim.exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim.write_text(json.dumps({"host": platform.node(), "pid": dead.pid}))
    with work.claimed(claim) as ours:
        assert ours
    claim.write_text(json.dumps({"host": "another machine", "pid": 1}))
    with work.claimed(claim) as ours:
        assert not ours, "it may live"
    old = time.time() - work.EXPIRES_S - 1
    os.utime(claim, (old, old))
    with work.claimed(claim) as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_a_claim_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "BEAT_S", 0.05)
    claim = tmp_path / "run.claim"
    with work.claimed(claim):
        os.utime(claim, (0, 0))
        deadline = time.monotonic() + 10
        while claim.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert claim.stat().st_mtime > 0


def test_a_run_that_another_machine_does_is_left_to_it(tmp_path, capsys):
    path, folder = write(tmp_path, seed=[1])
    folder.mkdir(parents=True)
    (folder / "fedper-seed_1.claim").write_text(json.dumps({"host": "another machine", "pid": 1}))
    assert door.main([str(path), "--worker"]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 runs are done" in told and "1 runs are done by others at this moment: fedper-seed_1" in told
    assert not (folder / "fedper-seed_1").exists() and not (folder / "report").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_stopped_is_finished_by_the_same_command_to_the_same_bytes(how, tmp_path, federate):
    path, folder = write(tmp_path, num_server_rounds=40, evaluate_every=40)
    command = [sys.executable, "-m", "lit_fedbabu.study", str(path), "--plain"]
    for seconds in (5.0, 7.0, 9.0):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        process.send_signal(how)
        _, told = process.communicate(timeout=60)
        if how == signal.SIGINT and process.returncode:
            assert process.returncode == 130 and told == "stopped; the same command goes on from here\n"
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == 0
    for algorithm, seed in (("fedbabu", 2), ("fedper", 1)):
        options = {"algorithm": algorithm, "seed": seed, "num_server_rounds": 40, "evaluate_every": 40}
        whole, _ = federate(tiny_config(model_name=NARROW, **options))
        assert files_that_decide(folder / f"{algorithm}-seed_{seed}") == files_that_decide(whole)
    assert not list(folder.glob("*.claim"))
