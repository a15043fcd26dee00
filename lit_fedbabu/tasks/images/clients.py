"""Folders of clients: which image is of which split, client and class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.folders import SPLITS, files_below, is_image, note_unused
from lit_fedbabu.tasks.images.names import composed, spellings
from lit_fedbabu.tasks.images.table_files import MemoryTable

CLIENT_CLASS, CLASS_CLIENT, EITHER = "client/class", "class/client", "folders"
LAYOUTS = (CLIENT_CLASS, CLASS_CLIENT, EITHER)
"""Values of ``natural-id-column`` for folders; EITHER is that of ``partitioner=natural-id`` alone, where it is not
known which of the folders are clients."""
OPTION = "natural-id-column"


def client_tables(dataset: str, top: Path, layout: str, notes: list[str]) -> dict[str, MemoryTable]:
    """The splits of a folder of images as tables with ``image``, ``label`` and, under the name of the layout, clients.

    The folders are ``client/class``, ``split/client/class`` or ``client/split/class``, or the same with client and
    class the other way round. Of ``EITHER`` only ``client/split/class`` says which are the clients.

    Args:
        dataset: the name that errors give it.
        top: the folder.
        layout: one of LAYOUTS.
        notes: gets a line for how the folders were read, and one for each kind of file that is left out.

    Raises:
        InputError: the folders are not as described above, or do not say which of them are clients.
    """
    folders, level, deep, owned = _levels(dataset, top)
    outer, inner = ({pair[place] for pair in owned.values()} for place in (0, 1))
    if inner <= set(SPLITS):
        remedy = "natural-id needs a folder for each client, and a folder for each class in it, as alice/cats/1.jpg"
        there = some(sorted({"/".join(parts) for parts in folders.values() if parts}))
        raise InputError("dataset", dataset, f"{remedy}; it has {there or 'no folder'}")
    if layout == EITHER and level != 1:
        remedy = f"which are the clients? If {some(sorted(outer))}, take {OPTION}={CLIENT_CLASS}; if"
        raise InputError("dataset", dataset, f"{remedy} {some(sorted(inner))}, {OPTION}={CLASS_CLIENT}")
    turn = -1 if layout == CLASS_CLIENT else 1
    names = {path: parts[:2][::turn] for path, parts in owned.items()}
    clients, labels = (spellings(sorted({pair[place] for pair in names.values()})) for place in (0, 1))
    notes.append(f"of the folders {some(clients.values())} are clients, and {some(labels.values())} are classes")
    note_unused(top, [top], deep.keys(), notes)
    return _tables(
        {
            split: [
                (path, labels[composed(label)], clients[composed(client)])
                for path, (client, label) in names.items()
                if split == ("train" if level is None else deep[path][level])
            ]
            for split in (SPLITS if level is not None else ("train",))
        },
        list(labels.values()),
        layout,
    )


def layout_of(dataset: str, top: Path, num_clients: int, classes: Sequence[str]) -> str:
    """How folders of images are clients and classes, by the names of classes or where there are too few for clients.

    Args:
        dataset: the name that errors give it.
        top: the folder.
        num_clients: clients that there shall be.
        classes: names of the classes; empty: they are not given.

    Returns:
        One of LAYOUTS; EITHER where both ways are possible, or none.
    """
    *_, owned = _levels(dataset, top)
    outer, inner = ({composed(pair[place]) for pair in owned.values()} for place in (0, 1))
    names = {composed(name) for name in classes}
    by_client = num_clients <= len(outer) and (not names or inner <= names)
    by_class = num_clients <= len(inner) and (not names or outer <= names)
    return EITHER if by_client == by_class else CLIENT_CLASS if by_client else CLASS_CLIENT


_Folders = dict[Path, tuple[str, ...]]
"""Images and the folders around them."""


def _levels(dataset: str, top: Path) -> tuple[_Folders, int | None, _Folders, _Folders]:
    """The folders around each image, which of them is its split, and of those in two others and a split these two."""
    folders = {path: path.relative_to(top).parent.parts for path in files_below(top) if is_image(path)}
    level = _level_of_splits(dataset, [parts for parts in folders.values() if parts])
    deep = {path: parts for path, parts in folders.items() if len(parts) >= 2 + (level is not None)}
    owned = {path: tuple(part for place, part in enumerate(parts) if place != level) for path, parts in deep.items()}
    return folders, level, deep, owned


def _tables(found: Mapping[str, list[tuple[Path, str, str]]], names: list[str], layout: str) -> dict[str, MemoryTable]:
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    features = {"image": ImageFeature(), "label": ClassLabel(names=names), layout: Value("string")}
    number = {name: place for place, name in enumerate(names)}
    tables = {}
    for split, rows in found.items():
        if rows:
            paths, labels, clients = zip(*rows, strict=True)
            images = [{"bytes": None, "path": str(path)} for path in paths]
            numbers = [number[label] for label in labels]
            tables[split] = MemoryTable(features, {"image": images, "label": numbers, layout: list(clients)})
    return tables


def _level_of_splits(dataset: str, folders: list[tuple[str, ...]]) -> int | None:
    """Which of the folders around an image is its split; None where no folder is one."""
    for level, most in ((0, 1), (1, 3)):
        with_split = [parts for parts in folders if len(parts) >= most and parts[level] in SPLITS]
        without = [parts for parts in folders if parts not in with_split]
        if with_split and without:
            one, other = "/".join(with_split[0]), "/".join(without[0])
            raise InputError("dataset", dataset, f"has {one} in a split and {other} in none; put both into splits")
        if with_split:
            return level
    return None
