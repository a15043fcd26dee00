"""Variables of Slurm, torchrun and others, which make Lightning believe that a process is one of several."""

import csv
import os
import subprocess
import sys

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_fedbabu.ground.system import program
from lit_fedbabu.learning.trainer import quiet_lightning
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, files_that_decide, state_digest, tiny_config

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "node[1-2]",
}  # fmt: skip
RANK = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LAUNCHERS = {
    "a batch script": SLURM,
    "srun": {**SLURM, "SLURM_NTASKS_PER_NODE": "2"},
    "torchrun": {**RANK, "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    "kubeflow": {**RANK, "KUBERNETES_PORT": "tcp://10.0.0.1:443"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "PMI_SIZE": "4"},
    "jsrun": {
        "LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_LOCAL_RANK": "1", "JSM_NAMESPACE_SIZE": "4",
        "JSM_NAMESPACE_RANK": "2",
    },
    "TPU": {"PJRT_DEVICE": "TPU", "XLA_USE_BF16": "1", "TPU_WORKER_ID": "1"},
    "Lightning": {"NODE_RANK": "1", "PL_TRAINER_MAX_STEPS": "1", "PL_TRAINER_DEVICES": "4", "PL_GLOBAL_SEED": "9"},
}  # fmt: skip
"""What they set, in a process that is not the first one."""


@pytest.fixture
def launched(request, monkeypatch, tmp_path):
    """A process of a launcher, in a folder with a checkpoint that Lightning would begin at."""
    for name, value in LAUNCHERS[request.param].items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another training")


def trained(task):
    options = {"model_name": NARROW} if not task else {"task": "tests.own_tasks:windows", "learning_rate": 0.0}
    experiment = Experiment(tiny_config(num_clients=4, **options))
    update = client_update(experiment, 1, 1, experiment.initial_shared(), 0.01)
    return state_digest(update.state)


@pytest.fixture(scope="module")
def alone(machine):
    return {task: trained(task) for task in (False, True)}


@pytest.mark.parametrize("launched", LAUNCHERS, indirect=True)
def test_a_client_is_trained_as_outside_of_any_launcher(alone, launched):
    assert {task: trained(task) for task in alone} == alone


def test_whichever_rank_a_launcher_gives_this_process_logs(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    quiet_lightning.__wrapped__()
    assert rank_zero_only.rank == 0


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_commands_of_a_launcher_write_the_bytes_of_others(launcher, tmp_path):
    """Also what Lightning's loggers write, and both commands that train."""
    words = ["dataset=digits", "num-clients=3", "num-server-rounds=1", "num-local-epochs=1", "num-finetune-epochs=1"]
    written: list[dict[str, object]] = []
    for environment in ({}, LAUNCHERS[launcher]):
        folder = tmp_path / f"run{len(written)}"
        place = ["logger=csv", f"output-dir={tmp_path}", f"run-name={folder.name}"]
        for command in (["run", *words, *place], ["finetune", str(folder), "--epochs", "1"]):
            done = subprocess.run(
                [sys.executable, program("lit-fedbabu"), *command], env={**os.environ, **environment}, cwd=tmp_path,
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        (metrics,) = folder.glob("csv/*/metrics.csv")
        (tuned,) = folder.glob("finetune/*/results.json")
        with metrics.open(newline="") as file:
            rows = [
                {name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(file)
            ]
        assert any(row["train/loss"] for row in rows)
        written.append({**files_that_decide(folder), "csv": rows, "tuned": tuned.read_bytes()})
    assert written[0] == written[1]
