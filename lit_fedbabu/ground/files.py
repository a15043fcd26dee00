"""Files that are written whole or not at all, and folders that an option names."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.stops import settle


def from_home(path: str | Path) -> Path:
    """A path whose ``~`` or ``~user`` is the user's home; without such a user it stays as it is."""
    return Path(os.path.expanduser(path))


def dataset_folder(dataset: str) -> tuple[Path, str] | None:
    """The folder of a dataset and its subset, as in "folder:subset" or "folder"; None where there is no folder."""
    for name, subset in ((dataset, ""), dataset.rpartition(":")[::2]):
        if name and (path := from_home(name)).is_dir():
            return path, subset
    return None


def whole_name(dataset: str) -> str:
    """The name of a dataset with the absolute path of its folder; one without a folder stays as it is."""
    if place := dataset_folder(dataset):
        folder, subset = place
        return f"{folder.resolve()}:{subset}" if subset else str(folder.resolve())
    return dataset


@contextmanager
def whole(path: Path, written: Callable[[Path], None] = lambda scratch: None) -> Iterator[Path]:
    """A hidden file to write to, which then replaces the file at the path. If anything fails, the old file stays.

    Args:
        path: of the file.
        written: called with the hidden file when it is written, before it is moved.
    """
    scratch = path.with_name(f".{path.name}")
    try:
        with naming(path, scratch):
            yield scratch
            written(scratch)
            os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While it lasts, no other process may work in the folder. It ends with this process too, however that ends.

    File systems without locks let everyone pass.

    Raises:
        InputError: another process works there.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError("folder", str(folder), "another process works in it; wait for it, or end it") from None
        yield
    finally:
        os.close(place)


@contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Give the path to an OSError that names no file, as one of a full disk, or the hidden file in its place."""
    try:
        yield
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) == str(scratch):
            error.filename = str(path)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all: one line for each key, and one for each entry of a list."""

    def lines(item: Any) -> str:
        if not isinstance(item, list):
            return json.dumps(item)
        return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in item) + "\n ]"

    body = ",\n".join(f" {json.dumps(key)}: {lines(item)}" for key, item in value.items())
    write_whole(path, f"{{\n{body}\n}}\n")


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append a mapping as one line of JSON. A line before it that was cut off stays one of its own."""
    with naming(path), path.open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")


def read_json_lines(path: Path, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    """Mappings that ``append_json_line`` wrote, without a line that a kill has cut off; none where there is no file.

    Args:
        path: of the file.
        keys: that every line has, and the types of their values.

    Raises:
        InputError: a line has something else.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for key, kind in keys.items():
            if not isinstance(row, dict) or type(row.get(key)) is not kind:
                remedy = f"line {number} has no {key} that is of the type {kind.__name__}; put the old file back"
                raise InputError("file", str(path), remedy)
        rows.append(row)
    return rows


def make_folder(option: str, folder: Path) -> None:
    """Make the folder that an option names, unless it exists.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(option, str(folder), f"cannot be made: {error.strerror}") from None


@contextmanager
def new_folder(option: str, folder: Path, *, is_result: bool = True, rewritten: bool = False) -> Iterator[Path]:
    """A hidden folder to write to, which becomes the one that an option names if nothing fails.

    Args:
        option: its name.
        folder: one that exists is filled: it can be where a container has a disk of its own.
        is_result: whether the command is done with it, so that a signal comes too late.
        rewritten: whether the folder may have files, which are replaced by those of the same names.

    Raises:
        InputError: it cannot be made or written to, or it is not empty.
    """
    exists = folder.is_dir()
    scratch = (folder if exists else folder.parent) / f".unfinished-{os.getpid()}"
    made = [] if exists else [each for each in folder.parents if not each.exists()]
    try:
        if exists and not rewritten and any(folder.iterdir()):
            raise InputError(option, str(folder), "is not empty, and nothing is overwritten; take another folder")
        if not exists and os.path.lexists(folder):
            raise FileExistsError(errno.EEXIST, "it is no folder")
        scratch.mkdir(parents=True)
    except OSError as error:
        what = "made" if rewritten else "written to"
        raise InputError(option, str(folder), f"cannot be {what}: {error.strerror}") from None
    try:
        yield scratch
        if is_result:
            settle()
        for path in scratch.iterdir() if exists else ():
            path.replace(folder / path.name)
        scratch.rmdir() if exists else scratch.rename(folder)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            for each in made:
                each.rmdir()
        if isinstance(error, OSError) and error.filename is not None:
            file = os.fsdecode(error.filename2 or error.filename)
            error.filename, error.filename2 = file.replace(str(scratch), str(folder)), None
        raise


def refuse_unwritable(option: str, folder: Path) -> None:
    """Raise InputError where the folder that an option names cannot be made or written to."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(option, str(folder), f"{place} is no folder that can be written to; take another one")
