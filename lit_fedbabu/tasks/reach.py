"""Whether the Hugging Face hub can be reached, and its libraries without it."""

import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 5
"""Seconds in which the hub must answer."""


def answers() -> bool:
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
def offline() -> Iterator[None]:
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
