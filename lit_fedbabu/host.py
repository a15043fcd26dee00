"""Where a node's clients have their images and memories: dealt to simulated nodes, a real node's own."""

import dataclasses
import os
import platform
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context

from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.partition import partition


class Host(NamedTuple):
    """A node as the host of clients.

    Args:
        place: it hosts the clients c with c mod ``nodes`` == place.
        nodes: how many nodes there are.
        config: the experiment, with this node's images for its dataset.
        state: the folder that memories lie in, unless their path is absolute.
    """

    place: int
    nodes: int
    config: Config
    state: Path


def host_of(context: Context) -> Host:
    """The node that a message has come to.

    With the partitioner "sites" its node-config has ``client-id``, ``data-path`` and, if memories are not to lie in
    the user's state folder, ``state-path``; else it has ``partition-id`` and ``num-partitions``.

    Raises:
        ValueError: the node-config does not say that, or the images are not what the experiment needs.
    """
    config, node = Config.from_run_config(context.run_config), context.node_config
    if not config.on_sites:
        _need(node, "partition-id", "num-partitions", example="partition-id=0 num-partitions=3")
        return Host(int(node["partition-id"]), int(node["num-partitions"]), config, Path())
    _need(node, "client-id", "data-path", example='client-id=0 data-path="/data/images"')
    client, name = node["client-id"], f"client-id {node['client-id']} on {platform.node()}"
    if client not in range(config.num_clients):
        raise ValueError(f"{name}: there are {config.num_clients} clients, so it must be 0 to {config.num_clients - 1}")
    local = dataclasses.replace(config, dataset=str(node["data-path"]))
    try:
        partition(local)
    except ConfigError as error:
        raise ValueError(f"{name}: {error}") from None
    return Host(client, config.num_clients, local, Path(node.get("state-path", state_folder())).expanduser())


def state_folder() -> Path:
    """Where a site keeps what is its own, unless its node-config says otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lit_fedbabu"


def _need(node_config: dict, *keys: str, example: str) -> None:
    if missing := [key for key in keys if key not in node_config]:
        remedy = f"start the SuperNode with --node-config '{example}'"
        raise ValueError(f"the node-config of {platform.node()} has no {' and no '.join(missing)}; {remedy}")
