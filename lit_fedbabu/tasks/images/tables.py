"""Hub datasets and folders as arrays: which column has the images, which the labels, and which split is for tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lit_fedbabu.errors import InputError
from lit_fedbabu.tasks.images import hub
from lit_fedbabu.tasks.images.decoding import IMAGE_SIZE, UNREADABLE, Pixels, to_array
from lit_fedbabu.tasks.images.folders import ClassFiles, find_images

Numbers = npt.NDArray[np.int64]

LABEL_COLUMNS = {"uoft-cs/cifar100": "fine_label"}
"""The column with the labels of hub datasets that have several, where ``label-column`` does not name it."""
TEST_SPLITS = ("test", "validation", "valid")
"""Names that the split with the test images may have; the first that exists is taken."""
HELD_OUT = 5
"""Without a test split, one of so many training images of each class is a test image, drawn by a fixed seed."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split, with their labels.

    Args:
        images: (N, 32, 32, C) of uint8, grey (C = 1) or RGB (C = 3), mapped from disk.
        labels: (N,) numbers of classes.
        owners: (N,) numbers of the values of ``natural-id-column``, where it was asked for.
    """

    images: Pixels
    labels: Numbers
    owners: Numbers | None = None


def read_tables(dataset: str, label_column: str, owner_column: str) -> tuple[tuple[Split, Split], list[str]]:
    """Training split, test split and class names of a hub dataset or a folder; arguments as of ``sources.load``.

    Raises:
        InputError: the dataset cannot be read, or its columns are not as asked for.
    """
    found = find_images(dataset)
    if found is not None:
        return _from_files(dataset, found, label_column, owner_column)
    tables = hub.read(dataset)
    chosen = next((name for name in TEST_SPLITS if name in tables), None)
    if "train" not in tables:
        raise InputError("dataset", dataset, f"has no split train; it has {', '.join(tables)}")
    names = ["train"] if chosen is None else ["train", chosen]
    features = tables["train"].features
    image_column, label_column = _columns(dataset, features, label_column)
    if owner_column and owner_column not in features:
        raise InputError("natural-id-column", owner_column, f"is no column of the dataset; it has {_named(features)}")
    labels, class_names = _numbered(features[label_column], [tables[name][label_column] for name in names])
    owners: Sequence[Numbers | None] = [None] * len(names)
    if owner_column:
        owners, _ = _numbered(features[owner_column], [tables[name][owner_column] for name in names])
    images = [_images(dataset, name, tables[name][image_column]) for name in names]
    channels = max(each.shape[-1] for each in images)
    splits = [
        Split(np.broadcast_to(each, (*each.shape[:-1], channels)), label, owner)
        for each, label, owner in zip(images, labels, owners, strict=True)
    ]
    return (hold_out(*splits) if chosen is None else (splits[0], splits[1])), class_names


def _from_files(
    dataset: str, found: dict[str, ClassFiles], label_column: str, owner_column: str
) -> tuple[tuple[Split, Split], list[str]]:
    """Splits and class names of a folder with a folder for each class."""
    for option, column in (("label-column", label_column), ("natural-id-column", owner_column)):
        if column not in ("", "label"):
            raise InputError(option, column, "is no column of the dataset; it has image (Image), label (ClassLabel)")
    if "train" not in found:
        raise InputError("dataset", dataset, f"has no split train; it has {', '.join(found)}")
    names = list(found["train"])
    if len(names) < 2:
        remedy = "has images of one class alone; make a folder for each class, of which there must be two or more"
        raise InputError("dataset", dataset, remedy)
    chosen = next((name for name in TEST_SPLITS if name in found), None)
    if chosen is not None and (unknown := sorted(found[chosen].keys() - set(names))):
        remedy = f"its split {chosen} has classes that its split train does not have: {', '.join(unknown)}"
        raise InputError("dataset", dataset, remedy)
    splits = []
    for split in ("train", *([chosen] if chosen else [])):
        files = [(path, number) for number, name in enumerate(names) for path in found[split].get(name, [])]
        images = _images(dataset, split, (path for path, _ in files))
        splits.append(Split(images, np.array([number for _, number in files], dtype=np.int64)))
    channels = max(each.images.shape[-1] for each in splits)
    splits = [Split(np.broadcast_to(each.images, (*each.images.shape[:-1], channels)), each.labels) for each in splits]
    return (hold_out(splits[0]) if chosen is None else (splits[0], splits[1])), names


def _images(dataset: str, split: str, images: Any) -> np.ndarray:
    path: Path | None = None
    arrays = []
    try:
        for image in images:
            if isinstance(image, Path):
                path = image
                with Image.open(path) as opened:
                    arrays.append(to_array(opened))
            else:
                arrays.append(to_array(image))
    except UNREADABLE as error:
        where = "" if path is None else f"{path}: "
        raise InputError(
            "dataset", dataset, f"an image of its split {split!r} cannot be read: {where}{error}"
        ) from None
    if not arrays:
        raise InputError("dataset", dataset, f"its split {split!r} has no images")
    channels = max(array.shape[-1] for array in arrays)
    whole = np.empty((len(arrays), IMAGE_SIZE, IMAGE_SIZE, channels), dtype=np.uint8)
    for place, array in zip(whole, arrays, strict=True):
        place[:] = array
    return whole


def hold_out(split: Split) -> tuple[Split, Split]:
    """Training and test images: one in HELD_OUT of each class, drawn at random, is a test image."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(split.labels), dtype=bool)
    for label in np.unique(split.labels):
        rows = rng.permutation(np.flatnonzero(split.labels == label))
        test[rows[: -(-len(rows) // HELD_OUT)]] = True
    train, held_out = (
        Split(split.images[rows], split.labels[rows], None if split.owners is None else split.owners[rows])
        for rows in (~test, test)
    )
    return train, held_out


def _numbered(feature: Any, columns: list[Any]) -> tuple[list[np.ndarray], list[str]]:
    """The columns' values as numbers from 0, and what each number stands for."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return [np.asarray(column, dtype=np.int64) for column in columns], list(feature.names)
    values = sorted(set().union(*columns))
    number = {value: place for place, value in enumerate(values)}
    return [np.asarray([number[value] for value in column]) for column in columns], [str(value) for value in values]


def _columns(dataset: str, features: Mapping[str, Any], label_column: str) -> tuple[str, str]:
    """The names of the image column and the label column."""
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [
        name
        for name, feature in features.items()
        if isinstance(feature, Value) and feature.dtype.startswith(("int", "uint")) and "label" in name
    ]
    label_column = label_column or LABEL_COLUMNS.get(dataset, "")
    if label_column and label_column not in features:
        raise InputError("label-column", label_column, f"is no column of the dataset; it has {_named(features)}")
    if len(images) != 1:
        raise InputError("dataset", dataset, f"needs one Image column; it has {_named(features)}")
    if len(features) == 1:
        remedy = "has images of one class alone; make a folder for each class, of which there must be two or more"
        raise InputError("dataset", dataset, remedy)
    if not label_column and len(labels) != 1:
        raise InputError(
            "dataset", dataset, f"needs one ClassLabel column, or label-column=NAME; it has {_named(features)}"
        )
    return images[0], label_column or labels[0]


def _named(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
