"""What a client keeps for itself between rounds: ``memory/client_0007/round_0012.safetensors`` in the run's folder."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_fedbabu.ground.files import whole
from lit_fedbabu.learning.state import not_finite

PRUNED = "pruned"
"""Name of the file that says that a client's older memories were deleted."""


def recall(folder: Path, client: int, server_round: int) -> dict[str, Tensor]:
    """What the client had kept at the end of a round; empty if it had not taken part by then.

    Raises:
        LookupError: it had taken part, but memories that old were deleted.
    """
    return recall_from(folder_of(folder, client), server_round, f"client {client}")


def recall_from(place: Path, server_round: int, who: str) -> dict[str, Tensor]:
    """The same of what lies in a folder of its own."""
    kept = _rounds(place)
    known = [each for each in kept if each <= server_round]
    if known:
        return load_file(kept[max(known)])
    if (place / PRUNED).exists():
        raise LookupError(f"{who} no longer has what it kept in round {server_round}")
    return {}


def keep(folder: Path, client: int, server_round: int, state: dict[str, Tensor]) -> None:
    """Keep the state of a round, whole or not at all, beside that of the client's round before.

    A run that is stopped in this round is resumed from the older one.

    Raises:
        ValueError: the state is not finite.
    """
    keep_in(folder_of(folder, client), server_round, state)


def keep_in(place: Path, server_round: int, state: dict[str, Tensor]) -> None:
    """The same in a folder of its own."""
    if broken := not_finite(state):
        raise ValueError(f"what it keeps is not finite, the first is {broken[0]}; a lower learning-rate may help")
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"round_{server_round:04d}.safetensors"
    with whole(path) as scratch:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, scratch)
    kept = _rounds(place)
    for older in sorted(each for each in kept if each < server_round)[:-1]:
        (place / PRUNED).touch()
        kept[older].unlink()


def folder_of(folder: Path, client: int) -> Path:
    """Where a client keeps what is its own, in the folder of what clients keep."""
    return folder / f"client_{client:04d}"


def _rounds(place: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("round_")): path for path in place.glob("round_*.safetensors")}
