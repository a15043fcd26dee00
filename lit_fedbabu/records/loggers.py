"""Loggers beside TensorBoard: Lightning's for CSV files, Weights & Biases and MLflow, one run for each federation."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.config import Config
from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.errors import InputError, close_to, told
from lit_fedbabu.ground.files import write_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PACKAGES = {"csv": (), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""The loggers, and the packages that they need."""
PROJECT = "lit_fedbabu"
"""Of Weights & Biases and MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""
REMEDY = f"must be some of {', '.join(PACKAGES)}, or the import path of a function that takes the run's folder"
RUNS = "loggers.json"
"""In a run's folder: under which names the loggers know it, so that a resumed run goes on there."""


def check(config: Config) -> None:
    """Raise InputError where a logger is not known, or its package is not installed."""
    for name in config.loggers:
        if ":" in name:
            _maker(name)
            continue
        if name not in PACKAGES:
            raise InputError("logger", config.logger, f"{REMEDY}{close_to(name, PACKAGES)}")
        if missing := [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]:
            remedy = f"needs {', '.join(missing)}: pip install 'lit-fedbabu[{name}]'"
            raise InputError("logger", config.logger, remedy)


class Loggers:
    """The loggers that a configuration asks for. One that fails is left out from then on, and the run goes on.

    Args:
        config: the experiment.
        folder: the run's.
        first_round: the round after those that the run has done.
        say: prints a line.
    """

    def __init__(self, config: Config, folder: Path, first_round: int, say: Callable[[str], None]) -> None:
        if config.loggers:
            from lit_fedbabu.learning.trainer import quiet_lightning  # imports PyTorch, which takes seconds

            quiet_lightning()
        self._say = say
        self._loggers: dict[str, Logger] = {}
        try:
            known = json.loads((folder / RUNS).read_text()) if (folder / RUNS).exists() else {}
        except ValueError as error:
            remedy = f"cannot be read: {error}; delete it, and the loggers begin new runs of theirs"
            raise InputError("logger", str(folder / RUNS), remedy) from None
        for name in config.loggers:
            try:
                if ":" in name:
                    self._loggers[name] = _maker(name)(folder)
                    continue
                self._loggers[name], known[name] = _MADE[name](folder, first_round, known.get(name))
            except Exception as error:  # whatever a service raises: the run matters more
                self._say(f"note: the logger {name} cannot be started and is left out: {told(error)}")
        if known:
            write_json(folder / RUNS, known)
        self._each(lambda logger: logger.log_hyperparams(config.experiment()))

    def log(self, values: Mapping[str, float], server_round: int) -> None:
        """Log numbers of a round."""
        self._each(lambda logger: logger.log_metrics(dict(values), step=server_round))
        self._each(lambda logger: logger.save())

    def finish(self) -> None:
        """The run is over."""
        self._each(lambda logger: logger.finalize("success"))
        if "wandb" in self._loggers:
            self._each(_end_wandb)

    def _each(self, work: Callable[[Logger], Any]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                work(logger)
            except Exception as error:  # whatever a service raises: the run matters more
                del self._loggers[name]
                self._say(f"note: the logger {name} failed and is left out from now on: {told(error)}")


def _maker(path: str) -> Callable[[Path], Logger]:
    """The function that an import path names."""
    found: Callable[[Path], Logger] = imported("logger", path, REMEDY)
    if not callable(found):
        raise InputError("logger", path, f"{REMEDY}; it is a {type(found).__name__}")
    return found


def _csv(folder: Path, first_round: int, known: str | None) -> tuple[Logger, str]:
    from lightning.pytorch.loggers import CSVLogger

    version = f"from_round_{first_round}"  # of its own: Lightning deletes what is there
    return CSVLogger(folder, name="csv", version=version), version


def _wandb(folder: Path, first_round: int, known: str | None) -> tuple[Logger, str]:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    identity = known or uuid.uuid4().hex[:12]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    quiet = wandb.Settings(silent=True)
    logger = WandbLogger(
        project=project, name=folder.name, id=identity, save_dir=folder, resume="allow", settings=quiet
    )
    logger.experiment  # noqa: B018 - begins the run, so that what is wrong is known now
    return logger, identity


def _mlflow(folder: Path, first_round: int, known: str | None) -> tuple[Logger, str]:
    from lightning.pytorch.loggers import MLFlowLogger

    for noisy in ("mlflow", "alembic", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    logger = MLFlowLogger(experiment, run_name=folder.name, tracking_uri=uri, run_id=known)
    return logger, str(logger.run_id)


_MADE = {"csv": _csv, "wandb": _wandb, "mlflow": _mlflow}


def _end_wandb(logger: Logger) -> None:
    from lightning.pytorch.loggers import WandbLogger

    if isinstance(logger, WandbLogger):
        logger.experiment.finish()
