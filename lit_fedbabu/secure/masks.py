"""Whole numbers modulo 2^32: how an update becomes such numbers, the masks on them, and the mean of their sum.

Flower's primitives make keys, shared keys and shares of secrets. Its masks and its quantization are not used: its
generator (``secaggplus_utils.pseudo_rand_gen``) starts from 32 bits, which anyone can try, and its quantization draws
random numbers, so that no sum repeats.
"""

from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

Numbers = npt.NDArray[np.uint32]
LEVELS = 2**30
"""What ``quantization-range`` becomes where a client has all of the weight: half of what a sum may be, so that a sum of
masks that do not cancel is seen."""


def stream(key: bytes, count: int) -> Numbers:
    """So many numbers from a key of 32 bytes: the key stream of AES-256 in counter mode from zero.

    A key makes one stream alone, so the counter may begin at zero each time.
    """
    zeros = bytes(4 * count)
    return np.frombuffer(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(zeros), "<u4")


def key_of_pair(private: bytes, public: bytes) -> bytes:
    """The 32 bytes that two clients have in common, by the private key of one and the public key of the other (PEM)."""
    return urlsafe_b64decode(generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public)))


def flat(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Arrays as one vector (D,), in the order of their names."""
    return np.concatenate([np.ravel(arrays[name]).astype(np.float64) for name in sorted(arrays)])


def quantized(update: npt.NDArray[np.float64], weight: int, total: int, limit: float) -> Numbers:
    """Whole numbers for an update (D,): ``update * weight / total`` in steps of ``limit / LEVELS``, to the nearest.

    Clients whose weights add up to no more than ``total`` have a sum of at most LEVELS and half a step for each.

    Raises:
        ValueError: a number is larger than the limit, or not finite; or the weight is not between 1 and the total.
    """
    if not 1 <= weight <= total:
        raise ValueError(f"nothing is sent: its weight is {weight}, and that of all clients is said to be {total}")
    largest = float(np.abs(update).max(initial=0.0))
    if not largest <= limit:
        why = f"its update moves a weight by {largest:.4g}, and quantization-range is {limit:g}"
        raise ValueError(f"nothing is sent: {why}; take a larger one, or a lower learning-rate")
    return np.rint(update * (weight / total * LEVELS / limit)).astype(np.int64).astype(np.uint32)


def mean(total_of_numbers: Numbers, weights: Iterable[int], total: int, limit: float) -> npt.NDArray[np.float64]:
    """The weighted mean of the updates (D,) whose numbers have this sum.

    Args:
        total_of_numbers: the sum of what ``quantized`` gave.
        weights: of the clients in the sum.
        total: what they were quantized with.
        limit: as well.

    Raises:
        ValueError: no updates have this sum.
    """
    weights = list(weights)
    signed = total_of_numbers.astype(np.uint32).view(np.int32).astype(np.int64)
    largest = int(np.abs(signed).max(initial=0))
    if largest > LEVELS * sum(weights) / total + len(weights):
        raise ValueError("the sum is larger than updates can make it: a client sent something else than its update")
    return np.multiply(signed, limit * total / (LEVELS * sum(weights)), dtype=np.float64)
