"""Panels of figures: each alone on a page, several in a file, and their keys."""

import dataclasses
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lit_fedbabu.records.plots import COLOURS, COLUMN, MARKERS, saved

PANELS = 12
"""In a file; more of them make another one."""
GREY = "#b8b8b8"
"""Of methods that stand behind those of a panel."""
WIDTH = 44
"""Characters of a panel's title in a line."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: what is in it.
        draw: draws on the axes.
        key: names of what is in it, each with the number of its look.
        height: of the drawing without its title and key, in inches.
    """

    title: str
    draw: Callable[[Axes], None]
    key: tuple[tuple[str, int], ...] = ()
    height: float = 2.3


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Panels that belong together.

    Args:
        name: of their files.
        title: what they show.
        panels: at least one.
        note: how to read them.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    note: str = ""


def look(number: int) -> dict[str, Any]:
    """Colour and marker by the place in a panel's key."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def alone(panel: Panel, wide: bool = False) -> Figure:
    """A panel without its title and key, as wide as a column or as two."""
    figure = Figure(figsize=(2 * COLUMN if wide else COLUMN, panel.height))
    axes = figure.subplots()
    panel.draw(axes)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    return figure


def together(panels: Sequence[Panel]) -> Figure:
    """Panels with their titles and keys, in one column or two."""
    columns = min(2, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(each.height + 0.17 * (_lines(each) + len(_wrapped(each))) for each in row) for row in rows]
    figure = Figure(figsize=(columns * COLUMN, sum(heights)))
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    tallest = [max(each.height for each in row) for row in rows]
    for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):  # the last row may have room
        panel.draw(axes)
        axes.set_title("\n".join(_wrapped(panel)))
        if panel.key:
            handles = [Line2D([], [], label=name, **look(number)) for name, number in panel.key]
            under = 0.42 if axes.get_xlabel() else 0.25  # inches, for numbers and the name of the axis
            below = -under / tallest[place // columns] * 1.25
            axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, below), ncols=_columns(panel))
    return figure


def written(drawing: Drawing, out: Path) -> Iterator[Path]:
    """Draw a figure as PNG and SVG, in several files if it has many panels.

    Yields:
        The path of each file written.
    """
    for number, start in enumerate(range(0, len(drawing.panels), PANELS), start=1):
        name = drawing.name if number == 1 else f"{drawing.name}-{number}"
        yield from saved(together(drawing.panels[start : start + PANELS]), out / name)


def svg(panel: Panel, wide: bool = False) -> str:
    """A panel alone as an SVG file's content."""
    drawn = io.StringIO()
    alone(panel, wide).savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _wrapped(panel: Panel) -> list[str]:
    return textwrap.wrap(panel.title, WIDTH)[:3]


def _columns(panel: Panel) -> int:
    return 2 if max(len(name) for name, _ in panel.key) <= 22 else 1


def _lines(panel: Panel) -> int:
    """Lines of a panel's key."""
    return -(-len(panel.key) // _columns(panel)) if panel.key else 0
