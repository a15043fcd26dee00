"""Tables that compare methods: accuracies, fine-tuning, measures, fairness and cost."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_fedbabu.algorithms.table import kind_of
from lit_fedbabu.config.derived import FINETUNING
from lit_fedbabu.learning.evaluation import STAGES, Score
from lit_fedbabu.records.results import MEASURES, measure, scaled, spread, tuned_words
from lit_fedbabu.reporting.compare import Cell, Study, finetunings, tunings_of
from lit_fedbabu.reporting.runs import Run
from lit_fedbabu.reporting.statistics import over_seeds, plus_minus, shown_interval

EPOCHS = (0, 1, 2, 3, 5, 10)
"""Columns of the table of fine-tunings, where they were reached."""
Row = dict[str, Any]


def place(study: Study, cell: Cell) -> Row:
    """The first columns of a row: the setting, where there are several, and the method."""
    return {**({"setting": cell.setting} if len(study.settings) > 1 else {}), "method": cell.method}


def method_table(study: Study) -> list[Row]:
    """A row for every method and kind of score, over clients and over seeds; accuracies in percent."""
    rows = []
    for cell in study.cells:
        kinds = {
            "initial": [run.spreads("initial") for run in cell.runs],
            "personalized": [run.spreads("personalized") for run in cell.runs],
            "initial, best round on test data": [run.best["initial"] for run in cell.runs if run.best is not None],
            "personalized, best round on test data": [
                tuned.spreads("personalized")
                for run in cell.runs
                for tuned in run.finetunings
                if _is_of_best_round(tuned, run)
            ],
        }
        for kind, spreads in kinds.items():
            if spreads:
                over = _over_seeds(spreads, study.score)
                of = {"models": kind_of(cell.runs[0].config.algorithm), study.score.name: kind, "seeds": len(spreads)}
                rows.append({**place(study, cell), **of, **over})
    return rows


def each_client_table(study: Study) -> list[Row]:
    """Of a report of one run a row for each client, with its name if it has one; of several runs none."""
    if len(study.runs) > 1:
        return []
    (run,) = study.runs
    score = run.score
    return [
        {
            "client": row["client"],
            **({"name": row["name"]} if "name" in row else {}),
            "test samples": row.get("num_test", ""),
            **{f"{stage} {score.axis}": score.shown(row[f"{stage}_{score.name}"]) for stage in STAGES},
        }
        for row in run.outcome["clients"]
    ]


def _is_of_best_round(tuned: Run, run: Run) -> bool:
    own, other = ([getattr(each.config, name) for name in FINETUNING] for each in (run, tuned))
    best = run.best["round"] if run.best else None
    whole = len(tuned.outcome["clients"]) == len(run.outcome["clients"])
    return own == other and whole and tuned.outcome["round"] == best != run.outcome["round"]


def _over_seeds(spreads: Sequence[dict[str, float]], score: Score) -> dict[str, str]:
    digits = score.digits
    means = over_seeds([each["mean"] for each in spreads])
    if len(spreads) == 1 and "low" in spreads[0]:
        means = dataclasses.replace(means, interval=(spreads[0]["low"], spreads[0]["high"]))
    return {
        "mean": f"{means.mean:.{digits}f}",
        "std over seeds": "" if means.std is None else f"{means.std:.{digits}f}",
        "95 % interval": shown_interval(means, score),
        "std over clients": f"{np.mean([each['std'] for each in spreads]):.{digits}f}",
        "worst decile": f"{np.mean([each['worst_decile'] for each in spreads]):.{digits}f}",
    }


def setting_table(study: Study) -> list[Row]:
    """Personalized score, a row for every method and a column for every setting."""
    found = {(cell.method, cell.setting): over_seeds(cell.means("personalized")) for cell in study.cells}
    kinds = {cell.method: kind_of(cell.runs[0].config.algorithm) for cell in study.cells}
    return [
        {
            "method": method,
            "models": kinds[method],
            **{
                setting: plus_minus(found[method, setting], study.score) if (method, setting) in found else ""
                for setting in study.settings
            },
        }
        for method in (study.methods if len(study.settings) > 1 else ())
    ]


def finetuning_table(study: Study) -> list[Row]:
    """A row for every fine-tuned part, learning rate and method: mean score after some epochs."""
    rows = []
    for setting in study.settings:
        cells = study.of_setting(setting)
        for (part, rate), of_methods in finetunings(cells).items():
            for cell in (each for each in cells if each.method in of_methods):
                members = of_methods[cell.method]
                row = {"trained": part, "learning rate": rate, **place(study, cell), "seeds": len(members)}
                for epoch in EPOCHS:
                    reached = [run.curve[epoch]["mean"] for run in members if len(run.curve) > epoch]
                    row[f"epoch {epoch}"] = (
                        f"{np.mean(reached):.{study.score.digits}f}" if len(reached) == len(members) else ""
                    )
                rows.append(row)
    return rows


def measure_table(study: Study) -> list[Row]:
    """A row for every fine-tuning, method and measure that the results have: means over clients and seeds, 0 to 1."""
    rows = []
    for cell in study.cells:
        found: dict[tuple[Any, ...], list[tuple[float | None, float]]] = defaultdict(list)
        for run in cell.runs:
            for tuned in tunings_of(run):
                config = tuned.config
                what = *tuned_words(config), config.finetune_length
                for title, (initial, personalized) in _measured(tuned).items():
                    if personalized is not None:
                        found[*what, title].append((initial, personalized))
        for (part, rate, epochs, title), of_seeds in found.items():
            initials = [initial for initial, _ in of_seeds if initial is not None]
            row = {"trained": part, "learning rate": rate, "epochs": epochs, **place(study, cell), "measure": title}
            row["seeds"] = len(of_seeds)
            row["initial"] = f"{np.mean(initials):.4f}" if len(initials) == len(of_seeds) else ""
            row["personalized"] = f"{np.mean([personalized for _, personalized in of_seeds]):.4f}"
            rows.append(row)
    return rows


def _measured(tuned: Run) -> dict[str, tuple[float | None, float | None]]:
    measured = {title: measure(tuned.outcome, title) for title in MEASURES}
    for key in ("running_statistics_accuracy", "one_by_one_accuracy"):
        measured[key.replace("_", " ")] = (None, tuned.outcome["summary"].get(key, {}).get("mean"))
    return measured


def fairness_table(study: Study) -> list[Row]:
    """How evenly clients fare: a row for every method and stage; means over seeds; accuracies in percent."""
    score, digits = study.score, study.score.digits
    rows = []
    for cell in study.cells:
        for stage in STAGES:
            values = [run.scores(stage) for run in cell.runs]
            spreads = [spread(each.tolist(), score.higher_is_better) for each in values]
            row = {**place(study, cell), score.name: stage, "seeds": len(spreads)}
            for title, key in (("mean", "mean"), ("worst decile", "worst_decile")):
                row[title] = f"{np.mean([each[key] for each in spreads]):.{digits}f}"
            worst = [each.min() if score.higher_is_better else each.max() for each in values]
            row["worst client"] = f"{np.mean(worst):.{digits}f}"
            row["std over clients"] = f"{np.mean([each['std'] for each in spreads]):.{digits}f}"
            if score.is_accuracy:  # of scores that may be negative the index means nothing
                row["fairness (Jain)"] = f"{np.mean([each['jain'] for each in spreads]):.4f}"
            rows.append(row)
    return rows


def new_client_table(study: Study) -> list[Row]:
    """Clients that had no part in the federation: a row for every method and stage, over clients and over seeds."""
    rows = []
    for cell in study.cells:
        found = [run.outcome["new_clients"] for run in cell.runs if "new_clients" in run.outcome]
        for stage in STAGES if found else ():
            spreads = [scaled(each["summary"][f"{stage}_{study.score.name}"], study.score) for each in found]
            count = {"new clients": len(found[0]["clients"]), study.score.name: stage, "seeds": len(found)}
            rows.append({**place(study, cell), **count, **_over_seeds(spreads, study.score)})
    return rows


def calibration(run: Run, stage: str) -> float | None:
    """Mean calibration error over clients, 0 to 1: of the run, or of the first of its fine-tunings that has it."""
    found = (each.outcome["summary"].get(f"{stage}_calibration_error") for each in (run, *tunings_of(run)))
    return next((float(each["mean"]) for each in found if each), None)


def cost_table(study: Study) -> list[Row]:
    """What training cost beside what it reached: a row for every method, means over seeds."""
    rows = []
    for cell in study.cells:
        costs = [run.cost for run in cell.runs]

        def mean(key: str, unit: float, costs: Sequence[Any] = costs) -> str:
            values = [getattr(each, key) for each in costs]
            return "" if None in values else _amount(float(np.mean(values)) / unit)

        rows.append(
            {
                **place(study, cell),
                "seeds": len(cell.runs),
                "rounds": "/".join(sorted({str(run.outcome["round"]) for run in cell.runs})),
                "images seen (million)": mean("images", 1e6),
                "sent by clients (MB)": mean("bytes_up", 1e6),
                "sent to clients (MB)": mean("bytes_down", 1e6),
                "rounds took (s)": mean("seconds", 1),
                f"personalized {study.score.axis}": plus_minus(over_seeds(cell.means("personalized")), study.score),
            }
        )
    return rows


def privacy_table(study: Study) -> list[Row]:
    """What was spent of the privacy of clients beside what was reached: a row for every method with noise."""
    rows = []
    for cell in study.cells:
        spent = [run.epsilon for run in cell.runs]
        known = [each for each in spent if each is not None]
        if not known or len(known) < len(spent):
            continue
        config = cell.runs[0].config
        row = {**place(study, cell), "privacy": config.protection, "epsilon": f"{max(known):.4g}"}
        row |= {"delta": f"{config.delta:g}", "rounds": "/".join(sorted({str(r.outcome["round"]) for r in cell.runs}))}
        for stage in STAGES:
            row[f"{stage} {study.score.axis}"] = plus_minus(over_seeds(cell.means(stage)), study.score)
        rows.append(row)
    return rows


def _amount(value: float) -> str:
    """Two decimals; of less than 0.1 two digits that are not zero."""
    return f"{value:.{2 if value >= 0.1 or value <= 0 else 1 - math.floor(math.log10(value))}f}"
