"""Where the arrays of a round's updates wait until all have come: in memory, and beyond that in a file."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from lit_fedbabu.protocol.wire import Arrays, TrainReply

IN_MEMORY = 64 * 2**20
"""Bytes of a round's updates that stay in memory."""
LEAST = 2**16
"""Bytes of the smallest array that goes into the file."""

T = TypeVar("T")


class Lazy(Mapping[str, T]):
    """A mapping whose values are made whenever they are asked for, and not kept.

    Args:
        names: its keys, in order.
        made: gives the value of a name.
    """

    def __init__(self, names: Iterable[str], made: Callable[[str], T]) -> None:
        self._names = dict.fromkeys(names)
        self._made = made

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Park:
    """Keeps the updates of one round. Its file has no name, so that nothing is left of it.

    Args:
        folder: that the file lies in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._held = 0

    def __call__(self, reply: TrainReply) -> TrainReply:
        """The same reply, whose arrays may be in the file."""
        updates = [dataclasses.replace(update, arrays=self._kept(update.arrays)) for update in reply.updates]
        return TrainReply(updates, reply.failures)

    def _kept(self, arrays: Arrays) -> Arrays:
        self._held += sum(array.nbytes for array in arrays.values())
        if self._held <= IN_MEMORY:
            return arrays
        self._file = file = self._file or tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - ends with the park
        small = {name: array for name, array in arrays.items() if array.nbytes < LEAST}
        places = dict[str, tuple[np.dtype[Any], int, tuple[int, ...]]]()
        for name in arrays.keys() - small.keys():
            array = np.ascontiguousarray(arrays[name])
            places[name] = array.dtype, file.seek(0, 2), array.shape
            file.write(array.data)
        file.flush()

        def read(name: str) -> npt.NDArray[Any]:
            if name in small:
                return small[name]
            dtype, start, shape = places[name]
            return np.memmap(file, dtype, "c", start, shape).view(np.ndarray)  # changes stay in memory

        return Lazy(arrays, read)
