"""``python -m benchmarks.gpus``: a round of the reference experiment on one GPU of a machine, on two, and so on.

With ``--devices 2`` a round of one client of a task, a ResNet-18 on images of noise, that trains on one GPU and on two.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from benchmarks.setting import append, machine, noise, rounds_of
from lit_fedbabu import Task
from lit_fedbabu.config import Config
from lit_fedbabu.engines.resources import worker_environments


class Network(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = resnet18(num_classes=64), nn.Linear(64, 10)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Noise(L.LightningDataModule):
    """Images of 64 x 64 pixels, in batches of 64 for each GPU."""

    def __init__(self, client: int, num_clients: int, seed: int) -> None:
        super().__init__()
        self.count = int(os.environ.get(IMAGES, "8192"))

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        images = TensorDataset(torch.rand(self.count, 3, 64, 64), torch.arange(self.count) % 10)
        return DataLoader(images, 64, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(torch.rand(64, 3, 64, 64), torch.arange(64) % 10), 64)


IMAGES = "LIT_FEDBABU_IMAGES"
"""Variable of this program's processes: training images of a client of the task."""
task = Task(Network, Noise, score="test_loss", higher_is_better=False)


def on_devices(devices: int, rounds: int, images: int) -> int:
    """Seconds of a client's round on one GPU and on so many, or where there is none, in so many processes."""
    os.environ[IMAGES] = str(images)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (1, devices):
            config = Config(
                task="benchmarks.gpus:task",
                num_clients=2,
                fraction_train=0.5,
                num_local_epochs=1,
                num_server_rounds=10_000,
                evaluate_every=10_000,
                output_dir=scratch,
                trainer_options=json.dumps({"devices": count}),
            )
            found[str(count)] = seconds = [of_round for _, of_round, _ in rounds_of(config, rounds)][1:]
            print(f"a client on {count}  round {np.median(seconds):.2f} s", flush=True)
    append("gpus.jsonl", {"machine": machine(config), "images": images, "round s of a client by devices": found})
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="of which the first, with imports, is left out")
    parser.add_argument("--clients", type=int, default=16, help="that train in a round")
    parser.add_argument("--devices", type=int, help="GPUs of one client, or where there is none its processes")
    parser.add_argument("--images", type=int, default=8192, help="with --devices, of a client")
    arguments = parser.parse_args(argv)
    if arguments.devices:
        return on_devices(arguments.devices, arguments.rounds, arguments.images)
    if not torch.cuda.device_count():
        print("there is no GPU here: nothing is measured", file=sys.stderr)
        return 1
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        config = Config(
            dataset=str(noise(Path(scratch) / "noise", 50_000, 10_000)),
            fraction_train=arguments.clients / 100,
            num_server_rounds=10_000,
            evaluate_every=10_000,
            output_dir=scratch,
        )
        names = [each["CUDA_VISIBLE_DEVICES"] for each in worker_environments(config)]
        for count in range(1, len(names) + 1):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[:count])
            seconds = [of_round for _, of_round, _ in rounds_of(config, arguments.rounds)][1:]
            found[str(count)] = seconds
            print(f"{count} GPUs  round {np.median(seconds):.2f} s", flush=True)
    append("gpus.jsonl", {"machine": machine(config), "clients": arguments.clients, "round s": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
