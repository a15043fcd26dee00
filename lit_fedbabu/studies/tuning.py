"""Options chosen on a validation split: candidates, the choice among them, and what is written of it."""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OF_DATA, PLACES
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.records.results import read_results, score_of
from lit_fedbabu.records.run_folder import TUNED, read_config, read_environment, write_config
from lit_fedbabu.studies.names import folder_word, refuse_long, table_word
from lit_fedbabu.studies.plan import Run, Study, of_point, refuse_unread

FRACTION = "validation-fraction"
HELD_OUT = 0.2
"""The share of each client's training images that a tuning holds out, unless its table says otherwise."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Values that options may have in a group of runs, which differ in their seed alone.

    Args:
        group: name of the group.
        values: of the tuned options, by their keys.
        among: all values of each of these options.
        runs: with a part of the training images held out, one for each seed of the tuning.
    """

    group: str
    values: Mapping[str, Any]
    among: Mapping[str, Sequence[Any]]
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The candidates of a study.

    Args:
        study: all of their runs.
        candidates: of every group, in the order of the file.
        axes: the tuned options.
    """

    study: Study
    candidates: tuple[Candidate, ...]
    axes: tuple[str, ...]


def tuning_of(study: Study) -> Tuning | None:
    """The tuning that a study's file asks for; None: it has no table ``[tune]``.

    Every group of runs tries each combination of the values of its options, or as many as ``runs`` allows, which are
    drawn from all with equal chances (Bergstra and Bengio 2012). ``seed`` names the seeds that are tried.

    Raises:
        InputError: the table names what cannot be tuned, or a candidate has an option that is refused.
    """
    if not study.tune:
        return None
    table = dict(study.tune)
    held_out, budget, per = table.pop(FRACTION, HELD_OUT), table.pop("runs", 0), table.pop("per", {})
    if held_out == 0:
        raise InputError(f"tune.{FRACTION}", held_out, "would choose on test images; hold some out, as in 0.2")
    if config := next((run.config for run in study.runs if run.config.validation_fraction), None):
        remedy = "would evaluate the runs on images of the choice; leave it out, and give it in the table [tune]"
        raise InputError(FRACTION, config.validation_fraction, remedy)
    seeds = _seeds(study, table.pop("seed", None))
    if type(budget) is not int or 0 < budget < len(seeds) or budget < 0:
        remedy = f"must be a whole number, at least {len(seeds)}: how many runs each method may try"
        raise InputError("tune.runs", budget, remedy)
    for key, values in table.items():
        _refuse(study, f"tune.{key}", key, values, study.runs)
    folder, candidates = study.folder / "tune", []
    for group in dict.fromkeys(run.group for run in study.runs):
        of_group = [run for run in study.runs if run.group == group]
        place = dict(of_group[0].place)
        own = of_point(place, per, "tune.per")
        for axis, value in place.items():
            for key, values in per.get(axis, {}).get(table_word(value), {}).items():
                _refuse(study, f"tune.per.{axis}.{table_word(value)}.{key}", key, values, of_group)
        read = {key: values for key, values in {**table, **own}.items() if _reads(of_group[0].config, key)}
        points = [*itertools.product(*read.values())] if read else []
        if 0 < budget // len(seeds) < len(points):
            drawn = random.Random(group).sample(range(len(points)), budget // len(seeds))
            points = [points[number] for number in sorted(drawn)]
        for point in points:
            tried = dict(zip(read, point, strict=True))
            runs = []
            for run in (each for each in of_group if each.config.seed in seeds):
                name = "-".join([run.name, *(folder_word(key, value) for key, value in tried.items())])
                refuse_long(name)
                options = {**run.config.to_run_config(), **tried, FRACTION: held_out}
                config = Config.from_run_config({**options, "output-dir": str(folder), "run-name": name}).pinned()
                runs.append(Run(name, config, group))
            candidates.append(Candidate(group, tried, read, tuple(runs)))
    if not candidates:
        raise InputError("tune", study.tune, "names no option; as in finetune-learning-rate = [0.001, 0.01]")
    everything = tuple(run for candidate in candidates for run in candidate.runs)
    axes = tuple(dict.fromkeys(key for each in candidates for key in each.values))
    return Tuning(Study(folder, everything), tuple(candidates), axes)


def _seeds(study: Study, given: Any) -> list[int]:
    """The seeds that are tried: those that are given, or all of the study."""
    seeds = list(dict.fromkeys(run.config.seed for run in study.runs))
    if given is None:
        return seeds
    chosen = given if isinstance(given, list) else [given]
    if not chosen or any(seed not in seeds for seed in chosen) or len(set(chosen)) < len(chosen):
        words = ", ".join(map(str, seeds))
        raise InputError("tune.seed", given, f"must be seeds of the study, which has {words}; a seed cannot be tuned")
    return chosen


def _refuse(study: Study, name: str, key: str, values: Any, runs: Sequence[Run]) -> None:
    """Raise InputError where an option of the table cannot be tuned in any of the runs."""
    if key in OF_DATA:
        raise InputError(name, values, "is of the data that methods are compared on; make it an axis")
    if key in study.axes or key in PLACES:
        raise InputError(name, values, "is an axis or a place, which cannot be tuned")
    if not isinstance(values, list) or len({str(value) for value in values}) < 2:
        raise InputError(name, values, "must be two different values or more")
    if given := next((run for run in runs if key in run.given), None):
        raise InputError(name, values, f"{given.name} has a value for it already; leave one out")
    refuse_unread(name, values, runs)


def chosen(study: Study, tuning: Tuning, failed: Mapping[str, str]) -> tuple[Study, dict[str, str]]:
    """The study with the best candidate of every group, and what is to be written of it, by the names of runs.

    The best has the best mean over seeds of the mean personalized score over clients, on the images held out; of equal
    ones the first. A candidate of which a run failed is out, and one whose models are not finite for some clients, for
    a mean over the others would favour it, comes after those whose are. A group that reads none of the tuned options
    keeps its own.

    Raises:
        RunError: every candidate of a group is out.
    """
    best: dict[str, tuple[tuple[int, float], Candidate]] = {}
    words: dict[str, str] = {}
    for candidate in (each for each in tuning.candidates if not any(run.name in failed for run in each.runs)):
        outcomes = [read_results(run.folder) for run in candidate.runs]
        score = score_of(outcomes[0])
        spreads = [each["summary"][f"personalized_{score.name}"] for each in outcomes]
        means = [each["mean"] for each in spreads]
        mean = float(np.mean(means))
        finite = -sum("clients" in each for each in spreads)  # of others it says over how many clients it is
        place = finite, mean if score.higher_is_better else -mean
        if candidate.group not in best or place > best[candidate.group][0]:
            best[candidate.group] = place, candidate
            among = "; ".join(
                f"{key}={value} of {', '.join(map(str, candidate.among[key]))}"
                for key, value in candidate.values.items()
            )
            share = f"{100 * candidate.runs[0].config.validation_fraction:g} % of the training images, held out"
            over = f"mean personalized {score.name} {score.shown(mean)}{score.unit} over {len(means)} seeds"
            words[candidate.group] = f"{among} by the {over} on {share}"
    tried = dict.fromkeys(candidate.group for candidate in tuning.candidates)
    if lost := [group for group in tried if group not in best]:
        raise RunError(f"no candidate of {lost[0]} could be tried; see the logs in {tuning.study.folder}")
    runs = []
    for run in study.runs:
        options = {**run.config.to_run_config(), **(best[run.group][1].values if run.group in best else {})}
        runs.append(dataclasses.replace(run, config=Config.from_run_config(options).pinned()))
    return dataclasses.replace(study, runs=tuple(runs)), {
        run.name: words[run.group] for run in runs if run.group in words
    }


def _reads(config: Config, key: str) -> bool:
    """Whether a run reads an option, by its key; what is no option is refused when it is given a value."""
    field = key.replace("-", "_")
    return field not in Config.__dataclass_fields__ or config.reads(field)


def write_choice(run: Run, words: str) -> None:
    """Write what was chosen into the ``config.toml`` of a run that is done."""
    environment = read_environment(run.folder)
    if environment.get(TUNED) != words:
        write_config(run.folder, read_config(run.folder), {**environment, TUNED: words})
