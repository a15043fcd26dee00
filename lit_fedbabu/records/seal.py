"""The seal of a run's folder: digests of the files that resuming stands on, in the order in which they were written.

A line is appended before a checkpoint is put in its place, and after a memory was. So a run that is killed at any
moment has files that its seal knows.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import append_json_line, read_json_lines
from lit_fedbabu.records.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, MEMORY, SERVER

SEAL = "seal.jsonl"


class _Line(NamedTuple):
    server_round: int
    digest: str


def add(folder: Path, server_round: int, file: Path, content: Path | None = None) -> None:
    """Note the digest of a file of a round.

    Args:
        folder: the run's.
        server_round: number of the round.
        file: in the folder.
        content: the file that is about to be moved there; None: it is there.
    """
    digest = _digest(content or file)
    line = {"round": server_round, "file": file.relative_to(folder).as_posix(), "sha256": digest}
    append_json_line(folder / SEAL, line)


def add_memories(folder: Path, server_round: int, clients: Iterable[int]) -> None:
    """Note the digests of what these clients and the server kept in a round, where that lies in the run's folder."""
    places = [*(folder / MEMORY / f"client_{client:04d}" for client in sorted(clients)), folder / SERVER]
    for file in (place / f"round_{server_round:04d}.safetensors" for place in places):
        if file.exists():
            add(folder, server_round, file)


def is_sealed(folder: Path) -> bool:
    """Whether the run has a seal. Runs of version 0.1 have none, nor has one whose first round is not over."""
    return (folder / SEAL).exists()


def check_checkpoints(folder: Path) -> None:
    """Raise InputError where a checkpoint of the run is missing, or is not one that the run wrote."""
    lines = _lines(folder)
    for name in (LAST_CHECKPOINT.as_posix(), BEST_CHECKPOINT.as_posix()):
        if name in lines:  # of the newest round, or the one before it if the newest was not put in place
            rounds = sorted({line.server_round for line in lines[name]})[-2:]
            _check(folder, name, [line for line in lines[name] if line.server_round in rounds])


def check_memories(folder: Path, server_round: int) -> None:
    """Raise InputError where what a client or the server kept by the end of the round is missing or was changed."""
    newest: dict[str, tuple[int, str, _Line]] = {}
    for name, lines in _lines(folder).items():
        before = [line for line in lines if line.server_round <= server_round]
        if name.startswith((f"{MEMORY}/", f"{SERVER}/")) and before:
            place = name.rpartition("/")[0]
            newest[place] = max(newest.get(place, (0, "", before[-1])), (before[-1].server_round, name, before[-1]))
    for _, name, line in newest.values():
        _check(folder, name, [line])


def _check(folder: Path, name: str, lines: Iterable[_Line]) -> None:
    file = folder / name
    if not file.is_file():
        raise InputError("run", str(folder), f"{name} is missing, which the run goes on from; put it back")
    if _digest(file) not in [line.digest for line in lines]:
        raise InputError("run", str(folder), f"{name} was changed since the run wrote it; put the old one back")


def _lines(folder: Path) -> dict[str, list[_Line]]:
    """Lines of the seal, by file. The last one may be torn, of a run that was killed."""
    found: dict[str, list[_Line]] = {}
    for line in read_json_lines(folder / SEAL, {"round": int, "file": str, "sha256": str}):
        found.setdefault(line["file"], []).append(_Line(line["round"], line["sha256"]))
    return found


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
