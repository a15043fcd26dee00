"""``python -m benchmarks.memory``: memory of a worker that does a run of a study, beside what is estimated for it."""

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from benchmarks.setting import append, machine, noise
from lit_fedbabu.config import Config
from lit_fedbabu.studies.shares import need_of
from lit_fedbabu.studies.work import PLACE, PREPARE
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import Warm, threads

MEBI = 2**20
RUNS: dict[str, dict[str, Any]] = {
    "FourConvNet, digits": {"dataset": "digits", "num_clients": 20, "fraction_train": 0.5},
    "FourConvNet, tests of 500 images": {"images": (5000, 2000), "num_clients": 10, "fraction_train": 1.0},
    "FourConvNet, tests of 1,000 images": {"images": (5000, 2000), "num_clients": 2, "num_classes_per_client": 5},
    "MobileNet": {"images": (1000, 400), "num_clients": 10, "fraction_train": 0.2, "model_name": "MobileNet"},
    "ResNet18": {"images": (1000, 400), "num_clients": 10, "fraction_train": 0.2, "model_name": "ResNet18"},
}
"""Options, and training and test images of noise in CIFAR-10's shape."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.parse_args()
    short = {"num_server_rounds": 1, "num_local_epochs": 1, "num_finetune_epochs": 1}
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place, (name, options) in enumerate(RUNS.items()):
            own = dict(options)
            if images := own.pop("images", None):
                own["dataset"] = str(noise(Path(scratch) / f"noise-{place}", *images))
            config = Config(output_dir=scratch, run_name=f"run-{place}", **short, **own).pinned()
            peak = _own_peak(config, Path(scratch))
            measured[name] = {"MiB": round(peak / MEBI), "estimated MiB": round(need_of(Experiment(config)) / MEBI)}
            print(name, measured[name], flush=True)
    append("memory.jsonl", {"machine": machine(Config()), **measured})


def _own_peak(config: Config, folder: Path) -> int:
    """The greatest memory of a worker that does a run, without what it shares with the process it was forked from."""
    with Warm(PREPARE, environment=threads(1)) as warm, Pool(warm, 1, [{PLACE: "0"}], str(folder / "log")) as pool:
        ((_, outcome),) = pool.answers("lit_fedbabu.studies.work:work", [(config, [[{}]])])
        if isinstance(outcome, Exception):
            raise SystemExit(str(outcome))
        (worker,) = [each for each in psutil.Process().children(recursive=True) if not each.children()]
        memory = worker.memory_full_info()
        record = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())
        return 1024 * int(record[1]) - (memory.rss - memory.uss)


if __name__ == "__main__":
    sys.exit(main())
