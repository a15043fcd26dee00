"""What is typed after a command: files and ``key=value``, read by the type of the option."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import TYPES, key_of, read_toml
from lit_fedbabu.ground.errors import InputError, close_to
from lit_fedbabu.ground.files import from_home
from lit_fedbabu.ground.system import configs_folder

KINDS: Mapping[str, Any] = {
    **{key_of(field): TYPES.get(str(field.type), field.type) for field in dataclasses.fields(Config)},
    "name": str,
}
"""The type of each option, and of a study's name."""
KEY = re.compile(r"[A-Za-z][\w.-]*")


def parse_words(words: list[str]) -> dict[str, Any]:
    """Read the words of a command: files ``NAME.toml``, names of shipped ones and ``key=value``; later words win.

    The value of a text option is the text, without quotes around it. Others are read as TOML, or as Python reads a
    number.

    Raises:
        InputError: a file is missing or is not TOML, or a word is neither a file nor ``key=value``.
    """
    shipped = {path.stem: path for path in sorted(configs_folder().glob("*.toml"))}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if equals and KEY.fullmatch(key) and (key in KINDS or not os.path.isfile(word)):
            values[key] = typed(text, KINDS.get(key))
        elif word in shipped:
            values |= read_toml(shipped[word])
        elif word.endswith(".toml"):
            values |= read_toml(from_home(word))
        else:
            remedy = f"write a file NAME.toml, key=value, or the name of a shipped configuration: {', '.join(shipped)}"
            is_data = word == "digits" or os.path.isdir(word)
            meant = f"; did you mean dataset={word}?" if is_data else close_to(word, shipped)
            raise InputError("argument", word, remedy + meant)
    return values


def typed(text: str, kind: Any = None) -> Any:
    """A value as it was typed.

    Args:
        text: what stands after ``key=``.
        kind: the type of the option; None: it has none that is known.
    """
    with suppress(tomllib.TOMLDecodeError):
        value = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
        if kind is not str or isinstance(value, str | list):
            return value
    if kind is not str and re.fullmatch(r"[+-]?[\d_]*\.?[\d_]*([eE][+-]?\d+)?", text.strip()):
        for number in (int, float):  # .1, 1. and 007 are no TOML
            with suppress(ValueError):
                return number(text)
    return text
