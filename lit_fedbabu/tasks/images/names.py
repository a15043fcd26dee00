"""Names of classes and clients: which are one name in two forms, and which only look alike."""

import unicodedata
from collections.abc import Iterable

AS_LATIN = str.maketrans("аеорсухіјѕԁһνοαικρτχ", "aeopcyxijsdhvoaikptx")
"""Small letters of Cyrillic and Greek that are drawn as Latin ones."""


def composed(name: str) -> str:
    """A name in one form of Unicode: macOS writes é as e and an accent, others as one character."""
    return unicodedata.normalize("NFC", name)


def spellings(names: Iterable[str]) -> dict[str, str]:
    """The spelling of each composed name: that in which it comes first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(composed(name), name)
    return found


def look_alike(what: str, names: Iterable[str]) -> list[str]:
    """Notes of different names that differ in nothing but case, spaces, dashes or letters that are drawn alike.

    Args:
        what: the names are of, as in "classes".
        names: different ones.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        letters = [each for each in _plain(name) if each not in "-_" and unicodedata.category(each)[0] not in "CZ"]
        key = "".join(letters) if any(map(str.isalpha, letters)) else name
        groups.setdefault(key, []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    return [f"{len(each)} {what}, though their names look alike: {', '.join(map(_quoted, each))}" for each in alike]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().translate(AS_LATIN)


def _quoted(name: str) -> str:
    """A name in quotation marks, with numbers for letters that are drawn as others are."""
    return repr(name) if _plain(name) == composed(name).casefold() else ascii(name)
