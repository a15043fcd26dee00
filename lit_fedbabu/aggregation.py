"""What clients trained, and its mean: federated averaging of whatever they share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord


class Update(NamedTuple):
    """What a client trained: its number, its training images, its mean loss in nats, and its shared arrays."""

    client: int
    count: int
    loss: float
    state: dict[str, np.ndarray]


def average(updates: Sequence[Update], arrays: Mapping[str, Array]) -> tuple[ArrayRecord, float]:
    """The mean of shared arrays and of losses, weighted by training images (McMahan et al. 2017, Algorithm 1).

    The sums are in float64 and in the order of the updates, so the result does not depend on who answered first.

    Args:
        updates: one or more.
        arrays: what the updates were trained from, which says names and types.
    """
    total = sum(update.count for update in updates)

    def mean(name: str, array: Array) -> np.ndarray:
        weighted = sum(update.count * update.state[name].astype(np.float64) for update in updates)
        return np.asarray(weighted / total).astype(array.dtype)  # counts of batches are 0-d

    averaged = ArrayRecord({name: Array(mean(name, array)) for name, array in arrays.items()})
    return averaged, sum(update.count * update.loss for update in updates) / total


def fault(update: Update, arrays: Mapping[str, Array]) -> str:
    """Why an update of these arrays cannot be averaged; empty if it can."""
    expected = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
    found = {name: (value.shape, str(value.dtype)) for name, value in update.state.items()}
    if found != expected:
        return f"sent {found}, but the model has {expected}"
    if not all(np.isfinite(value).all() for value in (update.loss, *update.state.values())):
        return "its weights or its loss are not finite; a lower learning-rate may help"
    return ""
