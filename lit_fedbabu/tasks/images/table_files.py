"""Tables in files: Parquet, CSV, JSON, and the columns of one or of several of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images.decoding import LFS_POINTER
from lit_fedbabu.tasks.images.texts import read_csv, read_text

if TYPE_CHECKING:
    import pyarrow as pa

FILE_NAME = "file_name"
"""The column of a metadata file with the paths of images, from the file's own folder."""
ROWS = 256
"""Rows that are read from a Parquet file at a time."""


@dataclasses.dataclass(frozen=True)
class MemoryTable:
    """Columns in memory. An image is a mapping of its ``bytes`` and its ``path``, of which one is None."""

    features: Mapping[str, Any]
    columns: Mapping[str, list[Any]]

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


@dataclasses.dataclass(frozen=True)
class SomeRows:
    """The rows of a table that are kept."""

    table: FileTable | MemoryTable
    kept: tuple[bool, ...]

    @property
    def features(self) -> Mapping[str, Any]:
        return self.table.features

    def __getitem__(self, name: str) -> Iterator[Any]:
        return itertools.compress(self.table[name], self.kept)


@dataclasses.dataclass(frozen=True)
class FileTable:
    """Files with the same columns, one after another. Images are as in ``MemoryTable``."""

    features: Mapping[str, Any]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, dataset: str, files: list[Path]) -> FileTable:
        """The table in the files.

        Raises:
            InputError: a file cannot be read, or has other columns than the first.
        """
        schemas = [_schema(dataset, path) for path in files]
        if twice := [name for name in schemas[0].names if schemas[0].names.count(name) > 1]:
            raise InputError("dataset", dataset, f"its table {files[0]} has two columns {twice[0]}; rename one")
        for path, schema in zip(files, schemas, strict=True):
            if not schema.equals(schemas[0]):
                given, other = (", ".join(f"{each.name} ({each.type})" for each in one) for one in (schemas[0], schema))
                remedy = f"its table {path} has other columns than {files[0]}: {other}, and not {given}"
                raise InputError("dataset", dataset, remedy)
        features = [_features(schema) for schema in schemas]
        for path, each in zip(files, features, strict=True):
            if each != features[0]:
                raise InputError("dataset", dataset, f"its table {path} has other classes than {files[0]}")
        return cls(features[0], tuple(files))

    def __getitem__(self, name: str) -> Iterator[Any]:
        for path in self.files:
            for batch in READERS[path.suffix.lower()](path, [name]):
                for value in batch.column(0).to_pylist():
                    yield _beside(path, value) if isinstance(value, dict) else value


def read_metadata(dataset: str, files: list[Path]) -> MemoryTable:
    """The rows of metadata files, with the images that they name in a column ``image``.

    Raises:
        InputError: a file cannot be read, has no column ``file_name`` or one of the name ``image``, or names an image
            that is not there.
    """
    from datasets import Image as ImageFeature

    table = FileTable.of(dataset, files)
    if FILE_NAME not in table.features:
        remedy = f"{files[0]} has no column {FILE_NAME}; it has {', '.join(table.features)}"
        raise InputError("dataset", dataset, remedy)
    if "image" in table.features:
        raise InputError("dataset", dataset, f"{files[0]} has a column image, which is that of the images; rename it")
    columns = {name: list(table[name]) for name in table.features if name != FILE_NAME}
    images = []
    for path in files:
        for row, name in enumerate(FileTable(table.features, (path,))[FILE_NAME]):
            image = None if name is None else _named(path.parent, str(name))
            if image is None:
                remedy = f"{path}, column {FILE_NAME}, row {row}: there is no file {name}"
                raise InputError("dataset", dataset, remedy)
            images.append({"bytes": None, "path": str(image)})
    features = {"image": ImageFeature(), **{name: table.features[name] for name in columns}}
    return MemoryTable(features, {"image": images, **columns})


