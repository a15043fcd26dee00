"""Datasets in folders: images in class folders, tables in files, or what ``save_to_disk`` writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.clients import client_tables
from lit_fedbabu.tasks.images.folders import (
    SPLITS,
    TABLES,
    ClassFiles,
    files_below,
    find_images,
    hidden_images,
    is_image,
    kinds,
)
from lit_fedbabu.tasks.images.table_files import FileTable, MemoryTable, declared_splits, read_metadata

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that give labels to the images beside them, whose names are in the column ``file_name``."""
ARRAYS = (".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth", ".mat", ".h5", ".hdf5")
"""Files of arrays. PFLlib writes those of NumPy with pickles in them, which may run code."""
SHARD = re.compile(r"(?P<name>.*?)((^|[-_.])\d+)?(?P<of>-of-\d+)?")
"""The stem of a table's file: ``train``, ``train-0``, ``train_1``, ``train-00000-of-00002`` or ``0000``."""


def read(dataset: str, folder: Path, subset: str, layout: str, notes: list[str]) -> Mapping[str, Any]:
    """The splits of a dataset in a folder by their names, as tables with ``features`` and columns.

    Args:
        dataset: the name that errors give it.
        folder: its folder.
        subset: one of several datasets in the folder; empty where there is one.
        layout: how folders of images are clients and classes, one of ``clients.LAYOUTS``; empty: they are classes.
        notes: gets a line for each kind of file that is left out.

    Raises:
        InputError: the folder has no dataset, or several, or which rows are in which split is not said.
    """
    try:
        return _read(dataset, folder, subset, layout, notes)
    except OSError as error:
        raise InputError("dataset", dataset, f"{error.filename or folder}: {error.strerror or error}") from None


def _read(dataset: str, folder: Path, subset: str, layout: str, notes: list[str]) -> Mapping[str, Any]:
    if is_saved(folder):
        _refuse_subset(dataset, subset, [])
        return load_saved(dataset, folder)
    if saved := [path for path in sorted(folder.iterdir()) if path.is_dir() and is_saved(path)]:
        if subset in {path.name for path in saved}:
            return load_saved(dataset, folder / subset)
        remedy = f"is a folder of {len(saved)} datasets; name one, as {saved[0]}"
        raise InputError("dataset", dataset, remedy)
    files = [path for path in files_below(folder) if path.suffix.lower() in TABLES]
    declared = declared_splits(dataset, folder, subset)
    if declared is not None:
        return {name: FileTable.of(dataset, paths) for name, paths in declared.items()}
    described = [path for path in files if path.name.lower() in METADATA]
    if described:
        _refuse_subset(dataset, subset, [])
        rows = {name: read_metadata(dataset, paths) for name, paths in _splits(dataset, folder, described).items()}
        _compare_with_files(dataset, folder, rows, described, notes)
        return rows
    if hidden := hidden_images(folder):
        notes.append(f"left out, for they are hidden: {len(hidden)} images: {some(map(str, hidden))}")
    tables = [path for path in files if path.suffix.lower() == ".parquet"]
    if not tables:
        if layout and any(map(is_image, files_below(folder))):
            _refuse_subset(dataset, subset, [])
            return client_tables(dataset, folder, layout, notes)
        found = find_images(dataset, folder, notes)
        if found is not None:
            _refuse_subset(dataset, subset, [])
            if beside := [path for path in files if path.parent in (folder, *(folder / name for name in SPLITS))]:
                remedy = "the name of one that gives labels is metadata.csv"
                notes.append(f"left out, for the folders are the classes: {some(map(str, beside))}; {remedy}")
            return _tables_of_images(found)
        tables = files
    elif others := [path for path in files if path not in tables]:
        notes.append(f"left out, for the dataset is in .parquet: {some(map(str, others))}")
    if tables:
        if images := [path for path in files_below(folder) if is_image(path)]:
            notes.append(f"left out, for the dataset is in tables: {some(map(str, images))}")
        chosen = _subset(dataset, folder, tables, subset)
        return {name: FileTable.of(dataset, paths) for name, paths in _splits(dataset, folder, chosen).items()}
    remedy = "has neither folders of images, one for each class, nor tables (.parquet, .csv, .json, .jsonl)"
    raise InputError("dataset", dataset, f"{remedy}; {files_of(folder)}")


def files_of(folder: Path) -> str:
    """The kinds of files that a folder has, and what to do with those that are not read."""
    files = list(files_below(folder))
    arrays = any(path.suffix.lower() in ARRAYS for path in files)
    remedy = "; arrays are not read: write each image into a file, as client/class/0.png for partitioner=natural-id"
    return f"it has {kinds(files) or 'no file'}{remedy if arrays else ''}"


