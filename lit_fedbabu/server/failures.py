"""How the failure of a client is recorded: in the run's folder, in TensorBoard and on the console."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lit_fedbabu.ground.files import append_json_line
from lit_fedbabu.ground.printing import in_line
from lit_fedbabu.records.run_folder import FAILURES, called
from lit_fedbabu.records.tensorboard import Board

OF_FLOWER = re.compile(r"<class '[\w.]+'>:<['\"](.*)['\"]>", re.DOTALL)
"""What Flower wraps the text of an exception in."""
SHOWN = 300
"""Characters of a reason that are shown on the console; the file has all."""


class FailureLog:
    """Records failures of clients.

    Args:
        folder: the run's.
        board: of the run.
        say: prints a line.
        names: of the clients, where they have names.
        seen: is told of each failure: round, client, what is said of it, and its reason.
    """

    last = ""
    """The last failure, in a line."""

    def __init__(
        self,
        folder: Path,
        board: Board,
        say: Callable[[str], None],
        names: Sequence[str] = (),
        seen: Callable[[int, int, str, str], None] = lambda *_: None,
    ) -> None:
        self.folder = folder
        self.board = board
        self.say = say
        self.names, self.seen = names, seen

    def who(self, clients: Iterable[int]) -> str:
        """Clients as people read them."""
        return called(clients, self.names)

    def record(self, server_round: int, client: int, node: str, reason: str, traceback: str = "") -> None:
        """Record which client on which node failed, and why. Reason and traceback are its own words, or Flower's."""
        reason = one_line(reason)
        name = {"name": self.names[client]} if self.names else {}
        entry = {"round": server_round, "client": client, **name, "node": node, "reason": reason}
        append_json_line(self.folder / FAILURES, {**entry, "traceback": traceback})
        # Ray and Flower wrap an exception in text of their own, and put what was raised at the end.
        shown = reason if len(reason) <= SHOWN else f"{reason[: SHOWN // 3]} … {reason[-2 * SHOWN // 3 :]}"
        who = f"client {self.who([client])}" if name else f"client {client}"
        self.last = f"{who} on node {node}: {shown}"
        self.board.failure(server_round, self.last)
        self.seen(server_round, client, self.last, reason)
        self.say(f"round {server_round}  failed: {self.last}")


def one_line(reason: object) -> str:
    """Words of a node in one line that can be printed, without what Flower wraps them in."""
    text = str(reason)
    whole = OF_FLOWER.fullmatch(text)
    return in_line(" ".join((whole[1] if whole else text).split()))
