"""Which updates of clients cannot be averaged."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array

from lit_fedbabu.ground.errors import some
from lit_fedbabu.protocol.wire import ClientUpdate
from lit_fedbabu.training.privacy import update_norm

HIGHEST = 2.0**62
"""The largest absolute weight that is averaged: its square is finite in float32."""
FAR = 5.0
"""An update this many times as long as those that most clients send is left out; see ``outliers``."""


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of shared arrays, equal exactly if their names, types, shapes and bits are."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        value = array.numpy()
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + value.tobytes())
    return digest.hexdigest()


def misstatement(update: ClientUpdate, num_train: int | None, may_see_none: bool) -> str:
    """Why what a client says of its training cannot be true; empty if it can.

    Args:
        update: what it sent.
        num_train: its training samples, where they are known.
        may_see_none: whether it may have trained on no sample, so that there is no loss.
    """
    if math.isnan(update.train_loss) and not may_see_none:
        return "its training loss is nan, which is not finite; a lower learning-rate may help"
    if num_train and update.num_train != num_train:
        return f"says that it has {update.num_train} training samples, and it has {num_train}"
    return ""


def mean_loss(updates: Sequence[ClientUpdate]) -> float:
    """The mean training loss in nats, by training samples, of the clients that have one; nan where none has."""
    known = [update for update in updates if not math.isnan(update.train_loss)]
    count = sum(update.num_train for update in known)
    return sum(update.num_train * update.train_loss for update in known) / count if count else math.nan


def rejection_reason(update: ClientUpdate, arrays: Mapping[str, Array]) -> str:
    """Why an update of these arrays cannot be averaged; empty if it can.

    Args:
        update: what a client sent.
        arrays: what it was trained from.
    """
    expected = {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}
    found = {name: (value.shape, str(value.dtype)) for name, value in update.arrays.items()}
    if found != expected:
        odd = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
        sent, has = (
            some(f"{name[:200]} {of[name]}" for name in sorted(odd & of.keys())) or "no such"
            for of in (found, expected)
        )
        return f"sent {sent}, but the model has {has}"
    largest = [_largest(value) for value in update.arrays.values()]
    if not np.isfinite(largest).all():
        return "its weights are not finite; a lower learning-rate may help"
    if max(largest, default=0) > HIGHEST:
        return f"it has weights above {HIGHEST:.1e}; a lower learning-rate may help"
    return ""


def _largest(array: npt.NDArray[Any]) -> float:
    """The largest absolute value; nan where one is not a number."""
    return float(max(array.max(), -float(array.min()))) if array.size else 0.0


def outliers(updates: Sequence[ClientUpdate], arrays: Mapping[str, Array], per_sample: bool) -> dict[int, str]:
    """Clients whose update is too long to be averaged with the others', and by how much.

    Of n clients a quarter, at least one, may send any update: the others' longest is the measure, and an update is too
    long that is more than ``FAR`` times as long. With ``per_sample``, as where a client with more samples takes more
    steps, it must also be so much longer for each of its samples. Of fewer than three clients nobody can say who is far
    from whom. In honest runs of methods whose clients keep nothing (digits with two classes a client, 40 rounds; noise,
    12 rounds of 4 epochs; 3 to 10 clients, momentum 0.9), the longest update was 2.3 times as long as this measure; in
    FedRep's it was 19 times as long. Splits of very unequal sizes were not measured.
    """
    if len(updates) < 3:
        return {}
    moved = [name for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)]
    received = [arrays[name].numpy() for name in moved]
    norms = np.array([update_norm([update.arrays[name] for name in moved], received) for update in updates])
    counts = np.array([update.num_train for update in updates]) if per_sample else 1
    times = np.minimum(*(_of_longest(lengths, max(1, len(updates) // 4)) for lengths in (norms, norms / counts)))
    return {update.client: f"{much:.3g}" for update, much in zip(updates, times, strict=True) if much > FAR}


def _of_longest(lengths: npt.NDArray[Any], free: int) -> npt.NDArray[Any]:
    """Lengths as multiples of the longest one after so many that are free."""
    longest = np.sort(lengths)[-1 - free]
    return lengths / longest if longest > 0 else np.zeros(len(lengths))
