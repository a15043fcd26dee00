"""Claims: who does which run of a study, also where several machines share its folder."""

import contextlib
import fcntl
import json
import os
import platform
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.files import write_whole

LOCK = ".lock"
"""In a study's folder: the file that is locked while claims are changed."""
BEAT_S, EXPIRES_S = 15.0, 120.0
"""Seconds between two signs of life of a claim, and after which the claim of another machine is free without them."""


class Claim:
    """The claim of this process to a run.

    Args:
        path: the file that says who does the run.
        token: that it has, and no other.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token

    def refuse_lost(self) -> None:
        """Raise RunError where another process has taken the run over: this one gave no sign of life for too long."""
        if _read(self.path).get("token") != self.token:
            raise RunError(f"{self.path.stem} was taken over by another process, for this one stood still; it goes on")


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Claim | None]:
    """Claim a run while the block lasts; yields None where another process does it.

    The claim of a process that died is free at once on its own machine, and on others after ``EXPIRES_S``.

    Args:
        path: the file that says who does the run. Its folder can be on a disk that several machines share.
    """
    claim = Claim(path, uuid.uuid4().hex)
    with _locked(path.parent):
        is_free = not path.exists() or _is_dead(path)
        if is_free:
            write_whole(path, json.dumps({**_identity(), "token": claim.token}))
    if not is_free:
        yield None
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        over.set()
        thread.join()
        with _locked(path.parent):
            if _read(path).get("token") == claim.token:
                path.unlink()


def release(paths: Iterable[Path]) -> None:
    """Remove the claims of processes that are gone, so that other machines need not wait for them to expire."""
    for path in (path for path in paths if path.exists()):
        with _locked(path.parent):
            if _is_dead(path):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other process changes a claim in the folder while the block lasts; a process that dies holds no lock."""
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(folder / LOCK)  # now, by the clock of the disk
        yield


def _identity() -> dict[str, Any]:
    """What tells this process from all others, also from one that gets its number later."""
    return {"where": _where(), "pid": os.getpid(), "started": _started(psutil.Process())}


def _started(process: psutil.Process) -> str:
    """When a process was started, in a form that is the same whenever it is asked for.

    psutil counts from the boot by the clock, and a clock that is set in between tells another time of the same start.
    Linux says the boot and the ticks since then.
    """
    boot, stat = Path("/proc/sys/kernel/random/boot_id"), Path(f"/proc/{process.pid}/stat")
    if not boot.exists():
        return f"{process.create_time():.0f}"
    try:
        ticks = stat.read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    return f"{boot.read_text().strip()} {ticks}"


def _where() -> str:
    """Where numbers of processes mean the same: this machine, and in it this container."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()} {space.stat().st_ino if space.exists() else ''}".strip()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_dead(path: Path) -> bool:
    """Whether the process of a claim is gone. Called under the lock."""
    owner = _read(path)
    if owner.get("where") != _where():
        return (path.parent / LOCK).stat().st_mtime - path.stat().st_mtime > EXPIRES_S
    try:
        process = psutil.Process(owner["pid"])
        return _started(process) != owner["started"] or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True
