"""``make scale``: what a round, the server's memory and the start cost with 100, 1,000 and 10,000 clients."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

from benchmarks.setting import RESULTS, append, machine, noise, rounds_of
from lit_fedbabu.config import Config
from lit_fedbabu.records import plots

SIZES = (100, 1_000, 10_000)
PARTICIPANTS, IMAGES, ROUNDS = 10, 5, 30
"""Of a round; of every client, beside one test image; and watched. So little training hides no cost of the clients."""


def main() -> int:
    found = {"clients": [], "round s": [], "server MB": [], "start-up s": []}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        for clients in SIZES:
            config = Config(
                dataset=str(noise(Path(scratch) / f"noise{clients}", IMAGES * clients, clients)),
                num_clients=clients,
                num_classes_per_client=1,
                min_client_images=1,
                fraction_train=PARTICIPANTS / clients,
                num_server_rounds=10_000,
                evaluate_every=10_000,
                precision="32-true",
                output_dir=scratch,
                run_name=f"of{clients}",
            )
            seconds, started, memory = [], [], 0
            for elapsed, of_round, server in rounds_of(config, ROUNDS):
                seconds.append(of_round)
                started.append(elapsed - sum(seconds))
                memory = psutil.Process(server).memory_full_info().uss
            found["clients"].append(clients)
            found["round s"].append(seconds[1:])  # workers import PyTorch and Lightning in the first
            found["server MB"].append(round(memory / 2**20, 1))
            found["start-up s"].append(round(started[0], 1))
            mean, error = np.mean(seconds[1:]), np.std(seconds[1:]) / np.sqrt(ROUNDS - 2)
            print(
                f"{clients:>6} clients  round {mean:.2f} ± {error:.2f} s  server {memory / 2**20:.0f} MB"
                f"  start {started[0]:.1f} s"
            )
    append("scale.jsonl", {"machine": machine(config), **found})
    with plots.style():
        _draw(found).savefig(RESULTS / "scale.png", dpi=200)
    return 0


def _draw(found: dict[str, list]) -> Figure:
    figure = Figure(figsize=(plots.COLUMN, 4.2))
    for axes, key in zip(figure.subplots(3, 1, sharex=True), ("round s", "server MB", "start-up s"), strict=True):
        values = [np.mean(value) for value in found[key]]
        axes.plot(found["clients"], values, marker="o")
        axes.set(xscale="log", ylim=(0, 1.3 * max(values)), ylabel=key.replace(" s", " (s)").replace(" MB", " (MB)"))
    axes.set_xlabel("clients, of which 10 train in a round")
    return figure


if __name__ == "__main__":
    sys.exit(main())
