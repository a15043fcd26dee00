"""``make bench-decoding``: images decoded in a second, and what memory that takes, beside a plain loop of Pillow."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.setting import append, machine
from lit_fedbabu.config import Config
from lit_fedbabu.ground import system

SHAPE = (320, 240)
"""Width and height in pixels of the files, which are JPEG of quality 90, of clouds of colour with some noise."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--count", type=int, default=2_000, help="images")
    parser.add_argument("--size", type=int, default=224, help="the option image-size")
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is measured, in turns")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_measured(*arguments.child, arguments.size)))
        return 0
    ways = {"a plain loop": 1, "ours, one core": 1, "ours, all cores": system.available_cores()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="lfb-") as scratch:
        folder = photographs(Path(scratch) / "photographs", arguments.count)
        for turn in range(arguments.repeats):
            for way, cores in ways.items():
                found = _in_process(way, folder, arguments.size, cores)
                seconds[way].append(found["seconds"])
                memory[way].append(found["MiB"])
            print(f"turn {turn + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
    for way in ways:
        rates, ratios = arguments.count / np.array(seconds[way]), np.divide(seconds["a plain loop"], seconds[way])
        print(
            f"{way:<18}{np.median(rates):8.0f} images a second   {rates.min():.0f} to {rates.max():.0f}"
            f"   ratio {np.median(ratios):.2f}   {ratios.min():.2f} to {ratios.max():.2f}"
            f"   {np.median(memory[way]):6.0f} MiB of its own"
        )
    measured = {"count": arguments.count, "size": arguments.size, "seconds": seconds, "MiB": memory}
    append("decoding.jsonl", {"machine": machine(Config()), **measured})
    return 0


def photographs(folder: Path, count: int) -> Path:
    """So many images in folders of ten classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        clouds = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            SHAPE, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(clouds) + rng.normal(0, 6, (*SHAPE[::-1], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=90)
    return folder


def _in_process(way: str, folder: Path, size: int, cores: int) -> dict[str, float]:
    """What a process with so many cores and an empty cache measured."""
    with tempfile.TemporaryDirectory(prefix="lfb-") as cache:
        command = [sys.executable, "-m", "benchmarks.decoding", "--size", str(size), "--child", way, str(folder)]
        own = sorted(os.sched_getaffinity(0))[:cores]
        done = subprocess.run(
            command, env={**os.environ, "XDG_CACHE_HOME": cache}, check=True, capture_output=True, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, own),
        )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(way: str, folder: str, size: int) -> dict[str, float]:
    """Seconds of the work, and by how much the memory of this process, without files that it maps, grew at most."""
    import datasets  # noqa: F401 - takes seconds, which are no decoding

    from lit_fedbabu.tasks.images import sources

    peak, ended = [start := _own_memory()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], _own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.monotonic()
    if way == "a plain loop":
        paths = sorted(Path(folder).rglob("*.jpg"))
        images = [
            np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            for path in paths
        ]
        assert len(np.stack(images)) == len(paths)
    else:
        sources.load(folder, size=size)
    seconds = time.monotonic() - begun
    ended.set()
    watcher.join()
    return {"seconds": seconds, "MiB": (peak[0] - start) / 2**10}


def _own_memory() -> int:
    """KiB of anonymous memory."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
