"""What the benchmarks share: images of noise, a run to watch, and words for the machine."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from lit_fedbabu.config import Config
from lit_fedbabu.engines import superlink
from lit_fedbabu.ground import system
from lit_fedbabu.learning.precision import trains_on

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
"""The variable by which a SuperLink of Flower installs no packages for a run."""


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


def lines_of_flwr_run(home: Path, words: Sequence[str], variables: Mapping[str, str]) -> Iterator[str]:
    """What ``flwr run .`` prints here with these options; it is ended with the last line that is asked for.

    Args:
        home: an empty folder for Flower.
        words: options, as in ``num-clients=4``.
        variables: of the environment.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    port = str(superlink.free_port())
    environment = {**os.environ, "PATH": path, "FLWR_HOME": str(home), "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port}
    pairs = (word.split("=") for word in words)
    options = " ".join(f"{key}={value}" if value.isdecimal() else f'{key}="{value}"' for key, value in pairs)
    command = [system.program("flwr"), "run", str(ROOT), "--stream", "--run-config", options]
    with subprocess.Popen(
        command, env=environment | dict(variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as stream:
        try:
            yield from stream.stdout or ()
        finally:
            stream.terminate()
            superlink.end_all(home)
