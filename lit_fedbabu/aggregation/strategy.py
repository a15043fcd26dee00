"""A Flower strategy of the user's own as the aggregator."""

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from torch import Tensor

from lit_fedbabu.aggregation.aggregator import Trained, replies_of
from lit_fedbabu.ground.errors import InputError, RunError

CURRENT = "current_arrays"
"""Where Flower's strategies have the weights of the round, which each round sets anew."""
PLAIN = (bool, int, float, str, type(None))
MOST_ASKED = 3
"""Times that a strategy may ask for nodes in a round: one that waits for more asks every second."""
FORM = "form"
"""The entry of a state that says, as JSON, of which attributes its arrays are."""


class OfStrategy:
    """Gives a Flower strategy one standard reply for each client, and takes the weights that it makes of them.

    The strategy is told of each round by its ``configure_train``, as Flower does, whose messages go nowhere: who trains
    is decided by the seed. What it keeps between rounds are its attributes that are numbers, texts, arrays, and
    lists and dicts of them. They lie in the run's folder.

    Args:
        path: its import path.
        strategy: it.
        num_clients: of the federation, as the strategy is told.
        kept: the ``state`` after the last round of a run that is resumed.
    """

    def __init__(self, path: str, strategy: Strategy, num_clients: int, kept: Mapping[str, Tensor]) -> None:
        self.path, self._strategy = path, strategy
        self._grid = _Nodes(path, num_clients)
        self._opaque = self._digests()
        if kept:
            form = json.loads(bytes(kept[FORM].numpy()).decode())
            vars(strategy).update({name: _decoded(value, kept) for name, value in form.items()})

    def aggregate(self, server_round: int, before: ArrayRecord, updates: Sequence[Trained]) -> ArrayRecord:
        self._grid.asked = 0
        for _ in self._strategy.configure_train(server_round, before, ConfigRecord(), self._grid):
            pass
        made, _ = self._strategy.aggregate_train(server_round, replies_of(updates))
        what = f"round {server_round}: aggregator = {self.path}"
        if made is None:
            raise RunError(f"{what} gave no weights for {len(updates)} clients")
        found = {name: array.numpy() for name, array in made.items()}
        if {name: value.shape for name, value in found.items()} != {n: tuple(a.shape) for n, a in before.items()}:
            raise RunError(f"{what} gave weights of other names or shapes than those of the model")
        if odd := next((name for name, value in found.items() if not np.isfinite(value).all()), ""):
            raise RunError(f"{what} gave weights that are not finite, the first is {odd}")
        if changed := [name for name, digest in self._digests().items() if self._opaque.get(name) != digest]:
            raise RunError(f"{what} keeps {changed[0]} between rounds, which no file can have; keep numbers and arrays")
        return ArrayRecord({name: Array(found[name].astype(array.dtype)) for name, array in before.items()})

    def state(self) -> Mapping[str, Tensor]:
        arrays: dict[str, Tensor] = {}
        form = {
            name: _encoded(value, name, arrays) for name, value in vars(self._strategy).items() if self._is_kept(name)
        }
        if not form:
            return {}
        return {**arrays, FORM: torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8)}

    def _is_kept(self, name: str) -> bool:
        return name != CURRENT and _is_plain(vars(self._strategy)[name])

    def _digests(self) -> dict[str, int]:
        """What cannot be kept, by name: pickled, or the object itself where it cannot be."""
        return {
            name: _digest(value)
            for name, value in vars(self._strategy).items()
            if name != CURRENT and not self._is_kept(name)
        }


class _Nodes(Grid):
    """Stands in for Flower's grid: it has a node for each client, and carries nothing."""

    def __init__(self, path: str, count: int) -> None:
        self._path, self._count = path, count
        self.asked = 0

    def get_node_ids(self) -> Iterable[int]:
        self.asked += 1
        if self.asked > MOST_ASKED:
            raise InputError(
                "aggregator", self._path, f"waits for more than the {self._count} clients of this federation"
            )
        return range(self._count)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return isinstance(value, (*PLAIN, ArrayRecord))


def _encoded(value: Any, name: str, arrays: dict[str, Tensor]) -> Any:
    """A value as JSON, whose arrays are put aside under their names."""
    if isinstance(value, np.ndarray | np.generic):
        arrays[name] = torch.from_numpy(np.array(value))
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    if isinstance(value, ArrayRecord):
        return {"record": _encoded({key: array.numpy() for key, array in value.items()}, name, arrays)}
    if isinstance(value, dict):
        return {"dict": {key: _encoded(one, f"{name}.{key}", arrays) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encoded(one, f"{name}.{number}", arrays) for number, one in enumerate(value)]}
    return {"value": value}


def _decoded(form: Any, arrays: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = form.items()
    if kind in ("array", "scalar"):
        array = arrays[value].numpy()
        return array if kind == "array" else array[()]
    if kind == "record":
        return ArrayRecord({key: Array(array) for key, array in _decoded(value, arrays).items()})
    if kind == "dict":
        return {key: _decoded(one, arrays) for key, one in value.items()}
    if kind in ("list", "tuple"):
        made = [_decoded(one, arrays) for one in value]
        return made if kind == "list" else tuple(made)
    return value


def _digest(value: Any) -> int:
    try:
        return hash(pickle.dumps(value))
    except Exception:  # whatever an object of the user's raises
        return id(value)
