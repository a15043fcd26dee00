"""Claims: who does which run of a study, also where several machines share its folder."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from lit_fedbabu.ground.errors import RunError

BEAT_S, EXPIRES_S = 15.0, 120.0
"""Seconds between two signs of life of a claim, and after which it is free for who has seen none meanwhile."""


class Claim:
    """The claim of this process to a run.

    Args:
        lease: of the file that says who does the run.
    """

    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease

    def refuse_lost(self) -> None:
        """Raise RunError where another process has taken the run over: this one gave no sign of life for too long."""
        if not self._lease.is_lock_held_by_us:
            name = Path(self._lease.lock_file).stem
            raise RunError(f"{name} was taken over by another process, for this one stood still; it goes on")


_seen: dict[Path, SoftFileLease] = {}
"""Claims that others had when this process looked, and since when they have shown no life."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Claim | None]:
    """Claim a run while the block lasts; yields None where another process does it.

    The claim of a process that died is free at once on its own machine, and on others for a process that has looked at
    it for ``EXPIRES_S``.

    Args:
        path: the file that says who does the run. Its folder can be on a disk that several machines share.
    """
    lease = _seen.pop(path, None) or SoftFileLease(path, lease_duration=EXPIRES_S, heartbeat_interval=BEAT_S)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        _seen[path] = lease
        yield None
        return
    try:
        yield Claim(lease)
    finally:
        lease.release()


def release(paths: Iterable[Path]) -> None:
    """Remove the claims of processes that are gone, so that other machines need not wait for them to expire."""
    for path in paths:
        with claimed(path):
            pass
