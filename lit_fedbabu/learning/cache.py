"""The cache: a folder for each dataset of decoded images, and pretrained weights."""

import os
import shutil
import time
from pathlib import Path

from lit_fedbabu.ground import places

BEING_WRITTEN = ".decoding-"
"""How the name of a folder begins that a process writes."""
WEIGHTS = "weights"
"""The folder of pretrained weights, from which runs are resumed."""
SPLITS = "splits"
"""The folder of splits of many clients."""
ABANDONED_S = 3600
"""Seconds after which such a folder, in which nothing was written, was left by a process that was killed."""


def folder() -> Path:
    """Where the cache is: ``$XDG_CACHE_HOME/lit_fedbabu``, or below ``~/.cache``, or as of ``places.cache``."""
    return places.cache() / "lit_fedbabu"


def note() -> tuple[str, ...]:
    """What a person should know of the cache's place, if anything."""
    base = places.cache()
    if "XDG_CACHE_HOME" in os.environ or base.name == ".cache":
        return ()
    return (f"your home cannot be written to, so decoded images lie in {base}; XDG_CACHE_HOME names another place",)


def clean() -> tuple[list[tuple[str, int]], list[str]]:
    """Remove all decoded datasets.

    Returns:
        Names and bytes of what was removed, and names of what another process is writing, which stays.
    """
    removed, kept = [], []
    for place in sorted(folder().glob("*/")):
        if place.name == WEIGHTS:
            continue
        files = [file for file in place.rglob("*") if file.is_file()]
        newest = max([place.stat().st_mtime, *(file.stat().st_mtime for file in files)])
        if place.name.startswith(BEING_WRITTEN) and time.time() - newest < ABANDONED_S:
            kept.append(place.name)
            continue
        stats = [file.stat() for file in files]
        size = sum(min(each.st_size, 512 * each.st_blocks) for each in stats)  # without holes
        shutil.rmtree(place)
        removed.append((place.name, size))
    return removed, kept
