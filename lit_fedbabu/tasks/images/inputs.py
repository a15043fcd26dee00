"""Images to be predicted, as a person names them: files, folders, patterns, and standard input."""

import dataclasses
import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.decoding import Pixels, decode, quiet_pillow, with_channels
from lit_fedbabu.tasks.images.folders import files_below, is_image

STANDARD_INPUT = "-"


@dataclasses.dataclass
class Named:
    """Images with their names.

    Args:
        names: of the images that could be read.
        images: the same, (H, W, C) each.
        refused: an error for each file, folder or pattern that gave none.
        notes: what was left out.
    """

    names: list[str] = dataclasses.field(default_factory=list)
    images: list[Pixels] = dataclasses.field(default_factory=list)
    refused: list[InputError] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def read_named(words: Sequence[str], channels: int, size: int) -> Named:
    """All images that words name, decoded as training images are. What cannot be read does not stop the others.

    Args:
        words: paths of files, of folders (all images below them), patterns of files and folders as in "photos/*.png",
            or "-" for the content of an image on standard input.
        channels: of the images, 1 or 3.
        size: height and width of the images.
    """
    named = Named()
    for word in words:
        try:
            for name, file in _found(word, named.notes):
                _read(name, file, channels, size, named)
        except InputError as error:
            named.refused.append(error)
        except OSError as error:  # of a name that is too long, or a folder that cannot be read
            named.refused.append(InputError("IMAGE", str(error.filename or word), f"cannot be read: {error.strerror}"))
    return named


def _read(name: str, file: Path | bytes, channels: int, size: int, named: Named) -> None:
    try:
        with quiet_pillow():
            named.images.append(with_channels(decode(file, size=size)[None], channels)[0])
        named.names.append(name)
    except ValueError as error:
        missing = isinstance(file, Path) and not file.is_file()
        reason = "is no file" if missing else f"cannot be read as an image: {error}"
        named.refused.append(InputError("IMAGE", name, reason))


def _found(word: str, notes: list[str]) -> Iterator[tuple[str, Path | bytes]]:
    """Names and files, or contents, that a word stands for; raises InputError where it stands for none."""
    path = Path(word)
    if not word:
        raise InputError("IMAGE", word, "is empty; give the folder . for all images below this one")
    if word == STANDARD_INPUT:
        yield word, sys.stdin.buffer.read()
    elif path.is_dir():
        images = _images_below(path, notes)
        if not images:
            raise InputError("IMAGE", word, "is a folder without an image")
        yield from ((str(each), each) for each in images)
    elif not path.exists() and glob.has_magic(word):
        matches = sorted(map(Path, glob.glob(word, recursive=True)))
        files = dict.fromkeys(each for each in matches if not each.is_dir())
        named = {parent for each in files for parent in each.parents}  # as of **, which also matches what is below
        for folder in (each for each in matches if each.is_dir() and each not in named):
            files |= dict.fromkeys(_images_below(folder, notes))
        if not files:
            raise InputError("IMAGE", word, "is a pattern that no image matches")
        yield from ((str(each), each) for each in sorted(files))
    else:
        yield word, path


def _images_below(folder: Path, notes: list[str]) -> list[Path]:
    files = list(files_below(folder))
    if others := [each for each in files if not is_image(each)]:
        notes.append(f"left out, for they are no images: {some(map(str, others))}")
    return [each for each in files if is_image(each)]
