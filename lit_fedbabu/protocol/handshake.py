"""What every message says first: the version of the wire, and the code that the server runs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lit_fedbabu.ground import system

VERSION = 9
"""Of the messages. It grows when a name or a meaning changes."""
LONGEST = 10_000
"""Characters of a text in an answer to ``PLACE``."""
KINDS = {"arrays": ArrayRecord, "metrics": MetricRecord, "lists": MetricRecord}
"""Types of records by their names; others are a ConfigRecord."""
PLACE = "query.place"
"""Type of the message that asks a node which of how many it is."""


class WireError(ValueError):
    """A message of another version, or without a field that it must have."""


@dataclasses.dataclass(frozen=True)
class Code:
    """The source code that a server runs. It goes with every message, and nodes with other code refuse to answer.

    Args:
        digest: of the package's source.
        folder: that it lies in, on the server.
    """

    digest: str
    folder: str

    @classmethod
    def here(cls) -> Code:
        """The code of this process."""
        return cls(system.source_digest(), str(system.package_folder()))

    def to_record(self) -> RecordDict:
        """The content of a ``PLACE`` message."""
        return RecordDict({"config": ConfigRecord(self.entries())})

    def entries(self) -> dict[str, Any]:
        """What a message says of the version and of the code."""
        return {"version": VERSION, "source-digest": self.digest, "source-folder": self.folder}

    @classmethod
    def from_record(cls, content: RecordDict) -> Code:
        """The code of the server that sent this message."""
        config = checked(content, "config", "source-digest", "source-folder")
        return cls(str(config["source-digest"]), str(config["source-folder"]))

    def refuse_other(self) -> None:
        """Raise ValueError where this process runs other code."""
        if self.digest != system.source_digest():
            raise ValueError(
                f"the server runs {self.folder} but {platform.node()} runs {system.package_folder()}, and their code"
                " differs; install the same version on both, or end the flower-superlink that was started elsewhere"
            )


@dataclasses.dataclass(frozen=True)
class Place:
    """A node's answer to ``PLACE``.

    Args:
        node: it hosts the clients c with c mod ``nodes`` == node.
        nodes: how many nodes there are.
        trains_on: its device and precision, in words.
        precision: what ``precision`` stands for there.
        own_disk: whether its clients' memories lie in a folder of its own, and not in that of the run.
        initial_weights: digest of the file that its models start from; empty: they start from the seed.
        base: digest of what its model's maker froze; empty: nothing.
        num_train: training samples of a site's client; 0: it is no site.
        num_test: its test samples.
        name: that the site's owner gave it; empty: none.
        refusal: why it cannot take part; empty: it can.
    """

    node: int
    nodes: int
    trains_on: str
    precision: str = ""
    own_disk: bool = False
    initial_weights: str = ""
    base: str = ""
    num_train: int = 0
    num_test: int = 0
    name: str = ""
    refusal: str = ""

    @property
    def sizes(self) -> tuple[int, int]:
        """Training and test samples."""
        return self.num_train, self.num_test

    def to_record(self) -> RecordDict:
        """The content of the reply."""
        answer = {field.name.replace("_", "-"): getattr(self, field.name) for field in dataclasses.fields(self)}
        answer["refusal"] = self.refusal[:LONGEST]
        return RecordDict({"place": ConfigRecord({"version": VERSION, **answer})})

    @classmethod
    def from_record(cls, content: RecordDict) -> Place:
        """Read a reply; raises WireError."""
        fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls)}
        place = checked(content, "place", *fields)
        kinds = {"int": int, "str": str, "bool": bool}
        for key, field in fields.items():
            if type(place[key]) is not kinds[str(field.type)]:
                what = f"the node {str(place['node'])[:50]!r} of {str(place['nodes'])[:50]}, which are no whole numbers"
                raise WireError(f"a message of {what}" if key in ("node", "nodes") else f"a message with a false {key}")
            if field.type == "str" and len(place[key]) > LONGEST:
                raise WireError(f"a message whose {key} has {len(place[key])} characters")
        found = cls(*(place[key] for key in fields))
        if not found.refusal and not 0 <= found.node < found.nodes:
            raise WireError(f"a message of the node {found.node} of {found.nodes}")
        return found


def checked(content: RecordDict, name: str, *keys: str) -> Mapping[str, Any]:
    """The record of that name, which says the version; raises WireError."""
    record = checked_record(content, name, "version", *keys)
    if record["version"] != VERSION:
        found = f"a message of version {str(record['version'])[:50]}, and this program reads version {VERSION}"
        raise WireError(f"{found}; install the same version on all")
    return record


def checked_record(content: RecordDict, name: str, *keys: str) -> Mapping[str, Any]:
    """The record of that name, which has these keys; raises WireError."""
    if name not in content:
        raise WireError(f"a message without {name!r}, it has {', '.join(content)[:200] or 'nothing'}")
    record: Mapping[str, Any] = content[name]
    if not isinstance(record, KINDS.get(name, ConfigRecord)):
        raise WireError(f"a message whose {name!r} is a {type(record).__name__}")
    if missing := [key for key in keys if key not in record]:
        raise WireError(f"a message whose {name!r} has no {', '.join(missing)}")
    return record
