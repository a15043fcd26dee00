"""results.json: its content, how it is read, and the table that people see."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from scipy.special import stdtrit

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError, some
from lit_fedbabu.ground.files import read_json_lines
from lit_fedbabu.learning.evaluation import ACCURACY, STAGES, Score
from lit_fedbabu.records.run_folder import COSTS, RESULTS, read_environment

CONTENT = ("algorithm", "round", "summary", "best_round_on_test_data", "rounds", "clients")
"""The keys of every results.json."""
OPTIONAL = ("score", "privacy", "new_clients", "missing")
"""Keys that it has where the score is no accuracy, where it is of a federation, where there are new clients, and where
some were not evaluated."""
MEASURES = {
    "fairness (Jain)": ("accuracy", "jain"),
    "calibration error": ("calibration_error", "mean"),
    "F1, mean over classes": ("f1", "mean"),
    "AUROC, mean over classes": ("auroc", "mean"),
    "accuracy without head": ("template_accuracy", "mean"),
    "accuracy on absent classes": ("other_classes_accuracy", "mean"),
}
"""Measures shown beside accuracies: the key in a summary without initial_ or personalized_, and the statistic."""


def spread(values: Sequence[float], higher_is_better: bool = True, drawn_from: int = 0) -> dict[str, float]:
    """How values of clients are spread.

    Args:
        values: one of each client.
        higher_is_better: which are the worst.
        drawn_from: how many clients these were drawn from at random; 0: they are all.

    Returns:
        ``mean``, ``std`` (population), ``worst_decile`` (mean of the worst tenth of the values, of at least one) and
        ``jain``, the fairness index (sum x)^2 / (n sum x^2) of Jain et al. 1984: 1 where all are equal, 1/n where one
        has everything. Of drawn clients also ``low`` and ``high``, the 95 % interval of the mean over all: Student's
        t with the correction for a finite population (Cochran 1977, section 2.8).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    tenth = max(1, math.ceil(len(ordered) / 10))
    worst = ordered[:tenth] if higher_is_better else ordered[-tenth:]
    squares = float((ordered**2).mean())
    found = {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_decile": float(worst.mean()),
        "jain": float(ordered.mean() ** 2) / squares if squares else 1.0,
    }
    if drawn_from and (count := len(ordered)) > 1:
        error = ordered.std(ddof=1) * math.sqrt((1 - count / drawn_from) / count)
        half = float(stdtrit(count - 1, 0.975) * error)
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def interval_words(over: Mapping[str, float], score: Score) -> str:
    """The interval of a mean over clients that were drawn, as people read it; empty where all are in it."""
    if "low" not in over:
        return ""
    return f", 95 % interval {score.shown(over['low'])} to {score.shown(over['high'])}{score.unit}"


