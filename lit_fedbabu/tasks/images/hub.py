"""Datasets of the Hugging Face hub, also where it cannot be reached."""

import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from lit_fedbabu.errors import InputError

TIMEOUT_S = 5
"""Seconds in which the hub must answer."""

SUBSETS = {"ufldl-stanford/svhn": "cropped_digits"}
"""The subset that a hub dataset is read from, where the name does not say it as in "owner/name:subset"."""


def read(dataset: str) -> dict[str, Any]:
    """The splits of a hub dataset by their names, as tables of the ``datasets`` library.

    Args:
        dataset: a hub name "owner/name" or "owner/name:subset".

    Raises:
        InputError: the hub cannot be reached and has nothing cached, or the dataset cannot be loaded.
    """
    reachable = _answers()
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    name, _, subset = dataset.partition(":")
    try:
        with contextlib.nullcontext() if reachable else _offline():
            return dict(load_dataset(name, subset or SUBSETS.get(name)))
    except Exception as error:  # datasets raises many kinds, from its own and its dependencies' modules
        if not reachable:
            raise InputError(
                "dataset",
                dataset,
                "is no folder here, and the hub cannot be reached and nothing is cached; three ways out: a network,"
                ' dataset="<local folder>", or dataset="digits"',
            ) from None
        raise InputError("dataset", dataset, f"cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def _answers() -> bool:
    """Whether the hub answers at all, known after TIMEOUT_S seconds even where packets are dropped."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answered = threading.Event()
    asked = time.monotonic()

    def ask() -> None:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=TIMEOUT_S).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    import datasets  # noqa: F401 - takes seconds, in which the hub may answer

    thread.join(max(0.0, asked + TIMEOUT_S - time.monotonic()))
    return answered.is_set()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let the Hugging Face libraries use their caches alone, for as long as this lasts."""
    import datasets
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
