"""Images that are decoded when they are first needed: where the encoded ones are, and which are decoded by now."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.files import naming, write_whole
from lit_fedbabu.tasks.images.arrays import begun, digest_of, save, side_by_side, told, write_at
from lit_fedbabu.tasks.images.columns import Numbers
from lit_fedbabu.tasks.images.decoding import Pixels, decode, with_channels
from lit_fedbabu.tasks.images.table_files import FileTable, MemoryTable, SomeRows

ENCODED = "encoded.json"
"""The file that says where the encoded images of each split are."""
LOOKED_AT = 256
"""Images of each split, drawn by a fixed seed, that are decoded at once to see whether there are colours."""
PIECE = 1000, 16_000_000
"""Images, and bytes of images, of which one or the other are copied at a time."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The images of a table as they are in their files, from which each can be read without the others.

    Args:
        dataset: the name that errors give it.
        split: the name of the table.
        column: with the images.
        mode: a mode of Pillow that images are converted to before, if any.
        files: streams of Arrow with that column, one after another, and of each its size in bytes and time in ns.
    """

    dataset: str
    split: str
    column: str
    mode: str | None
    files: Sequence[tuple[str, list[int]]]

    @cached_property
    def images(self) -> Any:
        """The column, mapped from disk.

        Raises:
            RunError: a file is gone, or is not as it was.
        """
        import pyarrow as pa

        chunks = []
        for file, facts in self.files:
            if not os.path.exists(file) or _facts(file) != facts:
                raise RunError(f"{file}: these images are gone or changed; start again, after lit-fedbabu data --clean")
            chunks += pa.ipc.open_stream(pa.memory_map(file)).read_all()[self.column].chunks
        return pa.chunked_array(chunks)

    def decode(self, row: int, size: int, channels: int = 3) -> Pixels:
        """The image in a row, as of ``decoded``.

        Raises:
            InputError: it cannot be read, its file is another one than before, or it has more channels.
        """
        image, where = self.images[row].as_py(), f"row {row} of column {self.column}"
        if isinstance(image, dict) and isinstance(path := image.get("path"), bytes):
            where = image["path"] = os.fsdecode(path)
            if _changed(path) not in (None, image["changed"]):
                remedy = f"{where} has changed since the images were listed; begin a new run"
                raise InputError("dataset", self.dataset, remedy)
        pixels = decoded(image, self.mode, size, self.dataset, self.split, where)
        if pixels.shape[-1] > channels:
            remedy = f"an image of its split {self.split!r} has colours, and those looked at before are grey: {where};"
            remedy += " decode all by lit-fedbabu data with normalization=data, and begin a new run"
            raise InputError("dataset", self.dataset, remedy)
        return pixels


class Undecoded:
    """Decodes images of a split into its array on disk, each when it is first needed.

    Any number of processes may do so, and any of them may be killed: an image is there when its digest is, and a
    process trusts it when the pixels that it sees have that digest.

    Args:
        folder: of the dataset in the cache, as of ``begin``.
        name: "train" or "test".
    """

    def __init__(self, folder: Path, name: str) -> None:
        about = json.loads((folder / ENCODED).read_text())[name]
        files = [(str(folder / file), facts) for file, facts in about.pop("files")]
        self._encoded = Encoded(files=files, **about)
        self._place, self._digest_place = folder / f"{name}_images.npy", folder / f"{name}_decoded.npy"
        self._images, self._digests = (np.load(each, mmap_mode="r") for each in (self._place, self._digest_place))
        self._rows = np.load(folder / f"{name}_rows.npy", mmap_mode="r")
        self._there = np.zeros(len(self._rows), dtype=bool)

    def need(self, images: Numbers, done: Callable[[int], None] = lambda _: None) -> None:
        """Decode those of these images (N,) that are not decoded yet.

        Args:
            images: their numbers in the split.
            done: is told how many more are there.

        Raises:
            InputError: one cannot be read, or is coloured where all that were looked at before are grey.
            RunError: the files of the dataset are gone or changed.
        """
        missing = np.unique(images[~self._there[images]])
        if not len(missing):
            return
        size, _, channels = self._images.shape[1:]
        with (
            naming(self._place), self._place.open("r+b") as array,
            naming(self._digest_place), self._digest_place.open("r+b") as digests,
        ):  # fmt: skip

            def decode_one(image: int) -> None:
                if self._is_there(image):
                    return
                found = self._encoded.decode(int(self._rows[image]), size, channels)
                pixels = with_channels(found, channels).tobytes()
                with naming(self._place):
                    write_at(array, self._images.offset + image * len(pixels), pixels)
                digest = np.array(digest_of(pixels), "<i8").tobytes()
                with naming(self._digest_place):
                    write_at(digests, self._digests.offset + image * len(digest), digest)
                if not self._is_there(image):
                    raise RunError(f"{self._place}: what is written there cannot be read back; XDG_CACHE_HOME may help")

            side_by_side(decode_one, missing.tolist(), done)
        self._there[missing] = True

    def _is_there(self, image: int) -> bool:
        known = int(self._digests[image])
        return known != 0 and known == digest_of(self._images[image].tobytes())


def begin(
    dataset: str,
    tables: Mapping[str, Any],
    column: str,
    rows: Sequence[tuple[str, Numbers]],
    size: int,
    folder: Path,
    notes: list[str],
) -> Mapping[str, Pixels]:
    """Make the files of ``Undecoded``, in which no image is decoded yet.

    Args:
        dataset: the name that errors give it.
        tables: the splits by their names.
        column: with the images.
        rows: of "train" and of "test"; of one table, if there is one, and else of one table each.
        size: height and width in pixels.
        folder: for the files.
        notes: gets a line where encoded images are copied.

    Returns:
        The arrays of images by their names. They have one channel if those that are looked at are grey, else three.

    Raises:
        InputError: an image that is looked at cannot be read.
    """
    encoded: list[Encoded] = []
    with told("listing images", sum(len(own) for _, own in rows)) as done:
        for split, table in tables.items():
            files = _mapped_files(table, column) or [str(folder / f"{split}.arrow")]
            if Path(files[0]).parent == folder:
                _copy(encoded_in(table, column), column, Path(files[0]), done)
            mode = getattr(table.features[column], "mode", None)
            encoded.append(Encoded(dataset, split, column, mode, [(file, _facts(file)) for file in files]))
    pairs = [(name, own, encoded[min(place, len(encoded) - 1)]) for place, (name, own) in enumerate(rows)]
    channels = max(_channels(each, own, size) for _, own, each in pairs)
    for name, own, _ in pairs:
        place, shape = folder / f"{name}_images.npy", (len(own), size, size, channels)
        file, start = begun(place, shape)
        with naming(place), file:
            file.truncate(start + int(np.prod(shape)))  # a hole: takes no place on disk
        # Zeros and no hole: marks are read before they are written, and a full tmpfs kills whoever reads a hole.
        save(folder / f"{name}_decoded.npy", np.zeros(len(own), dtype=np.int64))
        save(folder / f"{name}_rows.npy", own)
    about = {name: dataclasses.asdict(each) for name, _, each in pairs}
    for each in about.values():  # the folder gets another name
        each["files"] = [(file.removeprefix(f"{folder}{os.sep}"), facts) for file, facts in each["files"]]
    write_whole(folder / ENCODED, json.dumps(about))
    if copies := sum(path.stat().st_size for path in folder.glob("*.arrow")):
        notes.append(
            f"until they are decoded, the cache has the images or their paths as they were: {copies / 1e6:.1f} MB"
        )
    return {name: np.load(folder / f"{name}_images.npy", mmap_mode="r") for name, *_ in pairs}


def _mapped_files(table: Any, column: str) -> list[str]:
    """The files from which ``datasets`` maps a table; none unless they have all rows, no others, and bytes."""
    import pyarrow as pa

    if isinstance(table, FileTable | MemoryTable | SomeRows):
        return []
    files = [str(each["filename"]) for each in table.cache_files]
    mapped = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in files]
    whole = sum(map(len, mapped)) == len(table) and all(column in each.schema.names for each in mapped)
    return files if whole and all(_are_bytes(chunk) for each in mapped for chunk in each[column].chunks) else []


def _are_bytes(images: Any) -> bool:
    """Whether a chunk of a column has the bytes of every image, and no path in their place."""
    import pyarrow as pa

    values = images.field("bytes") if pa.types.is_struct(images.type) else images
    return (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)) and not values.null_count


def _copy(images: Iterable[Any], column: str, place: Path, done: Callable[[int], None]) -> None:
    """Write images as of ``encoded_in`` into a stream of Arrow: their bytes, else their paths."""
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.binary(), "changed": pa.int64()})
    source = iter(images)
    with naming(place), pa.ipc.new_stream(str(place), pa.schema({column: kind})) as stream:
        while piece := list(_piece(source)):
            stream.write_batch(pa.record_batch([pa.array(piece, kind)], [column]))
            done(len(piece))


def _piece(images: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    """The next images, of which ``PIECE`` says how many."""
    most, left = PIECE
    for image in islice(images, most):
        given = {"bytes": image} if isinstance(image, bytes) else image or {}
        content, path = given.get("bytes"), given.get("path")
        if content is None and path is not None:
            path = os.fsencode(os.path.abspath(path))
            yield {"path": path, "changed": _changed(path)}
        else:
            yield {"bytes": content}
        left -= len(content or b"")
        if left <= 0:
            return


def _facts(file: str) -> list[int]:
    stat = os.stat(file)
    return [stat.st_size, stat.st_mtime_ns]


def _changed(path: bytes) -> int | None:
    """When a file was changed, in ns; None where there is none."""
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return None


def _channels(encoded: Encoded, rows: Numbers, size: int) -> int:
    """3 if one of some images is coloured, else 1."""
    found: set[int] = set()
    looked_at = np.random.default_rng(0).permutation(rows)[:LOOKED_AT]
    side_by_side(lambda row: found.add(encoded.decode(row, size).shape[-1]), sorted(looked_at.tolist()), lambda _: None)
    return max(found)


def decoded(image: Any, mode: str | None, size: int, dataset: str, split: str, where: str) -> Pixels:
    """An image that is bytes, or a mapping of ``bytes`` and ``path``, as ``decode`` gives it."""
    try:
        image = {"bytes": image} if isinstance(image, bytes) else image or {}
        content, path = image.get("bytes"), image.get("path")
        file = path if content is None else content
        if file is None:
            raise ValueError("there is none")
        where = str(file) if content is None else where
        return decode(file, mode, size)
    except ValueError as error:
        remedy = f"an image of its split {split!r} cannot be read: {where}: {error}"
        raise InputError("dataset", dataset, remedy) from None


def encoded_in(table: Any, column: str) -> Any:
    """The images of a table as bytes, or as mappings of ``bytes`` and ``path``."""
    from datasets import Image as ImageFeature

    if isinstance(table, FileTable | MemoryTable | SomeRows) or not isinstance(table.features[column], ImageFeature):
        return table[column]
    return table.cast_column(column, ImageFeature(decode=False))[column]
