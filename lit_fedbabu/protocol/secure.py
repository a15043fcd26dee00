"""What secure aggregation sends besides: keys, shares and masked numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from flwr.app import ConfigRecord, RecordDict

from lit_fedbabu.protocol.fields import is_whole, rows_of
from lit_fedbabu.protocol.handshake import VERSION, Code, WireError, checked, checked_record
from lit_fedbabu.protocol.wire import Failure, failures_in, with_failures
from lit_fedbabu.secure.party import Public

SECURE = "query.secure"
"""Type of the messages of a step."""
MASKED_ARRAY = "masked"
"""Name of the masked numbers of a client, in place of its shared weights."""
STEPS = ("keys", "shares", "unmask")
LONGEST = 4_000
"""Bytes of a key, or of shares as they are sent; those that are sent have about 300."""
COLUMNS = ("client", "other", "data")

Rows = Sequence[tuple[int, int, bytes]]
"""Of a client, about or for another one, what is sent."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What the server asks of a node's clients in a step.

    Args:
        name: one of ``STEPS``.
        server_round: number of the round, from 1.
        clients: those that are asked.
        memory: folder of what clients keep, as of ``wire.Order``.
        public: what the clients of the round tell everyone; of the step "shares".
        alive: clients in the sum; of the step "unmask".
        dead: those that sent shares and are not in it; as well.
    """

    name: str
    server_round: int
    clients: tuple[int, ...]
    memory: str
    public: Mapping[int, Public] = dataclasses.field(default_factory=dict)
    alive: tuple[int, ...] = ()
    dead: tuple[int, ...] = ()

    def of(self, clients: Sequence[int]) -> Self:
        """The same for some of the clients."""
        return dataclasses.replace(self, clients=tuple(clients))

    @property
    def nbytes(self) -> int:
        """Bytes of the keys in it, without framing."""
        return sum(len(data) for *_, data in rows_of_public(self.public))

    def to_record(self, code: Code) -> RecordDict:
        """The content of a message."""
        order: dict[str, Any] = {
            "server-round": self.server_round,
            "clients": list(self.clients),
            "memory": self.memory,
        }
        lists: dict[str, Any] = {"alive": list(self.alive), "dead": list(self.dead)}
        config = ConfigRecord({**code.entries(), "step": self.name, **order, **lists})
        return RecordDict({"config": config, "secure": _record(rows_of_public(self.public))})

    @classmethod
    def from_record(cls, content: RecordDict) -> Step:
        """Read a message; raises WireError."""
        config = checked(content, "config", "step", "server-round", "clients", "memory", "alive", "dead")
        return cls(
            config["step"], config["server-round"], tuple(config["clients"]), config["memory"],
            public_of_rows(_rows(content)), tuple(config["alive"]), tuple(config["dead"]),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StepReply:
    """A node's answer to a step.

    Args:
        rows: of each client what it sends: its keys (as of ``rows_of_public``), its encrypted shares for others, or its
            shares about others.
        failures: of the clients that did not.
    """

    rows: Rows
    failures: Sequence[Failure] = ()

    @property
    def clients(self) -> set[int]:
        """The clients that the reply speaks of."""
        return {client for client, *_ in self.rows} | {failure.client for failure in self.failures}

    def of(self, client: int) -> dict[int, bytes]:
        """What a client sends, by the other client."""
        return {other: data for each, other, data in self.rows if each == client}

    def to_record(self) -> RecordDict:
        """The content of the reply."""
        content = RecordDict({"secure": _record(self.rows), "reply": ConfigRecord({"version": VERSION})})
        return with_failures(content, self.failures)

    @classmethod
    def from_record(cls, content: RecordDict) -> StepReply:
        """Read a reply; raises WireError."""
        checked(content, "reply")
        rows, failures = _rows(content), failures_in(content)
        if len({row[:2] for row in rows}) < len(rows) or {row[0] for row in rows} & {each.client for each in failures}:
            raise WireError("a message that speaks of a client twice")
        return cls(rows, failures)


@dataclasses.dataclass(frozen=True)
class Routed:
    """What an order to train has besides: shares for its clients, and the weight of all.

    Args:
        total: training samples of all clients of the round.
        rows: of the client that they are for, by the client that sent them, encrypted shares.
    """

    total: int
    rows: Rows

    def add_to(self, content: RecordDict) -> None:
        """Put it beside an order."""
        content["secure"] = _record(self.rows, total=self.total)

    @classmethod
    def from_record(cls, content: RecordDict) -> Routed:
        """What stands beside an order; raises WireError."""
        return cls(checked_record(content, "secure", "total")["total"], _rows(content))

    def of(self, client: int) -> dict[int, bytes]:
        """The shares for a client, by who sent them."""
        return {other: data for each, other, data in self.rows if each == client}


def rows_of_public(public: Mapping[int, Public]) -> Rows:
    """Rows of what clients tell everyone: of each the place in ``Public``, and what it is."""
    return [(client, place, data) for client, own in public.items() for place, data in enumerate(own)]


def public_of_rows(rows: Rows) -> dict[int, Public]:
    """What such rows are of; raises WireError."""
    found: dict[int, dict[int, bytes]] = {}
    for client, place, data in rows:
        found.setdefault(client, {})[place] = data
    if any(sorted(own) != list(range(len(Public._fields))) for own in found.values()):
        raise WireError("a message of a client without one of its keys")
    return {client: Public(*(own[place] for place in sorted(own))) for client, own in found.items()}


def _record(rows: Rows, **values: Any) -> ConfigRecord:
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=False))  # none where there are no rows
    return ConfigRecord({**columns, **values})


def _rows(content: RecordDict) -> Rows:
    record = checked_record(content, "secure")
    if COLUMNS[0] not in record:  # nothing is sent
        return []
    rows = rows_of(content, "secure", *COLUMNS)
    if not all(is_whole(other, 0) and isinstance(data, bytes) and len(data) <= LONGEST for _, other, data in rows):
        raise WireError("a message whose keys or shares are none, or too long")
    return rows
