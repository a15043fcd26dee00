"""Flower's ClientApp: light to import, because Flower's own nodes start a process for every message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from lit_fedbabu.workers.worker import Warm

app = ClientApp()
warm: Warm | None = None
"""On a real node, where the workers come from that answer messages."""


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


@app.query("secure")
def secure(message: Message, context: Context) -> Message:
    """Answered by ``handlers.secure``."""
    return _answer("secure", message, context)


def prepare() -> None:
    """Import what the answers need: seconds that a process spends once, before it forks workers."""
    import lit_fedbabu.client.handlers  # noqa: F401


def _answer(what: str, message: Message, context: Context) -> Message:
    """The handler's answer: here, or on a real node in a worker that needs no imports.

    Raises:
        RuntimeError: the worker raised an exception, or died.
    """
    if warm is None:
        from lit_fedbabu.client.handlers import answer

        return answer(what, message, context)
    from lit_fedbabu.workers.worker import WorkerDiedError

    worker = warm.worker()
    try:
        worker.ask("lit_fedbabu.client.handlers:answer", (what, message, context))
        reply: Message = worker.answer()
    except WorkerDiedError as died:
        raise RuntimeError(f"no answer to {what!r}: {died}") from None
    finally:
        worker.end()
    return reply
