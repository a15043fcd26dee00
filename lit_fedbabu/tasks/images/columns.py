"""The columns of a dataset: which has the images and which the labels, and their values as numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.tasks.images.names import composed, spellings

Numbers = npt.NDArray[np.int64]

LABEL_COLUMNS = {"uoft-cs/cifar100": "fine_label"}
"""The column with the labels of hub datasets that have several, where ``label-column`` does not name it."""
MOST_FLOATS = 50
"""Different whole numbers that a column of floating-point labels may have; with more it is taken for a measure."""


def choose(dataset: str, features: Mapping[str, Any], label_column: str) -> tuple[str, str]:
    """The names of the image column and of the label column.

    Raises:
        InputError: there is not one of each, or the label column is not there.
    """
    from datasets import ClassLabel

    images = _images(features)
    called = [name for name in features if "label" in name and name not in images]
    candidates = (
        [name for name, feature in features.items() if isinstance(feature, ClassLabel)],
        [name for name in called if kind_of(features[name]) == "whole numbers"],
        called,
    )
    labels = next((names for names in candidates if names), [])
    label_column = label_column or LABEL_COLUMNS.get(dataset, "")
    refuse_absent("label-column", label_column, features)
    if len(images) != 1:
        remedy = "" if images else "; an image is the bytes of a file such as PNG, and not a list of numbers or a name"
        raise InputError("dataset", dataset, f"needs one Image column; it has {_named(features)}{remedy}")
    if not label_column and len(labels) != 1:
        remedy = f"needs one ClassLabel column, or label-column=NAME; it has {_named(features)}"
        raise InputError("dataset", dataset, remedy)
    return images[0], label_column or labels[0]


def _images(features: Mapping[str, Any]) -> list[str]:
    """Columns with images: declared as such, else mappings of ``bytes`` and ``path``, else bytes."""
    from datasets import Image as ImageFeature
    from datasets import Value

    def are_bytes(feature: Any) -> bool:
        return isinstance(feature, Value) and "binary" in feature.dtype

    found = (
        [name for name, feature in features.items() if isinstance(feature, ImageFeature)],
        [name for name, each in features.items() if isinstance(each, dict) and are_bytes(each.get("bytes"))],
        [name for name, feature in features.items() if are_bytes(feature)],
    )
    return next((names for names in found if names), [])


def refuse_absent(option: str, column: str, features: Mapping[str, Any]) -> None:
    """Raise InputError where an option names a column that is not there."""
    if column and column not in features:
        raise InputError(option, column, f"is no column of the dataset; it has {_named(features)}")


def numbered(
    dataset: str, tables: Mapping[str, Any], column: str, classes: bool = True
) -> tuple[list[Numbers], list[str]]:
    """A column's values in each split as numbers from 0, and what each number stands for.

    Args:
        dataset: the name that errors give it.
        tables: the splits by their names.
        column: its name.
        classes: whether the values are classes; else floating-point numbers may have any number of different values.

    Raises:
        InputError: a value is missing, or is no whole number, text or truth value; names column, split and row.
    """
    kinds = {split: kind_of(table.features[column]) for split, table in tables.items()}
    values: dict[str, list[Any]] = {}
    for split, kind in kinds.items():
        if not kind:
            remedy = f"its column {column} holds {_type(tables[split].features[column])} from row 0 of split {split} on"
            raise InputError("dataset", dataset, f"{remedy}, and not whole numbers, texts or true and false")
        if kind != kinds["train"]:
            remedy = f"its column {column} holds {kinds['train']} in split train, but {kind} in split {split}"
            raise InputError("dataset", dataset, remedy)
        values[split] = list(tables[split][column])
        for row, value in enumerate(values[split]):
            if reason := _fault(value, kind, tables[split].features[column]):
                raise InputError("dataset", dataset, f"its column {column} {reason} in row {row} of split {split}")
    if kinds["train"].startswith("classes"):
        names = list(tables["train"].features[column].names)
        first = np.array([names.index(spellings(names)[composed(name)]) for name in names], dtype=np.int64)
        return [first[np.asarray(each, dtype=np.int64)] for each in values.values()], names
    if kinds["train"] == "numbers":
        values = {split: [int(value) for value in each] for split, each in values.items()}
    if kinds["train"] == "texts":
        spelt = spellings(value for each in values.values() for value in each)
        values = {split: [spelt[composed(value)] for value in each] for split, each in values.items()}
    found = sorted(set().union(*values.values()))
    if classes and kinds["train"] == "numbers" and len(found) > MOST_FLOATS:
        remedy = f"its column {column} has {len(found)} different numbers with decimal points: a measure, no classes"
        raise InputError("dataset", dataset, remedy)
    number = {value: place for place, value in enumerate(found)}
    return [np.array([number[value] for value in each], dtype=np.int64) for each in values.values()], [
        str(value) for value in found
    ]


def kind_of(feature: Any) -> str:
    """What a column holds that can be numbered; empty for others."""
    from datasets import ClassLabel, Value

    if isinstance(feature, ClassLabel):
        return composed(f"classes ({', '.join(feature.names)})")
    if not isinstance(feature, Value):
        return ""
    starts = {"int": "whole numbers", "uint": "whole numbers", "float": "numbers", "bool": "true and false"}
    starts |= {"string": "texts", "large_string": "texts"}
    return next((kind for start, kind in starts.items() if feature.dtype.startswith(start)), "")


def _fault(value: Any, kind: str, feature: Any) -> str:
    """What is wrong with a value; empty for nothing."""
    if value is None:
        return "has no value"
    if kind == "texts" and not value.strip():
        return "has an empty text"
    if kind == "numbers" and not float(value).is_integer():
        return f"has {value}, which is no whole number,"
    if kind.startswith("classes") and not 0 <= value < len(feature.names):
        return f"has {value}, but its classes are 0 to {len(feature.names) - 1},"
    return ""


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__


def _named(features: Mapping[str, Any]) -> str:
    return some(f"{name} ({type(feature).__name__})" for name, feature in features.items()) or "no column"
