"""All arrays of a record as one, for real nodes: Flower carries every array in several requests of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from lit_fedbabu.protocol.fields import is_whole
from lit_fedbabu.protocol.handshake import WireError

LAYOUT = " layout"
"""Ends the name of the record that says which arrays were packed into the record of the same name."""
PACKED, NUMPY = "packed", "numpy.ndarray"
"""Types of an array: with the bytes of others, and of those others."""


def pack(messages: Iterable[Message]) -> None:
    """Let messages have one array for all arrays of a record, and beside it a record of how they lie in it.

    Messages that share a record share what it becomes, which Flower then sends to the SuperLink once.
    """
    known: dict[int, tuple[ArrayRecord, ArrayRecord, ConfigRecord]] = {}
    for message in messages:
        content = message.content
        for name, record in list(content.array_records.items()):
            if len(record) > 1 and all(array.stype == NUMPY for array in record.values()):
                if id(record) not in known:
                    known[id(record)] = record, *_packed(record)
                content[name], content[name + LAYOUT] = known[id(record)][1:]


def unpack(content: RecordDict) -> bool:
    """Let a content have the arrays that were packed; returns whether there were any.

    Raises:
        WireError: a layout is not that of its array.
    """
    layouts = [name for name in content.config_records if name.endswith(LAYOUT)]
    for name in layouts:
        content[name.removesuffix(LAYOUT)] = _unpacked(content, name)
        del content[name]
    return bool(layouts)


def _packed(record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord]:
    data = b"".join(array.data for array in record.values())
    layout: dict[str, Any] = {
        "name": list(record),
        "dtype": [array.dtype for array in record.values()],
        "shape": [",".join(map(str, array.shape)) for array in record.values()],
        "size": [len(array.data) for array in record.values()],
    }
    return ArrayRecord({PACKED: Array("uint8", (len(data),), PACKED, data)}), ConfigRecord(layout)


def _unpacked(content: RecordDict, name: str) -> ArrayRecord:
    layout = content.config_records[name]
    arrays: dict[str, Array] = {}
    start = 0
    try:
        data = content.array_records[name.removesuffix(LAYOUT)][PACKED].data
        columns: list[Any] = [layout[key] for key in ("name", "dtype", "shape", "size")]
        for own, dtype, shape, size in zip(*columns, strict=True):
            if not is_whole(size, 0) or own in arrays:
                raise ValueError(f"the array {str(own)[:50]!r} is there twice, or of {str(size)[:50]} bytes")
            axes = tuple(map(int, shape.split(","))) if shape else ()
            arrays[own] = Array(dtype, axes, NUMPY, data[start : start + size])
            start += size
        if start != len(data):
            raise ValueError(f"it has {start} bytes and its array {len(data)}")
        return ArrayRecord(arrays)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # fields can be anything
        why = " ".join(str(error).split())[:200]
        raise WireError(f"a message whose {name[:200]!r} is not that of its arrays ({why})") from None
