"""What this package takes from the inside of Python and its libraries, for want of a public way."""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def identify_process() -> None:
    """Let this process make Flower's messages, which bear the run and the node that Flower has started it for.

    A process that Flower did not start gets the number 1. Seen in flwr 1.41 and 1.42.
    """
    from flwr.supercore.task_identity import TaskIdentity

    try:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id  # noqa: B018 - set by Flower
    except RuntimeError:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def cache_entry_points() -> None:
    """Read the metadata of installed packages once: each Trainer reads them all, which is most of its cost.

    Seen in lightning 2.6.
    """
    registry = importlib.import_module("lightning.fabric.utilities.registry")
    registry.entry_points = functools.lru_cache(registry.entry_points)  # type: ignore[attr-defined]


def forget_interrupt_in_text() -> None:
    """Let ``python -m`` end by its own status where Ctrl-C came in an exec of text, as dataclasses make of classes.

    Python remembers it, and would end by SIGINT. Seen in CPython 3.11 to 3.13.
    """
    exec("")


def keep_from_files(package: str, names: Container[str]) -> None:
    """Let names of a package, as the function ``run``, stay what they are when files of the same name are imported.

    Python sets each file as an attribute of its package. Seen in CPython 3.11 to 3.13.
    """

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in names and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Package


def is_run_by_name() -> bool:
    """Whether this process is ``python -m lit_fedbabu.NAME``, asked while the package is imported.

    Until Python has found what ``-m`` names, ``sys.argv`` begins with ``-m``. Seen in CPython 3.11 to 3.13.
    """
    words = zip(sys.orig_argv, [*sys.orig_argv[1:], ""], strict=True)
    named = next((after if word == "-m" else word[2:] for word, after in words if word[:2] == "-m"), "")
    return sys.argv[:1] == ["-m"] and named.split(".")[:-1] == ["lit_fedbabu"]


def ignore_deprecations_among_libraries() -> None:
    """Where Python was told to make errors of warnings, let libraries that use old parts of one another be imported.

    Flower with click, Lightning with PyTorch. Seen in flwr 1.41, lightning 2.6.
    """
    if not any("error".startswith(option.partition(":")[0] or "-") for option in sys.warnoptions):
        return
    for kind in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.filterwarnings(
            "ignore",
            category=kind,
            module=r"(click|datasets|flwr|flwr_datasets|google|grpc|lightning|lightning_(fabric|utilities)|matplotlib"
            r"|pandas|pyarrow|ray|tensorboard|torch|torchmetrics|torchvision|typer)(\.|$)",
        )


def look_soon_for_objects() -> None:
    """Let Flower look for the parts of a message that it has announced after 0.1 s, and not after a second.

    Seen in flwr 1.41 and 1.42.
    """
    parts = importlib.import_module("flwr.supercore.inflatable.inflatable_utils")
    for function in (parts.pull_objects, parts.pull_and_inflate_object_from_tree):
        function.__kwdefaults__["initial_backoff"] = 0.1


@contextmanager
def loaders_made_again() -> Iterator[Callable[[Any, Any], Any]]:
    """While it lasts, loaders are made as in a fit; what is given makes one anew with a sampler, as for a device.

    It raises what Lightning would raise in a fit. Seen in lightning 2.6.
    """
    from torch.utils.data import BatchSampler, DataLoader

    fabric = importlib.import_module("lightning.fabric.utilities.data")
    data = importlib.import_module("lightning.pytorch.utilities.data")
    with fabric._replace_dunder_methods(DataLoader, "dataset"), fabric._replace_dunder_methods(BatchSampler):
        yield data._update_dataloader


def begin_where_told(trainer: Any) -> None:
    """Keep a Trainer under Slurm from a hpc_ckpt_1.ckpt in the current folder, where it would begin instead.

    Seen in lightning 2.6.
    """
    connector = importlib.import_module("lightning.pytorch.trainer.connectors.checkpoint_connector")

    class FromNoJob(connector._CheckpointConnector):  # type: ignore[misc, name-defined]
        _hpc_resume_path = None

    trainer._checkpoint_connector = FromNoJob(trainer)


def free_resources_of_ray() -> dict[str, dict[str, float]]:
    """For each node of a Ray cluster, by its id, what no task or actor has taken of its CPUs and GPUs.

    Ray's public functions give sums over all nodes. Seen in ray 2.55.
    """
    state = importlib.import_module("ray._private.state")
    free: dict[str, dict[str, float]] = state.available_resources_per_node()
    return free
