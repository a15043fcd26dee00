"""How long a client trains."""

import math


def steps_of(batches: int, epochs: float, steps: int = 0) -> int:
    """The mini-batches that a client trains on.

    Args:
        batches: of an epoch.
        epochs: a fraction is the first batches of an epoch, rounded up.
        steps: mini-batches in place of the epochs; 0: the epochs.
    """
    return steps or math.ceil(epochs * batches - 1e-9)
