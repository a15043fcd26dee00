"""The base of a model: weights and buffers that its maker froze. It never trains, so it does not travel.

Every node makes the base itself, from the seed or from a file, and checkpoints name it. A process has it once.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import initial_weights
from lit_fedbabu.learning.state import BASE, Base, base_of
from lit_fedbabu.learning.timm_weights import with_pretrained

BUCKETS = 16
"""Numbers in a digest: sums of weights with random signs, whose distance is about that of the weights."""
NEAR = 1e-5
"""Distance, relative to their length, of bases that are the same: types of CPU draw other last bits."""

M = TypeVar("M", bound=nn.Module)


def frozen_names(model: nn.Module, inside: Collection[str] | None = None) -> frozenset[str]:
    """Names in a new model's state of what its maker has frozen.

    These are weights without ``requires_grad``, and buffers of layers of which all weights are frozen; of a layer
    without weights those around it count. Running statistics, and the vectors of spectral norm, are left out unless
    their layer is in evaluation mode, for training moves them.

    Args:
        model: that is looked at.
        inside: weights that may be taken; None: all.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    names = {name for name, weight in weights.items() if not weight.requires_grad}
    names &= names if inside is None else set(inside)
    for path, layer in model.named_modules(remove_duplicate=False) if names else ():
        moves = isinstance(layer, _NormBase | _SpectralNorm) and layer.training
        buffers = [f"{path}.{name}".lstrip(".") for name, _ in layer.named_buffers(recurse=False)]
        if buffers and not moves and names.issuperset(around := _around(path, weights)) and around:
            names |= set(buffers)
    return frozenset(names & model.state_dict().keys())


def _around(path: str, weights: Iterable[str]) -> list[str]:
    """The weights of the innermost layer, at a path or around it, that has some."""
    inside = [name for name in weights if not path or name.startswith(f"{path}.")]
    return inside if inside or not path else _around(path.rpartition(".")[0], weights)


def still(model: nn.Module, base: frozenset[str]) -> frozenset[str]:
    """Put normalization layers whose weights are in the base into evaluation mode, so that their statistics stand.

    Returns:
        The base with these statistics.
    """
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, _NormBase)] if base else []
    for path, layer in layers:
        own = [name for name, _ in layer.named_parameters(path, recurse=False)]
        if own and base.issuperset(own):
            layer.eval()
            base |= {f"{path}.{name}" for name, _ in layer.named_buffers(recurse=False)} & model.state_dict().keys()
    return base


def take_out(model: nn.Module, names: frozenset[str]) -> None:
    """Make these entries of a model's state its base: ``state_of`` has them no more."""
    setattr(model, BASE, Base(names))


def copied(module: M, base: Iterable[Tensor]) -> M:
    """A copy of a module that has the same tensors of the base, and not copies of them."""
    return copy.deepcopy(module, {id(value): value for value in base})


def digest(base: Mapping[str, Tensor]) -> str:
    """A few numbers that tell one base from another; empty where there is none."""
    if not base:
        return ""
    forms = json.dumps([(name, list(base[name].shape)) for name in sorted(base)])
    sums = np.zeros(BUCKETS)
    for name, value in base.items():
        numbers = value.detach().cpu().double().numpy().ravel()
        signs = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 2, len(numbers), np.int8)
        signed = np.where(signs, numbers, -numbers)
        sums += np.bincount(np.arange(len(numbers)) % BUCKETS, signed, BUCKETS)
    return ":".join([hashlib.sha256(forms.encode()).hexdigest()[:16], *(f"{each:.8e}" for each in sums)])


def is_same(one: str, other: str) -> bool:
    """Whether two digests are of the same base, up to rounding."""
    (form, *first), (other_form, *second) = one.split(":"), other.split(":")
    if form != other_form or len(first) != len(second):
        return False
    try:
        numbers = np.array([first, second], dtype=np.float64)
    except ValueError:  # a stranger's
        return False
    return bool(np.linalg.norm(numbers[0] - numbers[1]) <= NEAR * np.linalg.norm(numbers[0]))


def facts_of(base: Mapping[str, Tensor], config: Config) -> dict[str, Any]:
    """What a checkpoint says of the base that it lies on: its digest, its sizes, and what it was made from."""
    source = Path(config.initial_weights).name if config.initial_weights else f"the seed {config.seed}"
    sizes = {"weights": sum(value.numel() for value in base.values()), "bytes": sum(map(_size, base.values()))}
    return {"digest": digest(base), "from": source, **sizes}


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def put_under(named: nn.Module, base: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Give a new model the base that a checkpoint names, which it does not have itself.

    Args:
        named: the module by whose names a file of initial weights has them.
        base: of the model, as its module holds it.
        provenance: of the checkpoint. Those of older versions name no base.

    Raises:
        InputError: what the base is read from is missing, or the base is another one.
    """
    said = provenance.get(BASE)
    if not isinstance(said, Mapping):
        raise InputError("checkpoint", provenance.get("kind"), "has not all weights of its model, and names no base")
    config = Config.from_run_config(provenance["config"])
    if config.pretrained and not Path(config.initial_weights).is_file():
        config = with_pretrained(dataclasses.replace(config, initial_weights=""))
    if config.initial_weights:
        initial_weights.load(named, config.pinned().initial_weights)
    if not is_same(digest(base), str(said.get("digest"))):
        remedy = "is the base of the checkpoint, and what is made here of that is another one; install the version"
        raise InputError("base", said.get("from"), f"{remedy} of its code that the federation had")


def moved(model: nn.Module) -> str:
    """The first entry of a model's base that is another one than when this was first asked; empty: none."""
    known: Base = getattr(model, BASE, Base())
    now = {name: _sum(value) for name, value in base_of(model).items()}
    known.sums = known.sums or now
    return next((name for name, value in now.items() if known.sums[name] != value), "")


def _sum(value: Tensor) -> int:
    """The sum of a tensor's bits, taken for whole numbers."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}[value.element_size()]
    return int(value.detach().contiguous().view(whole).sum(dtype=torch.int64)) if value.numel() else 0
