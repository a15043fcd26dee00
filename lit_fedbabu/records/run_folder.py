"""The folder of a run: its names, its configuration, and its log of failures."""

import contextlib
import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tomli_w

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import read_toml
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import from_home, new_folder, write_whole
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.ground.system import versions

CONFIG = "config.toml"
RESULTS = "results.json"
PARTITION = "partition.csv"
NAMES = "clients.csv"
"""Only where clients have names: number and name of each."""
MEMORY = "memory"
SERVER = "server"
"""Folder of what the server's optimizer keeps."""
FAILURES = "failures.jsonl"
COSTS = "costs.jsonl"
"""Seconds and bytes of each round, which are not in ``RESULTS``, for that repeats to the byte."""
ASKED = "asked.jsonl"
"""Only with noise: who was asked to train in which round, so that all that a client sent is counted."""
TUNED = "tuned"
"""In ``config.toml`` beside versions: what a study chose for the run, among what, on what."""
CALLED = 20
"""Clients that are called by their numbers or names in a line."""
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
BEST_CHECKPOINT = Path("checkpoints") / "best.ckpt"


def default_run_name(config: Config) -> str:
    """Dataset, algorithm, seed and local time, as in ``cifar10-fedbabu-seed42-20260131-235959``.

    Characters of the dataset's name that a folder's name should not have become ``-``.
    """
    name = config.kind.short_name(config)
    dataset = "".join(each if each.isprintable() else "-" for each in name).lstrip(".")[:60] or "data"
    return f"{dataset}-{config.algorithm}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def create(config: Config) -> Path:
    """Make the folder of a run, with the effective configuration in it, or not at all.

    Raises:
        InputError: the folder exists already, or cannot be made.
    """
    folder = from_home(config.output_dir).resolve() / (config.run_name or default_run_name(config))
    refuse_existing(folder)
    with new_folder("output-dir", folder, is_result=False) as scratch:
        write_config(scratch, config, {"begun": time.strftime("%Y%m%d-%H%M%S")})
    return folder


def is_finished(folder: Path) -> bool:
    """Whether the run in the folder has done all of its rounds: the last checkpoint is written after the results."""
    results, last = folder / RESULTS, folder / LAST_CHECKPOINT
    return results.exists() and last.exists() and last.stat().st_mtime_ns >= results.stat().st_mtime_ns


def refuse_existing(folder: Path) -> None:
    """Raise InputError where the folder of a run exists already: nothing is overwritten."""
    if folder.exists():
        raise InputError("run-name", folder.name, f"{folder} exists and is not overwritten; take another name")


def write_config(folder: Path, config: Config, facts: Mapping[str, str]) -> None:
    """Write ``config.toml``: every option, versions, and the given facts about the machines."""
    content = {**config.to_run_config(), "environment": {**versions(), **facts}}
    write_whole(folder / CONFIG, tomli_w.dumps(content))


def read_config(folder: Path) -> Config:
    """The effective configuration of the run in the folder.

    Raises:
        InputError: ``config.toml`` is missing, damaged, or not of this version.
    """
    if not (folder / CONFIG).is_file():
        raise InputError("run", str(folder), f"is no run's folder: it has no {CONFIG}")
    values = read_toml(folder / CONFIG)
    values.pop("environment", None)
    values.setdefault("engine", "flower")  # before 0.2 there was no other, and it was not written down
    return Config.from_run_config(values)


def refuse_other_options(config: Config, folder: Path, remedy: str) -> None:
    """Raise InputError where the run in the folder was begun with other options than these, places aside.

    Args:
        config: the options.
        folder: of the run.
        remedy: what to do.
    """
    begun = read_config(folder).experiment()
    for key, value in config.experiment().items():
        if value != begun[key]:
            raise InputError(key, value, f"the run in {folder} was begun with {begun[key]!r}; {remedy}")


def read_environment(folder: Path) -> dict[str, str]:
    """Versions and hardware of the run in the folder, from its ``config.toml``.

    Raises:
        InputError: it is no table of texts.
    """
    environment: dict[str, str] = read_toml(folder / CONFIG).get("environment", {})
    if not isinstance(environment, dict):
        raise InputError("environment", environment, f"must be a table; put {folder / CONFIG} back as it was")
    for key, value in environment.items():
        if not isinstance(value, str):
            raise InputError(f"environment.{key}", value, f"must be a text; put {folder / CONFIG} back as it was")
    return environment


def is_of(folder: Path, config: Config, facts: Mapping[str, str]) -> bool:
    """Whether the folder was begun with this configuration, these facts and these versions."""
    try:
        return read_config(folder) == config and read_environment(folder) == {**versions(), **facts}
    except InputError:
        return False


def memory_of(folder: Path, own_disks: bool) -> str:
    """The folder of what the clients of the run keep; nodes with disks of their own have it below a folder there."""
    if not own_disks:
        return str(folder / MEMORY)
    begun = read_environment(folder).get("begun", "")
    if not begun:
        raise InputError("environment.begun", begun, f"is missing; put {folder / CONFIG} back as it was")
    name = folder.name if folder.name.endswith(begun) else f"{folder.name}-{begun}"  # a name may be used again
    return f"{name}/{MEMORY}"


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Write the names of clients, by their numbers, where they have names."""
    if names:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([("client", "name"), *enumerate(names)])
        write_whole(folder / NAMES, file.getvalue())


def read_names(folder: Path) -> dict[int, str]:
    """The names of the run's clients; none where they have no names, and of runs before 0.3.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / NAMES
    if not path.is_file() or not (folder / CONFIG).is_file():
        return {}
    try:
        head, *rows = csv.reader(io.StringIO(path.read_text()))
        if head != ["client", "name"]:
            raise ValueError("its columns are not client and name")
        return {int(client): name for client, name in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("clients", str(path), f"cannot be read: {error}; put it back, or delete it") from None


def called(clients: Iterable[int], names: Sequence[str] | Mapping[int, str] = ()) -> str:
    """Clients as people read them: numbers in brackets, or where clients have names each with its own; of many some."""
    clients = list(clients)
    shown, more = clients[:CALLED], f" and {len(clients) - CALLED} more" if len(clients) > CALLED else ""
    return (", ".join(f"{each} ({in_line(names[each])})" for each in shown) if names else str(shown)) + more


def number_of(word: str, names: Mapping[int, str]) -> int | None:
    """The client that a word stands for, by its number or its name; None: no client."""
    with contextlib.suppress(ValueError):
        return int(word)
    return next((client for client, name in names.items() if name == word.strip()), None)
