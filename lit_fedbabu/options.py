"""How an option of a configuration is declared, read and checked."""

import dataclasses
import json
import math
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from lit_fedbabu.errors import InputError
from lit_fedbabu.system import configs_folder

TYPES = {"int": int, "float": float, "str": str}
"""Types that an option can have, by the name in its annotation."""


def option(
    default: Any,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare a field of ``Config``.

    Args:
        default: the value where none is given.
        about: what it means, with its unit; shown by ``--help`` and in the documentation.
        choices: the values that are allowed; empty: any.
        low: the least value allowed.
        above: a value that must be exceeded.
        high: the greatest value allowed.
    """
    limits = {"about": about, "choices": choices, "low": low, "above": above, "high": high}
    return dataclasses.field(default=default, metadata=limits)


def key_of(field: "dataclasses.Field[Any]") -> str:
    """The key of a field in TOML: ``num-clients`` for ``num_clients``."""
    return field.name.replace("_", "-")


def checked(value: Any, field: "dataclasses.Field[Any]") -> Any:
    """The value of a field, with whole numbers made floats where the field is one.

    Raises:
        InputError: the type is wrong, or the value is outside the limits of the field.
    """
    key, limits = key_of(field), field.metadata
    kind: Any = field.type if isinstance(field.type, type) else TYPES[str(field.type)]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        article = {int: "a whole number", float: "a number", str: "a text"}[kind]
        raise InputError(key, value, f"must be {article}, as in {key}={json.dumps(field.default)}")
    if limits["choices"] and value not in limits["choices"]:
        raise InputError(key, value, f"must be one of {', '.join(limits['choices'])}")
    if kind is float and not math.isfinite(value):
        raise InputError(key, str(value), "must be finite")
    for bound, words in (("low", "at least"), ("above", "greater than"), ("high", "at most")):
        limit = limits[bound]
        if limit is None:
            continue
        if (value < limit) if bound == "low" else (value <= limit) if bound == "above" else (value > limit):
            raise InputError(key, value, f"must be {words} {limit}, as in {key}={json.dumps(field.default)}")
    return value


def describe(config: Any) -> str:
    """All options of a configuration with their values and meanings, for ``--help``."""
    lines = []
    for field in dataclasses.fields(config):
        lines.append(f"  {key_of(field)}={json.dumps(getattr(config, field.name))}")
        lines += textwrap.wrap(field.metadata["about"], 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(["options and their defaults:", *lines])


def parse_words(words: list[str]) -> dict[str, Any]:
    """Read the words of a command: files ``NAME.toml``, names of shipped ones and ``key=value``; later words win.

    A value is read as TOML. What is not TOML is a string, so ``dataset=digits`` needs no quotes.

    Raises:
        InputError: a file is missing or is not TOML, or a word is neither a file nor ``key=value``.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if word.endswith(".toml"):
            values |= read_toml(Path(word))
        elif (shipped := configs_folder() / f"{word}.toml").is_file() and "/" not in word:
            values |= read_toml(shipped)
        elif equals and key:
            try:
                values[key] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                values[key] = text
        else:
            shipped_names = ", ".join(sorted(path.stem for path in configs_folder().glob("*.toml")))
            remedy = f"write a file NAME.toml, key=value, or the name of a shipped configuration: {shipped_names}"
            raise InputError("argument", word, remedy)
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: the file is missing, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: bytes that are not text, or text that is not TOML
        raise InputError("configuration file", str(path), f"cannot be read: {error}") from None
