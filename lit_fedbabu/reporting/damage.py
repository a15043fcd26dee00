"""What a report refuses: results that are damaged, or that do not belong together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.evaluation import BINS, STAGES, Score
from lit_fedbabu.records.results import best_round, curve, score_of, spread

Row = Mapping[str, Any]
"""Of a client in results.json."""
SPREAD = ("mean", "std", "worst_decile")


def refuse_damaged(path: Path, config: Config, outcome: Mapping[str, Any]) -> None:
    """Raise InputError where what a report needs is missing or no number, or where numbers contradict each other.

    Args:
        path: of the results.json.
        config: of its run.
        outcome: its content.
    """
    try:
        score = score_of(outcome)
        _check_clients(outcome["clients"], outcome["summary"], score)
        if "new_clients" in outcome:
            _check_clients(outcome["new_clients"]["clients"], outcome["new_clients"]["summary"], score)
        for each in curve(outcome):
            _check_finite(each)
        _check_rounds(outcome, config, score)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError("results", str(path), f"cannot be read: {error!r}; leave this run out") from None


def _check_clients(clients: Sequence[Row], summary: Mapping[str, Mapping[str, float]], score: Score) -> None:
    if not clients:
        raise ValueError("there is no client")
    numbers = [row["client"] for row in clients]
    if len(set(numbers)) < len(numbers) or not all(type(each) is int for each in numbers):
        raise ValueError("a client is there twice, or has no number")
    for key in (f"{stage}_{score.name}" for stage in STAGES):
        _check_finite(summary[key])
        values = [row[key] for row in clients]
        finite = [value for value in values if value is not None]
        if len(finite) != summary[key].get("clients", len(values)):
            raise ValueError(f"{key} of a client is missing")
        if score.is_accuracy and not all(0 <= value <= 1 for value in finite):
            raise ValueError(f"{key} of a client is not from 0 to 1")
        if not all(map(math.isfinite, finite)):
            raise ValueError(f"{key} of a client is not finite")
        of_clients = spread(finite, score.higher_is_better)
        for name in SPREAD:
            _check_same(f"{name} of {key}", summary[key][name], of_clients[name])
    for key, each in summary.items():
        if not all(math.isfinite(value) for value in each.values()):
            raise ValueError("a number of the summary is not finite")
        if found := [row[key] for row in clients if row.get(key) is not None]:
            of_clients = spread(found, score.higher_is_better)
            for name in ("mean", *(each.keys() & of_clients.keys())):
                _check_same(f"{name} of {key}", each[name], of_clients[name])
    for row in clients:
        for key in (key for key in row if "_bin_" in key):
            if len(row[key]) != BINS or not all(math.isfinite(each) and each >= 0 for each in row[key]):
                raise ValueError(f"{key} of a client is not {BINS} numbers, 0 or more")


def _check_rounds(outcome: Mapping[str, Any], config: Config, score: Score) -> None:
    rounds, best = outcome["rounds"], outcome["best_round_on_test_data"]
    if bool(rounds) != bool(best) or not bool(best) <= outcome["round"] <= config.num_server_rounds:
        raise ValueError("there is no round")  # every federation has a best one, and nobody who had no part in it
    if outcome["algorithm"] != config.algorithm:
        raise ValueError(f"it is of {outcome['algorithm']}, and the configuration beside it of {config.algorithm}")
    if [entry["round"] for entry in rounds] != list(range(1, len(rounds) + 1)):
        raise ValueError("a round is missing")
    if best and {"round": best["round"], f"initial_{score.name}": best[f"initial_{score.name}"]} != best_round(
        rounds, score
    ):
        raise ValueError("the best round is not the best of the rounds")
    if not all(
        type(each["epsilon"]) is float and 0 <= each["epsilon"] < math.inf for each in rounds if "epsilon" in each
    ):
        raise ValueError("an epsilon is no number that is 0 or more")
    times = [each["simulated_seconds"] for each in rounds if "simulated_seconds" in each]
    if not all(type(each) is float and 0 <= each < math.inf for each in times) or times != sorted(times):
        raise ValueError("simulated seconds of the rounds are no numbers that grow")
    for entry in [*rounds, *([best] if best else [])]:
        if (key := f"initial_{score.name}") in entry or entry is best:
            _check_finite(entry[key])


def _check_finite(each: Mapping[str, float]) -> None:
    if not all(math.isfinite(each[key]) for key in (*SPREAD, *each)):
        raise ValueError(f"not finite: {dict(each)}")


def _check_same(what: str, told: float, of_clients: float) -> None:
    if not math.isclose(told, of_clients, rel_tol=1e-6, abs_tol=1e-9):
        raise ValueError(f"the {what} is {told}, and that of the clients is {of_clients}")
