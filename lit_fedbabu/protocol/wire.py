"""What crosses the wire between server and nodes. No other file knows the names in a message.

What every message says first is in ``protocol/handshake.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from lit_fedbabu.protocol.fields import decoded, each_once, rows_of, text, training_problem
from lit_fedbabu.protocol.handshake import VERSION, Code, WireError, checked, checked_record

Arrays = Mapping[str, npt.NDArray[Any]]
"""Shared weights by their names."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the server asks of a node's clients in a round.

    Args:
        server_round: number of the round, from 1.
        clients: those that are asked.
        memory: folder of what clients keep, absolute or relative to the node's state folder.
        learning_rate: of SGD in this round; read when training.
        personalize: whether an evaluation also fine-tunes.
    """

    server_round: int
    clients: tuple[int, ...] = ()
    memory: str = ""
    learning_rate: float = 0.0
    personalize: bool = False

    def to_config(self) -> dict[str, Any]:
        """The order as the ``config`` of a Flower NumPyClient."""
        return {
            "server-round": self.server_round,
            "clients": list(self.clients),
            "memory": self.memory,
            "learning-rate": self.learning_rate,
            "personalize": self.personalize,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Order:
        """Read the ``config`` of a Flower NumPyClient; all but "server-round" may be left out."""
        return cls(
            config["server-round"],
            tuple(config.get("clients", ())),
            config.get("memory", ""),
            config.get("learning-rate", 0.0),
            config.get("personalize", False),
        )

    def to_record(self, arrays: ArrayRecord, code: Code) -> RecordDict:
        """The content of a message, with the shared weights."""
        config = {**code.entries(), **self.to_config()}
        return RecordDict({"arrays": arrays, "config": ConfigRecord(config)})

    @classmethod
    def from_record(cls, content: RecordDict) -> tuple[Order, ArrayRecord]:
        """The order in a message, and the shared weights; raises WireError."""
        config = checked(content, "config", "server-round", "clients", "memory", "learning-rate", "personalize")
        checked_record(content, "arrays")
        return cls.from_config(config), content.array_records["arrays"]


@dataclasses.dataclass(frozen=True)
class ClientUpdate:
    """What one client trained.

    Args:
        client: its number.
        num_train: its training images.
        train_loss: mean loss in nats; not a number where the client saw no sample.
        arrays: its shared weights.
    """

    client: int
    num_train: int
    train_loss: float
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why one client of a node did not train.

    Args:
        client: its number.
        reason: the exception, in a line.
        traceback: of the exception.
    """

    client: int
    reason: str
    traceback: str = ""


@dataclasses.dataclass(frozen=True)
class TrainReply:
    """A node's answer to an order to train.

    Args:
        updates: of the clients that trained.
        failures: of those that did not.
    """

    updates: Sequence[ClientUpdate]
    failures: Sequence[Failure] = ()

    @property
    def clients(self) -> set[int]:
        """The clients that the reply speaks of."""
        return {update.client for update in self.updates} | {failure.client for failure in self.failures}

    @property
    def nbytes(self) -> int:
        """Bytes of the shared weights in the reply, without framing."""
        return sum(array.nbytes for update in self.updates for array in update.arrays.values())

    @staticmethod
    def brings_updates(content: RecordDict) -> bool:
        """Whether a reply seems to have updates of all of its clients; nothing of it is checked."""
        return "failures" not in content and bool(content.get("metrics"))

    def to_record(self) -> RecordDict:
        """The content of the reply: each shared array once, stacked over the clients in their order."""
        names = self.updates[0].arrays if self.updates else {}
        stacks = {name: _stacked([update.arrays[name] for update in self.updates]) for name in names}
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(stacked) for name, stacked in stacks.items()}),
                "metrics": MetricRecord(_columns(self.updates, "client", "num_train", "train_loss")),
                "reply": ConfigRecord({"version": VERSION}),
            }
        )
        return with_failures(content, self.failures)

    @classmethod
    def from_record(cls, content: RecordDict) -> TrainReply:
        """Read a reply; raises WireError. A client whose count or loss cannot be true is among the failures.

        The arrays leave the content one by one as they are read, so that they are in memory once.
        """
        checked(content, "reply")
        columns = rows_of(content, "metrics", "client", "num_train", "train_loss")
        checked_record(content, "arrays")
        arrays = content.array_records["arrays"]
        stacks = {name: decoded(name, arrays.pop(name)) for name in list(arrays)}
        for name, stacked in stacks.items():
            if stacked.shape[:1] != (len(columns),):
                shape = f"whose array {name[:200]!r} is of shape {list(stacked.shape)}"
                raise WireError(f"a message {shape}, and it speaks of {len(columns)} clients")
        updates, failures = list[ClientUpdate](), failures_in(content)
        each_once([client for client, *_ in columns] + [failure.client for failure in failures])
        for place, (client, count, loss) in enumerate(columns):
            if problem := training_problem(count, loss):
                failures.append(Failure(client, problem))
            else:
                own = {name: stacked[place] for name, stacked in stacks.items()}
                updates.append(ClientUpdate(client, count, loss, own))
        return cls(updates, failures)


