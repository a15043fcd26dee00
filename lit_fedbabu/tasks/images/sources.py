"""Where images come from: a hub dataset, a local folder or the embedded digits, decoded once per machine."""

import dataclasses
import difflib
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from lit_fedbabu.ground.errors import InputError, RunError, some
from lit_fedbabu.ground.files import dataset_folder, from_home, write_whole
from lit_fedbabu.learning import cache
from lit_fedbabu.tasks.images.arrays import ImageFiles, save
from lit_fedbabu.tasks.images.decoding import IMAGE_SIZE, Pixels, to_array
from lit_fedbabu.tasks.images.folders import files_below, hidden_images
from lit_fedbabu.tasks.images.names import composed
from lit_fedbabu.tasks.images.tables import Decoded, Split, hold_out, read_tables
from lit_fedbabu.tasks.images.undecoded import ENCODED, Undecoded

_FORMAT = "v6"
"""Of decoded images in the cache. It changes when an image would be decoded otherwise."""


COUNTED = 16
"""Images whose values are counted at a time."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset.

    Args:
        train: the training images.
        test: the test images.
        class_names: by their numbers.
        mean: of the training images by channel, scaled to 0..1; empty where not all are decoded.
        std: standard deviation of the same.
        notes: a line for each kind of file, split or class that is left out.
        owner_names: the values of ``natural-id-column``, by the numbers of owners.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    owner_names: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """1 of grey images, 3 of coloured ones."""
        channels: int = self.train.images.shape[-1]
        return channels


def load(
    dataset: str,
    label_column: str = "",
    owner_column: str = "",
    classes: tuple[str, ...] = (),
    size: int = IMAGE_SIZE,
    as_needed: bool = False,
) -> Source:
    """The dataset as arrays that all processes of a machine map from one copy; decoded when first seen.

    Args:
        dataset: "digits", a folder, or a hub name "owner/name" or "owner/name:subset".
        label_column: the column with the labels; empty: the only one there is.
        owner_column: a column that says whose an image is; empty: none is read.
        classes: names of classes in the order that numbers them; empty: the dataset's own.
        size: height and width of the images in pixels.
        as_needed: unless all images are decoded, decode each when it is first needed, as of ``Undecoded``; then mean,
            deviation and digests are not known.

    Raises:
        InputError: the dataset is not there, cannot be reached, or its columns or classes are not as asked for.
        RunError: what was decoded before is damaged.
    """
    if dataset == "digits":
        for option, column in (("label-column", label_column), ("natural-id-column", owner_column)):
            if column:
                raise InputError(option, column, "is of datasets with columns, and digits has none; leave it out")
    folder = cache.folder() / _cache_key(size, dataset, label_column, owner_column)
    some_decoded = folder.with_name(f"{folder.name}-pillow{PIL.__version__}-as-needed")  # whose images come over time
    if as_needed and dataset != "digits" and not folder.exists():
        folder = some_decoded
    if not folder.exists():
        _decode(folder, size, dataset, label_column, owner_column, as_needed)
    source = _mapped(folder)
    notes = [*source.notes, *cache.note()]
    if folder != some_decoded and some_decoded.exists():
        notes.append(f"{some_decoded} is not needed any more, for {folder.name} has all images decoded; remove it")
    source = dataclasses.replace(source, notes=tuple(notes))
    if classes:
        return _renumbered(source, dataset, classes)
    if len(source.class_names) < 2:
        remedy = f"has images of one class alone, {source.class_names[0]}; there must be two or more"
        raise InputError("dataset", dataset, "; ".join([remedy, *source.notes]))
    return source


def _mapped(folder: Path) -> Source:
    """A decoded dataset in the cache."""
    try:
        about = json.loads((folder / "about.json").read_text())
        train, test = (
            Split(
                **{
                    what: np.load(path, mmap_mode="r")
                    for what in ("images", "labels", "owners", "digests")
                    if (path := folder / f"{split}_{what}.npy").exists()
                },
                undecoded=Undecoded(folder, split) if (folder / ENCODED).exists() else None,
            )
            for split in ("train", "test")
        )
        return Source(train, test, **{name: tuple(values) for name, values in about.items()})
    except (OSError, ValueError, EOFError, TypeError, LookupError):  # a file is missing or cut off
        raise RunError(
            f"{folder}: these decoded images are damaged; remove that folder, they are decoded anew"
        ) from None


def _renumbered(source: Source, dataset: str, classes: tuple[str, ...]) -> Source:
    """The source with the numbers of the given classes for its labels."""
    given, own = list(map(composed, classes)), list(map(composed, source.class_names))
    if unknown := [name for name, each in zip(source.class_names, own, strict=True) if each not in given]:
        remedy = f"has no {', '.join(unknown)}, which {dataset} has"
        raise InputError("class-names", ",".join(classes), remedy)
    number = np.array([given.index(each) for each in own])
    train, test = (dataclasses.replace(split, labels=number[split.labels]) for split in (source.train, source.test))
    notes = source.notes
    if absent := [name for name, each in zip(classes, given, strict=True) if each not in own]:
        notes += (f"without an image in {dataset}: the classes {some(absent)} of class-names",)
    return dataclasses.replace(source, train=train, test=test, class_names=classes, notes=notes)


def _cache_key(size: int, dataset: str, *columns: str) -> str:
    """The name of the dataset's folder in the cache: another one whenever a file or an argument is another."""
    if dataset == "digits":
        return f"digits-{size}px-{_FORMAT}"
    digest = hashlib.sha256(json.dumps(columns).encode())
    place = dataset_folder(dataset)
    if place is not None:
        path, subset = place[0].resolve(), place[1]
        digest.update(f"{path} {subset}\n".encode("utf-8", "surrogateescape"))
        for file in (*_files(dataset, path), *hidden_images(path)):
            if file.is_file():
                stat = file.stat()
                facts = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
                digest.update(f"{file.relative_to(path)} {facts}\n".encode("utf-8", "surrogateescape"))
        kind, name = "folder", path.name
    else:
        owner, _, name = dataset.partition("/")
        if not (owner and name) or "/" in name or owner in (".", "..", "~") or Path(owner).is_dir():
            raise InputError("dataset", dataset, _is_no_folder(dataset))
        digest.update(dataset.encode("utf-8", "surrogateescape"))
        kind, name = "hub", dataset
    plain = "".join(each if each.isascii() and (each.isalnum() or each in "-_.") else "-" for each in name)
    return f"{kind}-{plain[:60]}-{digest.hexdigest()[:16]}-{size}px-{_FORMAT}"


