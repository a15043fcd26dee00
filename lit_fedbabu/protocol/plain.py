"""Messages of Flower's own strategies, as FedAvg: they know nodes with one client each, and no other fields."""

from collections.abc import Callable, Mapping

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from lit_fedbabu.protocol.handshake import checked_record
from lit_fedbabu.protocol.wire import Arrays, Order


def is_plain(content: RecordDict) -> bool:
    """Whether a message is of such a strategy: it names no version of ours and no clients."""
    keys = set(content.config_records["config"]) if "config" in content.config_records else set()
    return "server-round" in keys and not {"version", "clients"} & keys


def read(content: RecordDict, rate_in: Callable[[int], float]) -> tuple[Order, ArrayRecord]:
    """The order in a message, and its arrays.

    The strategy's ``train_config`` may have a "learning-rate", and its ``evaluate_config`` "personalize".

    Args:
        content: of the message.
        rate_in: the learning rate of a round that the message names none for.

    Raises:
        WireError: there are no arrays.
    """
    checked_record(content, "arrays")
    config = content.config_records["config"]
    order = Order.from_config({"learning-rate": rate_in(int(str(config["server-round"]))), **config})
    return order, content.array_records["arrays"]


def check_pull(content: RecordDict, mu: float | None) -> None:
    """Refuse a strategy's FedProx where clients are not trained so.

    Args:
        content: of the message.
        mu: the strength of the pull that clients are trained with; None: there is none.

    Raises:
        ValueError: the strategy sends another ``proximal-mu``.
    """
    sent = content.config_records["config"].get("proximal-mu", mu)
    if sent != mu and (mu is not None or sent):
        ours = (
            "the algorithm has none: take algorithm=fedprox or fedprox-babu" if mu is None else f"proximal-mu is {mu}"
        )
        raise ValueError(f"the strategy sends proximal-mu = {sent!r}, and {ours}; the two must be the same")


def trained(arrays: Arrays, num_examples: int, metrics: Mapping[str, float]) -> RecordDict:
    """The content of a reply after training: arrays under their names, and ``num-examples`` to weight them by."""
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return RecordDict({"arrays": record, **evaluated(num_examples, metrics)})


def evaluated(num_examples: int, metrics: Mapping[str, float]) -> RecordDict:
    """The content of a reply after an evaluation."""
    return RecordDict({"metrics": MetricRecord({"num-examples": num_examples, **metrics})})
