"""FedBABU (Oh, Kim, Yun, ICLR 2022, arXiv 2106.06042) with PyTorch Lightning and Flower.

Names are imported when they are first used, so that ``import lit_fedbabu`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lit_fedbabu.ground import compat

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Algorithm, Beginning, Cohort, Combined, Participant, Update
    from lit_fedbabu.algorithms.steps import trained_weights
    from lit_fedbabu.algorithms.table import ALGORITHMS
    from lit_fedbabu.client.numpy_client import FedBABUClient
    from lit_fedbabu.config import Config
    from lit_fedbabu.finetune import finetune
    from lit_fedbabu.ground.errors import InputError, RunError
    from lit_fedbabu.learning.checkpoint import load_module
    from lit_fedbabu.learning.losses import Batch
    from lit_fedbabu.learning.module import LitFedBABU
    from lit_fedbabu.records.classifier import Classifier, load_model
    from lit_fedbabu.records.results import Results, as_columns, read_results
    from lit_fedbabu.run import run
    from lit_fedbabu.server.strategy import SharedParts
    from lit_fedbabu.tasks.custom.task import Task
    from lit_fedbabu.tasks.images.datamodule import ClientData
    from lit_fedbabu.training.experiment import Experiment

__version__ = "0.2.0"

_HOME = {
    "ALGORITHMS": "algorithms.table",
    "Algorithm": "algorithms.algorithm",
    "Batch": "learning.losses",
    "Beginning": "algorithms.algorithm",
    "Classifier": "records.classifier",
    "ClientData": "tasks.images.datamodule",
    "Cohort": "algorithms.algorithm",
    "Combined": "algorithms.algorithm",
    "Config": "config",
    "Experiment": "training.experiment",
    "FedBABUClient": "client.numpy_client",
    "InputError": "ground.errors",
    "LitFedBABU": "learning.module",
    "Participant": "algorithms.algorithm",
    "Results": "records.results",
    "RunError": "ground.errors",
    "SharedParts": "server.strategy",
    "Task": "tasks.custom.task",
    "Update": "algorithms.algorithm",
    "as_columns": "records.results",
    "finetune": "finetune",
    "load_model": "records.classifier",
    "load_module": "learning.checkpoint",
    "read_results": "records.results",
    "run": "run",
    "trained_weights": "algorithms.steps",
}
"""The file that each public name lives in."""

__all__ = [
    "ALGORITHMS", "Algorithm", "Batch", "Beginning", "Classifier", "ClientData", "Cohort", "Combined", "Config",
    "Experiment", "FedBABUClient", "InputError", "LitFedBABU", "Participant", "Results", "RunError", "SharedParts",
    "Task", "Update", "__version__", "as_columns", "finetune", "load_model", "load_module", "read_results", "run",
    "trained_weights",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


compat.keep_from_files(__name__, _HOME)
compat.ignore_deprecations_among_libraries()
if compat.is_run_by_name():
    from lit_fedbabu.ground import stops

    stops.is_command()  # python -m lit_fedbabu.COMMAND, whose imports take a second
