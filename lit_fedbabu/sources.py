"""Where images come from: a hub dataset, a local folder or the embedded digits, decoded once per machine."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_fedbabu import hub
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import IMAGE_SIZE

_FORMAT = "v3"

LABEL_COLUMNS = {"uoft-cs/cifar100": "fine_label"}
"""Which column of a hub dataset with several has the labels, where ``label-column`` does not say it."""
TEST_SPLITS = ("test", "validation", "valid")
"""Names of the split with the test images, the first that is there."""
HELD_OUT = 5
"""Without a test split, one in so many training images of each class is a test image, drawn by a fixed seed."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (N, 32, 32, C) of uint8, grey (C = 1) or RGB (C = 3), mapped from disk, and their labels (N,) of int64.

    ``owners`` (N,) of int64 numbers the values of ``natural-id-column``, where it was asked for.
    """

    images: np.ndarray
    labels: np.ndarray
    owners: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset with its two splits, the names of its classes, and mean and standard deviation of its training
    images by channel, scaled to 0..1."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """1 of grey images, 3 of coloured ones."""
        return len(self.mean)


def source_of(config: Config) -> Source:
    """The configuration's dataset.

    Raises:
        ConfigError: as ``load``.
    """
    return load(config.dataset, config.label_column, config.natural_id_column, config.classes)


def class_names_of(config: Config) -> tuple[str, ...]:
    """Names of the classes by their numbers: those that the configuration gives, else the dataset's."""
    return config.classes or source_of(config).class_names


@lru_cache(maxsize=4)
def load(dataset: str, label_column: str = "", owner_column: str = "", classes: tuple[str, ...] = ()) -> Source:
    """The dataset as arrays that all processes of a machine map from one copy; decoded when first seen.

    Args:
        dataset: "digits", a folder, or a hub name "owner/name" or "owner/name:subset".
        label_column: the column with the labels; empty: the only one there is.
        owner_column: a column that says whose an image is; empty: none is read.
        classes: names of classes in the order that numbers them; empty: the dataset's own.

    Raises:
        ConfigError: the dataset is not there, cannot be reached, or its columns or classes are not as asked for.
    """
    folder = _cache_root() / _cache_key(dataset, label_column, owner_column)
    if not folder.exists():
        _decode(folder, dataset, label_column, owner_column)
    about = json.loads((folder / "about.json").read_text())
    train, test = (
        Split(
            **{
                what: np.load(path, mmap_mode="r")
                for what in ("images", "labels", "owners")
                if (path := folder / f"{split}_{what}.npy").exists()
            }
        )
        for split in ("train", "test")
    )
    source = Source(train, test, **{name: tuple(values) for name, values in about.items()})
    return _renumbered(source, dataset, classes) if classes else source


def _renumbered(source: Source, dataset: str, classes: tuple[str, ...]) -> Source:
    """The source with the numbers of the given classes for its labels."""
    if unknown := [name for name in source.class_names if name not in classes]:
        remedy = f"has no {', '.join(unknown)}, which {dataset} has"
        raise ConfigError("class-names", ",".join(classes), remedy)
    number = np.array([classes.index(name) for name in source.class_names])
    train, test = (dataclasses.replace(split, labels=number[split.labels]) for split in (source.train, source.test))
    return dataclasses.replace(source, train=train, test=test, class_names=classes)


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lit_fedbabu"


def _cache_key(dataset: str, *columns: str) -> str:
    version = "-".join([*filter(None, columns), _FORMAT])
    if dataset == "digits":
        return f"digits-{version}"
    path = Path(dataset).expanduser()
    if path.is_dir():
        digest = hashlib.sha256(str(path.resolve()).encode())
        for file in sorted(path.rglob("*")):
            if file.is_file():
                stat = file.stat()
                digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return f"folder-{path.resolve().name}-{digest.hexdigest()[:16]}-{version}"
    owner, slash, name = dataset.partition("/")
    if not (owner and slash and name) or "/" in name or owner in (".", "..", "~"):
        raise ConfigError("dataset", dataset, 'is no folder here; give a folder, a hub name "owner/name" or "digits"')
    return f"hub-{owner}--{name.replace(':', '--')}-{version}"