def results(
    config: Config,
    rounds: Sequence[Mapping[str, Any]],
    clients: Sequence[Mapping[str, Any]],
    score: Score = ACCURACY,
    server_round: int | None = None,
    missing: Sequence[int] = (),
    privacy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        config: the experiment. It says which of the clients are new, and these are apart, unless they are all.
        rounds: the history of the federation, one entry per round, as it is in checkpoints; none where the results are
            of someone who had no part in it.
        clients: every client's accuracies (0 to 1) and losses (nats) after the last round. What is not a number, as of
            a model that diverged, is None there, and is left out of means; these then say over how many they are.
        score: what clients are compared by.
        server_round: that the weights are of; None: the last one.
        missing: clients that were asked and not evaluated.
        privacy: who is protected from whom, and what was spent, as the checkpoint says; None: it does not.

    Raises:
        RunError: no client has a score that is a number, before or after fine-tuning.
    """
    keys = dict.fromkeys(key for client in clients for key in client)
    rows: list[dict[str, Any]] = [
        {key: _finite(client.get(key)) for key in keys}
        for client in sorted(clients, key=lambda client: client["client"])
    ]
    for client in rows:
        initial, personalized = (client[f"{stage}_{score.name}"] for stage in STAGES)
        client["gain"] = None if None in (initial, personalized) else personalized - initial
    federated = [row for row in rows if row["client"] < config.num_federated] or rows
    new = rows[len(federated) :]
    measured = {*(row["client"] for row in federated), *missing} & {*range(config.num_federated)}
    is_drawn = config.evaluate_clients and measured == {*config.evaluated} != {*range(config.num_federated)}
    return {
        "algorithm": config.algorithm,
        **({} if score.is_accuracy else {"score": dataclasses.asdict(score)}),
        "round": rounds[-1]["round"] if server_round is None else server_round,
        **({"privacy": dict(privacy)} if privacy else {}),
        "summary": _summary(federated, score, config.num_federated if is_drawn else 0),
        "best_round_on_test_data": best_round(rounds, score),
        "rounds": list(rounds),
        "clients": federated,
        **({"new_clients": {"summary": _summary(new, score), "clients": new}} if new else {}),
        **({"missing": list(missing)} if missing else {}),
    }


def named(clients: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Clients' entries with a ``name`` each, where clients have names."""
    return [{**row, "name": names[row["client"]]} if names else {**row} for row in clients]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(rows: Sequence[Mapping[str, Any]], score: Score, drawn_from: int = 0) -> dict[str, dict[str, float]]:
    """How each measure is spread over clients; raises RunError where no client has a score that is a number."""
    measured = {
        key: [client[key] for client in rows if client[key] is not None]
        for key, value in rows[0].items()
        if not isinstance(value, list)
    }
    summary: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        if not measured[f"{stage}_{score.name}"]:
            remedy = "a lower learning-rate or finetune-learning-rate may help"
            raise RunError(f"the {stage} {score.name} of all {len(rows)} clients is not finite; {remedy}")
    for key, values in measured.items():
        if values and (_is_score(key, score) or key == "gain"):
            summary[key] = spread(values, score.higher_is_better, drawn_from)
        elif values and key.startswith(STAGES):  # whether more or less of it is better is not known
            of_all = spread(values, drawn_from=drawn_from).items()
            summary[key] = {name: value for name, value in of_all if name in ("mean", "std", "low", "high")}
        if key in summary and len(values) < len(rows):
            summary[key]["clients"] = len(values)
    return summary


def _is_score(key: str, score: Score) -> bool:
    """Whether a key of a client's entry is the score, before or after fine-tuning or in between."""
    if score.is_accuracy:
        return "accuracy" in key
    return key in [f"{stage}_{score.name}" for stage in STAGES] or key.startswith(f"{score.name}_epoch_")


def score_of(outcome: Mapping[str, Any]) -> Score:
    """What the clients of a results.json are compared by."""
    return Score(**outcome["score"]) if "score" in outcome else ACCURACY


class Spread(TypedDict):
    """How a measure is spread over clients, as of ``spread``; ``clients``: over how many, where it is not all."""

    mean: float
    std: float
    worst_decile: float
    jain: float
    clients: NotRequired[int]
    low: NotRequired[float]
    high: NotRequired[float]


class RoundCost(TypedDict):
    """What a round of training took: seconds, with speeds simulated ones, and bytes of weights without framing."""

    round: int
    seconds: float
    bytes_down: int
    bytes_up: int
    simulated_seconds: NotRequired[float]


class Results(dict[str, Any]):
    """The content of a results.json, and what the folder around it says of the run.

    Args:
        content: by its keys.
        folder: where it lies; None: nowhere.
    """

    def __init__(self, content: Mapping[str, Any], folder: Path | None) -> None:
        super().__init__(content)
        self.folder = folder

    @property
    def algorithm(self) -> str:
        """The method."""
        return str(self["algorithm"])

    @property
    def round(self) -> int:
        """The round whose weights were evaluated."""
        return int(self["round"])

    @property
    def summary(self) -> dict[str, Spread]:
        """Each measure over all clients."""
        summary: dict[str, Spread] = self["summary"]
        return summary

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The history: number, learning rate, training loss and, where evaluated, initial accuracy."""
        return list(self["rounds"])

    @property
    def clients(self) -> list[dict[str, Any]]:
        """An entry for each client, by their numbers."""
        return list(self["clients"])

    @property
    def missing(self) -> list[int]:
        """Clients that were asked after the last round and not evaluated."""
        return list(self.get("missing", ()))

    @property
    def score(self) -> Score:
        """What clients are compared by."""
        return score_of(self)

    @property
    def costs(self) -> list[RoundCost]:
        """Seconds and bytes of each round."""
        return costs(self.folder) if self.folder else []

    @property
    def precision(self) -> str:
        """The precision of the training; several with commas between them, where nodes had different ones."""
        return self._environment.get("precision", "")

    @property
    def epsilon(self) -> float | None:
        """Of the shared weights, for ``delta``: with local privacy of the client that sent most often; None without."""
        epsilon = self._environment.get("epsilon")
        return None if epsilon is None else float(epsilon)

    @property
    def _environment(self) -> dict[str, str]:
        return read_environment(self.folder) if self.folder else {}


def read_results(folder: str | Path) -> Results:
    """The content of the results.json in the folder.

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(folder) / RESULTS
    try:
        outcome = json.loads(path.read_text())
        refuse_unnumbered(everyone(outcome))
        keys = (*CONTENT, *(key for key in OPTIONAL if key in outcome))
        return Results({key: outcome[key] for key in keys}, Path(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            "results", str(path), f"cannot be read: {error!r}; leave this run out, or put the old file back"
        ) from None


def costs(folder: Path) -> list[RoundCost]:
    """Seconds and bytes of each round, in order: of one that was repeated as it was done last. Runs of 0.2 have none.

    Raises:
        InputError: the file has something else.
    """
    kinds = {"round": int, "seconds": float, "bytes_down": int, "bytes_up": int}
    last = {cost["round"]: cost for cost in read_json_lines(folder / COSTS, kinds)}
    return [cast(RoundCost, last[server_round]) for server_round in sorted(last)]


def refuse_unnumbered(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where entries, as a file has them, are not those of clients with numbers."""
    if not all(isinstance(row, dict) and type(row.get("client")) is int for row in rows):
        raise ValueError("a client has no number")


def everyone(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of all clients, new ones at the end."""
    return [*outcome["clients"], *outcome.get("new_clients", {"clients": []})["clients"]]


def best_round(rounds: Sequence[Mapping[str, Any]], score: Score = ACCURACY) -> dict[str, Any] | None:
    """Of the evaluated rounds, the first with the best mean initial score; the choice has seen test data."""
    key, sign = f"initial_{score.name}", 1 if score.higher_is_better else -1
    evaluated = [entry for entry in rounds if key in entry]
    best = max(evaluated, key=lambda entry: sign * entry[key]["mean"], default=None)
    return None if best is None else {"round": best["round"], key: best[key]}


def measure(outcome: Mapping[str, Any], title: str) -> tuple[float | None, float | None]:
    """One of ``MEASURES`` over all clients, before and after fine-tuning; None where a result does not have it."""
    kind, statistic = MEASURES[title]
    initial, personalized = (outcome["summary"].get(f"{stage}_{kind}", {}).get(statistic) for stage in STAGES)
    return initial, personalized


def table(outcome: Mapping[str, Any]) -> str:
    """The summary of a results.json as the table that people read, accuracies in percent."""
    count, score = len(outcome["clients"]), score_of(outcome)
    lines = [
        f"{outcome['algorithm']} after round {outcome['round']}, over {count} clients",
        f"{score.axis:<16}{'mean ± std':>16}{'worst decile':>16}",
        *_stages(outcome["summary"], score),
    ]
    if new := outcome.get("new_clients"):
        lines += [f"{len(new['clients'])} new clients, which had no part", *_stages(new["summary"], score)]
    if missing := outcome.get("missing"):
        lines.append(f"missing, for they were not evaluated: clients {some(map(str, missing))}")
    measured = [(title, *values) for title in MEASURES if None not in (values := measure(outcome, title))]
    if measured:
        lines.append(f"{'mean, between 0 and 1':<32}{'initial':>10}{'personalized':>14}")
    lines += [f"{title:<32}{initial:>10.4f}{personalized:>14.4f}" for title, initial, personalized in measured]
    if best := outcome["best_round_on_test_data"]:
        mean, std = (score.shown(best[f"initial_{score.name}"][key]) for key in ("mean", "std"))
        lines.append(f"best initial {score.name} {mean} ± {std} after round {best['round']}, chosen on test data")
    return "\n".join(lines)


def _stages(summary: Mapping[str, Mapping[str, float]], score: Score) -> list[str]:
    """The score before and after fine-tuning, a line for each."""
    lines = []
    for name in STAGES:
        over = summary[f"{name}_{score.name}"]
        mean, std, worst = (score.shown(over[key]) for key in ("mean", "std", "worst_decile"))
        fewer = f"   over {over['clients']}: the others' {score.name} is not finite" if "clients" in over else ""
        lines.append(f"{name:<16}{f'{mean} ± {std}':>16}{worst:>16}{fewer}")
        if "low" in over:
            lines.append(f"{'':<16}mean of all clients: {interval_words(over, score).lstrip(', ')}")
    return lines


def curve(outcome: Mapping[str, Any]) -> list[dict[str, float]]:
    """Spreads of the score over clients before fine-tuning and after each of its epochs."""
    name = f"{score_of(outcome).name}_epoch_"
    epochs = sum(key.startswith(name) for key in outcome["summary"])
    return [outcome["summary"][f"{name}{epoch}"] for epoch in range(epochs)]


def measures(outcome: Mapping[str, Any]) -> dict[str, str]:
    """The summary of a results.json without the curve: mean ± std over clients of each measure, as people read it."""
    return {
        f"{key.replace('_', ' ')}, over {over.get('clients', len(outcome['clients']))} clients": (
            f"{over['mean']:.4f} ± {over['std']:.4f}"
            + (f", 95 % interval {over['low']:.4f} to {over['high']:.4f}" if "low" in over else "")
        )
        for key, over in outcome["summary"].items()
        if not key.startswith(f"{score_of(outcome).name}_epoch_")
    }


def scaled(spread: Mapping[str, float], score: Score) -> dict[str, float]:
    """A spread of scores, as ``spread`` has it, as people read it: accuracies in percent."""
    return {name: value if name == "clients" else score.scale * value for name, value in spread.items()}


def rate_words(rate: float) -> str:
    """A learning rate of fine-tuning as people read it; 0 takes the rate that the federation ended with."""
    return f"{rate:g}" if rate else "of the last round"


def tuned_words(config: Config) -> tuple[str, str]:
    """What fine-tuning trains, and its learning rate, empty where nothing is trained, as people read them."""
    if config.reads("finetune_learning_rate"):
        return config.finetune_part, rate_words(config.finetune_learning_rate)
    weight = "" if config.knn_weight < 0 else f", weight {config.knn_weight:g}"
    return f"{config.finetune_part} of {config.knn_neighbors}{weight}", ""


def as_columns(outcome: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The clients of a results.json as a table: one list for each column. ``pandas.DataFrame`` takes it as it is."""
    rows = outcome["clients"]
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
