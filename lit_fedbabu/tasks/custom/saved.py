"""What a checkpoint of a user's module says: all that is read of it is its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lit_fedbabu.config import Config

if TYPE_CHECKING:
    from lightning import LightningModule

    from lit_fedbabu.tasks.custom.module import CustomModule

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
    """A new module of the task, seen as body and head, and the entries of the state by the names there.

    Raises:
        InputError: it lies on a base that cannot be had.
    """
    from lit_fedbabu.learning.base import put_under
    from lit_fedbabu.learning.state import over_base

    module = _new(provenance)
    seen, base = module.seen(state), module.base
    if base.keys() - seen.keys():
        put_under(module.named, base, provenance)
    return module.model, over_base(module.model, {**{name: value.detach() for name, value in base.items()}, **seen})


def loaded(provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]) -> LightningModule:
    """The user's LightningModule with a state as of ``model``."""
    module = _new(provenance)
    module.load(state)
    return module.lightning


def _new(provenance: Mapping[str, Any]) -> CustomModule:
    """The task's module as it begins."""
    from lit_fedbabu.learning.state import BASE
    from lit_fedbabu.tasks.custom.module import initial_module  # imports Lightning, which takes seconds
    from lit_fedbabu.tasks.custom.task import CustomTask

    of_federation = provenance["config"]
    config = Config.from_run_config(of_federation if BASE in provenance else {"task": of_federation["task"]})
    return initial_module(CustomTask(config), config.derived_seed("model"), config.precision == "64-true")
