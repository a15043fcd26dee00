"""What the server sends to one client alone: arrays with a row for each client, of which a node gets its clients'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lit_fedbabu.ground.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from lit_fedbabu.algorithms.algorithm import Algorithm
    from lit_fedbabu.config import Config

NUMBERS = "rows:clients"
"""Beside arrays with rows: the numbers of their clients (R,), in the order of the rows."""


def rows_in(method: Algorithm, names: Iterable[str]) -> list[str]:
    """Which of the names of what is sent are of arrays with a row for each client."""
    return [name for name in names if name.startswith(tuple(f"{each}." for each in method.rows))]


def numbered(method: Algorithm, config: Config, sent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is sent to all clients, and where it has rows the numbers of their clients.

    Raises:
        InputError: there are more or fewer rows than clients.
    """
    import torch

    rows = rows_in(method, sent)
    for name in rows:
        if (shape := list(sent[name].shape))[:1] != [config.num_clients]:
            remedy = f"sends {name} of shape {shape}, which needs a row for each of the {config.num_clients} clients"
            raise InputError("algorithm", config.algorithm, remedy)
    return {**sent, **({NUMBERS: torch.arange(config.num_clients)} if rows else {})}


def own(method: Algorithm, sent: Mapping[str, Tensor], client: int) -> dict[str, Tensor]:
    """What a client gets of what was sent: its own rows, without their axis, and all else as it is.

    Raises:
        LookupError: there is no row of this client.
    """
    if NUMBERS not in sent:
        return dict(sent)
    numbers, rows = sent[NUMBERS].tolist(), rows_in(method, sent)
    if client not in numbers:
        raise LookupError(f"the server sent rows of clients {numbers}, and none of client {client}")
    place = numbers.index(client)
    return {name: value[place] if name in rows else value for name, value in sent.items() if name != NUMBERS}
