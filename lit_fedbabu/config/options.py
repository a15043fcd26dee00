"""How an option of a configuration is declared, read and checked."""

import dataclasses
import importlib
import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_fedbabu.ground.errors import InputError, close_to, told

TRAINER = {
    "accumulate_grad_batches": int, "benchmark": bool, "detect_anomaly": bool, "deterministic": bool,
    "gradient_clip_algorithm": str, "gradient_clip_val": float, "limit_train_batches": float,
    "reload_dataloaders_every_n_epochs": int,
}  # fmt: skip
"""Arguments of Lightning's Trainer that pass through, and their types."""
OF_TASKS = {
    "check_val_every_n_epoch": int, "devices": int, "limit_val_batches": float, "val_check_interval": float,
}  # fmt: skip
"""Those that pass through to the module of a task, whose data and validation are its own."""
PROTOCOL = {
    "max_epochs": "num-local-epochs and num-finetune-epochs", "min_epochs": "num-local-epochs",
    "max_steps": "num-local-steps", "precision": "precision", "logger": "the run's own records",
    "default_root_dir": "output-dir", "callbacks": "callbacks of a Task", "fast_dev_run": "num-server-rounds=1",
}  # fmt: skip
"""Arguments that would break the protocol, and what takes their place."""
DEVICES = ("accelerator", "devices", "num_nodes", "strategy")
"""Arguments that say where a Trainer is."""
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
"""Types that an option can have, by the name in its annotation."""
ARTICLES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


NAMES = re.compile(r"[a-z][a-z0-9_]*(\+[a-z][a-z0-9_]*)*")
"""Parts of a model, as in body+neck."""
TRAINABLE = re.compile(r"all|norm|last:[1-9]\d{0,4}|lora:[1-9]\d{0,4}")


def is_trainable(value: Any) -> bool:
    """Whether it says what of a body trains."""
    return isinstance(value, str) and TRAINABLE.fullmatch(value) is not None


def option(
    default: Any,
    about: str,
    *,
    read_by: str = "",
    choices: tuple[str, ...] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    import_path: bool = False,
    several: bool = False,
    parts: bool = False,
) -> Any:
    """Declare a field of ``Config``.

    Args:
        default: the value where none is given.
        about: what it means, with its unit; shown by ``--help`` and in the documentation.
        read_by: the algorithms, partitioners, aggregators, parts of fine-tuning or engines that read it; empty: all.
        choices: the values that are allowed; empty: any.
        low: the least value allowed.
        above: a value that must be exceeded.
        high: the greatest value allowed.
        import_path: whether the path of an object, as in my_module:name, may stand in place of a choice.
        parts: whether names of parts, as in head+adapters, may stand in place of a choice.
        several: whether a text names several things with commas between them; a list of texts is taken too.
    """
    limits = {"about": about, "read_by": read_by, "choices": choices, "low": low, "above": above, "high": high}
    kinds = {"import_path": import_path, "several": several, "parts": parts}
    return dataclasses.field(default=default, metadata={**limits, **kinds})


def key_of(field: "dataclasses.Field[Any]") -> str:
    """The key of a field in TOML: ``num-clients`` for ``num_clients``."""
    return field.name.replace("_", "-")


def checked(value: Any, field: "dataclasses.Field[Any]") -> Any:
    """The value of a field, with whole numbers made floats where the field is one, and kept where it may be both.

    Raises:
        InputError: the type is wrong, or the value is outside the limits of the field.
    """
    key, limits = key_of(field), field.metadata
    kind: Any = TYPES.get(str(field.type), field.type)
    if kind == int | float:
        kind = int if type(value) in (int, float) and value == value // 1 else float
        value = int(value) if kind is int else value
    if kind is float and type(value) is int:
        value = float(value)
    if limits["several"] and isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        if wrong := [each for each in value if "," in each]:
            raise InputError(key, value, f"has a comma in {wrong[0]}; names have commas between them, and none inside")
        value = ",".join(value)
    if kind is str and not isinstance(value, str | list | dict):  # as a number or a date in a file
        raise InputError(key, value, "must be a text; put it in quotes")
    if type(value) is not kind:
        raise InputError(key, value, f"must be {ARTICLES[kind]}, as in {key}={json.dumps(field.default)}")
    free = (limits["import_path"] and ":" in value) or (limits["parts"] and NAMES.fullmatch(value))
    if limits["choices"] and value not in limits["choices"] and not free:
        path = f", or an import path as in my_module:{field.name}" if limits["import_path"] else ""
        remedy = f"must be one of {', '.join(limits['choices'])}{path}{close_to(value, limits['choices'])}"
        raise InputError(key, value, remedy)
    if kind is float and not math.isfinite(value):
        raise InputError(key, str(value), "must be finite")
    for bound, words in (("low", "at least"), ("above", "greater than"), ("high", "at most")):
        limit = limits[bound]
        if limit is None:
            continue
        if (value < limit) if bound == "low" else (value <= limit) if bound == "above" else (value > limit):
            raise InputError(key, value, f"must be {words} {limit}, as in {key}={json.dumps(field.default)}")
    return value


