"""Whether the Hugging Face hub can be reached, and its libraries without it."""

import contextlib
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 5
"""Seconds in which the hub must answer."""


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def answers() -> bool:
    """Whether the hub answers at all, known after TIMEOUT_S seconds even where packets are dropped."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=TIMEOUT_S).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return answered.is_set()


@contextlib.contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """While it lasts, the Hugging Face libraries use their caches alone, if that is wanted."""
    import huggingface_hub.constants

    loaded = (huggingface_hub.constants, sys.modules.get("datasets.config"))
    places: list[Any] = [place for place in loaded if wanted and place is not None]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
