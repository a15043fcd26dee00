"""``python -m benchmarks.secure``: what secure aggregation adds to a round, in seconds and bytes, without training."""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.setting import append, machine
from lit_fedbabu.config import Config
from lit_fedbabu.secure.masks import mean, quantized
from lit_fedbabu.secure.party import Party
from lit_fedbabu.secure.unmasking import unmasked
from lit_fedbabu.training.experiment import Experiment

COUNTS = (10, 30, 100)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secure", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=COUNTS, metavar="N", help="clients of a round")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shared = Experiment(Config(dataset="digits")).initial_shared()
    length = sum(value.numel() for value in shared.values())
    measured: dict[str, Any] = {"weights": length}
    for count in arguments.clients:
        for gone in (0, count // 10):
            found = [_round(count, gone, length) for _ in range(arguments.repeats)]
            name = f"{count} clients, {gone} gone"
            measured[name] = {key: float(f"{median(each[key] for each in found):.3g}") for key in found[0]}
            print(name, measured[name], flush=True)
    append("secure.jsonl", {"machine": machine(Config()), **measured})


def _round(count: int, gone: int, length: int) -> dict[str, float]:
    """Seconds of a client's steps and of the server, and bytes of a client, of which some mask nothing in the end."""
    threshold, seconds = -(-2 * count // 3), dict[str, float]()
    updates = np.random.default_rng(0).normal(0, 0.01, (count, length))
    clock = time.perf_counter
    begin = clock()
    parties = [Party.begin(client, 1, threshold) for client in range(count)]
    public = {party.client: party.public for party in parties}
    seconds["keys"] = (clock() - begin) / count
    begin = clock()
    sent = {party.client: party.share(1, public) for party in parties}
    seconds["shares"] = (clock() - begin) / count
    alive = parties[gone:]
    begin = clock()
    masked = {
        party.client: party.mask(
            1,
            quantized(updates[party.client], 50, 50 * count, 8.0),
            {source: own[party.client] for source, own in sent.items() if source != party.client},
        )
        for party in alive
    }
    seconds["mask"] = (clock() - begin) / len(alive)
    left = [party.client for party in alive]
    answers = {party.client: party.unmask(1, left, range(gone)) for party in alive}
    begin = clock()
    total = unmasked(masked, public, answers, threshold)
    found = mean(total, [50] * len(left), 50 * count, 8.0)
    seconds["server"] = clock() - begin
    error = float(np.abs(found - updates[gone:].mean(0)).max())
    own = alive[0].client
    up = [*public[own], *sent[own].values(), *answers[own].values()]
    down = [
        *(data for each in public.values() for data in each),
        *(each[own] for at, each in sent.items() if at != own),
    ]
    return {**seconds, "kB up": _kilo(up), "kB down": _kilo(down), "kB masked": 4 * length / 1000, "error": error}


def _kilo(sent: Sequence[bytes]) -> float:
    return sum(map(len, sent)) / 1000


if __name__ == "__main__":
    main()
