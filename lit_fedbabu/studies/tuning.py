"""Options chosen on a validation split: candidates, the choice among them, and what is written of it."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OF_DATA, PLACES
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.records.results import read_results, score_of
from lit_fedbabu.records.run_folder import TUNED, read_config, read_environment, write_config
from lit_fedbabu.studies.names import folder_word, refuse_long
from lit_fedbabu.studies.plan import Run, Study, refuse_unread

FRACTION = "validation-fraction"
HELD_OUT = 0.2
"""The share of each client's training images that a tuning holds out, unless its table says otherwise."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Values that options may have in a group of runs, which differ in their seed alone.

    Args:
        group: name of the group.
        values: of the tuned options, by their keys.
        runs: with a part of the training images held out, one for each seed.
    """

    group: str
    values: Mapping[str, Any]
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The candidates of a study.

    Args:
        study: all of their runs.
        candidates: of every group, in the order of the file.
        axes: the tuned options, and their values.
    """

    study: Study
    candidates: tuple[Candidate, ...]
    axes: Mapping[str, Sequence[Any]]


def tuning_of(study: Study) -> Tuning | None:
    """The tuning that a study's file asks for; None: it has no table ``[tune]``.

    Raises:
        InputError: the table names what cannot be tuned, or a candidate has an option that is refused.
    """
    if not study.tune:
        return None
    table = dict(study.tune)
    held_out = table.pop(FRACTION, HELD_OUT)
    if held_out == 0:
        raise InputError(f"tune.{FRACTION}", held_out, "would choose on test images; hold some out, as in 0.2")
    if config := next((run.config for run in study.runs if run.config.validation_fraction), None):
        remedy = "would evaluate the runs on images of the choice; leave it out, and give it in the table [tune]"
        raise InputError(FRACTION, config.validation_fraction, remedy)
    for key, values in table.items():
        if key in OF_DATA:
            raise InputError(f"tune.{key}", values, "is of the data that methods are compared on; make it an axis")
        if key in study.axes or key in PLACES or key == "seed":
            raise InputError(f"tune.{key}", values, "is an axis, a place or the seed, which cannot be tuned")
        if not isinstance(values, list) or len({str(value) for value in values}) < 2:
            raise InputError(f"tune.{key}", values, "must be two different values or more")
        if given := next((run for run in study.runs if key in run.given), None):
            raise InputError(f"tune.{key}", values, f"{given.name} has a value for it already; leave one out")
        refuse_unread(f"tune.{key}", values, study.runs)
    if not table:
        raise InputError("tune", study.tune, "names no option; as in finetune-learning-rate = [0.001, 0.01]")
    folder = study.folder / "tune"
    candidates = []
    for group in dict.fromkeys(run.group for run in study.runs):
        of_group = [run for run in study.runs if run.group == group]
        read = {key: values for key, values in table.items() if _reads(of_group[0].config, key)}
        for point in itertools.product(*read.values()) if read else ():
            values = dict(zip(read, point, strict=True))
            runs = []
            for run in of_group:
                name = "-".join([run.name, *(folder_word(key, value) for key, value in values.items())])
                refuse_long(name)
                options = {**run.config.to_run_config(), **values, FRACTION: held_out}
                config = Config.from_run_config({**options, "output-dir": str(folder), "run-name": name}).pinned()
                runs.append(Run(name, config, group))
            candidates.append(Candidate(group, values, tuple(runs)))
    everything = tuple(run for candidate in candidates for run in candidate.runs)
    return Tuning(Study(folder, everything), tuple(candidates), table)


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
                f"{key}={value} of {', '.join(map(str, tuning.axes[key]))}" for key, value in candidate.values.items()
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
