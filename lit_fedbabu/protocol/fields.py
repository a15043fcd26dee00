"""Fields of what others send: each is read with its type and its limits, before anything is allocated for it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, RecordDict

from lit_fedbabu.protocol.handshake import WireError, checked_record

MOST_SAMPLES = 10**8
"""Training or test samples that a client may say it has."""
LARGEST = 1e30
"""The largest absolute value of a loss or another measure: its square is finite, and so is its float32."""
LONGEST = {"reason": 2_000, "traceback": 20_000}
"""Characters of a client's words that are kept."""
HEADER = 1_000
"""Bytes of the largest header of an array; those that NumPy writes have 118."""


def decoded(name: str, array: Array) -> npt.NDArray[Any]:
    """An array of a message, whose bytes are as many as its header says.

    Raises:
        WireError: they are no NumPy array, or not that many.
    """
    data = array.data
    try:
        if array.stype != "numpy.ndarray":
            raise ValueError(f"of the type {array.stype[:50]!r}")
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_columns, dtype = header(file, max_header_size=HEADER)
        start, claimed = file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject or claimed != len(data) - start:
            raise ValueError(f"of {len(data) - start} bytes, and its header claims {claimed}")
        values = np.frombuffer(data, dtype, offset=start) if claimed else np.empty(0, dtype)
        return values.reshape(shape, order="F" if by_columns else "C").copy(order="C")  # which may be written to
    except Exception as error:  # a header can be anything
        why = " ".join(str(error).split())[:200]
        raise WireError(f"a message whose array {name[:200]!r} is no whole NumPy array ({why})") from None


def rows_of(content: RecordDict, name: str, *keys: str) -> list[tuple[Any, ...]]:
    """For each client the values under the keys, of which the first is its number; raises WireError."""
    if not checked_record(content, name):
        return []
    record = checked_record(content, name, *keys)
    columns = [record[key] for key in keys]
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        raise WireError(f"a message whose {name!r} has not one value of each of {', '.join(keys)[:200]} per client")
    if not all(is_whole(client, 0) for client in columns[0]):
        raise WireError(f"a message whose {name!r} has clients that are no whole numbers")
    return list(zip(*columns, strict=True))


def each_once(clients: Sequence[int]) -> None:
    """Raise WireError where a client is there twice."""
    if len(set(clients)) < len(clients):
        raise WireError("a message that speaks of a client twice")


def is_whole(value: object, least: int = 1, most: int = 2**62) -> bool:
    """Whether it is a whole number within these limits, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def text(kind: str, value: object) -> str:
    """Words of a client, as long as ``LONGEST`` lets them be; raises WireError where it is no text."""
    if not isinstance(value, str):
        raise WireError(f"a message with a {kind} that is no text")
    longest = LONGEST[kind]
    return value if len(value) <= longest else f"{value[: longest // 3]} … {value[-2 * longest // 3 :]}"


def training_problem(count: object, loss: object) -> str:
    """Why these cannot be a client's number of training samples and its mean loss in nats; empty if they can.

    The loss is not a number where a client saw no sample, as can be by chance with privacy of samples.
    """
    if not is_whole(count, 1, MOST_SAMPLES):
        return f"says that it has {str(count)[:50]} training samples; that must be a whole number, 1 to {MOST_SAMPLES}"
    if not isinstance(loss, int | float) or abs(loss) > LARGEST:
        return f"its training loss is {str(loss)[:50]}, too large or not finite; a lower learning-rate may help"
    return ""
