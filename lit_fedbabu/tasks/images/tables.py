"""A dataset's tables as arrays: its splits, the classes that can be learnt, and what is left out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.ground.files import dataset_folder
from lit_fedbabu.tasks.images import hub, local
from lit_fedbabu.tasks.images.arrays import ImageFiles, side_by_side, told
from lit_fedbabu.tasks.images.clients import LAYOUTS
from lit_fedbabu.tasks.images.columns import Numbers, choose, numbered, refuse_absent
from lit_fedbabu.tasks.images.decoding import Pixels
from lit_fedbabu.tasks.images.folders import TEST_SPLITS
from lit_fedbabu.tasks.images.names import composed, look_alike
from lit_fedbabu.tasks.images.split_column import split_by_column
from lit_fedbabu.tasks.images.undecoded import Undecoded, begin, decoded, encoded_in

HELD_OUT = 5
"""Without a test split, one of so many training images of each class is a test image, drawn by a fixed seed."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split, with their labels.

    Args:
        images: (N, H, W, C) of uint8, grey (C = 1) or RGB (C = 3), mapped from disk.
        labels: (N,) numbers of classes.
        owners: (N,) numbers of the values of ``natural-id-column``, where it was asked for.
        digests: (N,) of the images' pixels: equal ones have equal digests; None where not all are decoded.
        undecoded: decodes images that are not decoded yet; None where all are.
    """

    images: Pixels
    labels: Numbers
    owners: Numbers | None = None
    digests: Numbers | None = None
    undecoded: Undecoded | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A dataset as it is on disk.

    Args:
        train: the training images.
        test: the test images.
        class_names: of the classes that have a training image, by their numbers.
        notes: a line for each kind of file, split or class that is left out.
        owner_names: by the numbers of owners; empty where there are none.
    """

    train: Split
    test: Split
    class_names: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)
    owner_names: list[str] = dataclasses.field(default_factory=list)


def read_tables(
    dataset: str, label_column: str, owner_column: str, size: int, folder: Path, as_needed: bool = False
) -> Decoded:
    """A hub dataset or a folder; arguments as of ``sources.load``, and a folder for the arrays of images.

    Raises:
        InputError: the dataset cannot be read, or its columns or rows are not as they must be.
    """
    notes: list[str] = []
    place = dataset_folder(dataset)
    layout = owner_column if owner_column in LAYOUTS else ""
    tables = hub.read(dataset) if place is None else local.read(dataset, *place, layout, notes)
    if "train" not in tables:
        raise InputError("dataset", dataset, f"has no split train; it has {', '.join(tables)}")
    try:
        image_column, label_column = choose(dataset, tables["train"].features, label_column)
    except InputError as error:
        there = f"; {local.files_of(place[0])}" if place is not None and error.key == "dataset" else ""
        raise InputError(error.key, error.value, error.remedy + there) from None
    if layout and layout not in tables["train"].features:
        remedy = "natural-id needs the dataset's column that says whose an image is, as in natural-id-column=writer_id"
        raise InputError("natural-id-column", "", f"{remedy}; it has {some(tables['train'].features)}")
    refuse_absent("natural-id-column", owner_column, tables["train"].features)
    tables = split_by_column(dataset, tables, (image_column, label_column, owner_column), notes)
    chosen = next((name for name in TEST_SPLITS if name in tables), None)
    used = {name: tables[name] for name in ("train", chosen) if name is not None}
    if unused := sorted(tables.keys() - set(used)):
        sizes = (f"{name} ({_size(tables[name], label_column)})" for name in unused)
        notes.append(f"left out, for they are neither training nor test images: the splits {some(sizes)}")
    for name, table in used.items():
        if missing := {image_column, label_column, owner_column or label_column} - set(table.features):
            raise InputError("dataset", dataset, f"its split {name} has no column {', '.join(sorted(missing))}")
        if not getattr(table.features[image_column], "decode", True):
            remedy = f"its column {image_column} has images that are not to be decoded, from row 0 of split {name} on"
            remedy += f'; use cast_column("{image_column}", Image()) and save it again'
            raise InputError("dataset", dataset, remedy)
    labels, names = numbered(dataset, used, label_column)
    owners: list[Numbers | None] = [None] * len(used)
    owner_names: list[str] = []
    if owner_column:
        found, owner_names = numbered(dataset, used, owner_column, classes=False)
        owners = list(found)
    labels, names = _learnt(dataset, dict(zip(used, labels, strict=True)), names, notes)
    notes += [*look_alike("classes", names), *look_alike("clients", owner_names)]
    rows = [(split, np.arange(len(each))) for split, each in zip(("train", "test"), labels, strict=False)]
    if chosen is None:
        # Folders of clients: some of each client's images of a class, so that every client is tested.
        held_out = hold_out(
            labels[0] if not layout or owners[0] is None else labels[0] + len(names) * owners[0], bool(layout)
        )
        rows = [("train", np.flatnonzero(~held_out)), ("test", np.flatnonzero(held_out))]
        labels, owners = 2 * labels, 2 * owners
    digests: Mapping[str, Numbers] = {}
    if as_needed:
        arrays = begin(dataset, used, image_column, rows, size, folder, notes)
    else:
        arrays, digests = _images(dataset, used, image_column, rows, size, folder)
    train, test = (
        Split(arrays[split], label[own], None if owner is None else owner[own], digests.get(split))
        for (split, own), label, owner in zip(rows, labels, owners, strict=True)
    )
    return Decoded(train, test, names, notes, owner_names)