def _files(dataset: str, folder: Path) -> list[Path]:
    try:
        return list(files_below(folder))
    except OSError as error:
        raise InputError("dataset", dataset, f"{error.filename} cannot be read: {error.strerror}") from None


def _is_no_folder(dataset: str) -> str:
    """What to do about a dataset that is no folder and no name of the hub."""
    parent = from_home(dataset.rstrip("/")).parent
    there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    close = difflib.get_close_matches(Path(dataset).name, there, n=1)
    if close:
        return f"is no folder here; did you mean {parent / close[0]}?"
    has = f"; {parent} has the folders {some(there)}" if there and parent != Path() else ""
    return f'is no folder here{has}; give a folder, a hub name "owner/name" or "digits"'


def _decode(folder: Path, size: int, dataset: str, label_column: str, owner_column: str, as_needed: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=cache.BEING_WRITTEN))
    try:
        if dataset == "digits":
            decoded = _digits(size, scratch)
        else:
            decoded = read_tables(dataset, label_column, owner_column, size, scratch, as_needed)
        mean, std = ([], []) if as_needed else _statistics(decoded.train.images)
        about = {"class_names": decoded.class_names, "mean": mean, "std": std, "notes": decoded.notes}
        about["owner_names"] = decoded.owner_names
        for name, split in (("train", decoded.train), ("test", decoded.test)):
            for what, values in (("labels", split.labels), ("owners", split.owners), ("digests", split.digests)):
                if values is not None:
                    save(scratch / f"{name}_{what}.npy", values)
        write_whole(scratch / "about.json", json.dumps(about))
        scratch.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another process has decoded the same dataset meanwhile
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _statistics(images: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel, from counts of values: exact, and so equal on every machine."""
    *_, width, channels = images.shape
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), COUNTED):
        stacked = images[start : start + COUNTED].reshape(-1, width, channels)
        image = Image.fromarray(stacked if channels == 3 else stacked[..., 0])
        counts += np.array(image.histogram()).reshape(channels, 256)  # 5 to 10 times as fast as np.bincount
    values, count = np.arange(256) / 255, counts.sum(1)
    mean = counts @ values / count
    variance = counts @ values**2 / count - mean**2
    return mean.tolist(), [float(value) or 1.0 for value in np.sqrt(np.maximum(variance, 0))]


def _digits(size: int, folder: Path) -> Decoded:
    """scikit-learn's 1,797 handwritten digits."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    labels, test = raw.target.astype(np.int64), hold_out(raw.target)
    rows = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    with ImageFiles(folder, size, {name: len(own) for name, own in rows.items()}) as files:
        for name, own in rows.items():
            for place, image in enumerate(raw.images[own]):
                grey = Image.fromarray((image * 255 / 16).astype(np.uint8))
                files.write(name, place, to_array(grey, size))
    train, held_out = (Split(files.read(name), labels[own], digests=files.digests[name]) for name, own in rows.items())
    return Decoded(train, held_out, [str(digit) for digit in range(10)])
