"""Where saved models lie: the file that a path stands for."""

import shlex
from pathlib import Path

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.ground.system import shipped_bodies
from lit_fedbabu.learning.pretrained import is_saved
from lit_fedbabu.records.run_folder import CONFIG, LAST_CHECKPOINT, number_of, read_config, read_names

PERSONAL = "personal"
"""The folder of clients' models, in that of a fine-tuning's results."""


def checkpoint_of(folder: Path, client: int) -> Path:
    """Where a client's model is saved."""
    return folder / f"client_{client:04d}.ckpt"


def find_model(source: Path, client: str | None) -> tuple[Path, str]:
    """The model that a path stands for, and a note where it is one of several.

    Args:
        source: a checkpoint, the folder of a saved model, the name of a body of this package, or a run's folder.
        client: number or name of a client of a run, whose model it shall be; None: the first one that was saved.

    Raises:
        InputError: the folder has no model that predicts, several settings have one, or the client has none.
    """
    bodies = shipped_bodies()
    if not source.exists() and str(source) in bodies:
        source = bodies[str(source)]
    if not source.is_dir() or is_saved(source):
        if client is not None:
            raise InputError("--client", client, f"is for a run's folder, and {source} is one model")
        return source, ""
    folders = [folder for folder in (source, *sorted(source.glob("finetune/*"))) if _clients(folder)]
    if len(folders) > 1:
        remedy = f"has models of several fine-tunings; name one: {', '.join(map(str, folders))}"
        raise InputError("MODEL", str(source), remedy)
    if not folders:
        return _of_federation(source, client)
    saved, names = _clients(folders[0]), read_names(folders[0].parent.parent)
    who = [f"{number} ({in_line(names[number])})" if number in names else str(number) for number in map(_number, saved)]
    if client is None:
        others = f", the first of {len(saved)}; --client CLIENT takes another" if len(saved) > 1 else ""
        return saved[0], f"the model is that of client {who[0]}{others}: {saved[0]}"
    number = number_of(client, names)
    path = checkpoint_of(folders[0] / PERSONAL, -1 if number is None else number)
    if path not in saved:
        raise InputError("--client", client, f"has no model in {folders[0]}; those of {', '.join(who)} are there")
    return path, ""


def _clients(folder: Path) -> list[Path]:
    return sorted((folder / PERSONAL).glob("client_*.ckpt"))


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("client_"))


def _of_federation(run: Path, client: str | None) -> tuple[Path, str]:
    """The model that a federation shares, where its head is shared and so was trained."""
    if not (run / CONFIG).is_file():
        raise InputError("MODEL", str(run), "has no saved model in it")
    algorithm = ALGORITHMS.get(read_config(run).algorithm)
    whole = algorithm is not None and algorithm.shared == "full" and not (algorithm.private or algorithm.needs_server)
    if not whole or client is not None or not (run / LAST_CHECKPOINT).is_file():
        command = shlex.join(["lit-fedbabu", "finetune", str(run), "--clients", client or "0", "--save"])
        remedy = f"has no saved personal model; make some: {command}"
        raise InputError("MODEL", str(run), remedy)
    return run / LAST_CHECKPOINT, "the model is the federation's, which no client has fine-tuned"
