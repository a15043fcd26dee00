"""Figures that compare methods: courses, distributions, cost and splits. However many there are, a panel has few."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from lit_fedbabu.learning.evaluation import STAGES
from lit_fedbabu.reporting.compare import Cell, Study, finetunings
from lit_fedbabu.reporting.costs import Cost
from lit_fedbabu.reporting.facts import short, splits
from lit_fedbabu.reporting.panels import GREY, Drawing, Panel, look
from lit_fedbabu.reporting.runs import Partition, Run

BESIDE = 6
"""Methods in colour beside the reference in a panel."""
SPLITS = 12
"""That are drawn; the table has all."""
SHARES = np.linspace(0, 1, 101)
"""Of clients, at which a distribution is drawn."""
NAMED, NAME = 20, 16
"""Classes or clients whose names are written, and characters of them."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A method in a panel.

    Args:
        x: of the points.
        y: means over seeds, or the values themselves.
        std: over seeds; None for one seed.
        note: stands behind the name in the key.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64] | None = None
    note: str = ""


def panels_of(
    study: Study, title: str, lines: dict[str, Line], label: Callable[[Axes], object], style: str = "-"
) -> Iterator[Panel]:
    """Panels with a few of the methods in colour, the reference in each, and all others in grey behind them."""
    others = [name for name in lines if name != study.reference]
    first = [study.reference] if study.reference in lines else []
    groups = [[*first, *others[start : start + BESIDE]] for start in range(0, len(others), BESIDE)] or [first]
    for number, names in enumerate(groups, start=1):
        part = f"part {number} of {len(groups)}" if len(groups) > 1 else ""
        behind = [lines[name] for name in others if name not in names]
        drawn = [(lines[name], place + (not first)) for place, name in enumerate(names)]
        key = tuple((name + lines[name].note, place + (not first)) for place, name in enumerate(names))
        heading = ", ".join(word for word in (title, part) if word)
        yield Panel(heading, partial(_draw, behind=behind, drawn=drawn, label=label, style=style), key)


def _draw(
    axes: Axes, behind: Sequence[Line], drawn: Sequence[tuple[Line, int]], label: Callable[[Axes], object], style: str
) -> None:
    for line in behind:
        some = np.unique(np.linspace(0, len(line.x) - 1, 26).astype(int))  # they may be many
        marker = "" if style else "o"
        axes.plot(line.x[some], line.y[some], linestyle=style, marker=marker, color=GREY, linewidth=0.8, zorder=1)
    for line, number in drawn:
        shown = look(number)
        axes.plot(line.x, line.y, linestyle=style, markevery=max(1, len(line.x) // 16), **shown)
        if line.std is not None:
            band = line.y - line.std, line.y + line.std
            axes.fill_between(line.x, *band, color=shown["color"], alpha=0.2, linewidth=0)
    label(axes)


def _over_seeds(histories: Sequence[dict[int, float]], note: Callable[[int], str]) -> Line | None:
    """The points that all seeds have, and a note on the last of them; None if there is none."""
    shared = sorted(set(histories[0]).intersection(*histories))
    if not shared:
        return None
    values = np.array([[history[each] for each in shared] for history in histories])
    std = values.std(0, ddof=1) if len(values) > 1 else None
    return Line(np.array(shared, dtype=np.float64), values.mean(0), std, note(shared[-1]))


def rounds(study: Study) -> Drawing | None:
    """Initial score over communication rounds."""

    def label(axes: Axes) -> None:
        axes.set(xlabel="communication round", ylabel=f"initial {study.score.axis}")
        axes.set(xlim=(0, None), ylim=study.score.limits)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))

    panels: list[Panel] = []
    for setting in study.settings:
        cells = study.of_setting(setting)
        longest = max(max(run.initial, default=0) for cell in cells for run in cell.runs)
        lines = _lines(
            {
                cell.method: _over_seeds(
                    [{each: spread["mean"] for each, spread in run.initial.items()} for run in cell.runs],
                    lambda last, longest=longest: f", {last} rounds" if last < longest else "",  # type: ignore[misc]
                )
                for cell in cells
            }
        )
        panels += panels_of(study, setting, lines, label) if lines else []
    note = (
        "Mean over clients and seeds; bands are one standard deviation over seeds, where there are two or more."
        " Each panel has a few methods in colour and the others in grey. Lines that end early belong to runs with"
        " fewer rounds, as the key says."
    )
    return Drawing("rounds", f"Initial {study.score.name} over rounds", panels, note) if panels else None


