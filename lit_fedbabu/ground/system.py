"""What this process runs on: versions, the package's own source, cores, and memory settings."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from lit_fedbabu.ground.printing import INTERACTIVE

PACKAGES = ("lit-fedbabu", "torch", "torchvision", "lightning", "torchmetrics", "flwr", "flwr-datasets", "numpy")
LOG_MARK = "[lit_fedbabu]"
"""Starts every line of ours in Flower's log, where ``lit_fedbabu.run`` finds it."""
PROGRESS = "LIT_FEDBABU_PROGRESS"
"""A variable of Flower's processes: the file in which the server says how far it is, for a live line elsewhere."""
MALLOC = "glibc.malloc.mmap_threshold=16777216:glibc.malloc.trim_threshold=4294967296"
"""GLIBC_TUNABLES of workers (Linux). Buffers of a training step are kept and reused. Larger ones, above 16 MB, are
needed only to predict all of a client's images at once, and go back to the system."""


@contextmanager
def plain_lines(wanted: bool) -> Iterator[None]:
    """While it lasts, nothing here or in the processes that are started is shown live, if that is wanted."""
    before = os.environ.get(INTERACTIVE)
    if wanted:
        os.environ[INTERACTIVE] = "0"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop(INTERACTIVE)
            os.environ.update({} if before is None else {INTERACTIVE: before})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # this package itself, where Flower has unpacked the app
            found[name] = "not installed"
    return found


def package_folder() -> Path:
    """The folder that this package was imported from."""
    return Path(__file__).resolve().parent.parent


def configs_folder() -> Path:
    """The folder of the configurations that come with the package: in it where it was installed, else beside it."""
    installed = package_folder() / "shipped_configs"
    return installed if installed.is_dir() else package_folder().parent / "configs"


def examples_folder() -> Path:
    """The folder of the examples that come with the package, likewise."""
    installed = package_folder() / "shipped_examples"
    return installed if installed.is_dir() else package_folder().parent / "examples"


def shipped_bodies() -> dict[str, Path]:
    """The bodies that come with the package, by their names: folders as ``lit-fedbabu body`` writes them."""
    return {folder.name: folder for folder in sorted((package_folder() / "bodies").glob("*/"))}


def title_of(folder: Path) -> str:
    """The title of the model card in the folder of a saved model."""
    lines = (folder / "README.md").read_text().splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


@cache
def source_digest() -> str:
    """A digest of this package's source files. It differs where two machines run different code."""
    digest, folder = hashlib.sha256(), package_folder()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def installed() -> dict[str, Any]:
    """What this machine's results depend on, as ``unlike`` compares it."""
    return {
        "machine": platform.node(), "folder": str(package_folder()), "source": source_digest(), "versions": versions(),
    }  # fmt: skip


def unlike(node: Mapping[str, Any], asker: Mapping[str, Any]) -> str:
    """Why a node's results may not be those of the machine that asks it, and the remedy; empty: they are.

    Args:
        node: what ``installed`` returned on it.
        asker: what it returned there.
    """
    if node["source"] != asker["source"]:
        both = f"it runs {node['folder']} and {asker['machine']} runs {asker['folder']}"
        return f"{both}, and their code differs; install the same version on both"
    there: dict[str, str] = node["versions"]
    if others := [name for name, version in asker["versions"].items() if there.get(name) != version]:
        both = ", ".join(f"{name} {there.get(name)} and not {asker['versions'][name]}" for name in others)
        return f"it has {both} as {asker['machine']}; install the same versions on both"
    return ""


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that new processes can have: free on this machine, and in the control groups of this process."""
    import psutil

    free: int = psutil.virtual_memory().available
    return min([free, *left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def left_in_groups(groups: Path, root: Path) -> list[int]:
    """Bytes that control groups with a limit have left, as of containers and of Slurm's jobs (Linux).

    Args:
        groups: file with the groups of a process.
        root: folder of all groups.
    """
    left = []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        limit, usage, idle = ("max", "current", "inactive_file")
        if controllers:
            limit, usage, idle = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # a group without a limit has no file, or no number in it
                statistics = (folder / "memory.stat").read_text()
                cache = sum(map(int, re.findall(rf"^{idle} (\d+)$", statistics, re.MULTILINE)))
                used = int((folder / f"memory.{usage}").read_text()) - cache
                left.append(max(0, int((folder / f"memory.{limit}").read_text()) - used))
            if folder == top:
                break
    return left


def program(name: str) -> str:
    """The path of a program that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def next_step(*words: object) -> str:
    """A line with the command that comes next, as it can be typed here."""
    path = program("lit-fedbabu")
    return f"next: {shlex.join(['lit-fedbabu' if shutil.which('lit-fedbabu') == path else path, *map(str, words)])}"
