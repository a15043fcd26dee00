"""Reliability diagrams: how often images are classified right that a model is so confident of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_fedbabu.learning.evaluation import BINS, STAGES
from lit_fedbabu.records.plots import COLUMN, MARKERS, look_of

LEAST = 10
"""Images of a bin that is drawn: of fewer, the share of right ones says little."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Test images of several clients by bins of confidence.

    Args:
        images: how many there are, (BINS,).
        hits: how many of them are classified right, (BINS,).
        confidence: sums of the probability of the predicted class, (BINS,).
    """

    images: npt.NDArray[np.float64]
    hits: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, Eq. 3) of all images together, 0 to 1."""
        return float(np.abs(self.hits - self.confidence).sum() / self.images.sum())

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """The bins that are drawn, (BINS,)."""
        return self.images >= LEAST

    @property
    def points(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean confidence and share of right images of each bin that is drawn, 0 to 1."""
        images = self.images[self.shown]
        return self.confidence[self.shown] / images, self.hits[self.shown] / images


def pooled(rows: Sequence[Mapping[str, Any]], stage: str) -> Reliability | None:
    """The test images of all clients together.

    Args:
        rows: entries of clients in results.json.
        stage: one of ``STAGES``.

    Returns:
        None where the entries have no bins, as those of version 0.1 and of tasks, or no image is in them.
    """
    kinds = [f"{stage}_bin_{kind}" for kind in ("images", "hits", "confidence")]
    if not rows or any(kind not in row for row in rows for kind in kinds):
        return None
    found = Reliability(*(np.array([row[kind] for row in rows], np.float64).sum(0) for kind in kinds))
    return found if found.images.any() else None


def draw_ideal(axes: Axes) -> None:
    """The line of models that are right as often as they are confident."""
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def diagram(outcome: Mapping[str, Any]) -> Figure | None:
    """The reliability of a run, before and after fine-tuning, and how images spread over the bins.

    Args:
        outcome: the content of its results.json.

    Returns:
        None where it has no bins.
    """
    found = {stage: each for stage in STAGES if (each := pooled(outcome["clients"], stage)) is not None}
    if not found:
        return None
    figure = Figure(figsize=(COLUMN, 4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    draw_ideal(above)
    edges = np.linspace(0, 1, BINS + 1)
    for stage, each in found.items():
        number = STAGES.index(stage)
        label = f"{stage}, calibration error {each.error:.3f}"
        above.plot(*each.points, marker=MARKERS[number], label=label, **look_of(number))
        below.stairs(each.images / each.images.sum(), edges, color=look_of(number)["color"], linewidth=1.2)
    title = f"test images of {len(outcome['clients'])} clients together"
    figure.legend(loc="outside upper center", title=title, title_fontsize="large")
    above.set(ylabel="share that is right")
    below.set(xlabel=f"confidence; points are bins of {LEAST} images or more", ylabel="share of images")
    return figure
