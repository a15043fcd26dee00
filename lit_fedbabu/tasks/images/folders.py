"""Image folders: which file belongs to which split and class, from the folders alone and never from words in names."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from lit_fedbabu.errors import InputError, some

TEST_SPLITS = ("test", "validation", "valid", "val")
"""Names that the split with the test images may have; the first that exists is taken."""
SPLITS = ("train", *TEST_SPLITS)
"""Folders at the top that are splits, if they have a folder for each class. All other folders are classes."""

ClassFiles = dict[str, list[Path]]
"""The image files of each class, in the order of their names."""


def find_images(dataset: str, top: Path, notes: list[str]) -> dict[str, ClassFiles] | None:
    """The image files of a folder by split and class; None where no folder in it has an image.

    ``train/`` with ``test/``, ``validation/``, ``valid/`` or ``val/``, each with a folder for every class, are splits.
    Otherwise every folder is a class. Links are followed; hidden files and folders are passed over.

    Args:
        dataset: the name that errors give it.
        top: the folder.
        notes: gets a line for each kind of file that is left out.

    Raises:
        InputError: a split has no class folders, a class folder has no image that can be read, or the folders are not
            as described above.
    """
    folders = folders_in(dataset, top)
    with_images = {name: folder for name, folder in folders.items() if any(map(is_image, files_below(folder)))}
    if not with_images:
        return None
    splits = {
        name
        for name, folder in with_images.items()
        if name in SPLITS and any(_has_images_below(each) for each in folders_in(dataset, folder).values())
    }
    if not splits:
        _refuse_other_splits(dataset, with_images)
        found = {"train": _classes(dataset, folders, notes)}
    else:
        for name in with_images.keys() - splits:
            others = ", ".join(sorted(splits))
            remedy = "has no class folders" if name in SPLITS else f"is beside {others}, and is no split"
            raise InputError("dataset", dataset, f"its folder {name}/ {remedy}; make a folder for each class")
        in_order = [name for name in SPLITS if name in splits]
        found = {name: _classes(dataset, folders_in(dataset, folders[name]), notes) for name in in_order}
    places = [top, *(top / name for name in splits)]
    loose = [path for place in places for path in sorted(place.iterdir()) if path.is_file() and is_image(path)]
    if loose:
        notes.append(f"left out, for they are in no class folder: {some(str(path) for path in loose)}")
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their paths. Links are followed, each folder once.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def folders_in(dataset: str, place: Path) -> dict[str, Path]:
    """The folders in a place by their names; hidden ones are passed over.

    Raises:
        InputError: one cannot be read, or is a link to nothing.
    """
    folders = {}
    for path in sorted(place.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            raise InputError("dataset", dataset, f"its link {path} leads to nothing")
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                raise InputError("dataset", dataset, f"its folder {path} cannot be read: permission denied")
            folders[path.name] = path
    return folders


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of a format that can be read, and is not hidden."""
    form = Image.registered_extensions().get(path.suffix.lower())
    return form in (*Image.OPEN, "MPO") and not path.name.startswith(".")  # MPO is opened as JPEG


def _classes(dataset: str, folders: dict[str, Path], notes: list[str]) -> ClassFiles:
    classes: ClassFiles = {}
    left_out: list[Path] = []
    for name, folder in folders.items():
        files = list(files_below(folder))
        classes[name] = [path for path in files if is_image(path)]
        left_out += [path for path in files if not is_image(path)]
        if not classes[name]:
            found = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes(files).items()) or "no file"
            raise InputError("dataset", dataset, f"its class folder {folder} has no image that can be read: {found}")
    if left_out:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in suffixes(left_out).items())
        notes.append(f"left out, for they are no images that can be read: {kinds}; {some(map(str, left_out))}")
    return classes


def _refuse_other_splits(dataset: str, folders: dict[str, Path]) -> None:
    """Raise InputError where folders would be classes, but look like splits by other names or like a wrapper."""
    below = {name: inner for name, folder in folders.items() if (inner := _folders_alone(dataset, folder))}
    if len(below) < len(folders):
        return
    if len(folders) == 1:
        ((name, inner),) = below.items()
        place = folders[name]
        while len(inner) == 1:
            place /= inner.pop()
            inner = _folders_alone(dataset, place)
        if inner:
            remedy = f"has one folder, {name}/, with {some(sorted(inner))} in it; name that: {place}"
            raise InputError("dataset", dataset, remedy)
    elif len(shared := set.intersection(*below.values())) > 1:
        remedy = f"its folders {some(sorted(below))} have the same folders in them: {some(sorted(shared))}"
        raise InputError("dataset", dataset, f"{remedy}; if they are splits, name them train and test")


def _folders_alone(dataset: str, folder: Path) -> set[str]:
    """The folders with images in a folder that has no image itself; none where it has."""
    if any(path.is_file() and is_image(path) for path in folder.iterdir()):
        return set()
    return {name for name, place in folders_in(dataset, folder).items() if _has_images_below(place)}


def _has_images_below(folder: Path) -> bool:
    return any(map(is_image, files_below(folder)))


def suffixes(files: list[Path]) -> Counter[str]:
    """How many files have each suffix."""
    return Counter(path.suffix.lower() or "no suffix" for path in files)
