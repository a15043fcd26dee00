"""How often each client has sent noised weights, and so what privacy is left: stand-ins and repeated rounds count."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import append_json_line, read_json_lines
from lit_fedbabu.records.run_folder import ASKED
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training.privacy import epsilon, guarantee


def note_asked(config: Config, folder: Path, server_round: int, clients: Sequence[int]) -> None:
    """Write down, before they are asked, which clients will send noised weights."""
    if config.noise_multiplier:
        append_json_line(folder / ASKED, {"round": server_round, "clients": list(clients)})


def privacy_facts(
    config: Config, folder: Path, done: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """What protection the shared weights have, and epsilon after all rounds, for config.toml; nothing where none is.

    Args:
        config: the experiment.
        folder: the run's.
        done: rounds that are over. For those to come, the clients that the seed draws are counted.
        say: prints a line.
    """
    if not config.clipping_norm:
        return {}
    asked = _asked(folder)
    rounds = {server_round for server_round, _ in asked}
    drawn = [
        participants(config, each)
        for each in range(1, config.num_server_rounds + 1)
        if each > done or each not in rounds
    ]
    counts = Counter(client for clients in [*drawn, *(clients for _, clients in asked)] for client in clients)
    most = max(counts.values())
    protection = guarantee(config, most)
    say(protection)
    spent = {"epsilon": f"{epsilon(config.noise_multiplier, most):.6g}"} if config.noise_multiplier else {}
    return {"privacy": protection, **spent}


def _asked(folder: Path) -> list[tuple[int, list[int]]]:
    """Rounds and the clients that were asked; runs of earlier versions have none."""
    if not (folder / ASKED).exists():
        return []
    asked = [
        (line["round"], line["clients"]) for line in read_json_lines(folder / ASKED, {"round": int, "clients": list})
    ]
    for _, clients in asked:
        if not all(type(each) is int and each >= 0 for each in clients):
            raise InputError(
                "file",
                str(folder / ASKED),
                f"has clients = {clients}, which are no numbers of clients; put the old file back",
            )
    return asked
