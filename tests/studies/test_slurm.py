"""Jobs of a cluster that do a study: what is refused, what is submitted, and that they finish it."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import psutil
import pytest
import submitit  # noqa: F401  its first import closes handlers; in a test absl's would close what pytest captures in

from lit_fedbabu import study as door
from lit_fedbabu.studies import slurm, work
from lit_fedbabu.studies.plan import read_study
from tests.support import files_that_decide, wait_for, write_study

SLURM = """
[slurm]
timeout_min = 90
cpus_per_task = 4
gpus_per_node = 1
mem_gb = 16
slurm_partition = "short"
"""


def written(tmp_path, table=SLURM, **options):
    """A study with a table for jobs; returns its file and its folder."""
    path, folder = write_study(tmp_path, **options)
    path.write_text(f"{path.read_text()}\n{table}")
    return path, folder


def told(path, capsys, jobs=2):
    """What the command says on stderr, and its exit status."""
    status = door.main([str(path), "--slurm", str(jobs)])
    return capsys.readouterr().err, status


REFUSED = {
    "timeout_min = 9\ncluster = 'pbs'": 'slurm.cluster = "pbs": must be one of slurm, local',
    "timeout_min = 9\npartition = 'a'": "slurm.partition = \"a\": Setting 'partition' is deprecated. Use",
    "timeout_min = 9\ncpus-per-task = 4": "slurm.cpus-per-task = 4: submitit's AutoExecutor has no such parameter;"
    " did you mean cpus_per_task?",
    "timeout_min = 9\nwhatever = 4": "slurm.whatever = 4: submitit's AutoExecutor has no such parameter\n",
    "timeout_min = 'an hour'": 'slurm.timeout_min = "an hour": Parameter "timeout_min" expected type',
    "slurm_time = '1:00'": 'slurm.slurm_time = "1:00": must be given as timeout_min, in minutes',
    "timeout_min = 9\nnodes = 2": "slurm.nodes = 2: is not for a study, whose jobs are one worker each",
    "mem_gb = 2": "slurm.timeout_min = null: must be in the table [slurm], the minutes a job may run",
    "timeout_min = 9": 'slurm.cluster = "slurm": there is no srun here',
}


@pytest.mark.parametrize("table", REFUSED)
def test_a_table_that_cannot_be_asked_for_is_refused_by_its_key(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path, _ = written(tmp_path, f"[slurm]\n{table}")
    said, status = told(path, capsys)
    assert status == 2 and said.startswith(f"error: {REFUSED[table]}") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_jobs_are_at_least_one_and_need_an_extra(tmp_path, capsys, monkeypatch):
    path, _ = written(tmp_path)
    assert told(path, capsys, jobs=0) == ("error: --slurm = 0: must be at least 1, the number of jobs\n", 2)
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    assert told(path, capsys) == ("error: --slurm = 2: needs submitit: pip install 'lit-fedbabu[slurm]'\n", 2)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder with stand-ins for Slurm's commands, which write down what they are asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "sbatch"):
        (folder / name).write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/asked\necho Submitted batch job 4711\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_gets_an_array_of_jobs_with_the_resources_of_the_table(tmp_path, commands, capsys):
    path, folder = written(tmp_path)
    assert door.main([str(path), "--slurm", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["checking 4 runs", f"job 4711_0  {folder / 'slurm' / '4711_0_0_log.out'}"]
    asked = (tmp_path / "asked").read_text().splitlines()
    resources = {"time=90", "cpus-per-task=4", "gpus-per-node=1", "mem=16GB", "partition=short", "job-name=study"}
    assert {f"#SBATCH --{each}" for each in resources} <= set(asked)
    assert "#SBATCH --array=0-2%3" in asked
    kept = sorted((folder / "slurm").glob("*_submitted.pkl"))
    job = pickle.loads(kept[0].read_bytes()).function
    assert len(kept) == 3 and job.study == read_study(path)
    assert job.checkpoint().function == job, "it goes on when its time was too short"
    assert not any(run.folder.exists() for run in job.study.runs), "nothing is done here"


def test_no_more_jobs_than_runs_and_none_for_a_study_that_is_done(tmp_path, commands, capsys, monkeypatch):
    path, _ = written(tmp_path)
    monkeypatch.setattr(work, "is_done", lambda config: config.algorithm == "fedper" or config.seed == 1)
    assert door.main([str(path), "--slurm", "3"]) == 0
    assert capsys.readouterr().out.startswith("note: 1 runs are not done, so that there are 1 jobs\n")
    assert not [line for line in (tmp_path / "asked").read_text().splitlines() if "--array" in line]
    (tmp_path / "asked").unlink()
    monkeypatch.setattr(work, "is_done", lambda config: True)
    assert door.main([str(path), "--slurm", "3"]) == 0
    assert "all 4 runs are done, and no job is needed" in capsys.readouterr().out
    assert not (tmp_path / "asked").exists()


def test_jobs_that_slurm_refuses_are_told(tmp_path, commands, capsys):
    (commands / "sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition specified: short >&2\nexit 1\n")
    path, _ = written(tmp_path)
    said, status = told(path, capsys)
    assert status == 1
    assert said.splitlines()[-1].startswith("error: the jobs were not submitted: sbatch: error: invalid partition")


def test_a_job_where_something_else_is_installed_does_no_run(tmp_path):
    path, folder = written(tmp_path)
    job = pickle.loads(pickle.dumps(slurm.Job(read_study(path), 2)))
    job.asker["versions"]["torch"] = "1.0"
    with pytest.raises(SystemExit, match="takes no part: it has torch .* and not 1.0 as"):
        job()
    assert not list(folder.rglob("*"))


def is_over(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_two_jobs_do_each_run_once_to_the_same_bytes_though_one_is_queued_again(tmp_path, federate, capsys):
    table = "[slurm]\ncluster = 'local'\ntimeout_min = 60"
    path, folder = written(tmp_path, table, num_server_rounds=40, evaluate_every=40)
    assert door.main([str(path), "--slurm", "2"]) == 0
    jobs = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("job ")]
    pids = [int(job[1]) for job in jobs]
    assert wait_for(lambda: list(folder.glob("*.claim")), 120)
    time.sleep(1)
    (worker,) = psutil.Process(pids[0]).children()
    worker.send_signal(signal.SIGUSR2)
    assert wait_for(lambda: all(map(is_over, pids)), 120)
    assert "this job is preempted" in Path(jobs[0][2]).read_text()
    names = [json.loads(line)["run"] for line in (folder / work.TIMES).read_text().splitlines()]
    assert len(names) == len(set(names)), "no run is done twice"
    assert not list(folder.glob("*.claim"))
    for run in read_study(path).runs:
        whole, _ = federate(run.config)
        assert files_that_decide(run.folder) == files_that_decide(whole)
