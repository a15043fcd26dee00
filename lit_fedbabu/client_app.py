"""Flower's ClientApp: light to import, because real nodes start a process for every message."""

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


def _answer(what: str, message: Message, context: Context) -> Message:
    """The handler's answer: here, or on a site in a process that is warm."""
    if context.run_config.get("partitioner") == "sites":
        from lit_fedbabu.client import warm

        return warm.answer(what, message, context)
    from lit_fedbabu.client.handlers import ANSWERS

    return ANSWERS[what](message, context)
