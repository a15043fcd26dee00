"""Federated averaging of what clients trained, and which updates cannot be averaged."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from lit_fedbabu.wire import Arrays, ClientUpdate


def average(updates: Sequence[tuple[int, Arrays]], arrays: Mapping[str, Array]) -> ArrayRecord:
    """The mean of shared arrays, weighted by training images (McMahan et al. 2017, Algorithm 1).

    Sums are in float64 and in the order of the updates, so the result does not depend on who answered first.

    Args:
        updates: training images and arrays of one client or more.
        arrays: what the updates were trained from, with the names, shapes and types of the result.
    """
    total = sum(count for count, _ in updates)

    def mean(name: str, array: Array) -> npt.NDArray[Any]:
        weighted = sum(count * trained[name].astype(np.float64) for count, trained in updates)
        return np.asarray(weighted / total).astype(array.dtype)  # counts of batches are 0-d

    return ArrayRecord({name: Array(mean(name, array)) for name, array in arrays.items()})


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of shared arrays, equal exactly if their names, types, shapes and bits are."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        value = array.numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + value.tobytes())
    return digest.hexdigest()


def rejection_reason(update: ClientUpdate, arrays: Mapping[str, Array]) -> str:
    """Why an update of these arrays cannot be averaged; empty if it can."""
    expected = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
    found = {name: (value.shape, str(value.dtype)) for name, value in update.arrays.items()}
    if found != expected:
        return f"sent {found}, but the model has {expected}"
    if not all(np.isfinite(value).all() for value in [np.asarray(update.train_loss), *update.arrays.values()]):
        return "its weights or its loss are not finite; a lower learning-rate may help"
    return ""
