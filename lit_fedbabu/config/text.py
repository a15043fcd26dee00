"""The options of an experiment as text: for ``--help``, and as the page ``docs/options.md``."""

import dataclasses
import itertools
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import ARTICLES, OF_TASKS, TRAINER, TYPES, key_of

GROUPS = {
    "algorithm": "Method and model",
    "task": "Task and dataset",
    "partitioner": "Clients and their split",
    "augmentation": "Training",
    "aggregator": "The server",
    "privacy": "Privacy of what is shared",
    "finetune-part": "Fine-tuning and evaluation",
    "precision": "Computation",
    "logger": "The run",
}
"""The first option of each group, in the order of the fields, and the group's title."""

HEAD = """# Options

<!-- made from lit_fedbabu/config/__init__.py by make options -->

Every option of a run: written as `key=value` on the command line, as `key = value` in a TOML file, and as the field of
`Config` that has `_` for `-`. Unknown keys, values of another type and values outside the limits are refused before
anything starts. `lit-fedbabu run --help` prints the same list. Options of other commands are in their own `--help`.

More on `algorithm` and `model-name` is in [architecture](architecture.md#methods), on `dataset`, `partitioner` and
`augmentation` in [data](data.md), on `logger` in [TensorBoard](tensorboard.md#other-loggers).
"""
TAIL = """
With a `task` of your own, options of images, of their split and of the built-in models are not used:
[your own model](own-model.md).

`trainer.NAME=value`, or a table `[trainer]` in a TOML file, passes an argument to Lightning's Trainer; all of them are
collected in `trainer-options`. Arguments that would break the protocol, such as `trainer.max_epochs`, are refused with
the name of the option to use. These are allowed:
"""


def describe(config: Config) -> str:
    """All options of a configuration with their values and meanings, for ``--help``."""
    lines = ["options and their defaults:"]
    for title, fields in _groups():
        lines += ["", title]
        for field in fields:
            lines.append(f"  {key_of(field)}={json.dumps(getattr(config, field.name))}")
            lines += textwrap.wrap(_meaning(field), 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def page() -> str:
    """The page ``docs/options.md``: a table of options for each group."""
    lines = [HEAD]
    for title, fields in _groups():
        lines += [f"## {title}", "", "| key | meaning | default | type and limits |", "|---|---|---|---|"]
        for field in fields:
            default = f"`{json.dumps(field.default)}`"
            cells = (f"`{key_of(field)}`", _meaning(field), default, _limits(field))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    arguments = [f"- `{name}`: {_kind(kind)}" for name, kind in TRAINER.items()]
    arguments += [f"- `{name}`: {_kind(kind)}; only with a `task`" for name, kind in OF_TASKS.items()]
    return "\n".join([*lines, TAIL.strip(), "", *arguments, ""])


def _groups() -> Iterator[tuple[str, list["dataclasses.Field[object]"]]]:
    title = ""
    grouped: list[tuple[str, dataclasses.Field[object]]] = []
    for field in dataclasses.fields(Config):
        title = GROUPS.get(key_of(field), title)
        grouped.append((title, field))
    for title, pairs in itertools.groupby(grouped, lambda pair: pair[0]):
        yield title, [field for _, field in pairs]


def _meaning(field: "dataclasses.Field[object]") -> str:
    about: str = field.metadata["about"]
    return f"{about}; used by {field.metadata['read_by']}" if field.metadata["read_by"] else about


def _limits(field: "dataclasses.Field[object]") -> str:
    """What values are allowed, as in "number, above 0, at most 1"."""
    limits = field.metadata
    if limits["choices"]:
        own = ["an import path"] if limits["import_path"] else []
        return ", ".join([*(f"`{choice}`" for choice in limits["choices"]), *own])
    words = (("low", "at least"), ("above", "above"), ("high", "at most"))
    bounds = [f"{text} {limits[name]}" for name, text in words if limits[name] is not None]
    return ", ".join([_kind(TYPES.get(str(field.type), field.type)), *bounds])


def _kind(kind: Any) -> str:
    return "number" if kind == int | float else ARTICLES[kind].removeprefix("a ")


if __name__ == "__main__":
    sys.stdout.write(page())