def simulated_time(study: Study) -> Drawing | None:
    """Initial score over the simulated seconds of clients with speeds."""

    def label(axes: Axes) -> None:
        axes.set(xlabel="simulated seconds", ylabel=f"initial {study.score.axis}")
        axes.set(xlim=(0, None), ylim=study.score.limits)

    panels: list[Panel] = []
    for setting in study.settings:
        lines = {}
        for cell in study.of_setting(setting):
            shared = sorted(set.intersection(*(set(run.simulated) for run in cell.runs)))
            if shared:
                seconds = [np.mean([run.simulated[each] for run in cell.runs]) for each in shared]
                means = [np.mean([run.initial[each]["mean"] for run in cell.runs]) for each in shared]
                lines[cell.method] = Line(np.array(seconds), np.array(means))
        panels += panels_of(study, setting, lines, label) if lines else []
    note = "Points are evaluated rounds: mean over clients and seeds, at the mean simulated time of their end."
    title = f"Initial {study.score.name} over simulated time"
    return Drawing("simulated-time", title, panels, note) if panels else None


def _lines(found: dict[str, Line | None]) -> dict[str, Line]:
    return {name: line for name, line in found.items() if line is not None}


def finetuning(study: Study) -> Drawing | None:
    """Score over epochs of fine-tuning, for every part and rate."""

    def label(axes: Axes) -> None:
        axes.set(xlabel="epoch of fine-tuning", ylabel=study.score.axis, ylim=study.score.limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 2.5, 5, 10]))

    panels: list[Panel] = []
    for setting in study.settings:
        for (part, rate), of_methods in finetunings(study.of_setting(setting)).items():
            how = f"{part} at learning rate {rate}" if rate else part
            title = ", ".join(word for word in (setting, how) if word)
            longest = max(len(run.curve) for members in of_methods.values() for run in members) - 1
            lines = {name: _course(members, longest) for name, members in of_methods.items()}
            panels += panels_of(study, title, _lines(lines), label)
    note = (
        "Mean over clients and seeds; bands are one standard deviation over seeds. The epochs that all seeds of a"
        " method have are drawn; the key says where these are fewer than others."
    )
    return Drawing("finetuning", f"{study.score.title} over epochs of fine-tuning", panels, note) if panels else None


def _course(members: Sequence[Run], longest: int) -> Line | None:
    curves = [{epoch: spread["mean"] for epoch, spread in enumerate(run.curve)} for run in members]
    return _over_seeds(curves, lambda last: f", {last} epochs" if last < longest else "")


def clients(study: Study) -> Drawing:
    """How scores are distributed over the clients of all seeds: the share of clients that reach no more."""
    panels: list[Panel] = []
    for setting in study.settings:
        for stage in STAGES:

            def label(axes: Axes, stage: str = stage) -> None:
                axes.set(xlabel=f"{stage} {study.score.axis} of a client", ylabel="share of clients")
                axes.set(xlim=study.score.limits)

            lines = {cell.method: _distribution(cell, stage) for cell in study.of_setting(setting)}
            panels += panels_of(study, ", ".join(word for word in (setting, stage) if word), lines, label)
    note = "The share of clients, of all seeds together, that reach no more than a value:"
    note += f" {'lower' if study.score.higher_is_better else 'higher'} lines are ahead."
    return Drawing("clients", "Scores of the clients", panels, note)


