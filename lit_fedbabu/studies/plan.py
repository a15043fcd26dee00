"""A study's file, and the runs that it stands for."""

import dataclasses
import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import PLACES
from lit_fedbabu.config.options import read_toml
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import from_home, whole_name
from lit_fedbabu.records import loggers
from lit_fedbabu.records.run_folder import CONFIG, refuse_other_options
from lit_fedbabu.studies.names import folder_word, path_text, refuse_long, study_name, table_word, toml_key

OWN = ("base", "name", "output-dir", "per", "tune", "slurm")
"""Keys of a study's file that are no options of its runs."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a study.

    Args:
        name: of its folder, made of its place on the axes.
        config: its options.
        group: its name without the seed: runs of a group differ in nothing else.
        given: keys of the options that the study's own file gives it.
        place: the axes, and its value on each.
    """

    name: str
    config: Config
    group: str = ""
    given: frozenset[str] = frozenset()
    place: tuple[tuple[str, Any], ...] = ()

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(self.config.output_dir) / self.name


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a study.

    Args:
        folder: of the study, in which they lie.
        runs: in the order of the axes.
        axes: options with several values.
        tune: the table of options that are chosen on a validation split.
        slurm: the table of what jobs on a cluster ask for.
    """

    folder: Path
    runs: tuple[Run, ...]
    axes: tuple[str, ...] = ()
    tune: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    slurm: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def repeated(self) -> list[str]:
        """Notes on runs that differ in nothing but options which their method or partitioner does not read."""
        found: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.runs:
            fields = (each.name for each in dataclasses.fields(run.config) if run.config.reads(each.name))
            kind = tuple(getattr(run.config, name) for name in fields if name not in ("run_name", "seed"))
            found.setdefault((run.config.seed, *kind), []).append(run)
        several = [runs for (seed, *_), runs in found.items() if len(runs) > 1 and seed == self.runs[0].config.seed]
        return [
            f"note: {', '.join(run.name for run in runs)} are one run {len(runs)} times: what differs, they do not read"
            for runs in several
        ]

    def estimate(self, run: Run, known: Mapping[str, float]) -> float | None:
        """Seconds that a run takes, by those of its algorithm that are done, else by all; None: none is done.

        Args:
            run: one of the study.
            known: seconds that runs took, by their names.
        """
        alike = [known[each.name] for each in self.runs if each.name in known]
        algorithm = run.config.algorithm
        same = [known[each.name] for each in self.runs if each.name in known and each.config.algorithm == algorithm]
        return statistics.median(same or alike) if alike else None


def refuse_other_studies(study: Study) -> None:
    """Raise InputError where a run of the study was begun with other options: their results would be mixed."""
    for run in study.runs:
        if (run.folder / CONFIG).exists():
            remedy = "give the study another name, or delete that folder"
            refuse_other_options(run.config, run.folder, remedy)


def read_study(path: Path, given: Mapping[str, Any] | None = None) -> Study:
    """Read a study's file. An option with a list is an axis: there is a run for every combination of the axes' values.

    ``base`` names a file of options that come first, ``[per.AXIS.VALUE]`` has options of the runs with that value,
    ``[tune]`` options that are chosen before the runs, as of ``tuning.tuning_of``, ``[slurm]`` what jobs on a cluster
    ask for, as of ``slurm.submit``.
    ``name`` is the study's folder below ``output-dir``; without it the file's name is.

    Args:
        path: of the file.
        given: options for all runs, in place of those of the file. One of an axis keeps it, with this value alone.

    Raises:
        InputError: the file is no study, or one of its runs has an option that is refused.
    """
    content, typed = read_toml(path), dict(given or {})
    content |= {key: typed.pop(key) for key in ("name", "output-dir") if key in typed}
    name = study_name(content.get("name", path.stem))
    options = read_toml(path.parent / path_text("base", content["base"])) if "base" in content else {}
    options |= {key: value for key, value in content.items() if key not in OWN}
    for key in {*typed} & {key for key in options if isinstance(options[key], list)}:
        typed[key] = typed[key] if isinstance(typed[key], list) else [typed[key]]
    options |= typed
    axes = {key: value for key, value in options.items() if isinstance(value, list)}
    for key in options:
        if key in PLACES:
            raise InputError(key, options[key], "is not for a study, which gives its runs places of their own")
    for key, values in axes.items():
        if not values or len({str(value) for value in values}) < len(values):
            raise InputError(key, values, "must be different values, at least one")
    if not axes:
        raise InputError("study", str(path), "has no axis; give one or more options lists, as in seed = [1, 2, 3]")
    if "dataset" in options:
        options["dataset"] = _whole_names(options["dataset"])
    per, tune = _per("per", content.get("per", {}), axes, typed), content.get("tune", {})
    if not isinstance(tune, dict):
        raise InputError("tune", tune, "must be a table of lists, as in [tune]")
    if "per" in tune:
        tune = {**tune, "per": _per("tune.per", tune["per"], axes, typed, of_lists=True)}
    folder = from_home(path_text("output-dir", content.get("output-dir", "tb_logs/studies"))).resolve() / name
    runs: dict[str, Run] = {}
    for point in itertools.product(*axes.values()):
        place = dict(zip(axes, point, strict=True))
        own: dict[str, Any] = {**options, **of_point(place, per), **typed, **place}
        words = {key: folder_word(key, value) for key, value in place.items()}
        name = "-".join(words.values())
        refuse_long(name)
        if name in runs:
            raise InputError("study", str(path), f"has two runs of the name {name}; give the values other names")
        config = Config.from_run_config({**own, "output-dir": str(folder), "run-name": name}).pinned()
        algorithm_of(config)
        loggers.check(config)
        if alike := [run.name for run in runs.values() if run.config.experiment() == config.experiment()]:
            remedy = f"has two runs with the same options, {alike[0]} and {name}; leave one out"
            raise InputError("study", str(path), remedy)
        group = "-".join(word for key, word in words.items() if key != "seed") or "all"
        of_study = {*(key for key in content if key not in OWN), *typed, *of_point(place, per)}
        runs[name] = Run(name, config, group, frozenset(of_study), tuple(place.items()))
    _refuse_unread(per, axes, list(runs.values()))
    slurm = content.get("slurm", {})
    if not isinstance(slurm, dict):
        raise InputError("slurm", slurm, "must be a table, as in [slurm]")
    return Study(folder, tuple(runs.values()), tuple(axes), tune, slurm)


def _refuse_unread(
    per: Mapping[str, Mapping[str, Mapping[str, Any]]], axes: Mapping[str, list[Any]], runs: Sequence[Run]
) -> None:
    """Raise InputError where no run reads an axis, or a method does not read an option that is given for it alone."""
    for key, values in axes.items():
        if len(values) > 1:
            refuse_unread(key, values, runs)
    for name, options in per.get("algorithm", {}).items():
        for key, value in options.items():
            refuse_unread(f"per.algorithm.{name}.{key}", value, [run for run in runs if run.config.algorithm == name])


def refuse_unread(name: str, value: Any, runs: Sequence[Run]) -> None:
    """Raise InputError where none of the runs reads an option.

    Args:
        name: of the option, or of a table and the option after a dot.
        value: what the study gives it.
        runs: of which one should read it.
    """
    field = Config.__dataclass_fields__.get(name.rpartition(".")[2].replace("-", "_"))
    if field and not any(run.config.reads(field.name) for run in runs):
        remedy = f"is read by {field.metadata['read_by']} alone, and changes no number here; leave it out"
        raise InputError(name, value, remedy)


def _whole_names(dataset: Any) -> Any:
    """The dataset, or each of a list, with its folder's absolute path: workers may be started elsewhere."""
    if isinstance(dataset, list):
        return [_whole_names(each) for each in dataset]
    return whole_name(dataset) if isinstance(dataset, str) else dataset