def _size(table: Any, column: str) -> int:
    """The rows of a table, counted in a column that is quickly read, if it has that."""
    if hasattr(table, "__len__"):
        return len(table)
    return sum(1 for _ in table[column if column in table.features else list(table.features)[-1]])


def _learnt(
    dataset: str, labels: Mapping[str, Numbers], names: list[str], notes: list[str]
) -> tuple[list[Numbers], list[str]]:
    """The labels and names of the classes that have training images, numbered anew; others are refused or noted."""
    for name, each in labels.items():
        if not len(each):
            raise InputError("dataset", dataset, f"its split {name!r} has no images")
    counts = {name: np.bincount(each, minlength=len(names)) for name, each in labels.items()}
    train = counts["train"]
    for split, count in counts.items():
        if unknown := [names[each] for each in np.flatnonzero((train == 0) & (count > 0))]:
            remedy = f"its split {split} has classes that its split train does not have: {some(unknown)}"
            raise InputError("dataset", dataset, remedy)
        if untested := [names[each] for each in np.flatnonzero((train > 0) & (count == 0))]:
            notes.append(f"never tested, for the split {split} has none of their images: the classes {some(untested)}")
    if len(labels) == 1 and (alone := [names[each] for each in np.flatnonzero(train == 1)]):
        remedy = f"has one image of the classes {some(alone)}; without a test split a class needs two or more"
        raise InputError("dataset", dataset, remedy)
    if unnamed := [name for name in names if any(ord(each) < 32 or "\ud800" <= each < "\ue000" for each in name)]:
        raise InputError("dataset", dataset, f"a class has characters in its name that no text has: {unnamed[0]!a}")
    kept = np.flatnonzero(train)
    if len(kept) < len(names):
        there = {composed(names[each]) for each in kept}  # a class may have its name in two forms
        if absent := [names[each] for each in np.flatnonzero(train == 0) if composed(names[each]) not in there]:
            notes.append(f"left out, for they have no image: the classes {some(absent)}")
    number = np.cumsum(train > 0) - 1
    return [number[each] for each in labels.values()], [names[each] for each in kept]


def _images(
    dataset: str,
    tables: Mapping[str, Any],
    column: str,
    rows: Sequence[tuple[str, Numbers]],
    size: int,
    folder: Path,
) -> tuple[Mapping[str, Pixels], Mapping[str, Numbers]]:
    """The images of all tables, decoded, and their digests, by the names of the files.

    Args:
        dataset: the name that errors give it.
        tables: the splits by their names.
        column: with the images.
        rows: of the file "train" and of the file "test"; of one table, if there is one, and else of one table each.
        size: height and width in pixels.
        folder: for the files.
    """
    files = ImageFiles(folder, size, {name: len(own) for name, own in rows})
    places: list[dict[int, tuple[str, int]]] = [{} for _ in tables]
    for number, (name, own) in enumerate(rows):
        places[min(number, len(tables) - 1)] |= {row: (name, place) for place, row in enumerate(own.tolist())}

    def decode_table(split: str, table: Any, own: Mapping[int, tuple[str, int]], done: Callable[[int], None]) -> None:
        mode = getattr(table.features[column], "mode", None)

        def decode_row(numbered: tuple[int, Any]) -> None:
            row, image = numbered
            name, place = own[row]
            files.write(name, place, decoded(image, mode, size, dataset, split, f"row {row} of column {column}"))

        side_by_side(decode_row, enumerate(encoded_in(table, column)), done)

    with files, told(f"decoding images at {size} x {size}", sum(map(len, places))) as done:
        for (split, table), of_table in zip(tables.items(), places, strict=True):
            decode_table(split, table, of_table, done)
    return {name: files.read(name) for name, _ in rows}, files.digests


def hold_out(labels: Numbers, keep_one: bool = False) -> npt.NDArray[np.bool_]:
    """Which images are test images: one in HELD_OUT of each class, drawn at random; of one image none if it is kept."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(labels), dtype=bool)
    order = np.argsort(labels, kind="stable")
    for of_label in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        rows = rng.permutation(of_label)
        test[rows[: min(-(-len(rows) // HELD_OUT), len(rows) - keep_one)]] = True
    return test