def _compare_with_files(
    dataset: str, folder: Path, rows: Mapping[str, MemoryTable], described: list[Path], notes: list[str]
) -> None:
    """Refuse an image with two rows, which might be a training and a test image, and note images without one."""
    named: dict[str, None] = {}
    for table in rows.values():
        for path in (os.path.normpath(image["path"]) for image in table["image"]):
            if path in named:
                remedy = f"{path} has two rows in {some(map(str, described))}; give each image one"
                raise InputError("dataset", dataset, remedy)
            named[path] = None
    there = {os.path.normpath(path): path for path in files_below(folder)}
    if hidden := [path for path in hidden_images(folder) if os.path.normpath(path) not in named]:
        notes.append(f"left out, for they are hidden: {len(hidden)} images: {some(map(str, hidden))}")
    if nameless := [path for path in there if path not in named and is_image(there[path])]:
        notes.append(f"left out, for no row of a metadata file names them: {some(nameless)}")
    if elsewhere := [path for path in named if path not in there]:
        where = "lie outside the folder, or are hidden"
        notes.append(f"not decoded again when they change, for they {where}: {some(elsewhere)}")


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of the ``datasets`` library wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(dataset: str, folder: Path) -> Mapping[str, Any]:
    """The splits that ``save_to_disk`` wrote; a dataset without splits is all ``train``.

    Raises:
        InputError: files are missing or damaged.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds for missing and damaged files
        remedy = f"cannot be loaded from {folder}: {' '.join(str(error).split())[:300]}"
        raise InputError("dataset", dataset, remedy) from None
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _tables_of_images(found: dict[str, ClassFiles]) -> Mapping[str, MemoryTable]:
    """The splits of a folder of images, with the classes of all splits."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    names = list(found.get("train", {}))
    names += sorted({name for classes in found.values() for name in classes} - set(names))
    features = {"image": ImageFeature(), "label": ClassLabel(names=names)}
    number = {name: place for place, name in enumerate(names)}
    tables = {}
    for split, classes in found.items():
        rows = [(path, number[name]) for name in names for path in classes.get(name, [])]
        images = [{"bytes": None, "path": str(path)} for path, _ in rows]
        tables[split] = MemoryTable(features, {"image": images, "label": [label for _, label in rows]})
    return tables


def _subset(dataset: str, folder: Path, tables: list[Path], subset: str) -> list[Path]:
    """The tables of the one dataset in the folder, or of the subset: those that lie in a folder of its own."""
    groups: dict[str, list[Path]] = {}
    for path in tables:
        parents = path.relative_to(folder).parent.parts
        groups.setdefault("/".join(part for part in parents if part not in SPLITS), []).append(path)
    if subset:
        _refuse_subset(dataset, subset, [name for name in groups if name])
        return groups[subset]
    if len(groups) > 1:
        names = some(repr(name) if name else "the folder itself" for name in sorted(groups))
        example = f"{folder}:{next(filter(None, sorted(groups)))}"
        raise InputError("dataset", dataset, f"has tables of several subsets, in {names}; name one, as {example}")
    return tables


def _refuse_subset(dataset: str, subset: str, known: list[str]) -> None:
    if subset and subset not in known:
        remedy = f"it has {some(sorted(known))}" if known else "the folder has one dataset: leave out the colon"
        raise InputError("dataset", dataset, f"has no subset {subset!r}; {remedy}")


def _splits(dataset: str, folder: Path, tables: list[Path]) -> dict[str, list[Path]]:
    """The tables of each split: named by a folder, as in ``train/``, or by the file, as ``train-00000-of-00002``."""
    found: dict[str, list[Path]] = {}
    unnamed: dict[str, list[Path]] = {}
    for path in tables:
        shard = SHARD.fullmatch(path.stem)
        name = shard["name"] if shard else path.stem
        split = next((part for part in path.relative_to(folder).parent.parts if part in SPLITS), "")
        if split or name in SPLITS or (shard and shard["of"]):
            found.setdefault(split or name, []).append(path)
        else:
            unnamed.setdefault(name, []).append(path)
    if not set(found) & set(SPLITS):
        unnamed |= found
        found = {}
    if not found and len(unnamed) == 1:
        return {"train": next(iter(unnamed.values()))}
    if unnamed:
        names = some(str(path.relative_to(folder)) for paths in unnamed.values() for path in paths)
        remedy = (
            "name them by the split, as train.csv and test-00000-of-00002.parquet, or put them into train/ and test/"
        )
        raise InputError("dataset", dataset, f"which split has these tables: {names}? {remedy}")
    return found
