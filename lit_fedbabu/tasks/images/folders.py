"""Image folders: which file belongs to which split and class, from the folders alone and never from words in names."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from lit_fedbabu.errors import InputError

SPLITS = ("train", "test", "validation", "valid")
"""Folders at the top that are splits, if they have a folder for each class. All other folders are classes."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files of the ``datasets`` library that give labels to images in folders; it reads such folders itself."""

ClassFiles = dict[str, list[Path]]
"""The image files of each class, in the order of their names."""


def find_images(dataset: str) -> dict[str, ClassFiles] | None:
    """The image files of a folder by split and class; None where it is no folder of images.

    ``train/`` with ``test/`` or ``validation/``, each with a folder for every class, are splits. Otherwise every folder
    is a class. Links are followed, and hidden files are passed over.

    Raises:
        InputError: a split has no class folders, or a class folder has no image that can be read.
    """
    top = Path(dataset).expanduser()
    if not top.is_dir() or any((place / name).exists() for place in (top, top / "train") for name in METADATA):
        return None
    folders = {path.name: path for path in sorted(top.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    with_images = {name: folder for name, folder in folders.items() if any(map(_is_image, files_below(folder)))}
    if not with_images:
        return None
    splits = {name for name in with_images if name in SPLITS and not _has_images_itself(with_images[name])}
    if not splits:
        return {"train": _classes(dataset, folders)}
    for name in with_images.keys() - splits:
        remedy = "has no class folders" if name in SPLITS else f"is beside {', '.join(sorted(splits))}, and is no split"
        raise InputError("dataset", dataset, f"its folder {name}/ {remedy}; make a folder for each class")
    return {name: _classes(dataset, _folders_in(folders[name])) for name in SPLITS if name in splits}


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their paths. Links are followed, each folder once."""
    seen = set()
    for place, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _classes(dataset: str, folders: dict[str, Path]) -> ClassFiles:
    classes: ClassFiles = {}
    left_out: list[Path] = []
    for name, folder in folders.items():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise InputError("dataset", dataset, f"its class folder {folder} cannot be read: permission denied")
        files = list(files_below(folder))
        classes[name] = [path for path in files if _is_image(path)]
        left_out += [path for path in files if not _is_image(path)]
        if not classes[name]:
            found = ", ".join(f"{suffix} ({count})" for suffix, count in _suffixes(files).items()) or "no file"
            raise InputError("dataset", dataset, f"its class folder {folder} has no image that can be read: {found}")
    if left_out:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in _suffixes(left_out).items())
        print(f"note: {len(left_out)} files of {dataset} are no images that can be read: {kinds}", flush=True)
    return classes


def _folders_in(split: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(split.iterdir()) if path.is_dir() and not path.name.startswith(".")}


def _has_images_itself(folder: Path) -> bool:
    return any(path.is_file() and _is_image(path) for path in folder.iterdir())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions() and not path.name.startswith(".")


def _suffixes(files: list[Path]) -> Counter[str]:
    return Counter(path.suffix.lower() or "no suffix" for path in files)