def of_point(
    place: Mapping[str, Any], per: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str = "per"
) -> dict[str, Any]:
    """The options of single values of axes that a run has.

    Args:
        place: the run's value on each axis.
        per: options by axis and value.
        name: of their table.

    Raises:
        InputError: two of them contradict.
    """
    found: dict[str, tuple[str, Any]] = {}
    for axis, value in place.items():
        table = f"{name}.{axis}.{table_word(value)}"
        for key, option in per.get(axis, {}).get(table_word(value), {}).items():
            if key in found and found[key][1] != option:
                remedy = f"{found[key][0]} gives the same run {found[key][1]!r}; keep one of them"
                raise InputError(f"{table}.{key}", option, remedy)
            found[key] = table, option
    return {key: option for key, (_, option) in found.items()}


def _per(
    name: str, per: Any, axes: Mapping[str, list[Any]], typed: Collection[str], of_lists: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """The options of single values of axes, or lists that are tuned; raises InputError where there is no such value.

    Of an axis whose values were typed, tables of others are left out.
    """
    if not isinstance(per, dict):
        raise InputError(name, per, f"must be tables, as in [{name}.algorithm.fedprox]")
    words = {axis: [toml_key(value) for value in values] for axis, values in axes.items()}
    for axis, by_value in per.items():
        if axis not in axes:
            raise InputError(f"{name}.{axis}", by_value, f"there is no such axis; there are {', '.join(axes)}")
        if not isinstance(by_value, dict):
            raise InputError(f"{name}.{axis}", by_value, f"must be tables, as in [{name}.{axis}.{words[axis][0]}]")
        for value, options in [*by_value.items()]:
            table = f"{name}.{axis}.{value}"
            if value not in map(table_word, axes[axis]):
                if axis in typed and by_value.pop(value) is not None:
                    continue
                there = f"[{name}.{axis}.{f'], [{name}.{axis}.'.join(words[axis])}]"
                raise InputError(table, options, f"the axis has no such value; there are {there}")
            if not isinstance(options, dict):
                raise InputError(table, options, f"must be a table of options, as in [{table}]")
            form = "lists of values" if of_lists else "single values"
            if wrong := [key for key, each in options.items() if isinstance(each, list) != of_lists or key in PLACES]:
                raise InputError(table, wrong, f"must be {form}, and no places")
            if names := [key for key in options if key in axes]:
                remedy = "is an axis, and runs are named by its values; leave it out here"
                raise InputError(f"{table}.{names[0]}", options[names[0]], remedy)
    return per
