"""``python -m benchmarks.gpus``: a round of the reference experiment on one GPU of a machine, on two, and so on."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.setting import append, machine, noise, rounds_of
from lit_fedbabu.config import Config
from lit_fedbabu.engines.resources import worker_environments


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="of which the first, with imports, is left out")
    parser.add_argument("--clients", type=int, default=16, help="that train in a round")
    arguments = parser.parse_args(argv)
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
