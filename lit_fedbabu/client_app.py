"""Flower's ClientApp: light to import, because real nodes start a process for every message."""

import os
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("place")
def place(message: Message, context: Context) -> Message:
    """Answered by ``handlers.place``."""
    return _answer("place", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answered by ``handlers.train``."""
    return _answer("train", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answered by ``handlers.evaluate``."""
    return _answer("evaluate", message, context)


def prepare() -> None:
    """Import what the answers need: seconds that a process spends once, before it forks workers."""
    import lit_fedbabu.client.handlers  # noqa: F401


def _answer(what: str, message: Message, context: Context) -> Message:
    """The handler's answer: here, or on a real node in a worker that needs no imports."""
    from lit_fedbabu.workers.worker import FORKS

    if FORKS and Path(sys.argv[0]).name == "flwr-clientapp":
        return _by_worker(what, message, context)
    from lit_fedbabu.client.handlers import answer

    return answer(what, message, context)


def _by_worker(what: str, message: Message, context: Context) -> Message:
    """The answer of a worker that forks from the warm process of this SuperNode, which the first message starts.

    Raises:
        RuntimeError: the worker raised an exception, or died.
    """
    from lit_fedbabu.system import source_digest
    from lit_fedbabu.workers.worker import Warm, WorkerDiedError

    # Containers may share the network and so the names of sockets: what they do not share is in the name.
    spaces = "-".join(str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("pid", "mnt"))
    name = f"lit_fedbabu-{spaces}-{os.getppid()}-{source_digest()}"
    worker = Warm("lit_fedbabu.client_app:prepare", name, os.getppid()).worker()
    try:
        worker.ask("lit_fedbabu.client.handlers:answer", (what, message, context))
        reply: Message = worker.answer()
    except WorkerDiedError as died:
        raise RuntimeError(f"no answer to {what!r}: {died}") from None
    finally:
        worker.end()
    return reply
