"""What counts as a failed client, and how a failure is told: the server's one place for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.app import ConfigRecord, MetricRecord

from lit_fedbabu import runs
from lit_fedbabu.board import Board
from lit_fedbabu.nodes import RunError

DEAD_WORKER = ("ActorDied", "WorkerCrashed")
"""In the reason of a failure: Ray lost a worker process, and Flower's pool starts no other one."""


class Failures:
    """Writes failures down, in the run's folder, in TensorBoard and for the person who watches.

    Args:
        folder: the run's.
        board: of the run.
        say: prints a line.
    """

    last = ""
    """The last failure, in a line."""

    def __init__(self, folder: Path, board: Board, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.board = board
        self.say = say

    def note(self, server_round: int, client: int, node: str, reason: str, trace: str = "") -> None:
        """Write a client's failure down.

        Raises:
            RunError: a worker process died, so that asking again is in vain.
        """
        reason = " ".join(reason.split())
        failure = {"round": server_round, "client": client, "node": node, "reason": reason, "traceback": trace}
        runs.record_failure(self.folder, failure)
        # Ray and Flower wrap what was raised, and say at the end what it was.
        told = reason if len(reason) <= 300 else f"{reason[:100]} … {reason[-200:]}"
        self.last = f"client {client} on node {node}: {told}"
        self.board.failure(server_round, self.last)
        self.say(f"round {server_round}  failed: {self.last}")
        if any(word in reason for word in DEAD_WORKER):
            raise RunError(f"round {server_round}: a worker process died; go on with resume = {self.folder}")


def rows(record: MetricRecord | ConfigRecord | None, *keys: str) -> Iterator[tuple]:
    """Per client, the values under the keys; nothing where there is no record or no client."""
    return zip(*(record[key] for key in keys), strict=True) if record else iter(())