def _distribution(cell: Cell, stage: str) -> Line:
    values = np.concatenate([run.scores(stage) for run in cell.runs])
    return Line(np.quantile(values, SHARES, method="inverted_cdf"), SHARES)


def cost(study: Study) -> Drawing | None:
    """Personalized score beside what training cost, mean over seeds."""
    measures: dict[str, Callable[[Cost], float | None]] = {
        "training images seen (million)": lambda each: each.images and each.images / 1e6,
        "sent both ways (MB)": lambda each: (
            each.bytes_up and each.bytes_down and (each.bytes_up + each.bytes_down) / 1e6
        ),
        "rounds took (s)": lambda each: each.seconds,
    }
    panels: list[Panel] = []
    for setting in study.settings:
        cells = study.of_setting(setting)
        costs = {cell.method: [run.cost for run in cell.runs] for cell in cells}
        for title, of in measures.items():

            def label(axes: Axes, title: str = title) -> None:
                axes.set(xlabel=title, ylabel=f"personalized {study.score.axis}", ylim=study.score.limits)
                axes.set_xlim(0, 1.08 * axes.dataLim.x1 or None)

            lines = {}
            for cell in cells:
                known = [value for each in costs[cell.method] if (value := of(each)) is not None]
                if len(known) == len(cell.runs):
                    reached = float(np.mean(cell.means("personalized")))
                    lines[cell.method] = Line(np.array([np.mean(known)]), np.array([reached]))
            panels += panels_of(study, setting, lines, label, style="") if lines else []
    note = "A point is a method, mean over seeds; what is not recorded is not drawn. Left and"
    note += f" {'above' if study.score.higher_is_better else 'below'} is ahead."
    return Drawing("cost", f"{study.score.title} beside cost", panels, note) if panels else None


def privacy(study: Study) -> Drawing | None:
    """Score over the epsilon that was spent, of all settings with noise: a panel for each kind of privacy and stage."""
    panels: list[Panel] = []
    for kind, stage in product(dict.fromkeys(cell.runs[0].config.protection for cell in study.cells), STAGES):

        def label(axes: Axes, stage: str = stage) -> None:
            axes.set(xlabel="epsilon", ylabel=f"{stage} {study.score.axis}", ylim=study.score.limits, xscale="log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())

        points: dict[str, list[tuple[float, float]]] = {}
        for cell in study.cells:
            spent = [each for run in cell.runs if (each := run.epsilon) is not None and each > 0]
            if cell.runs[0].config.protection == kind and spent and len(spent) == len(cell.runs):
                points.setdefault(cell.method, []).append((max(spent), float(np.mean(cell.means(stage)))))
        lines = {name: Line(*np.array(sorted(each)).T) for name, each in points.items()}
        panels += panels_of(study, f"{stage}, privacy={kind}", lines, label) if lines else []
    note = "A point is a method in a setting, mean over seeds; a line joins the settings of a method."
    return Drawing("privacy", f"{study.score.title} over epsilon", panels, note) if panels else None


def partition(study: Study) -> Drawing | None:
    """Training images of each client and class, a panel for every split."""
    found = splits(study)
    panels = [
        Panel(title, partial(_heat, partition=each), height=min(6, max(2.4, 0.13 * len(each.names) + 0.6)))
        for title, each, _ in found[:SPLITS]
    ]
    note = f"{SPLITS} of {len(found)} splits are drawn." if len(found) > SPLITS else ""
    return Drawing("partition", "Training images of the clients by class", panels, note) if panels else None


def _heat(axes: Axes, partition: Partition) -> None:
    axes.grid(False)
    image = axes.imshow(partition.train.T, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    axes.set(xlabel="client", ylabel="class")
    if 0 < len(partition.clients) <= NAMED:
        axes.set_xticks(range(len(partition.clients)), [short(name, NAME) for name in partition.clients], rotation=90)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(partition.names) <= NAMED:
        axes.set_yticks(range(len(partition.names)), [short(name, NAME) for name in partition.names])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(image, ax=axes, label="training images")
