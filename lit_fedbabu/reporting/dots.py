"""Figures with a line for every method: differences, worst decile, calibration and ranks."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from lit_fedbabu.learning.evaluation import STAGES, Score
from lit_fedbabu.reporting.compare import Cell, Study
from lit_fedbabu.reporting.differences import Comparison, Ranking, comparisons
from lit_fedbabu.reporting.panels import Drawing, Panel, look
from lit_fedbabu.reporting.tables import calibration

ROWS = 30
"""In a panel; more of them make another one."""
Limits = tuple[float | None, float | None]
Stages = tuple[str, list[float]]
"""A method, and a value for each of STAGES."""


def differences(study: Study) -> Drawing | None:
    """Personalized score minus the reference's, with its interval over seeds."""
    found = comparisons(study, "personalized")
    panels: list[Panel] = []
    for setting in study.settings:
        rows = [each for each in found if each.cell.setting == setting]
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            draw = partial(_draw_differences, rows=some, score=study.score)
            panels.append(Panel(setting, draw, height=_height(some)))
    note = "Mean over seeds with its 95 % interval; hollow circles are of one seed, which gives no interval."
    title = f"Personalized {study.score.name} minus that of {study.reference}"
    return Drawing("differences", title, panels, note) if panels else None


def _draw_differences(axes: Axes, rows: Sequence[Comparison], score: Score) -> None:
    _name_rows(axes, [each.cell.method for each in rows])
    axes.axvline(0, color="black", linewidth=0.8)
    for place, each in enumerate(rows):
        over = each.found.over
        if over.interval is not None:
            axes.plot(over.interval, [place, place], color=look(0)["color"])
        axes.plot(over.mean, place, **look(0), markerfacecolor="none" if over.interval is None else look(0)["color"])
    axes.set_xlabel(f"difference in {'percentage points' if score.is_accuracy else score.name}")


def fairness(study: Study) -> Drawing:
    """Mean score of the weakest tenth of the clients, before and after fine-tuning."""

    def worst(cell: Cell) -> list[float]:
        return [float(np.mean([run.spreads(stage)["worst_decile"] for run in cell.runs])) for stage in STAGES]

    found = {each: [(cell.method, worst(cell)) for cell in study.of_setting(each)] for each in study.settings}
    return Drawing(
        "fairness",
        f"{study.score.title} of the worst decile",
        _stage_panels(found, f"{study.score.axis}, worst decile", study.score.limits),
        "Mean over the weakest tenth of the clients, before and after fine-tuning, and over seeds.",
    )


def calibrations(study: Study) -> Drawing | None:
    """Calibration error before and after fine-tuning."""
    found, unknown = {}, []
    for setting in study.settings:
        rows = []
        for cell in study.of_setting(setting):
            values = [[calibration(run, stage) for run in cell.runs] for stage in STAGES]
            known = [[value for value in of_stage if value is not None] for of_stage in values]
            if all(known):
                rows.append((cell.method, [float(np.mean(of_stage)) for of_stage in known]))
            else:
                unknown.append(", ".join(word for word in (cell.method, setting) if word))
        if rows:
            found[setting] = rows
    note = "Mean over clients and over the seeds in which it was measured; less is better calibrated."
    note += f" It was not measured of {'; '.join(unknown)}." if unknown else ""
    panels = _stage_panels(found, "expected calibration error", (0, None))
    return Drawing("calibration", "Calibration error", panels, note) if panels else None


def _stage_panels(found: dict[str, list[Stages]], label: str, limits: Limits) -> list[Panel]:
    key = tuple((stage, number) for number, stage in enumerate(STAGES))
    panels = []
    for setting, rows in found.items():
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            draw = partial(_draw_stages, rows=some, label=label, limits=limits)
            panels.append(Panel(setting, draw, key, _height(some)))
    return panels


def _draw_stages(axes: Axes, rows: Sequence[Stages], label: str, limits: Limits) -> None:
    _name_rows(axes, [name for name, _ in rows])
    for place, (_, values) in enumerate(rows):
        axes.plot(values, [place] * len(values), color="black", linewidth=0.8, alpha=0.6, zorder=1.8)
    for number in range(len(STAGES)):
        places = range(len(rows))
        axes.plot([values[number] for _, values in rows], places, linestyle="", **look(number), markersize=4.5)
    axes.set(xlabel=label, xlim=limits)


def ranks(ranked: Ranking) -> Drawing:
    """Average ranks, each with half a critical difference to both sides."""
    order = np.argsort(ranked.found.average, kind="stable")
    rows = [(ranked.methods[place], float(ranked.found.average[place])) for place in order]
    critical = ranked.found.critical_difference

    def draw(axes: Axes) -> None:
        _name_rows(axes, [name for name, _ in rows])
        for place, (_, rank) in enumerate(rows):
            axes.plot([rank - critical / 2, rank + critical / 2], [place, place], color=look(0)["color"])
            axes.plot(rank, place, **look(0))
        axes.set_xlabel(f"average rank over {len(ranked.settings)} settings, 1 is the highest")

    note = (
        f"Bars are as long as the critical difference, {critical:.2f} ranks. Two methods whose bars do not overlap"
        " differ at 5 % by Nemenyi's test."
    )
    return Drawing("ranks", "Critical differences of ranks", [Panel("", draw, height=_height(rows))], note)


def _height(rows: Sequence[object]) -> float:
    return 0.75 + 0.17 * len(rows)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names of the rows from above."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
