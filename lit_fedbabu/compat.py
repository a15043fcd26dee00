"""What this package takes from the inside of its libraries, for want of a public way."""

from flwr.supercore.task_identity import TaskIdentity


def identify_process() -> None:
    """Let this process make Flower's messages, which bear the run and the node that Flower has started it for.

    A process that Flower did not start gets the number 1. Seen in flwr 1.41 and 1.42.
    """
    try:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id  # noqa: B018 - set by Flower
    except RuntimeError:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
