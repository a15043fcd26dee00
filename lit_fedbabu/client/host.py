"""Where a node's clients have their images and memories: dealt to simulated nodes, a real node's own."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Context

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import from_home
from lit_fedbabu.ground.printing import say
from lit_fedbabu.tasks.protocol import class_of
from lit_fedbabu.training.experiment import Experiment


class Host(NamedTuple):
    """A node as the host of clients.

    Args:
        place: it hosts the clients c with c mod ``nodes`` == place.
        nodes: how many nodes there are.
        experiment: with this node's images for its dataset.
        state: folder of this node's own that memories lie in; None: they lie in the run's.
        client: whose site this is; None: it is no site.
        name: of the site, by its node-config; empty: it has none.
    """

    place: int
    nodes: int
    experiment: Experiment
    state: Path | None = None
    client: int | None = None
    name: str = ""

    def memories(self, memory: str) -> Path:
        """The folder of what clients keep, which an order names: absolute, or relative to the node's own folder.

        Raises:
            ValueError: the node has no folder of its own.
        """
        if self.state is None and not Path(memory).is_absolute():
            raise ValueError(f"{platform.node()} has no state-path for what clients keep; give it one in node-config")
        if self.state is None or self.client is None:
            return (self.state or Path()) / memory
        former = self.state / memory  # of version 0.1, in which sites that share a folder overwrote each other's model
        own = self.state / f"client-{self.client}" / memory
        return former if not own.exists() and (former / f"client_{self.client:04d}").is_dir() else own


class Hosts:
    """The nodes that this process answers for. They share one experiment, which is built once."""

    def __init__(self) -> None:
        self._experiment: Experiment | None = None
        self._asked: tuple[Config, int | None, str] | None = None

    def of(self, context: Context) -> Host:
        """The node that a message has come to.

        With the partitioner "sites" its node-config has ``client-id``, for images ``data-path``, and if memories are
        not to lie in the user's state folder, ``state-path``, and a ``name`` if it has one; with ``secure-aggregation``
        it answers no run without it. Else it has ``partition-id`` and ``num-partitions``, and where what clients keep
        is to lie on a disk of the node's own, ``state-path``.

        Raises:
            ValueError: the node-config does not say that, or the images are not what the experiment needs.
        """
        config, node = Config.from_run_config(context.run_config), context.node_config
        if not config.on_sites:
            _need(node, "partition-id", "num-partitions", example="partition-id=0 num-partitions=3")
            place, nodes = int(node["partition-id"]), int(node["num-partitions"])
            state = Path(str(node["state-path"])).expanduser() if "state-path" in node else None
            return Host(place, nodes, self._built(config), state)
        keys = config.kind.site
        _need(node, *keys, example=" ".join(f"{key}={example}" for key, example in keys.items()))
        client, name = node["client-id"], f"client-id {node['client-id']} on {platform.node()}"
        if not isinstance(client, int) or client not in range(config.num_clients):
            highest = config.num_clients - 1
            raise ValueError(f"{name}: there are {config.num_clients} clients, so it must be 0 to {highest}")
        if node.get("secure-aggregation") and not config.secure_aggregation:
            remedy = "its node-config has secure-aggregation=true, and the run has not; start it with that option"
            raise ValueError(f"{name}: {remedy}")
        try:
            experiment = self._built(config, client, str(node.get("data-path", "")))
            experiment.check()
            for note in experiment.task.notes:
                say(f"note: {note}")
        except InputError as error:
            raise ValueError(f"{name}: {error}") from None
        state = from_home(str(node.get("state-path", state_folder())))
        return Host(client, config.num_clients, experiment, state, client, str(node.get("name", "")))

    def _built(self, config: Config, site: int | None = None, data_path: str = "") -> Experiment:
        if self._experiment is None or self._asked != (config, site, data_path):
            task = None if site is None else class_of(config).of_site(config, site, data_path)
            self._experiment = Experiment(config if task is None else task.config, task)
            self._asked = config, site, data_path
        return self._experiment


def state_folder() -> Path:
    """Where a site keeps what is its own, unless its node-config says otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lit_fedbabu"


def _need(node_config: Mapping[str, Any], *keys: str, example: str) -> None:
    if missing := [key for key in keys if key not in node_config]:
        remedy = f"start the SuperNode with --node-config '{example}'"
        raise ValueError(f"the node-config of {platform.node()} has no {' and no '.join(missing)}; {remedy}")
