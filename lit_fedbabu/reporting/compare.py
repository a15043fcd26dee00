"""Runs side by side: methods, the settings that they were run in, and pairs of runs with one seed."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import is_pooled, place_of
from lit_fedbabu.config.derived import OF_DATA
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.evaluation import Score
from lit_fedbabu.records.results import tuned_words
from lit_fedbabu.records.run_folder import TUNED, read_config
from lit_fedbabu.reporting.names import method_names, run_names, setting_names
from lit_fedbabu.reporting.runs import Run, Unfinished, read_run, unfinished

DATA = (*OF_DATA, "validation-fraction", "data", "clients", "round")
"""Always part of the setting: which data the clients have, and of a fine-tuning its data, clients and round."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method in a setting: runs that differ in nothing but their seed, in the order of seeds."""

    method: str
    setting: str
    runs: tuple[Run, ...]

    def means(self, stage: str) -> list[float]:
        """Mean score over clients, for every seed."""
        return [run.spreads(stage)["mean"] for run in self.runs]


@dataclasses.dataclass(frozen=True)
class Study:
    """What runs are compared.

    Args:
        cells: by setting, and in it by method in the order of the table of algorithms.
        methods: names, and the options that tell methods of one algorithm apart.
        settings: names, and the options that tell them apart.
        reference: the method that others are compared with.
        unfinished: runs and fine-tunings that have no results.
    """

    cells: tuple[Cell, ...]
    methods: dict[str, dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    reference: str
    unfinished: tuple[Unfinished, ...] = ()

    def of_setting(self, setting: str) -> list[Cell]:
        """The methods that were run in a setting."""
        return [cell for cell in self.cells if cell.setting == setting]

    @property
    def score(self) -> Score:
        """What clients are compared by, the same in all runs."""
        return self.cells[0].runs[0].score

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order of the cells."""
        return [run for cell in self.cells for run in cell.runs]

    @property
    def every(self) -> list[Run | Unfinished]:
        """All runs, and after them those without results."""
        return [*self.runs, *self.unfinished]

    @property
    def names(self) -> dict[Path, str]:
        """Names of all runs, those without results among them, by their folders."""
        return run_names([each.folder for each in self.every])


def read_study(folders: Iterable[Path], reference: str = "", failed: Sequence[Unfinished] = ()) -> Study:
    """Read run folders; arguments and errors as of ``compare`` and ``read_run``.

    Args:
        folders: of the runs.
        reference: as of ``compare``.
        failed: other runs that are known to have no results.

    Raises:
        InputError: also where none of the runs is finished.
    """
    found, rest = [], [*failed]
    for folder in folders:
        missing = unfinished(folder)
        rest += [Unfinished(each, read_config(each)) for each in missing]
        if folder not in missing:
            found.append(read_run(folder))
    if not found:
        raise InputError("RUN", str(rest[0].folder), "has no results.json: give a run that is finished")
    return dataclasses.replace(compare(found, reference), unfinished=tuple(rest))


def compare(found: Sequence[Run], reference: str = "") -> Study:
    """Sort runs by method and setting.

    An option belongs to the setting if it is of the data, or if two algorithms were both run with two of its values.
    All others belong to the method. What a study has chosen for each method tells neither apart.

    Args:
        found: the runs.
        reference: name of the method that others are compared with; "" is FedBABU, or the first of the table.

    Raises:
        InputError: the runs have different scores, two of them have the same options and the same seed, or there is
            no such method.
    """
    for run in found:
        if run.score != found[0].score:
            remedy = (
                f"has the score {run.score.name}, and {found[0].folder} has {found[0].score.name}; report them apart"
            )
            raise InputError("RUN", str(run.folder), remedy)
    groups: dict[tuple[tuple[str, Any], ...], list[Run]] = defaultdict(list)
    for run in sorted(found, key=lambda run: place_of(run.config.algorithm)):
        groups[tuple(_options(run).items())].append(run)
    for members in groups.values():
        members.sort(key=lambda run: run.config.seed)
        for one, other in pairwise(members):
            if one.config.seed == other.config.seed:
                remedy = f"has the options and the seed of {one.folder}; leave one out"
                raise InputError("RUN", str(other.folder), remedy)
    options = [dict(key) for key in groups]
    of_setting = [key for key in options[0] if key in DATA or _is_crossed(key, options)]
    settings = setting_names([{key: each[key] for key in of_setting} for each in options])
    methods = method_names([{key: each[key] for key in each if key not in of_setting} for each in options])
    order = list(dict.fromkeys(name for name, _ in methods))
    places = sorted(dict(settings).items(), key=lambda entry: [(str(type(each)), each) for each in entry[1].values()])
    cells = [
        Cell(method, setting, tuple(members))
        for (method, _), (setting, _), members in zip(methods, settings, groups.values(), strict=True)
    ]
    cells.sort(key=lambda cell: ([name for name, _ in places].index(cell.setting), order.index(cell.method)))
    if reference and reference not in order:
        raise InputError("--reference", reference, f"is no method of these runs; they are {', '.join(order)}")
    first = next((cell.method for cell in cells if cell.runs[0].config.algorithm == "fedbabu"), order[0])
    return Study(tuple(cells), {name: dict(methods)[name] for name in order}, dict(places), reference or first)


def _options(run: Run) -> dict[str, Any]:
    """What tells runs apart, without the seed; what was chosen for each method is alike."""
    tuned = chosen_in(run.environment.get(TUNED, ""))
    clients = len(run.outcome["clients"])
    every = run.is_newcomers or clients == len(run.config.evaluated)
    last = run.outcome["round"] == run.config.num_server_rounds
    return {
        **{key: TUNED if key in tuned else value for key, value in run.config.experiment().items() if key != "seed"},
        "data": run.environment.get("data", "of the clients"),
        "clients": "all" if every else run.environment.get("clients", f"{clients} of {run.config.num_federated}"),
        "round": "last" if last else str(run.outcome["round"]),
    }


def chosen_in(words: str) -> set[str]:
    """The options that were chosen for a run, by what is written of the choice: "a=1 of 1, 2; b=3 of 3, 4 by ..."."""
    return {choice.partition("=")[0] for choice in words.partition(" by the ")[0].split("; ")}


def _is_crossed(key: str, options: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two algorithms were both run with two of the option's values, or more."""
    values: dict[str, set[Any]] = defaultdict(set)
    for each in options:
        values[each["algorithm"]].add(each[key])
    return key != "algorithm" and any(len(one & other) > 1 for one, other in combinations(values.values(), 2))


def tunings_of(run: Run) -> list[Run]:
    """The fine-tunings of all clients after the last round, the run's own among them, the shortest first."""
    clients, last = len(run.config.evaluated), run.outcome["round"]
    whole = [
        each
        for each in (run, *run.finetunings)
        if len(each.outcome["clients"]) == clients and each.outcome["round"] == last
    ]
    return sorted(whole, key=lambda each: each.config.finetune_length)


def finetunings(cells: Sequence[Cell]) -> dict[tuple[str, str], dict[str, list[Run]]]:
    """For each part and learning rate, for each method, the longest fine-tuning of the last round for every seed."""
    found: dict[tuple[str, str], dict[str, list[Run]]] = defaultdict(dict)
    places: dict[tuple[str, str], tuple[int, float]] = {}
    parts = ("full", "body", "head", "knn")
    for cell in cells:
        for run in cell.runs:
            longest: dict[tuple[str, str], Run] = {}
            for tuned in tunings_of(run):
                key = tuned_words(tuned.config)
                longest[key] = tuned
                part = tuned.config.finetune_part
                places[key] = parts.index(part) if part in parts else len(parts), tuned.config.finetune_learning_rate
            for key, tuned in longest.items():
                found[key].setdefault(cell.method, []).append(tuned)
    return dict(sorted(found.items(), key=lambda entry: places[entry[0]]))


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Runs of two methods with the same seed, in one setting.

    Args:
        runs: the pairs.
        kinds: what is known to be the same in them.
        left_out: seeds of both whose splits differ.
    """

    runs: list[tuple[Run, Run]]
    kinds: str
    left_out: list[int]


def pairs_of(first: Cell, second: Cell) -> Pairs:
    """Pair the runs of two methods by their seeds. Runs whose splits differ are no pair."""
    others = {run.config.seed: run for run in second.runs}
    both = [(run, others[run.config.seed]) for run in first.runs if run.config.seed in others]
    kinds = [_kind(*pair) for pair in both]
    runs = [pair for pair, kind in zip(both, kinds, strict=True) if kind]
    left_out = [pair[0].config.seed for pair, kind in zip(both, kinds, strict=True) if not kind]
    return Pairs(runs, "; ".join(sorted({kind for kind in kinds if kind})), left_out)


def _kind(run: Run, other: Run) -> str:
    """What two runs of a seed share; "" if their splits differ."""
    if run.partition and other.partition and run.partition.text != other.partition.text:
        return ""
    split = "same split" if run.partition and other.partition else "split not recorded"
    sampling = [
        (each.config.clients_per_round, each.config.num_server_rounds, is_pooled(each.config.algorithm))
        for each in (run, other)
    ]
    return f"{split}, {'same' if sampling[0] == sampling[1] else 'other'} sampling"
