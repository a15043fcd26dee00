"""Figures that compare runs."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from lit_fedbabu.records.plots import (
    BANDS,
    COLUMN,
    draw_line,
    heat_map,
    label_epochs,
    look_of,
    one_panel,
    saved,
    style,
)  # fmt: skip
from lit_fedbabu.records.results import percent
from lit_fedbabu.records.run_folder import PARTITION
from lit_fedbabu.reporting.compare import Run, finetunings
from lit_fedbabu.tasks.evaluation import STAGES


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
                yield from saved(figure, out / name)


def rounds(methods: dict[str, list[Run]]) -> Figure:
    """Initial accuracy over communication rounds: mean over clients and seeds, bands of one std over clients."""
    figure, axes = one_panel(2.4)
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
        draw_line(axes, number, method, shared, values, band=len(methods) <= BANDS)
    axes.set(xlabel="communication round", ylabel="initial accuracy (%)", xlim=(0, None), ylim=(0, 100))
    return _with_legend(figure)


def finetuning(methods: dict[str, list[Run]]) -> Figure | None:
    """Accuracy over epochs of fine-tuning, a panel for every part and rate; None if no run has all its clients."""
    panels = finetunings(methods)
    if not panels:
        return None
    wide = min(3, len(panels))
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(COLUMN if wide == 1 else 2 * COLUMN, 2.2 * high))
    grid = figure.subplots(high, wide, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((part, rate), of_methods) in zip(grid.flat, panels.items(), strict=False):  # more axes than panels
        for number, method in enumerate(methods):
            if members := of_methods.get(method):
                epochs = range(min(len(run.curve) for run in members))
                values = [run.curve[: len(epochs)] for run in members]
                draw_line(axes, number, method, epochs, values, band=len(of_methods) <= BANDS)
        label_epochs(axes, part, rate)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    return _with_legend(figure)


def clients(methods: dict[str, list[Run]]) -> Figure:
    """How accuracies are distributed over the clients of all seeds: the share of clients that reach no more."""
    figure = Figure(figsize=(2 * COLUMN, 2.4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, STAGES, strict=True):
        for number, (method, members) in enumerate(methods.items()):
            values = [100 * row[f"{name}_accuracy"] for run in members for row in run.outcome["clients"]]
            axes.ecdf(values, label=method, **look_of(number))
        axes.set(title=name, xlabel="accuracy on the client's test images (%)", xlim=(0, 100))
    panels[0].set_ylabel("cumulative share of clients")
    return _with_legend(figure)


def partition(methods: dict[str, list[Run]]) -> Figure | None:
    """Training images of each client and class in the first run that has a ``partition.csv``."""
    tables = (run.folder / PARTITION for members in methods.values() for run in members)
    path = next((path for path in tables if path.is_file()), None)
    return None if path is None else heat_map(path.read_text())


def _with_legend(figure: Figure) -> Figure:
    """With the legend of all panels above them: three names in a column's width, and height for every row of them."""
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    columns = min(len(lines), round(3 * figure.get_figwidth() / COLUMN))
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(lines) // columns))
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=columns)
    return figure
