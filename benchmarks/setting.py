"""What the benchmarks share: images of noise, a run to watch, and words for the machine."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from lit_fedbabu.config import Config
from lit_fedbabu.ground import system
from lit_fedbabu.learning.precision import trains_on

RESULTS = Path(__file__).parent / "results"


def noise(folder: Path, train: int, test: int) -> Path:
    """A dataset of noise in CIFAR-10's shape, with so many training and test images of ten classes."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    folder.mkdir()
    datasets.disable_progress_bars()
    for split, count in (("train", train), ("test", test)):
        images = [Image.fromarray(image) for image in rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)]
        rows = {"img": images, "label": [index % 10 for index in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def rounds_of(config: Config, count: int) -> Iterator[tuple[float, float, int]]:
    """Each of the first rounds of a run, which is then stopped: seconds since the start, seconds, and the process."""
    words = [f"{key}={json.dumps(value)}" for key, value in config.to_run_config().items()]
    started = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "lit_fedbabu.run", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        for line in run.stdout:
            if found := re.match(r"round (\d+)/\d+ .*?([\d.]+) s ", line):
                yield time.monotonic() - started, float(found[2]), run.pid
                if int(found[1]) == count < config.num_server_rounds:
                    return
        if run.wait():
            raise SystemExit("the run failed")
    finally:
        run.terminate()
        run.wait()


def machine(config: Config) -> dict[str, Any]:
    """What the numbers were measured on, in which precision, and when."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": system.available_cores(),
        "trains on": trains_on(config.precision),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def append(name: str, measured: dict[str, Any]) -> None:
    """Add a line to a file of the results."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("a") as file:
        file.write(json.dumps(measured) + "\n")
    print(f"appended to {RESULTS / name}")
