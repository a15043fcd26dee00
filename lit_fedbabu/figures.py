"""Figures of a report, for a journal's column: 3.5 inches wide (two columns: 7), 8 point, colours of Okabe and Ito."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_fedbabu import runs
from lit_fedbabu.compare import Run, finetunings, percent

COLUMN = 3.5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvp*"
DASHES = ("-", (0, (3, 1.5)), (0, (1, 1)))
BANDS = 3
"""Methods in a figure that get bands; those of more could not be told apart."""
STYLE = {
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
    "svg.hashsalt": "lit_fedbabu",  # equal figures are equal files
    "svg.fonttype": "none",
}


def style() -> AbstractContextManager:
    """The look of all figures, while they are made and saved."""
    return matplotlib.rc_context(STYLE)


def draw(methods: dict[str, list[Run]], out: Path) -> Iterator[Path]:
    """Draw every figure that the runs have data for, as PNG and as SVG.

    Yields:
        The path of each file written.
    """
    figures = {"rounds": rounds, "finetuning": finetuning, "clients": clients, "partition": partition}
    with style():
        for name, of in figures.items():
            figure = of(methods)
            if figure is not None:
                yield from _saved(figure, out / name)


def draw_split(class_counts: str, out: Path) -> Iterator[Path]:
    """Draw the heat map of a split as ``partition.png`` and ``partition.svg``.

    Yields:
        The path of each file written.
    """
    with style():
        yield from _saved(heat_map(class_counts), out / "partition")


def _saved(figure: Figure, path: Path) -> Iterator[Path]:
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix[1:], metadata=metadata)
        runs.write_whole(path.with_suffix(suffix), drawn.getvalue())
        yield path.with_suffix(suffix)


def rounds(methods: dict[str, list[Run]]) -> Figure:
    """Initial accuracy over communication rounds: mean over clients and seeds, bands of one std over clients."""
    figure, axes = _one(2.4)
    for number, (method, members) in enumerate(methods.items()):
        histories = [
            {
                entry["round"]: percent(entry["initial_accuracy"])
                for entry in run.outcome["rounds"]
                if "initial_accuracy" in entry
            }
            for run in members
        ]
        shared = sorted(set(histories[0]).intersection(*histories))
        values = [[history[each] for each in shared] for history in histories]
        _line(axes, number, method, shared, values, band=len(methods) <= BANDS)
    axes.set(xlabel="communication round", ylabel="initial accuracy (%)", xlim=(0, None), ylim=(0, 100))
    return _with_legend(figure)


def finetuning(methods: dict[str, list[Run]]) -> Figure:
    """Accuracy over epochs of fine-tuning, a panel for every part and learning rate."""
    panels = finetunings(methods)
    wide = min(3, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(COLUMN if wide == 1 else 2 * COLUMN, 2.2 * high))
    grid = figure.subplots(high, wide, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((part, rate), of_methods) in zip(grid.flat, panels.items()):
        for number, method in enumerate(methods):
            if members := of_methods.get(method):
                epochs = range(min(len(run.curve) for run in members))
                values = [run.curve[: len(epochs)] for run in members]
                _line(axes, number, method, epochs, values, band=len(of_methods) <= BANDS)
        _over_epochs(axes, part, rate)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    return _with_legend(figure)


def clients(methods: dict[str, list[Run]]) -> Figure:
    """How accuracies are distributed over the clients of all seeds: the share of clients that reach no more."""
    figure = Figure(figsize=(2 * COLUMN, 2.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, runs.KINDS, strict=True):
        for number, (method, members) in enumerate(methods.items()):
            values = [100 * row[f"{name}_accuracy"] for run in members for row in run.outcome["clients"]]
            axes.ecdf(values, label=method, **_look(number))
        axes.set(title=name, xlabel="accuracy on the client's test images (%)", xlim=(0, 100))
    panels[0].set_ylabel("cumulative share of clients")
    return _with_legend(figure)


def partition(methods: dict[str, list[Run]]) -> Figure | None:
    """Training images of each client and class in the first run that has a ``partition.csv``."""
    tables = (run.folder / runs.PARTITION for members in methods.values() for run in members)
    path = next((path for path in tables if path.is_file()), None)
    return None if path is None else heat_map(path.read_text())


def heat_map(class_counts: str) -> Figure:
    """Training images of each client and class, from the content of a ``partition.csv``."""
    rows = [row for row in csv.DictReader(io.StringIO(class_counts)) if row.pop("split") == "train"]
    names = [name for name in rows[0] if name != "client"]
    counts = np.array([[int(row[name]) for name in names] for row in rows])
    figure, axes = _one(min(8, max(2.6, 0.13 * len(names))))
    axes.grid(False)
    image = axes.imshow(counts.T, aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(xlabel="client", ylabel="class", yticks=range(len(names)), yticklabels=names)
    figure.colorbar(image, label="training images")
    return figure


def curve(spreads: Sequence[dict[str, float]], part: str, rate: float) -> Figure:
    """Accuracy (0 to 1) before fine-tuning and after each of its epochs: mean over clients, and a band of one std."""
    figure, axes = _one(2.4)
    _line(axes, 0, "", range(len(spreads)), [[percent(spread) for spread in spreads]], band=True)
    _over_epochs(axes, part, rate)
    axes.set_ylabel("accuracy (%)")
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Numbers of test images by true class (rows, those that there are) and predicted class (columns)."""
    shown = np.flatnonzero(matrix.sum(1))
    figure, axes = _one(1.2 + 0.25 * len(shown))
    axes.grid(False)
    axes.imshow(matrix[shown], aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.set(yticks=range(len(shown)), xticks=range(len(names)))
    axes.set_yticklabels([names[each] for each in shown])
    axes.set_xticklabels(names, rotation=90)
    middle = matrix.max() / 2
    for (row, column), count in np.ndenumerate(matrix[shown]):
        if count:
            colour = "black" if count > middle else "white"
            axes.text(column, row, count, ha="center", va="center", color=colour)
    return figure


def _over_epochs(axes: Axes, part: str, rate: float) -> None:
    axes.set(title=f"{part}, learning rate {rate:g}", xlabel="epoch of fine-tuning", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _one(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, height))
    return figure, figure.subplots()


def _with_legend(figure: Figure) -> Figure:
    """With the legend of all panels above them: three names in a column's width, and height for every row of them."""
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    columns = min(len(lines), round(3 * figure.get_figwidth() / COLUMN))
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(lines) // columns))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=columns)
    return figure


def _look(number: int) -> dict[str, Any]:
    """Colour and dashes of a method by its place among the methods: those of the first 21 differ."""
    again, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "linestyle": DASHES[again % len(DASHES)]}


def _line(
    axes: Axes, number: int, label: str, x: Sequence[int], spreads: Sequence[Sequence[dict[str, float]]], band: bool
) -> None:
    """A line of means over seeds and, if asked for, a band of one std over clients (mean over seeds) to either side."""
    mean, std = (np.mean([[each[key] for each in one] for one in spreads], axis=0) for key in ("mean", "std"))
    look = _look(number)
    axes.plot(x, mean, marker=MARKERS[number % len(MARKERS)], label=label, **look)
    if band:
        axes.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)
