"""Which of Flower's nodes there are, and in which order."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from flwr.app import Message
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.protocol.fields import MOST_SAMPLES, is_whole, text
from lit_fedbabu.protocol.handshake import PLACE, Code, Place, WireError
from lit_fedbabu.records.sites import Seen
from lit_fedbabu.server.failures import one_line

NODES_TIMEOUT_S = 600.0
"""Seconds that nodes have to register."""
MOST_NODES = 10**6
LONGEST_NAME = 100
"""Characters of a site's name."""


class Node(NamedTuple):
    """A Flower node.

    Args:
        id: Flower's, which is random.
        said: what it answered to ``PLACE``.
    """

    id: int
    said: Place


def find_nodes(
    grid: Grid, say: Callable[[str], None], timeout_s: float = NODES_TIMEOUT_S, most: int = MOST_NODES
) -> list[Node]:
    """All nodes, ordered by the place that each says it has.

    Waits until all nodes have registered: simulated ones appear while the server already runs, and real ones when
    someone starts them.

    Args:
        grid: Flower's.
        say: prints a line for the person who watches.
        timeout_s: seconds to wait at most.
        most: nodes that there can be.

    Raises:
        RunError: they did not all come in time, they disagree about their number, or one cannot take part.
    """
    deadline = time.monotonic() + timeout_s
    asked: list[int] = []
    places: dict[int, Place] = {}
    expected = 0
    while True:
        ids = sorted(grid.get_node_ids())
        if ids and (not asked or ids == asked):  # the first, and then when nobody came since the last look
            places = _places(grid, ids, timeout_s, say, most)
            expected = max((place.nodes for place in places.values()), default=expected)
            if len(places) >= max(expected, len(ids)):
                break
            say(f"waiting for nodes: {len(places)} of {expected or 'any'} are there")
            while len(ids) < expected and time.monotonic() < deadline:
                time.sleep(0.1)
                ids = sorted(grid.get_node_ids())
        if time.monotonic() > deadline:
            of_all = f" of {expected}" if expected else ""
            there = len(ids) if len(ids) < expected else len(places)  # registered, or else those that answered
            raise RunError(f"only {there}{of_all} nodes came within {timeout_s:.0f} s; start the others first")
        asked = ids
        time.sleep(0.1)
    twice = [str(each) for each, count in Counter(place.node for place in places.values()).items() if count > 1]
    if twice:
        raise RunError(f"several nodes say they are {', '.join(twice)}; give each its own partition-id or client-id")
    without = [str(place.node) for place in places.values() if not place.own_disk]
    if 0 < len(without) < len(places):
        raise RunError(f"nodes {', '.join(without)} have no state-path, and others have; give all of them one")
    by_place = {each.node: Node(node, each) for node, each in places.items()}
    if sorted(by_place) != list(range(expected)):
        raise RunError(f"nodes say they are {sorted(by_place)} of {expected}; they must be 0 to {expected - 1}")
    return [by_place[place] for place in range(expected)]


def _places(grid: Grid, nodes: list[int], timeout_s: float, say: Callable[[str], None], most: int) -> dict[int, Place]:
    """What nodes answer to ``PLACE``; nothing of those that Flower found to be gone.

    Raises:
        RunError: nodes cannot take part. Of several, each is said in a line, and the last one is raised.
    """
    messages = [Message(Code.here().to_record(), node, PLACE) for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout_s)}
    places: dict[int, Place] = {}
    reasons: list[str] = []
    for node, reply in ((node, replies[node]) for node in nodes if node in replies):
        if reply.has_error():
            reasons.append(f": {one_line(text('reason', str(reply.error.reason)))}")
            continue
        try:
            place = Place.from_record(reply.content)
        except WireError as error:
            reasons.append(f", for it sent {one_line(error)}")
            continue
        places[node] = place
        if len(place.name) > LONGEST_NAME:
            reasons.append(f" {place.node}: its name has more than {LONGEST_NAME} characters; give it a shorter one")
        elif place.refusal or place.nodes > most or not all(is_whole(each, 0, MOST_SAMPLES) for each in place.sizes):
            what = f"it says that it is node {place.node} of {place.nodes}, with {place.num_train} training samples"
            reasons.append(f": {one_line(place.refusal or what)}")
    for reason in reasons[:-1]:
        say(f"error: a node cannot take part{reason}")
    if reasons:
        raise RunError(f"a node cannot take part{reasons[-1]}")
    return places


def seen(node: NodeInfo) -> Seen:
    """When a site was registered, came, and last said that it is there, as Flower knows it."""
    registered, since = (
        datetime.fromisoformat(each).timestamp() for each in (node.registered_at, node.last_activated_at)
    )
    return Seen(registered, since, node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval)


def names_of(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The names of sites by their numbers; none where no site has one.

    Raises:
        RunError: two have the same.
    """
    if not any(node.said.name for node in nodes):
        return ()
    names = tuple(node.said.name or f"site {client}" for client, node in enumerate(nodes))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        sites = " and ".join(str(client) for client, name in enumerate(names) if name == twice[0])
        raise RunError(f"sites {sites} are both called {in_line(twice[0])}; give each a name of its own in node-config")
    return names
