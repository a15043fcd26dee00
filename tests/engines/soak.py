"""A long run with clients that fail at random: ``python -m tests.engines.soak ROUNDS OUT [ENGINE]``."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from lit_fedbabu.records import run_folder
from tests.support import narrow_model, of_folder

FAILING = 0.005
"""Of the training steps."""
LEDGER = "LIT_FEDBABU_SOAK_LEDGER"
"""Names the file in which a worker notes each failure before it happens."""
KINDS = {
    "local": {"server": "lit_fedbabu.run", "worker": "lit_fedbabu.workers.warm"},
    "flower": {"server": "flwr-simulation", "worker": "ClientAppActor", "SuperLink": "lit_fedbabu.engines.guard"},
}
"""Processes of each engine, and a word of their command lines."""
SAMPLE_S = 0.5


class Flaky(torch.nn.Module):
    """Leaves the images as they are, or fails."""

    def forward(self, images):
        if self.training and random.SystemRandom().random() < FAILING:
            with open(os.environ[LEDGER], "a") as ledger:
                ledger.write("failed\n")
            raise RuntimeError("the machine is on fire")
        return images


def model(num_classes, norm, channels):
    whole = narrow_model(num_classes, norm, channels)
    whole.body.insert(0, Flaky())
    return whole


def soak(rounds, out, engine="local"):
    """Run and watch; returns what was seen."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temp:
        ledger = Path(temp) / "ledger"
        ledger.touch()
        options = {
            "dataset": "digits", "model-name": "tests.engines.soak:model", "num-clients": 20, "fraction-train": 0.2,
            "num-server-rounds": rounds, "num-local-epochs": 1, "num-finetune-epochs": 0, "batch-size": 20,
            "learning-rate": 0.01, "evaluate-every": 50, "max-round-retries": 5, "output-dir": out, "run-name": "soak",
            "engine": engine,
        }  # fmt: skip
        command = [sys.executable, "-m", "lit_fedbabu.run", *(f"{key}={value}" for key, value in options.items())]
        environment = {**os.environ, "TMPDIR": temp, LEDGER: str(ledger)}
        started, before = time.monotonic(), shared_memory()
        log, root = Path(temp) / "told", Path(__file__).parent.parent.parent
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=root)
        samples = []
        while process.poll() is None:
            time.sleep(SAMPLE_S)
            found = re.findall(r"^round (\d+)/", log.read_text(), re.MULTILINE)
            samples += [{"round": int(found[-1]) if found else 0, **seen} for seen in looked(temp, engine)]
        left = [seen["name"] for seen in looked(temp, engine)]
        files = sorted(path.name for path in Path(temp).iterdir() if path not in (ledger, log))
        return {
            "status": process.returncode,
            "told": log.read_text(),
            "seconds": time.monotonic() - started,
            "injected": len(ledger.read_text().splitlines()),
            "samples": samples,
            "left": {"processes": left, "files": files, "shared memory": sorted(shared_memory() - before)},
        }


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").exists() else set()


def looked(temp, engine):
    """Processes that belong to a run whose files are below a folder, and what they use now."""
    for process in of_folder(temp):
        try:
            line = " ".join(process.cmdline())
            kind = next((kind for kind, word in KINDS[engine].items() if word in line), None)
            memory = process.memory_full_info().uss / 2**20 if kind else 0.0
            ports = len(process.net_connections())
            yield {
                "name": kind or line[:60],
                "pid": process.pid,
                "MB": memory,
                "files": process.num_fds(),
                "ports": ports,
            }
        except psutil.Error:
            pass


def growth(samples, kind, what, first):
    """Per process of a kind: its mean of what it uses and the slope over rounds, from the first round on."""
    lines: dict[int, list[tuple[int, float]]] = {}
    for sample in samples:
        if sample["name"] == kind and sample["round"] >= first:
            lines.setdefault(sample["pid"], []).append((sample["round"], sample[what]))
    long = [np.array(points, dtype=float).T for points in lines.values() if len(points) > 20]
    return [(values.mean(), np.polyfit(rounds, values, 1)[0]) for rounds, values in long]


def main(rounds, out, engine="local"):
    seen = soak(int(rounds), out, engine)
    folder = Path(out) / "soak"
    written = [json.loads(line) for line in (folder / run_folder.FAILURES).read_text().splitlines()]
    print(f"exit status {seen['status']} after {seen['seconds']:.0f} s")
    print(f"failures injected {seen['injected']}, written down {len(written)}")
    print(f"left behind: {seen['left']}")
    for kind in KINDS[engine]:
        for what in ("MB", "files", "ports"):
            for mean, slope in growth(seen["samples"], kind, what, int(rounds) // 5):
                print(f"{kind:<10}{what:<7} mean {mean:8.1f}  per 100 rounds {100 * slope:+.2f}")
    (Path(out) / "samples.json").write_text(json.dumps(seen["samples"]))
    if seen["status"]:
        print(seen["told"])


if __name__ == "__main__":
    main(*sys.argv[1:])
