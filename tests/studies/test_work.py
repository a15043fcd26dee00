"""Runs of a study: done once, in any process, to the bytes of a run alone; claimed by one worker at a time."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from lit_fedbabu import study as door
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import write_config
from lit_fedbabu.studies import claims, conduct, show, work
from lit_fedbabu.studies.plan import read_study
from tests.support import NARROW, files_that_decide, tiny_config, write_study

ROOT = Path(__file__).parent.parent.parent


def test_a_study_does_every_run_once_to_the_bytes_of_a_run_alone_and_reports(tmp_path, federate, capsys):
    path, folder = write_study(tmp_path)
    assert door.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert "4 of 4 runs are done" in told and "4/4" in told
    names = [f"{algorithm}-seed_{seed}" for algorithm in ("fedbabu", "fedper") for seed in (1, 2)]
    left = {each.name for each in folder.iterdir()}
    assert left == {*names, "report", "report.html", work.TIMES, "workers.log"} - ({"workers.log"} - left)
    for algorithm, seed in (("fedbabu", 1), ("fedper", 2)):
        whole, _ = federate(tiny_config(model_name=NARROW, algorithm=algorithm, seed=seed))
        assert files_that_decide(folder / f"{algorithm}-seed_{seed}") == files_that_decide(whole)
    page = (folder / "report" / "report.html").read_text()
    assert "FedPer" in page and "FedBABU" in page
    before = {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")}
    assert door.main([str(path)]) == 0
    assert {each: each.stat().st_mtime_ns for each in folder.rglob("*.ckpt")} == before, "nothing was done again"


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_are_done(tmp_path, capsys):
    path, folder = write_study(tmp_path, seed=[1], algorithm=["fedbabu", "ditto"], proximal_mu=1e30)
    assert door.main([str(path)]) == 1
    told = capsys.readouterr()
    assert "1 of 2 runs are done" in told.out
    assert told.err.startswith("error: ditto-seed_1: RunError: ") and "not finite" in told.err
    assert (folder / "ditto-seed_1.log").read_text().startswith("run folder")
    assert read_results(folder / "fedbabu-seed_1")["clients"]
    assert "| ditto-seed\\_1 | Ditto | 1 | RunError: " in told.out
    page = (folder / "report" / "report.html").read_text()
    assert "1 run without results" in page and "No client failed" not in page


def test_a_dry_run_writes_nothing_and_estimates_by_what_is_done(tmp_path, capsys):
    path, folder = write_study(tmp_path)
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


def of_another_machine(claim):
    with claims.claimed(claim):
        text = claim.read_text()
    claim.write_text(re.sub("host=.*", "host=another", text))


@pytest.mark.slow
def test_a_run_that_another_machine_does_is_left_to_it(tmp_path, capsys):
    path, folder = write_study(tmp_path, seed=[1])
    folder.mkdir(parents=True)
    of_another_machine(folder / "fedper-seed_1.claim")
    assert door.main([str(path), "--worker"]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 runs are done" in told and "1 runs are done by others at this moment: fedper-seed_1" in told
    assert not (folder / "fedper-seed_1").exists() and not (folder / "report").exists()


@pytest.mark.slow
def test_a_run_whose_worker_elsewhere_dies_is_done_in_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conduct, "LOOK_S", 0.2)
    path, folder = write_study(tmp_path, seed=[1])
    folder.mkdir(parents=True)
    claim = folder / "fedper-seed_1.claim"
    of_another_machine(claim)
    told_of = show.Shown.waits

    def waits(self, runs):
        told_of(self, runs)
        claim.unlink(missing_ok=True)  # as its study does it there, or time

    monkeypatch.setattr(show.Shown, "waits", waits)
    assert door.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 runs are done" in told and "waiting for others, who do: fedper-seed_1" in told
    assert not claim.exists() and (folder / "report").exists()


def test_a_study_that_was_changed_is_not_mixed_with_the_old_one(tmp_path, capsys):
    path, folder = write_study(tmp_path, seed=[1])
    (begun, _) = read_study(path).runs
    begun.folder.mkdir(parents=True)
    write_config(begun.folder, begun.config, {})
    before = {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")}
    write_study(tmp_path, seed=[1], learning_rate=0.2)
    for words in ([], ["--dry-run"], ["--worker"]):
        assert door.main([str(path), *words]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: learning-rate = 0.2: the run in ") and told.count("\n") == 1
        assert "was begun with 0.1; give the study another name" in told
    del before[path]
    assert {each: each.stat().st_mtime_ns for each in before} == before


@pytest.mark.slow
def test_a_terminal_has_a_live_table(tmp_path):
    path, _ = write_study(tmp_path, seed=[1], num_server_rounds=30, evaluate_every=1)
    main, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-m", "lit_fedbabu.study", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=end, stderr=end, env=environment)
    os.close(end)
    shown = b""
    while True:
        try:
            shown += os.read(main, 65536)
        except OSError:  # the other end was closed
            break
    assert process.wait() == 0
    text = shown.decode()
    assert "2/2 runs" in text and "of 30" in text and " ± " in text
    assert "2 of 2 runs are done" in text


def test_a_narrow_live_table_keeps_rounds_and_scores_and_counts_down(tmp_path, monkeypatch, capsys):
    path, folder = write_study(tmp_path, algorithm=["fedprox-babu"], norm=["batch", "batch-running"])
    study = read_study(path)
    folder.mkdir(parents=True)
    for run in study.runs:
        work.claim_of(run.folder).touch()
        work.log_of(run.folder).write_text("round 12/40  training\nround 12  initial accuracy 51.20 ± 20.10 %\n")
    out = io.StringIO()
    table, console = show.Shown(study, study.runs), Console(file=out, width=44)
    console.print(table.table(44))
    rows = out.getvalue().splitlines()[1:]
    assert len(rows) == 4 and max(map(len, rows)) <= 44
    for row, run in zip(rows, study.runs, strict=True):
        assert row.startswith(run.name[:5]) and run.name[-5:] in row
        assert "12 of 40" in row and "51.20 ± 20.10" in row
    capsys.readouterr()
    table.waits(study.runs)
    table.waits(study.runs[::-1])
    assert capsys.readouterr().out.count("waiting for others") == 1, "whose answers come in any order"
    now = table._begun
    monkeypatch.setattr(show.time, "monotonic", lambda: now)
    now += 60
    table.ended(study.runs[0], "failed")
    assert table._left() == timedelta(minutes=3)
    now += 50
    assert table._left() == timedelta(minutes=2, seconds=10)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_stopped_is_finished_by_the_same_command_to_the_same_bytes(how, tmp_path, federate):
    path, folder = write_study(tmp_path, num_server_rounds=40, evaluate_every=40)
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
