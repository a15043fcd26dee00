"""``make scale``: what start, rounds and memory cost with 100, 10,000 and 100,000 clients, of whom 10 train in a round.

The clients are writers of images, equal shares of images by their classes, or those of a task. Writers are twice here:
their images are decoded when they are needed, or before a run.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.setting import RESULTS, append, machine, rounds_of
from lit_fedbabu.config import Config
from lit_fedbabu.records import plots

SIZES = (100, 10_000, 100_000)
PARTICIPANTS, IMAGES, PIXELS = 10, 5, 16
"""Of a round; training images of every client, beside one test image; and their height and width. So little training
hides no cost of the clients."""
WRITERS = {"partitioner": "natural-id", "natural_id_column": "writer"}
KINDS = {
    "as needed": {**WRITERS, "normalization": "none"},  # before the next, for decoded images are taken where they are
    "writers": WRITERS,
    "classes": {"partitioner": "classes", "num_classes_per_client": 1},
    "task": {"task": "benchmarks.many:task"},
}
SHOWN = ("start s", "round s", "server MB", "worker MB")
"""Seconds from the command to the first round's beginning, of a second run; of a round; and memory of their own."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        for kind in arguments.kinds:
            for clients in arguments.sizes:
                config = _config(kind, clients, Path(scratch))
                first = next(_runs(config, 1))
                row = {
                    "clients": clients,
                    "first start s": first["start s"],
                    **list(_runs(config, arguments.rounds))[-1],
                }
                found.setdefault(kind, []).append(row)
                print(f"{kind:>8}  " + "  ".join(f"{name} {value:,.6g}" for name, value in row.items()), flush=True)
    append("scale.jsonl", {"machine": machine(config), "found": found})
    if arguments.sizes == SIZES and len(found) == len(KINDS):
        with plots.style():
            _draw(found).savefig(RESULTS / "scale.png", dpi=200)
    return 0


def _config(kind: str, clients: int, scratch: Path) -> Config:
    options: dict[str, Any] = {
        **KINDS[kind],
        "num_clients": clients,
        "fraction_train": PARTICIPANTS / clients,
        "num_server_rounds": 10_000,
        "evaluate_every": 10_000,
        "precision": "32-true",
        "output_dir": str(scratch),
    }
    if kind != "task":
        options |= {"dataset": str(_writers(scratch / f"of{clients}", clients)), "image_size": PIXELS}
        options |= {"min_client_images": 1}
    return Config(**options)


def _writers(folder: Path, clients: int) -> Path:
    """A dataset of grey noise in ten classes, of which every writer has so many images."""
    if folder.exists():
        return folder
    folder.mkdir()
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10), "writer": datasets.Value("int64")}
    )
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(image) for image in rng.integers(0, 256, (997, 8, 8), dtype=np.uint8)]
    for split, count in (("train", IMAGES), ("test", 1)):
        numbers = range(count * clients)
        rows = {
            "img": [noise[number % len(noise)] for number in numbers],
            "label": [number % 10 for number in numbers],
            "writer": [number // count for number in numbers],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def _runs(config: Config, count: int) -> Iterator[dict[str, float]]:
    """What is known after each round of a run; workers import PyTorch and Lightning in the first."""
    seconds: list[float] = []
    start = 0.0
    for elapsed, of_round, server in rounds_of(config, count):
        seconds.append(of_round)
        start = start or elapsed - of_round
        process = psutil.Process(server)
        workers = [child.memory_full_info().uss for child in process.children(recursive=True)]
        yield {
            "start s": round(start, 2),
            "round s": round(float(np.median(seconds[1:] or seconds)), 3),
            "server MB": round(process.memory_full_info().uss / 1e6, 1),
            "worker MB": round(max(workers) / 1e6, 1),
        }


def _draw(found: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(plots.COLUMN, 5.0))
    for axes, name in zip(figure.subplots(len(SHOWN), 1, sharex=True), SHOWN, strict=True):
        for kind, rows in found.items():
            axes.plot([row["clients"] for row in rows], [row[name] for row in rows], marker="o", label=kind)
        highest = max(row[name] for rows in found.values() for row in rows)
        axes.set(xscale="log", ylim=(0, 1.3 * highest), ylabel=name.replace(" s", " (s)").replace(" MB", " (MB)"))
    axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    axes.minorticks_off()
    axes.set_xlabel(f"clients, of whom {PARTICIPANTS} train in a round")
    figure.axes[0].legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


if __name__ == "__main__":
    sys.exit(main())
