"""A model's state, in which tied weights are one tensor, and which is without the model's base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

if TYPE_CHECKING:
    import lightning as L

NORMALIZATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Normalization layers; ``_NormBase`` is every batch and instance norm."""

NEAR = 1e-4
"""Relative difference of weights that the same code makes: threads and the type of CPU may change the last bits."""

BASE = "base"
"""Attribute of a model with its ``Base``, and where the provenance of a checkpoint tells of it."""


@dataclasses.dataclass
class Base:
    """What of a model its maker froze. Copies of the model have the same one, and the same tensors for it.

    Args:
        names: in the model's whole state.
        sums: of their bits, as they were when training was first seen.
    """

    names: frozenset[str] = frozenset()
    sums: dict[str, int] = dataclasses.field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


VIEWS: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Of users' modules that are trained: each as a body and a head."""


class Learner(Protocol):
    """What is trained: its ``model`` has the weights, under names that begin with ``body.`` or ``head.``."""

    model: nn.Module
    provenance: dict[str, Any]
    """Where the weights come from, and what inputs and outputs mean. It travels in checkpoints."""

    @property
    def named(self) -> nn.Module:
        """The module by whose names a file of initial weights has them."""

    @property
    def own_rate(self) -> float:
        """The learning rate that it brings; 0: none."""

    @property
    def rest(self) -> dict[str, Tensor]:
        """What it has in no part, by names behind ``rest.``."""

    @property
    def base(self) -> dict[str, Tensor]:
        """What its maker froze, by names of the model, and behind ``rest.`` of what lies in no part."""

    def copy(self) -> Self:
        """Another one with the same weights, of which those of the base are shared."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Lay a state, or some of it, over its own; raises ValueError where it is of another model."""

    def with_provenance(self) -> AbstractContextManager[L.LightningModule]:
        """The LightningModule that a checkpoint is written of, which while the block lasts adds the provenance."""


def view_of(module: nn.Module) -> nn.Module:
    """The body and head of a module that a Trainer is given: of a user's module as its task says."""
    seen = VIEWS.get(module)
    return module.get_submodule("model") if seen is None else seen


def aliases(model: nn.Module) -> dict[str, str]:
    """Of tied weights, which have several names in a model's state: each later name, and the first one."""
    first: dict[int, str] = {}
    named = model.state_dict(keep_vars=True)
    return {name: first[id(value)] for name, value in named.items() if first.setdefault(id(value), name) != name}


def places_of(module: nn.Module) -> dict[str, str]:
    """Where a module holds weights and buffers, as ``functional_call`` takes them: each place, and its tensor's name.

    The name is that of ``named_parameters`` or ``named_buffers``. A layer under two names is one place: PyTorch would
    not put back what it has replaced twice.
    """
    names = {id(value): name for name, value in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{path}.{leaf}".lstrip("."): names[id(value)]
        for path, layer in module.named_modules()
        for own in (layer.named_parameters, layer.named_buffers)
        for leaf, value in own(recurse=False, remove_duplicate=False)
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without its base, and with every tensor under one name, the first that it has."""
    left_out = aliases(model).keys() | base_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in left_out}


def base_names(model: nn.Module) -> frozenset[str]:
    """Names in a model's whole state of its base."""
    found: Base = getattr(model, BASE, Base())
    return found.names


def over_base(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with what it lacks of the model's base, also under the other names of tied weights."""
    base = base_names(model)
    return {**{name: value for name, value in model.state_dict().items() if name in base}, **state}


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """The base of a model, as its module holds it, with every tensor under one name."""
    if not (base := base_names(model)):  # as of most models, and asked before and after every fit
        return {}
    own = base - aliases(model).keys()
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if name in own}


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the entries of a state that are not finite."""
    return [name for name, value in state.items() if not value.isfinite().all()]


def first_other(before: Mapping[str, Any], after: Mapping[str, Any], near: float = NEAR) -> str:
    """The first of the tensors or numbers in both that is not the same, up to a relative difference; empty: none."""

    def is_same(one: Any, other: Any) -> bool:
        first, second = (torch.as_tensor(each).detach().cpu().double() for each in (one, other))
        return first.shape == second.shape and first.allclose(second, rtol=near, atol=near / 100, equal_nan=True)

    return next((name for name in before if name in after and not is_same(before[name], after[name])), "")


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state as of ``state_of``, or one that also has the base, or the other names of tied weights.

    Raises:
        ValueError: it is not a state of this model.
    """
    wrong = model.load_state_dict(state, strict=False)
    if missing := sorted(set(wrong.missing_keys) - set(aliases(model)) - base_names(model)):
        raise ValueError(f"a state without {', '.join(missing)}")
    if wrong.unexpected_keys:
        raise ValueError(f"a state with {', '.join(wrong.unexpected_keys)}, which the model does not have")


def norm_names(model: nn.Module) -> frozenset[str]:
    """Names of the weights and statistics of normalization layers in a model's state."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, NORMALIZATIONS)}
    return frozenset(f"{path}.{name}" for path, module in layers.items() for name in module.state_dict())
