"""What this package takes from the inside of Python and its libraries, for want of a public way."""

import functools
import importlib


def identify_process() -> None:
    """Let this process make Flower's messages, which bear the run and the node that Flower has started it for.

    A process that Flower did not start gets the number 1. Seen in flwr 1.41 and 1.42.
    """
    from flwr.supercore.task_identity import TaskIdentity

    try:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id  # noqa: B018 - set by Flower
    except RuntimeError:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def cache_entry_points() -> None:
    """Read the metadata of installed packages once: each Trainer reads them all, which is most of its cost.

    Seen in lightning 2.6.
    """
    registry = importlib.import_module("lightning.fabric.utilities.registry")
    registry.entry_points = functools.lru_cache(registry.entry_points)  # type: ignore[attr-defined]


def forget_interrupt_in_text() -> None:
    """Let ``python -m`` end by its own status where Ctrl-C came in an exec of text, as dataclasses make of classes.

    Python remembers it, and would end by SIGINT. Seen in CPython 3.11 to 3.13.
    """
    exec("")
