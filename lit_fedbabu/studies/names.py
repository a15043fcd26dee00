"""Names in a study: of its folder and of its runs', and of values in its file."""

import json
import re
from pathlib import Path
from typing import Any

from lit_fedbabu.config.rules import LONGEST_NAME
from lit_fedbabu.ground.errors import InputError

EXAMPLES = {"base": "official.toml", "output-dir": "tb_logs/studies"}


def path_text(key: str, value: Any) -> str:
    """The value of a key that is a text; raises InputError where it is none."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(key, value, f'must be one path, as in {key} = "{EXAMPLES[key]}"')
    return value


def study_name(value: Any) -> str:
    """The name of a study's folder; raises InputError where it would lie elsewhere than in ``output-dir``."""
    if not isinstance(value, str) or not value or "/" in value or value.startswith(".") or not value.isprintable():
        raise InputError("name", value, "must be the plain name of a folder; the place is output-dir")
    refuse_long(value)
    return value


def refuse_long(name: str) -> None:
    """Raise InputError where the name of a folder, of a study or of a run of one, is too long for one."""
    if (length := len(name.encode())) > LONGEST_NAME:
        raise InputError(
            "name", f"{name[:60]}...", f"has {length} bytes, and a folder's may have {LONGEST_NAME}; shorten it"
        )


def table_word(value: Any) -> str:
    """A value of an axis as the name of its table in ``per``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def toml_key(value: Any) -> str:
    """The same as it is written in a study's file: in quotes where TOML asks for them."""
    word = table_word(value)
    return word if re.fullmatch(r"[A-Za-z0-9_-]+", word) else json.dumps(word)


def folder_word(key: str, value: Any) -> str:
    """A value of an axis in the name of a folder."""
    word = re.sub(r"[^\w.+-]+", "_", Path(str(value)).name if key in ("dataset", "initial-weights") else str(value))
    return word if key == "algorithm" else f"{key}_{word}"
