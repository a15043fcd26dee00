"""``python -m benchmarks.large``: a round of 20 clients that share 90 MB, beside a bare loop over the same files.

Memory is in copies of the shared weights, beyond what the same run of a narrow model takes.
"""

import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.setting import append, machine, rounds_of
from lit_fedbabu import Task
from lit_fedbabu.config import Config
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment

CLIENTS, ROUNDS = 20, 3
WIDTH, NARROW = 4743, 8
MEBI = 2**20


class Large(L.LightningModule):
    """A body of 90 MB, or a narrow one, that takes one short step."""

    def __init__(self, width, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Two(L.LightningDataModule):
    """Two samples."""

    def __init__(self, client, num_clients, seed, width):
        super().__init__()
        draw = torch.Generator().manual_seed(client)
        self.rows = TensorDataset(torch.randn(2, width, generator=draw), torch.tensor([0, 1]))

    def train_dataloader(self):
        return DataLoader(self.rows, 2)

    def test_dataloader(self):
        return DataLoader(self.rows, 2)


def task_of(width: int) -> Task:
    return Task(partial(Large, width), partial(Two, width=width), score="test_loss", higher_is_better=False)


task, narrow = task_of(WIDTH), task_of(NARROW)


class Watched(threading.Thread):
    """Notes the greatest memory of a process, and of the largest of its workers, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.server, self.worker, self.process, self.over = 0, 0, 0, False

    def run(self) -> None:
        while not self.over:
            try:
                if self.process:
                    one = psutil.Process(self.process)
                    self.server = max(self.server, one.memory_full_info().uss)
                    sizes = [each.memory_full_info().uss for each in one.children(recursive=True)]
                    self.worker = max([self.worker, *sizes])
            except psutil.Error:
                pass
            time.sleep(0.05)


def bare(folder: Path, arrays: list[np.ndarray]) -> float:
    """Seconds to write and read the arrays of every client once each way, and to average them."""
    started = time.monotonic()
    for client in range(CLIENTS):
        for way in ("down", "up"):
            with (folder / f"{way}-{client}.npz").open("wb") as file:
                np.savez(file, *arrays)
    total = [np.zeros(array.shape) for array in arrays]
    for client in range(CLIENTS):
        for way in ("down", "up"):
            with np.load(folder / f"{way}-{client}.npz") as read:
                found = [read[name] for name in read.files]
        total = [np.add(one, other / CLIENTS, out=one) for one, other in zip(total, found, strict=True)]
    return time.monotonic() - started


def watched_run(config: Config) -> tuple[list[float], int, int]:
    """Of a run's rounds the seconds, and the greatest memory of the server and of a worker, in bytes."""
    watched = Watched()
    watched.start()
    seconds = []
    for _, of_round, server in rounds_of(config, ROUNDS):
        watched.process = server
        seconds.append(of_round)
    watched.over = True
    return seconds, watched.server, watched.worker


def main() -> int:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        config = Config(
            task="benchmarks.large:task",
            num_clients=CLIENTS,
            fraction_train=1.0,
            num_server_rounds=100,
            num_local_epochs=1,
            evaluate_every=100,
            precision="32-true",
            output_dir=scratch,
            run_name="large",
        )
        experiment = Experiment(config)
        shared = experiment.initial_shared()
        size = sum(value.numel() * value.element_size() for value in shared.values())
        client_update(experiment, 0, 1, shared, 0.0)
        started = time.monotonic()
        for client in range(1, 4):
            client_update(experiment, client, 1, shared, 0.0)
        training = (time.monotonic() - started) / 3 * CLIENTS
        del experiment
        loop = bare(Path(scratch), [value.numpy() for value in shared.values()])
        bare_config = replace(config, task="benchmarks.large:narrow", run_name="narrow")
        (_, *floor), (seconds, *large) = watched_run(bare_config), watched_run(config)
        server, worker = ((one - other) / size for one, other in zip(large, floor, strict=True))
    found = {
        "MB": round(size / 1e6, 1),
        "round s": seconds,
        "training alone s": round(training, 2),
        "bare loop s": round(loop, 2),
        "server, copies": round(server, 1),
        "worker, copies": round(worker, 1),
    }
    print(found)
    append("large.jsonl", {"machine": machine(config), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
