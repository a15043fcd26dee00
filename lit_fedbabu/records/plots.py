"""Figures of one run, and the look of all figures: 3.5 inches wide (two columns: 7), 8 point, Okabe-Ito colours."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lit_fedbabu.config import Config
from lit_fedbabu.ground.files import write_whole
from lit_fedbabu.learning.evaluation import ACCURACY, Score
from lit_fedbabu.records.results import scaled, tuned_words

COLUMN = 3.5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvp*"
DASHES = ("-", (0, (3, 1.5)), (0, (1, 1)))
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "text.parse_math": False,  # a dollar in the name of a class is a dollar
    "svg.hashsalt": "lit_fedbabu",  # equal figures are equal files
    "svg.fonttype": "none",
}


MOST_CLIENTS = 40
"""Clients whose names are written at an axis."""


def style() -> AbstractContextManager[None]:
    """The look of all figures, while they are made and saved."""
    return matplotlib.rc_context(STYLE)


def draw_split(class_counts: str, out: Path, clients: Sequence[str] = ()) -> Iterator[Path]:
    """Draw the heat map of a split, with names of clients, as ``partition.png`` and ``partition.svg``.

    Yields:
        The path of each file written.
    """
    with style():
        yield from saved(heat_map(class_counts, clients), out / "partition")


def saved(figure: Figure, path: Path) -> Iterator[Path]:
    """Write a figure as SVG, and as PNG of 256 colours, which is less than half as large.

    Yields:
        The path of each file written.
    """
    for suffix, save in ((".png", _png), (".svg", _svg)):
        drawn = io.BytesIO()
        save(figure, drawn)
        write_whole(path.with_suffix(suffix), drawn.getvalue())
        yield path.with_suffix(suffix)


def _png(figure: Figure, drawn: io.BytesIO) -> None:
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    dpi = matplotlib.rcParams["savefig.dpi"]
    Image.open(whole).convert("RGB").quantize(256).save(drawn, "png", optimize=True, dpi=(dpi, dpi))


def _svg(figure: Figure, drawn: io.BytesIO) -> None:
    figure.savefig(drawn, format="svg", metadata={"Date": None})


def heat_map(class_counts: str, clients: Sequence[str] = ()) -> Figure:
    """Training images of each client and class, from the content of a ``partition.csv`` and names of clients."""
    rows = csv.reader(io.StringIO(class_counts))
    _, _, *names = next(rows)
    of_train = [row for row in rows if row[1] == "train"]
    counts = np.array([[int(count) for count in row[2:]] for row in of_train])
    followed = [row[0] for row in of_train] == [str(client) for client in range(len(of_train))]
    figure, axes = one_panel(min(8, max(2.6, 0.13 * len(names))))
    axes.grid(False)
    image = axes.imshow(counts.T, aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(xlabel="client" if followed else "clients that were looked at", ylabel="class", yticks=range(len(names)))
    label_classes(axes.yaxis, names, range(len(names)))
    if 0 < len(clients) <= MOST_CLIENTS:
        axes.set(xticks=range(len(clients)))
        label_classes(axes.xaxis, clients, range(len(clients)), rotation=90)
    figure.colorbar(image, label="training images")
    return figure


def curve(spreads: Sequence[dict[str, float]], config: Config, score: Score = ACCURACY) -> Figure:
    """The score before fine-tuning and after each of its epochs: mean over clients, and a band of one std."""
    figure, axes = one_panel(2.4)
    draw_line(axes, 0, "", range(len(spreads)), [[scaled(spread, score) for spread in spreads]], band=True)
    part, rate = tuned_words(config)
    axes.set(title=f"{part}, learning rate {rate}" if rate else part, xlabel="epoch of fine-tuning")
    axes.set(ylabel=score.axis, ylim=score.limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))
    return figure


def confusion(matrix: npt.NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Numbers of test images by true class (rows, those that there are) and predicted class (columns)."""
    shown = np.flatnonzero(matrix.sum(1))
    figure, axes = one_panel(1.2 + 0.25 * len(shown))
    axes.grid(False)
    axes.imshow(matrix[shown], aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.set(yticks=range(len(shown)), xticks=range(len(names)))
    label_classes(axes.yaxis, names, shown.tolist())
    label_classes(axes.xaxis, names, range(len(names)), rotation=90)
    middle = matrix.max() / 2
    for (row, column), count in np.ndenumerate(matrix[shown]):
        if count:
            colour = "black" if count > middle else "white"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    return figure


def label_classes(axis: Axis, names: Sequence[str], shown: Sequence[int], **look: Any) -> None:
    """Put names of classes or clients at an axis; where no font of this machine has their characters, their numbers.

    Args:
        axis: one with a tick for each class shown.
        names: of all classes, by their numbers.
        shown: the numbers of the classes at the ticks.
        look: options of the texts.
    """
    families = fonts_for("".join(names))
    if families is None:
        axis.set_ticklabels([str(each) for each in shown], **look)
        axis.set_label_text(f"{axis.get_label_text()} (order of partition.csv)")
    else:
        axis.set_ticklabels([names[each] for each in shown], fontfamily=families, **look)


def fonts_for(text: str) -> list[str] | None:
    """Families of fonts of this machine that together have all characters of a text; None if there are none."""
    families = list(matplotlib.rcParams["font.family"])
    missing = {ord(character) for character in text} - _characters(font_manager.findfont(font_manager.FontProperties()))
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist} if missing else {}
    for name, path in sorted(fonts.items()):
        if name.startswith("Last Resort"):  # comes with Matplotlib and has a box for every character there is
            continue
        if found := missing & _characters(path):
            families.append(name)
            missing -= found
        if not missing:
            break
    return None if missing else families


def _characters(path: str) -> set[int]:
    """The characters that a font can draw, by their numbers."""
    try:
        font = FT2Font(path)
        return set(font.get_charmap()) if font.scalable else set()
    except (OSError, RuntimeError):
        return set()


def one_panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, height))
    return figure, figure.subplots()


def look_of(number: int) -> dict[str, Any]:
    """Colour and dashes of a method by its place among the methods: those of the first 21 differ."""
    again, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "linestyle": DASHES[again % len(DASHES)]}


def draw_line(
    axes: Axes, number: int, label: str, x: Sequence[int], spreads: Sequence[Sequence[dict[str, float]]], band: bool
) -> None:
    """A line of means over seeds and, if asked for, a band of one std over clients (mean over seeds) to either side."""
    mean, std = (np.mean([[each[key] for each in one] for one in spreads], axis=0) for key in ("mean", "std"))
    look = look_of(number)
    axes.plot(x, mean, marker=MARKERS[number % len(MARKERS)], label=label, **look)
    if band:
        axes.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)