def _decode(folder: Path, dataset: str, label_column: str, owner_column: str) -> None:
    if dataset == "digits":
        (train, test), class_names = _digits(), [str(digit) for digit in range(10)]
    else:
        (train, test), class_names = _tables(dataset, label_column, owner_column)
    mean, std = _statistics(train.images)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".decoding-"))
    try:
        for name, split in (("train", train), ("test", test)):
            for what, values in vars(split).items():
                if values is not None:
                    np.save(scratch / f"{name}_{what}.npy", values)
        (scratch / "about.json").write_text(json.dumps({"class_names": class_names, "mean": mean, "std": std}))
        scratch.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process has decoded the same dataset meanwhile
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel, from counts of values: exact, and so equal on every machine."""
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])
    values, count = np.arange(256) / 255, counts.sum(1)
    mean = counts @ values / count
    variance = counts @ values**2 / count - mean**2
    return mean.tolist(), [float(value) or 1.0 for value in np.sqrt(np.maximum(variance, 0))]


def _digits() -> tuple[Split, Split]:
    """scikit-learn's 1,797 handwritten digits."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = [to_array(Image.fromarray((image * 255 / 16).astype(np.uint8))) for image in raw.images]
    return _hold_out(Split(np.stack(images), raw.target.astype(np.int64)))


def _tables(dataset: str, label_column: str, owner_column: str) -> tuple[tuple[Split, Split], list[str]]:
    tables = hub.read(dataset)
    chosen = next((name for name in TEST_SPLITS if name in tables), None)
    if "train" not in tables:
        raise ConfigError("dataset", dataset, f"has no split train; it has {', '.join(tables)}")
    names = ["train"] if chosen is None else ["train", chosen]
    features = tables["train"].features
    image_column, label_column = _columns(dataset, features, label_column)
    if owner_column and owner_column not in features:
        raise ConfigError("natural-id-column", owner_column, f"is no column of the dataset; it has {_named(features)}")
    labels, class_names = _numbered(features[label_column], [tables[name][label_column] for name in names])
    owners = [None] * len(names)
    if owner_column:
        owners, _ = _numbered(features[owner_column], [tables[name][owner_column] for name in names])
    images = [_images(dataset, name, tables[name][image_column]) for name in names]
    channels = max(each.shape[-1] for each in images)
    splits = [
        Split(np.broadcast_to(each, (*each.shape[:-1], channels)), label, owner)
        for each, label, owner in zip(images, labels, owners)
    ]
    return (_hold_out(*splits) if chosen is None else (splits[0], splits[1])), class_names


def _images(dataset: str, split: str, images: Any) -> np.ndarray:
    try:
        arrays = [to_array(image) for image in images]
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for files that are no images
        raise ConfigError("dataset", dataset, f"an image of its split {split!r} cannot be read: {error}") from None
    if not arrays:
        raise ConfigError("dataset", dataset, f"its split {split!r} has no images")
    channels = max(array.shape[-1] for array in arrays)
    whole = np.empty((len(arrays), IMAGE_SIZE, IMAGE_SIZE, channels), dtype=np.uint8)
    for place, array in zip(whole, arrays):
        place[:] = array
    return whole


def to_array(image: Image.Image) -> np.ndarray:
    """An image as (32, 32, C) of uint8: grey images have one channel, all others are RGB."""
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _hold_out(split: Split) -> tuple[Split, Split]:
    """Training and test images: one in HELD_OUT of each class, drawn at random, is a test image."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(split.labels), dtype=bool)
    for label in np.unique(split.labels):
        rows = rng.permutation(np.flatnonzero(split.labels == label))
        test[rows[: -(-len(rows) // HELD_OUT)]] = True
    return tuple(
        Split(**{what: None if values is None else values[rows] for what, values in vars(split).items()})
        for rows in (~test, test)
    )


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
        raise ConfigError("label-column", label_column, f"is no column of the dataset; it has {_named(features)}")
    if len(images) != 1:
        raise ConfigError("dataset", dataset, f"needs one Image column; it has {_named(features)}")
    if len(features) == 1:
        remedy = "has images of one class alone; make a folder for each class, of which there must be two or more"
        raise ConfigError("dataset", dataset, remedy)
    if not label_column and len(labels) != 1:
        raise ConfigError(
            "dataset", dataset, f"needs one ClassLabel column, or label-column=NAME; it has {_named(features)}"
        )
    return images[0], label_column or labels[0]


def _named(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
