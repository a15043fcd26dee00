"""What a checkpoint of a user's module says: all that is read of it is its weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lit_fedbabu.config import Config

NEEDED: frozenset[str] = frozenset()
OPTIONS: frozenset[str] = frozenset()


def problem(provenance: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Nothing: the hyper-parameters are the user's."""
    return ""


def names(provenance: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The task."""
    return [str(provenance["config"]["task"])]


def is_code(name: str) -> bool:
    """It is."""
    return True


def model(
    provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A new module of the task, seen as body and head, and the entries of the state by the names there."""
    from lit_fedbabu.tasks.custom.module import initial_module  # imports Lightning, which takes seconds
    from lit_fedbabu.tasks.custom.task import CustomTask

    module = initial_module(CustomTask(Config(task=str(provenance["config"]["task"]))), 0)
    return module.model, module.seen(state)
