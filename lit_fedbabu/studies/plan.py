"""A study's file, and the runs that it stands for."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import PLACES, Config
from lit_fedbabu.errors import InputError
from lit_fedbabu.options import read_toml

OWN = ("base", "name", "output-dir", "per")
"""Keys of a study's file that are no options of its runs."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a study.

    Args:
        name: of its folder, made of its place on the axes.
        config: its options.
    """

    name: str
    config: Config

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
    """

    folder: Path
    runs: tuple[Run, ...]


def read_study(path: Path) -> Study:
    """Read a study's file. An option with a list is an axis: there is a run for every combination of the axes' values.

    ``base`` names a file of options that come first, ``[per.AXIS.VALUE]`` has options of the runs with that value.
    ``name`` is the study's folder below ``output-dir``; without it the file's name is.

    Raises:
        InputError: the file is no study, or one of its runs has an option that is refused.
    """
    content = read_toml(path)
    options = read_toml(path.parent / str(content["base"])) if "base" in content else {}
    options |= {key: value for key, value in content.items() if key not in OWN}
    axes = {key: value for key, value in options.items() if isinstance(value, list)}
    for key in options:
        if key in PLACES:
            raise InputError(key, options[key], "is not for a study, which gives its runs places of their own")
    for key, values in axes.items():
        if not values or len({str(value) for value in values}) < len(values):
            raise InputError(key, values, "must be different values, at least one")
    if not axes:
        raise InputError("study", str(path), "has no axis; give one or more options lists, as in seed = [1, 2, 3]")
    per = _per(content.get("per", {}), axes)
    folder = Path(str(content.get("output-dir", "tb_logs/studies"))).expanduser().resolve()
    folder /= str(content.get("name", path.stem))
    runs: dict[str, Run] = {}
    for point in itertools.product(*axes.values()):
        place = dict(zip(axes, point, strict=True))
        own: dict[str, Any] = {**options, **place}
        for key, value in place.items():
            own |= per.get(key, {}).get(str(value), {})
        name = "-".join(_word(key, value) for key, value in place.items())
        if name in runs:
            raise InputError("study", str(path), f"has two runs of the name {name}; give the values other names")
        config = Config.from_run_config({**own, "output-dir": str(folder), "run-name": name})
        algorithm_of(config)
        runs[name] = Run(name, config)
    return Study(folder, tuple(runs.values()))


def _per(per: Any, axes: Mapping[str, list[Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The options of single values of axes; raises InputError where there is no such value."""
    if not isinstance(per, dict):
        raise InputError("per", per, "must be tables, as in [per.algorithm.fedprox]")
    for axis, by_value in per.items():
        if axis not in axes:
            raise InputError(f"per.{axis}", sorted(by_value), f"there is no such axis; there are {', '.join(axes)}")
        for value, options in by_value.items():
            if value not in map(str, axes[axis]):
                raise InputError(f"per.{axis}.{value}", options, f"the axis has no such value, but {axes[axis]}")
            if wrong := [key for key, option in options.items() if isinstance(option, list) or key in PLACES]:
                raise InputError(f"per.{axis}.{value}", wrong, "must be single values, and no places")
    return per


def _word(key: str, value: Any) -> str:
    word = re.sub(r"[^\w.+-]+", "_", Path(str(value)).name if key == "dataset" else str(value))
    return word if key == "algorithm" else f"{key}_{word}"
