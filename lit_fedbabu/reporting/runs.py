"""Run folders as a report reads them: configuration, results, split, failures, and what training cost."""

import csv
import dataclasses
import io
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.evaluation import STAGES, Score
from lit_fedbabu.records.results import Results, curve, read_results, scaled, score_of
from lit_fedbabu.records.run_folder import CONFIG, FAILURES, PARTITION, RESULTS, read_config, read_environment
from lit_fedbabu.reporting.costs import Cost, cost_of
from lit_fedbabu.reporting.damage import refuse_damaged


@dataclasses.dataclass(frozen=True)
class Partition:
    """The content of a ``partition.csv``.

    Args:
        text: the whole file.
        names: of the classes.
        train: training images by client and class, (clients, classes).
        clients: their names, where they have names.
    """

    text: str
    names: tuple[str, ...]
    train: npt.NDArray[np.int64]
    clients: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with a ``config.toml`` and a ``results.json``: a federation, or a fine-tuning of one."""

    folder: Path
    config: Config
    environment: dict[str, str]
    outcome: Results
    partition: Partition | None
    finetunings: tuple["Run", ...] = ()

    @property
    def score(self) -> Score:
        """What its clients are compared by."""
        return score_of(self.outcome)

    def spreads(self, stage: str) -> dict[str, float]:
        """Mean, std and worst decile over the clients of the score, as people read it: accuracies in percent."""
        return scaled(self.outcome["summary"][f"{stage}_{self.score.name}"], self.score)

    def scores(self, stage: str) -> npt.NDArray[np.float64]:
        """The score of every client, as people read it, in the order of their numbers."""
        return self.score.scale * self.of_clients(f"{stage}_{self.score.name}")

    def of_clients(self, key: str) -> npt.NDArray[np.float64]:
        """A measure of every client, in the order of their numbers."""
        return np.array([row[key] for row in self.outcome["clients"]], dtype=np.float64)

    @property
    def curve(self) -> list[dict[str, float]]:
        """Spreads of the score before fine-tuning and after each of its epochs."""
        return [scaled(spread, self.score) for spread in curve(self.outcome)]

    @property
    def is_newcomers(self) -> bool:
        """Whether the results are of somebody who had no part in the federation."""
        return "data" in self.environment

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluated round with the best initial score, and its spread; a newcomer's model was in none."""
        best = self.outcome["best_round_on_test_data"]
        if best is None or self.is_newcomers:
            return None
        return {"round": best["round"], "initial": scaled(best[f"initial_{self.score.name}"], self.score)}

    @property
    def initial(self) -> dict[int, dict[str, float]]:
        """Spreads of the initial score by the rounds that were evaluated."""
        key = f"initial_{self.score.name}"
        evaluated = [] if self.is_newcomers else [each for each in self.outcome["rounds"] if key in each]
        return {each["round"]: scaled(each[key], self.score) for each in evaluated}

    @property
    def simulated(self) -> dict[int, float]:
        """Simulated seconds since the first round began, by the rounds that were evaluated; empty without speeds."""
        rounds = {each["round"]: each for each in self.outcome["rounds"]}
        return {each: rounds[each][key] for each in self.initial if (key := "simulated_seconds") in rounds[each]}

    @property
    def epsilon(self) -> float | None:
        """What the run spent of the privacy of its clients; None without noise, and of newcomers."""
        rounds = [] if self.is_newcomers else self.outcome["rounds"]
        return rounds[-1].get("epsilon") if rounds else None

    @cached_property
    def cost(self) -> Cost:
        """What training cost."""
        images = int(self.partition.train[: self.config.num_federated].sum()) if self.partition else None
        return cost_of(self.folder, self.config, len(self.outcome["rounds"]), images)

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """Failures of clients."""
        return _read_failures(self.folder)


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run, or a fine-tuning, without results.

    Args:
        folder: of it, which may not exist yet.
        config: its options.
        reason: why it has none, where that is known.
    """

    folder: Path
    config: Config
    reason: str = "it is not finished"

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Failures of clients."""
        return _read_failures(self.folder)


def read_run(folder: Path) -> Run:
    """Read a run's folder and the fine-tunings in it.

    Raises:
        InputError: the folder has no finished run of this version, or a file in it is damaged.
    """
    config, outcome = _resolved(folder), read_results(folder)
    if ":" not in config.algorithm:  # a file of the user's own is not imported for a report
        algorithm_of(config)
    refuse_damaged(folder / RESULTS, config, outcome)
    name = score_of(outcome).name
    finite = [row for row in outcome["clients"] if None not in [row[f"{stage}_{name}"] for stage in STAGES]]
    outcome = Results({**outcome, "clients": finite}, folder)  # as in the summary, which says over how many it is
    below = sorted(path.parent for path in folder.glob(f"finetune/*/{RESULTS}"))
    tuned = tuple(read_run(each) for each in below)
    rows = [*outcome["clients"], *outcome.get("new_clients", {}).get("clients", ())]
    names = {row["client"]: str(row["name"]) for row in rows if "name" in row}
    partition = _read_partition(folder / PARTITION, config)
    if partition and sorted(names) == list(range(len(partition.train))):
        partition = dataclasses.replace(partition, clients=tuple(names[client] for client in sorted(names)))
    return Run(folder, config, read_environment(folder), outcome, partition, tuned)


def _read_failures(folder: Path) -> list[dict[str, Any]]:
    """Failures of clients; a line that was cut off when the run was killed stands for itself."""
    path = folder / FAILURES
    found = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), start=1):
        try:
            entry = json.loads(line)
            row = {key: entry[key] for key in ("round", "client", "node", "reason")}
            found.append({**row, "client": f"{row['client']} ({entry['name']})"} if "name" in entry else row)
        except (ValueError, LookupError, TypeError):
            reason = f"line {number} of {FAILURES} cannot be read"
            found.append({"round": "", "client": "", "node": "", "reason": reason})
    return found


def unfinished(folder: Path) -> list[Path]:
    """The run's folder and those of its fine-tunings, where they were begun and have no results."""
    begun = [folder / CONFIG, *sorted(folder.glob(f"finetune/*/{CONFIG}"))]
    return [path.parent for path in begun if path.is_file() and not path.with_name(RESULTS).exists()]


def _resolved(folder: Path) -> Config:
    """The run's configuration, with the precision that "auto" stood for where it ran."""
    config = read_config(folder)
    environment = read_environment(folder)
    words = re.search(r" in (\S+) with torch ", str(environment.get("trains-on", "")))  # all that version 0.2 has
    precision = environment.get("precision", words[1] if words else "")
    several = not precision or "," in precision
    return config if several or config.precision != "auto" else dataclasses.replace(config, precision=precision)


def _read_partition(path: Path, config: Config) -> Partition | None:
    """The split of the run; None where it has none, as of sites, or has that of some clients of a task alone.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text()
        head, *rows = list(csv.reader(io.StringIO(text)))
        if head[:2] != ["client", "split"] or {len(row) for row in rows} != {len(head)}:
            raise ValueError("its columns are not client, split and the classes")
        train = [[int(count) for count in row[2:]] for row in rows if row[1] == "train"]
        if not train or not head[2:]:
            raise ValueError("it has no training images")
        if not config.kind.by_options and len(train) < config.num_clients:
            return None
        return Partition(text, tuple(head[2:]), np.array(train, dtype=np.int64))
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise InputError("split", str(path), f"cannot be read: {error}; leave this run out") from None
