"""``make bench-start``: seconds from a command to what a person waits for, as ratios to the imports alone."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.setting import NO_INSTALLATION, append, lines_of_flwr_run, machine
from lit_fedbabu.config import Config

IMPORTS = "import lightning, flwr, datasets"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="how often everything is measured, in turns")
    parser.add_argument("--no-flower", action="store_true", help="leave out what starts Flower")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lfb-") as scratch:
        work = _work(Path(scratch), not arguments.no_flower)
        times: dict[str, list[float]] = {title: [] for title in work}
        for turn in range(-1, arguments.repeats):  # the first turn fills caches, and is not counted
            for title, measure in work.items():
                seconds = measure()
                if turn >= 0:
                    times[title].append(seconds)
            print(f"turn {turn + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
    alone = times[f'python -c "{IMPORTS}"']
    for title, seconds in times.items():
        ratios = np.divide(seconds, alone)
        print(
            f"{title:<52}{np.median(seconds):6.2f} s   {min(seconds):.2f} to {max(seconds):.2f}"
            f"   ratio {np.median(ratios):.2f}   {ratios.min():.2f} to {ratios.max():.2f}"
        )
    append("start.jsonl", {"machine": machine(Config()), "seconds": times})
    return 0


def _work(scratch: Path, with_flower: bool) -> dict[str, Callable[[], float]]:
    """What is measured: a function for each command, which returns seconds."""
    images, count = [str(scratch / f"{name}.png") for name in "ab"], iter(range(1_000_000))
    for image in images:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(image)
    small = ["dataset=digits", "num-clients=4", "num-local-epochs=1", f"output-dir={scratch}"]
    done = [*small, "run-name=done", "num-server-rounds=1", "num-finetune-epochs=1", "fraction-train=0.5"]
    _seconds([sys.executable, "-m", "lit_fedbabu.run", *done])
    run = scratch / "done"
    checkpoint = str(run / "checkpoints" / "last.ckpt")

    def ours(*words: str, until: str = "", status: int = 0) -> Callable[[], float]:
        return lambda: _seconds([sys.executable, "-m", "lit_fedbabu", *words], until, status)

    def first_round(engine: str) -> float:
        words = [*small, f"run-name=run{next(count)}", "num-server-rounds=100", f"engine={engine}"]
        return _seconds([sys.executable, "-m", "lit_fedbabu", "run", *words], "round 1/")

    def flwr_run(**variables: str) -> float:
        home, started = scratch / f"home{next(count)}", time.monotonic()
        words = [*small, f"run-name=run{next(count)}", "num-server-rounds=100"]
        for line in lines_of_flwr_run(home, words, variables):
            if "round 1/" in line:
                return time.monotonic() - started
        raise SystemExit("flwr run . never printed 'round 1/'")

    work = {
        f'python -c "{IMPORTS}"': lambda: _seconds([sys.executable, "-c", IMPORTS]),
        "lit-fedbabu run --help": ours("run", "--help"),
        "a refusal: lit-fedbabu run seeed=1": ours("run", "seeed=1", status=2),
        "lit-fedbabu predict of two images": ours("predict", checkpoint, *images),
        "lit-fedbabu finetune, one epoch of one client": lambda: _seconds(
            [
                sys.executable,
                "-m",
                "lit_fedbabu",
                "finetune",
                str(run),
                "--clients",
                "0",
                "--lr",
                f"{next(count) + 1}e-9",
            ]
        ),
        "lit-fedbabu run to its first round": lambda: first_round("local"),
        "the same with engine=ray": lambda: first_round("ray"),
    }
    if with_flower:
        work["the same with engine=flower"] = lambda: first_round("flower")
        work["flwr run . to its first round"] = flwr_run
        work[f"the same with {NO_INSTALLATION}=1"] = lambda: flwr_run(**{NO_INSTALLATION: "1"})
    return work


def _seconds(command: list[str], until: str = "", status: int = 0) -> float:
    """Seconds until a command has printed a line with these words, or has ended with this status."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=told, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        seen = False
        for line in process.stdout or ():
            if until and until in line:
                seen = True
                break
        elapsed = time.monotonic() - started
        if seen:
            process.terminate()
        if process.wait() != status and not seen:
            told.seek(0)
            raise SystemExit(f"{command} failed: {told.read()}")
        if until and not seen:
            raise SystemExit(f"{command} never printed {until!r}")
    return elapsed if until else time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
