"""Image folders: which file belongs to which split and class, from the folders alone and never from words in names."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from PIL import Image

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.names import composed, spellings

TEST_SPLITS = ("test", "validation", "valid", "val")
"""Names that the split with the test images may have; the first that exists is taken."""
SPLITS = ("train", *TEST_SPLITS)
"""Folders at the top that are splits, if they have a folder for each class. All other folders are classes."""

TABLES = (".parquet", ".csv", ".json", ".jsonl")
"""Suffixes of tables."""
OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems make in those of users: they are hidden."""
NO_PIXELS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow recognizes and cannot decode."""

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
    used = {path for classes in found.values() for files in classes.values() for path in files}
    note_unused(top, [top, *(top / name for name in splits)], used, notes)
    return found


def note_unused(top: Path, places: Sequence[Path], used: AbstractSet[Path], notes: list[str]) -> None:
    """Note the files that are not used. Tables right in the places, of which ``local`` has a note, are passed over."""
    unused = [path for path in files_below(top) if path not in used]
    if others := [path for path in unused if not is_image(path) and not (path.parent in places and _is_known(path))]:
        notes.append(f"left out, for they are no images that can be read: {kinds(others)}; {some(map(str, others))}")
    if loose := [path for path in unused if is_image(path)]:
        notes.append(f"left out, for they are in no class folder: {some(map(str, loose))}")


def _is_known(path: Path) -> bool:
    """Whether a file beside classes is a table or a page about the dataset."""
    return path.suffix.lower() in TABLES or path.stem.lower() in ("readme", "license", "citation")


def files_below(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """All files below a folder, in the order of their paths. Links are followed, each folder once.

    Args:
        folder: hidden or not.
        hidden: whether hidden files, and those in hidden folders, are among them.

    Raises:
        OSError: a folder that is not hidden cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not hidden:
            raise error

    seen = set()
    for place, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if hidden or not is_hidden(name))
        yield from (Path(place, name) for name in sorted(names) if hidden or not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in OF_SYSTEMS


def hidden_images(folder: Path) -> list[Path]:
    """Image files below a folder that are hidden, or in a hidden folder."""
    seen = set(files_below(folder))
    return [path for path in files_below(folder, hidden=True) if path not in seen and _has_suffix(path)]


def folders_in(dataset: str, place: Path) -> dict[str, Path]:
    """The folders in a place by their names; hidden ones are passed over.

    Raises:
        InputError: one cannot be read, or is a link to nothing.
    """
    folders = {}
    for path in sorted(place.iterdir()):
        if is_hidden(path.name):
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
    return not is_hidden(path.name) and _has_suffix(path)


def _has_suffix(path: Path) -> bool:
    form = Image.registered_extensions().get(path.suffix.lower())
    return form in (*Image.OPEN, "MPO") and form not in NO_PIXELS  # MPO is opened as JPEG


def _classes(dataset: str, folders: dict[str, Path], notes: list[str]) -> ClassFiles:
    """The images of each class. Folders whose names are one in two forms of Unicode are one class."""
    classes: ClassFiles = {}
    named = spellings(folders)
    nested = set()
    for name, folder in folders.items():
        files = list(files_below(folder))
        images = [path for path in files if is_image(path)]
        if not images:
            remedy = f"its class folder {folder} has no image that can be read: {kinds(files) or 'no file'}"
            raise InputError("dataset", dataset, remedy)
        classes.setdefault(named[composed(name)], []).extend(images)
        nested |= {path.relative_to(folder).parts[0] for path in images if path.parent != folder}
    if nested:
        remedy = "where folders are clients, take partitioner=natural-id"
        notes.append(f"no classes of their own, for they are in folders of classes: {some(sorted(nested))}; {remedy}")
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
        raise InputError(
            "dataset",
            dataset,
            f"{remedy}; if they are splits, name them train and test; if clients, take partitioner=natural-id",
        )


def _folders_alone(dataset: str, folder: Path) -> set[str]:
    """The folders with images in a folder that has no image itself; none where it has."""
    if any(path.is_file() and is_image(path) for path in folder.iterdir()):
        return set()
    return {name for name, place in folders_in(dataset, folder).items() if _has_images_below(place)}


def _has_images_below(folder: Path) -> bool:
    return any(map(is_image, files_below(folder)))


def kinds(files: Iterable[Path]) -> str:
    """How many files have each suffix, as in ".txt (2), no suffix (1)"."""
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    return ", ".join(f"{suffix} ({count})" for suffix, count in counts.items())
