"""What every message says first: the version of the wire, and the code that the server runs."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from lit_fedbabu import system

VERSION = 5
"""Of the messages. It grows when a name or a meaning changes."""
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
        trains_on: its device and precision.
        own_disk: whether its clients' memories lie in a folder of its own, and not in that of the run.
        initial_weights: digest of the file that its models start from; empty: they start from the seed.
    """

    node: int
    nodes: int
    trains_on: str
    own_disk: bool = False
    initial_weights: str = ""

    def to_record(self) -> RecordDict:
        """The content of the reply."""
        answer: dict[str, Any] = {
            "version": VERSION,
            "node": self.node,
            "nodes": self.nodes,
            "trains-on": self.trains_on,
            "own-disk": self.own_disk,
            "initial-weights": self.initial_weights,
        }
        return RecordDict({"place": ConfigRecord(answer)})

    @classmethod
    def from_record(cls, content: RecordDict) -> Place:
        """Read a reply; raises WireError."""
        place = checked(content, "place", "node", "nodes", "trains-on", "own-disk", "initial-weights")
        node, nodes = place["node"], place["nodes"]
        if not (isinstance(node, int) and isinstance(nodes, int)):
            raise WireError(f"a message of the node {node!r} of {nodes!r}, which are no whole numbers")
        return cls(node, nodes, str(place["trains-on"]), bool(place["own-disk"]), str(place["initial-weights"]))


def checked(content: RecordDict, name: str, *keys: str) -> Mapping[str, Any]:
    """The record of that name, which says the version; raises WireError."""
    record = checked_record(content, name, "version", *keys)
    if record["version"] != VERSION:
        raise WireError(f"a message of version {record['version']}, and this program reads version {VERSION}")
    return record


def checked_record(content: RecordDict, name: str, *keys: str) -> Mapping[str, Any]:
    """The record of that name, which has these keys; raises WireError."""
    if name not in content:
        raise WireError(f"a message without {name!r}, it has {', '.join(content) or 'nothing'}")
    record: Mapping[str, Any] = content[name]
    if missing := [key for key in keys if key not in record]:
        raise WireError(f"a message whose {name!r} has no {', '.join(missing)}")
    return record