def _named(folder: Path, name: str) -> Path | None:
    """The image that a row names, also with the backslashes of Windows, or as another system writes its accents."""
    plain = name.strip().replace("\\", "/")
    forms = (name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    return next((folder / each for each in forms if (folder / each).is_file()), None)


def _beside(table: Path, image: dict[str, Any]) -> dict[str, Any]:
    """An image of a table without its bytes: its path is from the table's folder, if there is such a file."""
    if image.get("bytes") is None and image.get("path") and (place := table.parent / image["path"]).is_file():
        return {**image, "path": str(place)}
    return image


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What each column holds; of a type that ``datasets`` does not know, nothing."""
    import pyarrow as pa
    from datasets import Features, Value

    features = {}
    known = []
    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
            known.append(field)
        except (ValueError, TypeError):
            features[field.name] = Value("binary" if pa.types.is_fixed_size_binary(field.type) else "null")
    of_known = Features.from_arrow_schema(pa.schema(known, schema.metadata))
    return {field.name: features.get(field.name) or of_known[field.name] for field in schema}


def declared_splits(dataset: str, folder: Path, subset: str) -> dict[str, list[Path]] | None:
    """The tables of each split as the head of the folder's README.md declares them; None where it does not.

    Raises:
        InputError: no subset of several is named, there is none of the name, or its files are not there.
    """
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head: Any = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
        configs = {str(each["config_name"]): each for each in head["configs"] if "data_files" in each}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    if not configs:
        return None
    chosen = subset or next((name for name, each in configs.items() if each.get("default") is True), "")
    chosen = chosen or ("default" if "default" in configs else next(iter(configs)) if len(configs) == 1 else "")
    if chosen not in configs:
        remedy = f"its README.md declares the subsets {', '.join(configs)}; name one, as {folder}:{next(iter(configs))}"
        raise InputError("dataset", dataset, remedy)
    splits: dict[str, list[Path]] = {}
    for split, pattern in _patterns(configs[chosen]["data_files"]):
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not files:
            raise InputError("dataset", dataset, f"its README.md declares {pattern}, of which there is no file")
        splits.setdefault(split, []).extend(files)
    tables = all(path.suffix.lower() in READERS for files in splits.values() for path in files)
    return splits if tables else None


def _patterns(data_files: Any) -> Iterator[tuple[str, str]]:
    """Splits and patterns of their files; data_files: a pattern, several, or mappings of ``split`` and ``path``."""
    for entry in [data_files] if isinstance(data_files, str | dict) else data_files:
        paths = entry["path"] if isinstance(entry, dict) else entry
        for path in [paths] if isinstance(paths, str) else paths:
            yield str(entry.get("split", "train")) if isinstance(entry, dict) else "train", str(path)


def _schema(dataset: str, path: Path) -> pa.Schema:
    try:
        return next(READERS[path.suffix.lower()](path, None)).schema
    except StopIteration:
        reason = "has no rows"
    except Exception as error:  # of pyarrow and json, of many kinds
        with path.open("rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        fetch = "is a pointer of Git LFS; fetch the files with git lfs pull"
        reason = fetch if pointer else f"cannot be read: {' '.join(str(error).split())[:300]}"
    raise InputError("dataset", dataset, f"its table {path} {reason}")


def _parquet(path: Path, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if columns is None:
            yield pa.Table.from_batches([], file.schema_arrow)
        else:
            yield from file.iter_batches(ROWS, columns=columns)


def _csv(path: Path, columns: list[str] | None) -> Iterator[Any]:
    table = read_csv(path)
    yield table.select(columns) if columns else table


def _json(path: Path, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa

    text = read_text(path)
    rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of objects")
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    yield table.select(columns) if columns else table


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return rows


READERS = {".parquet": _parquet, ".csv": _csv, ".json": _json, ".jsonl": _json}
"""How the files of each suffix are read: the named columns as batches of rows, or all for None."""