@dataclasses.dataclass(frozen=True)
class EvaluateReply:
    """A node's answer to an order to evaluate.

    Args:
        rows: for each client its number under ``client``, and its entry in results.json: numbers, which are nan where
            only others have them, and lists of numbers, which are of one length for all clients.
        failures: of the clients that were not evaluated.
    """

    rows: Sequence[Mapping[str, Any]]
    failures: Sequence[Failure] = ()

    @property
    def clients(self) -> set[int]:
        """The clients that the reply speaks of."""
        return {row["client"] for row in self.rows} | {failure.client for failure in self.failures}

    def to_record(self) -> RecordDict:
        """The content of the reply."""
        keys = dict.fromkeys(key for row in self.rows for key in row)
        columns: dict[str, Any] = {key: [row.get(key, math.nan) for row in self.rows] for key in keys}
        lists: dict[str, Any] = {
            key: [*chain(*column)] for key, column in columns.items() if isinstance(column[0], list)
        }
        metrics = {key: column for key, column in columns.items() if key not in lists}
        content = RecordDict({"metrics": MetricRecord(metrics), "reply": ConfigRecord({"version": VERSION})})
        if lists:
            content["lists"] = MetricRecord(lists)
        return with_failures(content, self.failures)

    @classmethod
    def from_record(cls, content: RecordDict) -> EvaluateReply:
        """Read a reply; raises WireError. What the values of a row may be is decided by ``Score.row_problem``."""
        checked(content, "reply")
        names = list(checked_record(content, "metrics"))
        if names:
            checked_record(content, "metrics", "client", "num_test")
            names.sort(key=lambda name: name != "client")  # it comes first
        rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in rows_of(content, "metrics", *names)]
        for key, values in checked_record(content, "lists").items() if "lists" in content else ():
            if not isinstance(values, list) or key in names:
                raise WireError(f"a message whose {key[:200]!r} is no list, or is there twice")
            length, left = divmod(len(values), len(rows) or 1)
            if left or not rows:
                raise WireError(f"a message whose {key[:200]!r} has {len(values)} values for {len(rows)} clients")
            for place, row in enumerate(rows):
                row[key] = list(values[place * length : (place + 1) * length])
        failures = failures_in(content)
        each_once([row["client"] for row in rows] + [failure.client for failure in failures])
        return cls(rows, failures)


def clients_of(message: Message) -> tuple[int, ...]:
    """The clients that a message of the server is for; none, where it asks a node who it is."""
    said = message.content.config_records.get("config")
    return tuple(said.get("clients", ())) if said else ()  # type: ignore[arg-type] # a list


def _stacked(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.asarray(arrays[0])[None] if len(arrays) == 1 else np.stack(arrays)  # one is not copied


def with_failures(content: RecordDict, failures: Sequence[Failure]) -> RecordDict:
    """The content of a reply, with the clients that failed."""
    if failures:
        content["failures"] = ConfigRecord(_columns(failures, "client", "reason", "traceback"))
    return content


def failures_in(content: RecordDict) -> list[Failure]:
    """The clients of a reply that failed; raises WireError."""
    failed = rows_of(content, "failures", "client", "reason", "traceback") if "failures" in content else []
    return [
        Failure(client, text("reason", reason), text("traceback", traceback)) for client, reason, traceback in failed
    ]


def _columns(rows: Iterable[Any], *names: str) -> dict[str, Any]:
    rows = list(rows)
    return {name: [getattr(row, name) for row in rows] for name in names} if rows else {}
