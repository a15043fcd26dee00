"""Which of Flower's nodes there are, and in which order."""

import time
from typing import NamedTuple

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

NODES_TIMEOUT_S = 600.0


class RunError(RuntimeError):
    """The run cannot go on; the message says in one line why and what to do."""


class Node(NamedTuple):
    """A Flower node: its id, which is random, and what it says its device and precision are."""

    id: int
    trains_on: str


def find_nodes(grid: Grid, timeout_s: float = NODES_TIMEOUT_S) -> list[Node]:
    """All nodes, ordered by the place that each says it has.

    Waits until all nodes have registered: simulated ones appear while the server already runs.

    Raises:
        RunError: they did not all come in time, or they disagree about their number.
    """
    deadline = time.monotonic() + timeout_s
    asked: list[int] = []
    while True:
        ids = sorted(grid.get_node_ids())
        if ids and ids == asked:  # nobody came since the last look: ask them all
            places = _places(grid, ids, timeout_s)
            expected = max(place["nodes"] for place in places)
            if len(places) >= expected:
                break
            while len(ids) < expected and time.monotonic() < deadline:
                time.sleep(0.1)
                ids = sorted(grid.get_node_ids())
        if time.monotonic() > deadline:
            raise RunError(f"only {len(ids)} nodes came within {timeout_s:.0f} s; start the others first")
        asked = ids
        time.sleep(0.5)
    by_place = {place["node"]: Node(node, place["trains-on"]) for place, node in zip(places, asked, strict=True)}
    if sorted(by_place) != list(range(expected)):
        raise RunError(f"nodes say they are {sorted(by_place)} of {expected}; give each its own partition-id")
    return [by_place[place] for place in range(expected)]


def _places(grid: Grid, nodes: list[int], timeout_s: float) -> list[ConfigRecord]:
    """What the nodes answer to "query.place", in the order of ``nodes``."""
    messages = [Message(RecordDict(), node, "query.place") for node in nodes]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout_s)}
    for node in nodes:
        if node not in replies or replies[node].has_error():
            reason = replies[node].error.reason if node in replies else f"no answer within {timeout_s:.0f} s"
            raise RunError(f"a node did not say which clients it hosts: {reason}")
    return [replies[node].content["place"] for node in nodes]
