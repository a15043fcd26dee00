"""A column of a table that says which rows are training and which are test images."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.folders import SPLITS
from lit_fedbabu.tasks.images.table_files import FileTable, MemoryTable, SomeRows

_SPLITS = {
    "train": "train training trained trainset trn",
    "validation": "val valid validation validate valset dev devel development devset publictest",
    "test": "test testing tested testset tst eval evaluation holdout heldout privatetest",
}
WORDS = {word: split for split, words in _SPLITS.items() for word in words.split()}
"""Values that name a split, in small letters and without dashes."""
TRUTHS = {**dict.fromkeys(("1", "true", "yes", "y", "t"), True), **dict.fromkeys(("0", "false", "no", "n", "f"), False)}
NAMES = ("partition", "usage", "phase", "purpose")
"""A column of these names, or with split in its name, must say of each row which split it is of."""
WEAK_NAMES = ("set", "subset", "fold", "stage", "part")
"""A column of these names may say so."""
_FLAG = re.compile(rf"(is|in|for|use|usefor)?({'|'.join(sorted(WORDS, key=len, reverse=True))})(image|flag)?")
"""The name of a column of yes and no, as ``is_train``."""


def split_by_column(
    dataset: str, tables: Mapping[str, Any], used: Collection[str], notes: list[str]
) -> Mapping[str, Any]:
    """The tables by their splits. If there is none of test images, a column may say which rows these are.

    Args:
        dataset: the name that errors give it.
        tables: by their splits.
        used: columns that hold other things: images, labels, clients.
        notes: gets a line for a column that was followed, and for one that was not understood.

    Raises:
        InputError: such a column has a value that names no split, or contradicts another column or the tables.
    """
    declared = [split for split in tables if split in SPLITS]
    if len(declared) > 1:
        for split in declared:
            for name, splits in _columns(dataset, tables[split], used, []):
                for row, says in enumerate(splits):
                    if (says == "train") != (split == "train"):
                        remedy = f"its column {name} has {says} in row {row} of split {split}; move it, or rename the"
                        raise InputError("dataset", dataset, f"{remedy} column")
        return tables
    found = list(_columns(dataset, tables["train"], used, notes))
    if not found:
        return tables
    name, splits = found[0]
    for other, each in found[1:]:
        if differing := [row for row, pair in enumerate(zip(splits, each, strict=True)) if len(set(pair)) > 1]:
            remedy = f"its columns {name} and {other} name different splits in row {differing[0]}; rename one of them"
            raise InputError("dataset", dataset, remedy)
    counts = Counter(splits)
    if "train" not in counts:
        raise InputError("dataset", dataset, f"its column {name} says of no image that it is a training image")
    words = ", ".join(f"{split} {counts[split]}" for split in _SPLITS if counts[split])
    notes.append(f"the column {name} says which images are of which split: {words}")
    return {**tables, **{split: _rows(tables["train"], [each == split for each in splits]) for split in counts}}


def _rows(table: Any, kept: list[bool]) -> Any:
    if isinstance(table, FileTable | MemoryTable):
        return SomeRows(table, tuple(kept))
    return table.select(np.flatnonzero(kept))


def _columns(dataset: str, table: Any, used: Collection[str], notes: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Columns that name the split of every row, with these splits. Flags, as ``is_train`` and ``is_test``, are one."""
    flags: dict[str, tuple[str, list[bool]]] = {}
    for name, feature in table.features.items():
        plain = _plain(name)
        flag, strong = _FLAG.fullmatch(plain), plain in NAMES or "split" in plain
        if name in used or type(feature).__name__ not in ("Value", "ClassLabel"):
            continue
        values = _values(table, name, all_of_them=bool(flag or strong or plain in WEAK_NAMES))
        truths = [TRUTHS.get(_plain(value)) for value in values]
        splits = [WORDS.get(_plain(value)) for value in values]
        if flag and values and None not in truths:
            flags[name] = WORDS[flag[2]], list(map(bool, truths))
        elif values and None not in splits:
            yield name, list(map(str, splits))
        elif values and (strong or any(splits) or (flag and flag[1] and any(each is not None for each in truths))):
            known = splits if strong or any(splits) else truths
            row = known.index(None)
            remedy = f"its column {name} says which split a row is of, and has {values[row]!r} in row {row}"
            raise InputError("dataset", dataset, f"{remedy}; write train or test, or give the column another name")
        elif values:
            there = some(dict.fromkeys(map(str, values)))
            notes.append(f"not used: the column {name}, whose values name no split: {there}")
    if len(flags) == 1:
        ((name, (split, truth)),) = flags.items()
        other = "test" if split == "train" else "train"
        yield name, [split if each else other for each in truth]
    elif flags:
        yield " and ".join(flags), list(_of_flags(dataset, flags))


def _of_flags(dataset: str, flags: Mapping[str, tuple[str, list[bool]]]) -> Iterator[str]:
    for row, truths in enumerate(zip(*(truth for _, truth in flags.values()), strict=True)):
        splits = [split for (split, _), true in zip(flags.values(), truths, strict=True) if true]
        if len(splits) != 1:
            remedy = f"its columns {' and '.join(flags)} name {len(splits)} splits in row {row}; name one"
            raise InputError("dataset", dataset, remedy)
        yield splits[0]


def _values(table: Any, name: str, all_of_them: bool) -> list[Any]:
    """A column's values, of classes their names; else none where they are no texts, or no names of several splits."""
    feature = table.features[name]
    names = getattr(feature, "names", None)
    if not all_of_them and names is None and "string" not in feature.dtype:
        return []
    found = []
    for value in table[name]:
        found.append(names[value] if names and value is not None and 0 <= value < len(names) else value)
        if not all_of_them and _plain(found[-1]) not in WORDS:
            return []
    return found if all_of_them or len({WORDS[_plain(value)] for value in found}) > 1 else []


def _plain(value: Any) -> str:
    """Its letters and digits alone, small."""
    return re.sub(r"[\W_]", "", str(value)).casefold()
