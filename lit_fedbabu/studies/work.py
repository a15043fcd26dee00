"""A run of a study, in a worker: claimed, begun or resumed, and finished."""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.engines.local import LocalGrid, answer, quiet_flower
from lit_fedbabu.engines.resources import nodes_of
from lit_fedbabu.errors import InputError
from lit_fedbabu.experiment import Experiment
from lit_fedbabu.files import append_json_line
from lit_fedbabu.learning import checkpoint
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.records.run_folder import CONFIG, LAST_CHECKPOINT, RESULTS
from lit_fedbabu.server.federate import federate

TIMES = "times.jsonl"
"""In a study's folder: how many seconds each run took."""
BEAT_S, EXPIRES_S = 15.0, 120.0
"""Seconds between two signs of life of a claim, and after which one without them is free."""
DONE, ELSEWHERE = "done", "elsewhere"


def prepare() -> None:
    """Import what workers need: this file does it."""
    import lit_fedbabu.client.handlers  # noqa: F401


class Here:
    """Stands for a pool of workers: this process answers every message itself."""

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """As of ``Pool.answers``, one after another; arguments that have no use here are ignored."""
        for place, request in enumerate(requests):
            yield place, answer(*request)


def is_done(config: Config) -> bool:
    """Whether the run that this configuration is of has finished."""
    folder = Path(config.output_dir) / config.run_name
    if not (folder / RESULTS).exists() or not (folder / LAST_CHECKPOINT).exists():
        return False
    done: int = checkpoint.read(folder / LAST_CHECKPOINT, config.task or config.model_name).provenance["round"]
    return done >= config.num_server_rounds


def work(config: Config) -> str:
    """Do a run, or what is left of it, in this process; what it prints goes to ``<run>.log`` beside its folder.

    Returns:
        ``DONE``, or ``ELSEWHERE`` where another process does it.
    """
    folder = Path(config.output_dir) / config.run_name
    with claimed(folder.with_name(f"{folder.name}.claim")) as ours:
        if not ours:
            return ELSEWHERE
        if is_done(config):
            return DONE
        started = time.monotonic()
        if (folder / CONFIG).exists():
            config = Config.from_run_config({**config.to_run_config(), "resume": str(folder)})
        log = folder.with_name(f"{folder.name}.log")
        with log.open("a") as file, contextlib.redirect_stdout(file), quiet_flower():
            progress = Lines()
            grid = LocalGrid(config, nodes_of(config), Here(), progress)
            federate(grid, Experiment(config), progress)
        log.unlink()  # of a run that went well; its folder has everything
        if not config.resume:
            append_json_line(folder.parent / TIMES, {"run": folder.name, "seconds": time.monotonic() - started})
    return DONE


@contextlib.contextmanager
def claimed(claim: Path) -> Iterator[bool]:
    """Claim a run while the block lasts; yields whether it is ours. The claim of a process that died expires.

    Args:
        claim: the file that says who does the run. It can be on a disk that several machines share.
    """
    if not _take(claim):
        yield False
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(claim)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()
        claim.unlink(missing_ok=True)


def _take(claim: Path) -> bool:
    content = json.dumps({"host": platform.node(), "pid": os.getpid()})
    for _ in range(2):
        try:
            with open(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
                file.write(content)
            return True
        except FileExistsError:
            if not _is_dead(claim):
                return False
            stale = claim.with_name(f"{claim.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # another process was quicker
                claim.rename(stale)
                stale.unlink()
    return False


def _is_dead(claim: Path) -> bool:
    """Whether the process of a claim is gone: it is of this machine and does not run, or gave no sign of life."""
    try:
        owner = json.loads(claim.read_text() or "{}")
        silent = time.time() - claim.stat().st_mtime
    except (OSError, ValueError):
        return False
    if owner.get("host") == platform.node():
        return not Path(f"/proc/{owner['pid']}").exists() if Path("/proc/self").exists() else silent > EXPIRES_S
    return silent > EXPIRES_S


def times(folder: Path) -> dict[str, float]:
    """Seconds that each finished run of a study took, where that is known."""
    path = folder / TIMES
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {row["run"]: float(row["seconds"]) for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        raise InputError("study", str(path), f"cannot be read: {error!r}; delete it") from None
