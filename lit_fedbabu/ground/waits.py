"""How long to wait between two looks for what comes at some time."""

from collections.abc import Iterator

FIRST_S, GROWTH, LONGEST_S = 0.1, 1.2, 3.0


def growing() -> Iterator[float]:
    """Seconds, each a fifth longer than the last, up to Flower's 3: what comes soon is seen soon, at few looks."""
    wait_s = FIRST_S
    while True:
        yield wait_s
        wait_s = min(LONGEST_S, wait_s * GROWTH)
