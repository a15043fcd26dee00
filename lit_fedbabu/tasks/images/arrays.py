"""Decoded images in files, which are written by several threads and then mapped by all processes."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import numpy as np

from lit_fedbabu.ground.files import naming
from lit_fedbabu.ground.printing import is_live, say, waiting
from lit_fedbabu.ground.system import available_cores
from lit_fedbabu.tasks.images.columns import Numbers
from lit_fedbabu.tasks.images.decoding import Pixels, quiet_pillow, with_channels

T = TypeVar("T")
AT_ONCE, AHEAD = 16, 4
"""Images that a thread decodes before it takes others, and how many such works wait for each thread."""
QUICK_S, EVERY_S = 1.0, 30.0
"""Seconds after which a person is told that images are decoded, and between two lines where there is no bar."""


class ImageFiles:
    """Files of NumPy, each with an array (N, size, size, C) of uint8, whose images are written in any order.

    They have one channel if all images that were written are grey, and else three.

    Args:
        folder: where a file NAME_images.npy is made for each.
        size: height and width in pixels.
        counts: the number of images in each file, by its name.
    """

    def __init__(self, folder: Path, size: int, counts: Mapping[str, int]) -> None:
        self._places = {name: folder / f"{name}_images.npy" for name in counts}
        self._shapes = {name: (count, size, size, 3) for name, count in counts.items()}
        self._files: dict[str, tuple[BinaryIO, int]] = {}
        self._coloured = False
        self.digests = {name: np.zeros(count, dtype=np.int64) for name, count in counts.items()}
        """Of the pixels of each image: equal images have equal ones."""

    def __enter__(self) -> Self:
        for name, place in self._places.items():
            self._files[name] = begun(place, self._shapes[name])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file, _ in self._files.values():
            file.close()
        if kind is None and not self._coloured:
            for place in self._places.values():
                _keep_one_channel(place)

    def write(self, name: str, row: int, image: Pixels) -> None:
        """Write an image (size, size, C) to its row of a file; threads may do so side by side."""
        if image.shape[-1] == 3:
            self._coloured = True
        file, start = self._files[name]
        content = with_channels(image, 3).tobytes()
        self.digests[name][row] = digest_of(content)
        with naming(self._places[name]):
            write_at(file, start + row * len(content), content)

    def read(self, name: str) -> Pixels:
        """The array in a file, mapped from disk."""
        array: Pixels = np.load(self._places[name], mmap_mode="r")
        return array


def side_by_side(work: Callable[[T], None], items: Iterable[T], done: Callable[[int], None]) -> None:
    """Do a work for every item, on all cores: Pillow decodes and resizes without Python's lock.

    Of items that cannot be worked on the first one in their order raises its error.

    Args:
        work: for one item.
        items: are taken as they are needed.
        done: is told how many more are done.
    """

    def every(some: list[T]) -> int:
        for item in some:
            work(item)
        return len(some)

    waiting: deque[Future[int]] = deque()
    threads = available_cores()
    source = iter(items)
    with quiet_pillow(), ThreadPoolExecutor(threads) as pool:
        try:
            while some := list(islice(source, AT_ONCE)):
                waiting.append(pool.submit(every, some))
                if len(waiting) >= AHEAD * threads:
                    done(waiting.popleft().result())
            while waiting:
                done(waiting.popleft().result())
        finally:
            for each in waiting:
                each.cancel()


@contextmanager
def told(what: str, count: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more are done, and shows a person what takes more than a second.

    On a terminal this is a bar, else a line now and then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = None
    console = Console()
    if is_live(sys.stdout) and console.is_terminal:
        columns = TextColumn(what, markup=False), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn()
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task(what, total=count)
    finished, begun, spoken = 0, time.monotonic(), QUICK_S - EVERY_S

    def done(more: int) -> None:
        nonlocal finished, spoken
        finished += more
        seconds = time.monotonic() - begun
        if bar is not None:
            bar.update(task, completed=finished)
            if seconds > QUICK_S:
                bar.start()
        elif seconds - spoken > EVERY_S and finished < count:
            spoken = seconds
            left = timedelta(seconds=round(seconds / finished * (count - finished)))
            say(f"{what}: {finished} of {count}, {left} left")

    try:
        with nullcontext() if bar is None else waiting(""):
            yield done
    finally:
        if bar is not None:
            bar.stop()


def digest_of(pixels: bytes) -> int:
    """A number of 64 bits that equal pixels have in common; it is not 0."""
    return int.from_bytes(blake2b(pixels, digest_size=8).digest(), signed=True) or 1


def write_at(file: BinaryIO, start: int, content: bytes) -> None:
    """Write all of the content at a place of a file; threads may do so side by side."""
    left = memoryview(content)
    while left:
        written = os.pwrite(file.fileno(), left, start)
        left, start = left[written:], start + written


def begun(place: Path, shape: tuple[int, ...], kind: str = "|u1") -> tuple[BinaryIO, int]:
    """A new file with the head of an array, of uint8 if nothing else is said, and where the array begins."""
    file = place.open("wb")
    with naming(place):
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        file.flush()
    return file, file.tell()


def save(place: Path, values: Numbers) -> None:
    """Write an array as ``np.save`` does, which of a full disk says neither that nor which file it was."""
    file, _ = begun(place, values.shape, values.dtype.str)
    with naming(place), file:
        file.write(np.ascontiguousarray(values).data)


def _keep_one_channel(place: Path) -> None:
    images = np.load(place, mmap_mode="r")
    scratch = place.with_suffix(".grey")
    file, _ = begun(scratch, (*images.shape[:-1], 1))
    with naming(place), file:
        for start in range(0, len(images), 256):
            file.write(images[start : start + 256, ..., :1].tobytes())
    scratch.replace(place)
