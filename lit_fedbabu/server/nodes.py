"""Which of Flower's nodes there are, and in which order."""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from flwr.app import Message
from flwr.serverapp import Grid

from lit_fedbabu.errors import RunError
from lit_fedbabu.handshake import PLACE, Code, Place, WireError

NODES_TIMEOUT_S = 600.0
"""Seconds that nodes have to register."""


class Node(NamedTuple):
    """A Flower node.

    Args:
        id: Flower's, which is random.
        trains_on: its device and precision, as it says.
        own_disk: whether its clients' memories lie in a folder of its own.
        initial_weights: digest of the file that its models start from; empty: they start from the seed.
    """

    id: int
    trains_on: str
    own_disk: bool
    initial_weights: str = ""


def find_nodes(grid: Grid, say: Callable[[str], None], timeout_s: float = NODES_TIMEOUT_S) -> list[Node]:
    """All nodes, ordered by the place that each says it has.

    Waits until all nodes have registered: simulated ones appear while the server already runs, and real ones when
    someone starts them.

    Args:
        grid: Flower's.
        say: prints a line for the person who watches.
        timeout_s: seconds to wait at most.

    Raises:
        RunError: they did not all come in time, they disagree about their number, or one cannot take part.
    """
    deadline = time.monotonic() + timeout_s
    asked: list[int] = []
    places: dict[int, Place] = {}
    expected = 0
    while True:
        ids = sorted(grid.get_node_ids())
        if ids and ids == asked:  # nobody came since the last look: ask them all
            places = _places(grid, ids, timeout_s)
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
    by_place = {
        place.node: Node(node, place.trains_on, place.own_disk, place.initial_weights) for node, place in places.items()
    }
    if sorted(by_place) != list(range(expected)):
        raise RunError(f"nodes say they are {sorted(by_place)} of {expected}; they must be 0 to {expected - 1}")
    return [by_place[place] for place in range(expected)]


def _places(grid: Grid, nodes: list[int], timeout_s: float) -> dict[int, Place]:
    """What nodes answer to ``PLACE``; nothing of those that Flower found to be gone.

    Raises:
        RunError: nodes answered that they cannot take part.
    """
    messages = [Message(Code.here().to_record(), node, PLACE) for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout_s)}
    answered = {node: replies[node] for node in nodes if node in replies}
    reasons = [str(reply.error.reason) for reply in answered.values() if reply.has_error()]
    if reasons:
        raise RunError(f"{len(reasons)} of {len(nodes)} nodes cannot take part: {'; '.join(reasons)}")
    try:
        return {node: Place.from_record(reply.content) for node, reply in answered.items()}
    except WireError as error:
        raise RunError(f"a node cannot take part, for it sent {error}; install the same version on all") from None
