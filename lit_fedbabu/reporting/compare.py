"""Runs side by side: reading their folders, and grouping them by method."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import ALGORITHMS, algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.records.results import curve, percent, read_results
from lit_fedbabu.records.run_folder import RESULTS, read_config, read_environment


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with a ``config.toml`` and a ``results.json``: a federation, or a fine-tuning of one."""

    folder: Path
    config: Config
    outcome: dict[str, Any]
    finetunings: tuple["Run", ...] = ()

    def spreads(self, key: str) -> dict[str, float]:
        """Mean, std and worst decile over the clients, in percent, of a kind of accuracy."""
        return percent(self.outcome["summary"][key])

    @property
    def curve(self) -> list[dict[str, float]]:
        """Spreads in percent before fine-tuning and after each of its epochs."""
        return [percent(spread) for spread in curve(self.outcome)]


def read_run(folder: Path) -> Run:
    """Read a run's folder and the fine-tunings in it.

    Raises:
        InputError: the folder has no finished run of this version.
    """
    below = sorted(path.parent for path in folder.glob(f"finetune/*/{RESULTS}"))
    return Run(folder, _resolved(folder), read_results(folder), tuple(read_run(each) for each in below))


def _resolved(folder: Path) -> Config:
    """The run's configuration, with the precision that "auto" stood for where it ran."""
    config = read_config(folder)
    found = re.search(r" in (\S+) with torch ", read_environment(folder).get("trains-on", ""))
    return dataclasses.replace(config, precision=found[1]) if found and config.precision == "auto" else config


def by_method(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but the seed, under the name of their method, in the order of the table.

    Where one algorithm was run with several options, the name says which.

    Raises:
        InputError: two of the runs have the same options and the same seed.
    """
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in sorted(found, key=lambda run: list(ALGORITHMS).index(run.config.algorithm)):
        groups[tuple((key, value) for key, value in run.config.experiment().items() if key != "seed")].append(run)
    options = [dict(key) for key in groups]
    varied = [key for key in options[0] if len({each[key] for each in options}) > 1 and key != "algorithm"]
    named = {}
    for each, members in zip(options, groups.values(), strict=True):
        members.sort(key=lambda run: run.config.seed)
        for one, other in pairwise(members):
            if one.config.seed == other.config.seed:
                raise InputError(
                    "RUN", str(other.folder), f"has the options and the seed of {one.folder}; leave one out"
                )
        same = [other for other in options if other["algorithm"] == each["algorithm"]]
        words = [f"{key}={each[key]}" for key in varied if len({other[key] for other in same}) > 1]
        named[" ".join([algorithm_of(members[0].config).title, *words])] = members
    return named


def tunings_of(run: Run) -> list[Run]:
    """The fine-tunings of all clients after the last round, the run's own among them, the shortest first."""
    clients, last = run.config.num_clients, run.outcome["round"]
    whole = [
        each
        for each in (run, *run.finetunings)
        if len(each.outcome["clients"]) == clients and each.outcome["round"] == last
    ]
    return sorted(whole, key=lambda each: each.config.num_finetune_epochs)


def finetunings(methods: dict[str, list[Run]]) -> dict[tuple[str, float], dict[str, list[Run]]]:
    """For each (part, learning rate), for each method, the longest fine-tuning of the last round for every seed."""
    found: dict[tuple[str, float], dict[str, list[Run]]] = defaultdict(dict)
    for method, members in methods.items():
        for run in members:
            longest: dict[tuple[str, float], Run] = {}
            for tuned in tunings_of(run):
                longest[tuned.config.finetune_part, tuned.config.finetune_learning_rate] = tuned
            for key, tuned in longest.items():
                found[key].setdefault(method, []).append(tuned)
    parts = ("full", "body", "head")
    return dict(sorted(found.items(), key=lambda entry: (parts.index(entry[0][0]), entry[0][1])))