def imported(key: str, path: str, remedy: str) -> Any:
    """What an option names by an import path, as in ``my_package.my_module:name``.

    The current folder is searched last, so a file beside the user's shell is found by installed commands too.

    Raises:
        InputError: there is no such object, or its file raises an exception, is this program itself, is being imported,
            or was edited since this process imported it; ``remedy`` says what is expected.
    """
    module, _, name = path.partition(":")
    if module == "__main__":
        raise InputError(
            key, path, "is this program or notebook, which workers cannot import; put it in a file of its own"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        if not module or (isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")):
            _refuse_hidden(key, path, sys.modules.get(module.partition(".")[0]))
            raise InputError(key, path, f"{remedy}; {error}") from None
        raise InputError(key, path, f"its file cannot be imported: {told(error)}") from error
    if getattr(found.__spec__, "_initializing", False):
        raise InputError(
            key, path, 'its file asks for itself when it is imported; put what runs under if __name__ == "__main__"'
        )
    _refuse_hidden(key, path, found)
    _refuse_edited(key, path, found)
    if not hasattr(found, name):
        raise InputError(key, path, f"{remedy}; {getattr(found, '__file__', None) or module} has no attribute {name!r}")
    return getattr(found, name)


def _refuse_hidden(key: str, path: str, found: ModuleType | None) -> None:
    """Refuse a module of another place that hides the file of this name in the current folder, if they differ."""
    place = Path.cwd().joinpath(*path.partition(":")[0].split("."))
    beside = next((each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file()), None)
    if beside is None or found is None:
        return
    other = getattr(found, "__file__", None) or "a part of Python"
    if Path(other).is_file() and (beside.samefile(other) or beside.read_bytes() == Path(other).read_bytes()):
        return
    raise InputError(key, path, f"another module has this name, {other}; give {beside.name} another")


def _refuse_edited(key: str, path: str, module: ModuleType) -> None:
    """Refuse a file that was edited after its first use in this process: workers would import the new one."""
    spec = module.__spec__
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return
    source = Path(spec.origin).read_bytes()
    if vars(spec).setdefault("lit_fedbabu_source", source) != source:
        raise InputError(key, path, f"{spec.origin} was edited since this process imported it; restart Python")


def with_trainer(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The options with ``trainer.NAME``, and tables ``trainer``, gathered in ``trainer-options``."""
    own = {key: value for key, value in run_config.items() if key != "trainer" and not key.startswith("trainer.")}
    table = run_config.get("trainer", {})
    if not isinstance(table, dict):
        raise InputError("trainer", table, "must be a table of Trainer arguments, as in trainer.gradient_clip_val=1")
    given = {**table, **{key.removeprefix("trainer."): run_config[key] for key in run_config if key[:8] == "trainer."}}
    if given:
        own["trainer-options"] = json.dumps(
            {**read_trainer(own.get("trainer-options", ""), {**TRAINER, **OF_TASKS}), **given}
        )
    return own


def read_trainer(text: str, allowed: Mapping[str, type]) -> dict[str, Any]:
    """Arguments of Lightning's Trainer, written as JSON; empty: none.

    Args:
        text: of the option ``trainer-options``.
        allowed: those that pass through, and their types.

    Raises:
        InputError: it is no JSON, or an argument does not pass through or has a value of another type.
    """
    try:
        given = json.loads(text or "{}")
        if not isinstance(given, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise InputError(
            "trainer-options", text, f'must be a JSON object, as in {{"gradient_clip_val": 1}}; {error}'
        ) from None
    for name, value in given.items():
        if name not in allowed:
            instead = f"does not pass through to the Trainer; these do: {', '.join(allowed)}"
            if name in PROTOCOL:
                instead = f"would break the protocol; use {PROTOCOL[name]} instead"
            elif name in DEVICES:
                own = "" if name != "devices" else ", or take a task of your own, whose clients may have several"
                instead = "a client trains on one GPU or CPU core, and workers take a machine's GPUs in turn"
                instead += f"; leave it out{own}"
            raise InputError(f"trainer.{name}", value, instead)
        kind = allowed[name]
        numbers = (int, float) if kind is float else (kind,)
        if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"trainer.{name}", value, f"must be {ARTICLES[kind]}")
    return given


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: the file is missing, cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:  # ValueError: bytes that are not text, or text that is not TOML
        raise InputError("configuration file", str(path), f"cannot be read: {error}") from None
