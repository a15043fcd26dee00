"""``python -m benchmarks.cohort``: a round of ten clients one after another, and as cohorts, on this device."""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.setting import append, machine, noise
from lit_fedbabu.config import Config
from lit_fedbabu.learning.trainer import cohorts
from lit_fedbabu.training.client_update import cohort_update
from lit_fedbabu.training.experiment import Experiment

CLIENTS = 10
"""Of a round; each has 500 training images and 4 epochs, as in the reference experiment."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cohort", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured, in turns")
    parser.add_argument("--precision", default="auto", help="as of a run")
    parser.add_argument("--epochs", type=int, default=4, help="local epochs of a client")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(
            dataset=str(noise(Path(scratch) / "noise", 500 * CLIENTS, 100 * CLIENTS)),
            num_clients=CLIENTS,
            fraction_train=1.0,
            num_local_epochs=arguments.epochs,
            precision=arguments.precision,
            output_dir=scratch,
        )
        sizes = (1, CLIENTS // 2, CLIENTS)
        experiments = {size: Experiment(dataclasses.replace(config, cohort_size=size)) for size in sizes}
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for turn in range(arguments.repeats + 1):
            for size, experiment in experiments.items():
                if (seconds := _round(experiment)) and turn:  # the first turn decodes images and warms the device up
                    times[size].append(seconds)
    medians = {size: float(np.median(seconds)) for size, seconds in times.items()}
    for size, seconds in times.items():
        ratio = medians[size] / medians[1]
        print(f"cohort-size={size:<4}{medians[size]:8.3f} s   {min(seconds):.3f} to {max(seconds):.3f}   {ratio:.2f}")
    measured = {"machine": machine(config), "device": _device(), "epochs": arguments.epochs, "seconds": times}
    print(json.dumps(measured["machine"]))
    append("cohort.jsonl", measured)
    return 0


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _round(experiment: Experiment) -> float:
    """Seconds of a round of all clients in this process."""
    received = experiment.initial_shared()
    started = time.monotonic()
    for clients in cohorts(experiment.config, range(CLIENTS)):
        cohort_update(experiment, clients, 1, received, 0.1)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
