"""What training cost: images seen, bytes and seconds."""

import dataclasses
import logging
import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.config.length import steps_of
from lit_fedbabu.records import results

EVENTS = "events.out.tfevents.*"
TAGS = ("communication/bytes_up", "communication/bytes_down", "time/seconds_per_round")
KEPT = {"scalars": 0, "tensors": 1, "images": 1, "histograms": 1, "compressedHistograms": 1, "graph": 1}
"""Of each kind of event: 0 is all of them."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of all rounds of a run; None where it is not recorded.

    Args:
        images: training images seen by all clients, each as often as it was seen. Where clients have unequal numbers
            of images, it is what the drawn clients have on average.
        bytes_up: of shared weights from nodes to the server, without framing.
        bytes_down: of shared weights from the server to nodes, without framing.
        seconds: of the rounds, without evaluation.
    """

    images: float | None
    bytes_up: float | None
    bytes_down: float | None
    seconds: float | None


def cost_of(folder: Path, config: Config, rounds: int, images: int | None) -> Cost:
    """What the rounds of a run cost.

    Args:
        folder: of the run, where TensorBoard's event files are.
        config: of the run.
        rounds: how many there were.
        images: that all clients have for training; None if that is not recorded.
    """
    is_row = config.algorithm in ALGORITHMS  # what a method of the user's own does with images is not known here
    seen = images * rounds * _times_seen(config, images) if is_row and images is not None else None
    return Cost(seen, *_recorded(folder, rounds))


def _times_seen(config: Config, images: int) -> float:
    """How often an image is seen in a round, on average."""
    algorithm = ALGORITHMS[config.algorithm]
    batches = math.ceil(images / (1 if algorithm.pooled else config.num_federated) / config.batch_size)
    epochs = sum(steps_of(batches, *config.length(field)) for field in algorithm.lengths) / batches
    return epochs * (1 if algorithm.pooled else config.clients_per_round / config.num_federated)


def _recorded(folder: Path, rounds: int) -> list[float | None]:
    """Bytes up, bytes down and seconds of all rounds; None where a round is missing."""
    costs = results.costs(folder)
    if len(costs) != rounds:
        return _from_events(folder, rounds)
    up, down, seconds = (sum(cost[key] for cost in costs) for key in ("bytes_up", "bytes_down", "seconds"))
    return [float(up), float(down), float(seconds)]


def _from_events(folder: Path, rounds: int) -> list[float | None]:
    """The same of a run that version 0.2 has begun, from TensorBoard's files."""
    if not any(folder.glob(EVENTS)):
        return [None for _ in TAGS]
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of rounds that a resumed run did once more
    events = EventAccumulator(str(folder), size_guidance=KEPT).Reload()
    there = events.Tags()["scalars"]
    values = [{event.step: event.value for event in events.Scalars(tag)} if tag in there else {} for tag in TAGS]
    return [float(sum(each.values())) if len(each) == rounds else None for each in values]
