"""What of a user's LightningModule lies in neither body nor head, and what its checkpoints say of it."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_fedbabu.learning.checkpoint import OUTSIDE
from lit_fedbabu.learning.parts import REST


def rest_of(module: nn.Module, parts: nn.Module) -> dict[str, Tensor]:
    """What a module has beside the state of its body and head, by its names behind ``rest.``, first names of tied ones.

    These are weights that its maker froze, buffers outside the parts, and all that are not persistent.

    Args:
        module: the user's.
        parts: its body and head.
    """
    seen = {id(value) for value in parts.state_dict(keep_vars=True).values()}
    named = [*module.named_parameters(), *module.named_buffers()]
    return {f"{REST}.{name}": value for name, value in named if id(value) not in seen}


def load_rest(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module what a state has behind ``rest.``; what that does not have stays as it is.

    Raises:
        ValueError: a weight has another shape, or the module has no such layer.
    """
    for name, value in state.items():
        path, _, last = name.removeprefix(f"{REST}.").rpartition(".")
        try:
            layer = module.get_submodule(path)
            own = getattr(layer, last)
        except AttributeError:
            raise ValueError(f"{name} is not there") from None
        if isinstance(own, nn.Parameter) or own.shape == value.shape:
            if own.shape != value.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}")
            own.data = value.to(own).clone()  # not in place: a buffer may be an expanded view
        else:
            setattr(layer, last, value.to(own).clone())


def add_rest(checkpoint: dict[str, Any], module: nn.Module, base: Collection[int]) -> None:
    """Add to a checkpoint the weights and buffers that its own ``state_dict`` lacks, but for the base, by its ids."""
    named, state = [*module.named_parameters(), *module.named_buffers()], checkpoint["state_dict"]
    if lacking := {name: value.detach().cpu() for name, value in named if name not in state and id(value) not in base}:
        checkpoint[OUTSIDE] = lacking


def kept(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that can be read without running code, with numbers of NumPy as those of Python."""
    plain = {name: _plain(value) for name, value in parameters.items()}
    return {name: value for name, value in plain.items() if is_safe(value)}


def is_safe(value: Any) -> bool:
    """Whether a checkpoint can have a value: PyTorch reads it without running code."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # whatever an object of the user's raises
        return False
    return True


def _plain(value: Any) -> Any:
    """Numbers of NumPy and tables of OmegaConf as those of Python."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value).__module__.startswith("omegaconf."):
        return sys.modules["omegaconf"].OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
