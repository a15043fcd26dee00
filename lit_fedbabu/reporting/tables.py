"""Tables that compare runs, as rows and as Markdown or CSV."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lit_fedbabu.records.results import MEASURES, measure, percent
from lit_fedbabu.reporting.compare import Run, finetunings, tunings_of

EPOCHS = (0, 1, 2, 3, 5, 10)
"""Columns of the table of fine-tunings, where they were reached."""


def method_table(methods: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """A row for every method and kind of accuracy; all numbers in percent, over clients and over seeds."""
    rows = []
    for method, members in methods.items():
        best = [
            percent(found["initial_accuracy"]) for run in members if (found := run.outcome["best_round_on_test_data"])
        ]
        kinds = {
            "initial": [run.spreads("initial_accuracy") for run in members],
            "personalized": [run.spreads("personalized_accuracy") for run in members],
            "initial, best round on test data": best,
            "personalized, best round on test data": [
                tuned.spreads("personalized_accuracy")
                for run in members
                for tuned in run.finetunings
                if _is_of_best_round(tuned, run)
            ],
        }
        for kind, spreads in kinds.items():
            if spreads:
                rows.append({"method": method, "accuracy": kind, "seeds": len(spreads), **_over_seeds(spreads)})
    return rows


def _is_of_best_round(tuned: Run, run: Run) -> bool:
    own = (run.config.finetune_part, run.config.num_finetune_epochs, run.config.finetune_learning_rate)
    same = (tuned.config.finetune_part, tuned.config.num_finetune_epochs, tuned.config.finetune_learning_rate) == own
    return same and tuned.outcome["round"] == run.outcome["best_round_on_test_data"]["round"] != run.outcome["round"]


def _over_seeds(spreads: Sequence[dict[str, float]]) -> dict[str, str]:
    def mean(key: str) -> float:
        return float(np.mean([spread[key] for spread in spreads]))

    means = [spread["mean"] for spread in spreads]
    return {
        "mean": f"{mean('mean'):.2f}",
        "std over clients": f"{mean('std'):.2f}",
        "std over seeds": f"{np.std(means, ddof=1):.2f}" if len(means) > 1 else "",
        "worst decile": f"{mean('worst_decile'):.2f}",
    }


def finetuning_table(methods: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """A row for every fine-tuned part, learning rate and method: mean accuracy in percent after some epochs."""
    rows = []
    for (part, rate), of_methods in finetunings(methods).items():
        for method, members in of_methods.items():
            row: dict[str, Any] = {"trained": part, "learning rate": f"{rate:g}", "method": method}
            row["seeds"] = len(members)
            for epoch in EPOCHS:
                reached = [run.curve[epoch]["mean"] for run in members if len(run.curve) > epoch]
                row[f"epoch {epoch}"] = f"{np.mean(reached):.2f}" if len(reached) == len(members) else ""
            rows.append(row)
    return rows


def measure_table(methods: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """A row for every fine-tuning, method and measure that the results have: means over clients and seeds, 0 to 1."""
    found: dict[tuple[Any, ...], dict[int, tuple[Any, ...]]] = defaultdict(dict)
    for method, members in methods.items():
        for run in members:
            for tuned in tunings_of(run):
                config, summary = tuned.config, tuned.outcome["summary"]
                measured = {title: measure(tuned.outcome, title) for title in MEASURES}
                for key in ("running_statistics_accuracy", "one_by_one_accuracy"):
                    measured[key.replace("_", " ")] = (None, summary.get(key, {}).get("mean"))
                for title, values in measured.items():
                    if values[1] is not None:
                        what = config.finetune_part, config.finetune_learning_rate, config.num_finetune_epochs
                        found[*what, method, title][run.config.seed] = values
    rows = []
    for (part, rate, epochs, method, title), of_seeds in found.items():
        initial, personalized = zip(*of_seeds.values(), strict=True)
        row = {"trained": part, "learning rate": f"{rate:g}", "epochs": epochs, "method": method, "measure": title}
        row["seeds"] = len(of_seeds)
        row["initial"] = "" if None in initial else f"{np.mean(initial):.4f}"
        row["personalized"] = f"{np.mean(personalized):.4f}"
        rows.append(row)
    return rows


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, numbers to the right."""

    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(str(cell) for cell in cells)} |\n"

    def is_number(column: str) -> bool:
        return all(str(row[column]).replace(".", "").isdigit() or row[column] == "" for row in rows)

    rule = ["---:" if is_number(column) else "---" for column in rows[0]]
    return line(rows[0]) + line(rule) + "".join(line(row.values()) for row in rows)
