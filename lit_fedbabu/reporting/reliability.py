"""The figure of reliability: a line for every method, before and after fine-tuning."""

from matplotlib.axes import Axes

from lit_fedbabu.learning.evaluation import STAGES
from lit_fedbabu.records.reliability import LEAST, draw_ideal, pooled
from lit_fedbabu.reporting.compare import Cell, Study
from lit_fedbabu.reporting.figures import Line, panels_of
from lit_fedbabu.reporting.panels import Drawing, Panel


def reliability(study: Study) -> Drawing | None:
    """The share of test images that are classified right, by the confidence of the model."""
    panels: list[Panel] = []
    for setting in study.settings:
        for stage in STAGES:

            def label(axes: Axes, stage: str = stage) -> None:
                draw_ideal(axes)
                axes.set(xlabel=f"confidence of the {stage} model", ylabel="share that is right")

            found = {cell.method: _line(cell, stage) for cell in study.of_setting(setting)}
            lines = {name: line for name, line in found.items() if line is not None}
            title = ", ".join(word for word in (setting, stage) if word)
            panels += panels_of(study, title, lines, label) if lines else []
    note = (
        f"Test images of all clients and seeds together, in bins of confidence, of which those with {LEAST} images or"
        " more are drawn. Below the dotted line a model is surer than it is right. Runs of before 0.2 recorded no bins."
    )
    return Drawing("reliability", "Reliability", panels, note) if panels else None


def _line(cell: Cell, stage: str) -> Line | None:
    rows = [row for run in cell.runs for row in run.outcome["clients"]]
    found = pooled(rows, stage)
    return Line(*found.points, note=f", error {found.error:.3f}") if found is not None and found.shown.any() else None
