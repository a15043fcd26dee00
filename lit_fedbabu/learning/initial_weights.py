"""Weights that a model starts from in place of random ones: read from a file, matched by name and shape."""

import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lit_fedbabu.ground.errors import InputError, some
from lit_fedbabu.learning.state import base_of, load_state, not_finite, state_of
from lit_fedbabu.learning.trainable import ADAPTER, INSIDE

KEY = "initial-weights"
PLACES = ("", "body.")
"""What the names of a model begin with: a file may be of the whole or of its body."""
NAMED = 4
"""Weights that a note names; of others it says how many there are."""


def load(model: nn.Module, path: str) -> str:
    """Load what a file has of a model's weights; the others stay as they are.

    Args:
        model: of body and head, or the LightningModule of a task.
        path: of a state dict, a .safetensors or a Lightning checkpoint.

    Returns:
        A line that says how many weights were found, and which were not.

    Raises:
        InputError: the file cannot be read, has no matrix or kernel of the model, or numbers that are not finite.
    """
    whole = {**state_of(model), **base_of(model)}
    names = {name.replace(INSIDE, "."): name for name in whole}  # under an adapter a weight has another name
    own, given = {name: whole[inner] for name, inner in names.items()}, _read(Path(path))
    own = {name: value for name, value in own.items() if ADAPTER not in name or name in given}
    ways = itertools.product(_beginnings(given), PLACES)
    named = max((_renamed(given, *way) for way in ways), key=lambda each: len(_fitting(own, each)))
    found = _fitting(own, named)
    matrices = {name.replace(INSIDE, ".") for name, weight in model.named_parameters() if weight.ndim > 1}
    if not matrices & found.keys():
        # a bias or the scale of a norm fits to many models by chance
        remedy = f"has no matrix or kernel of the model: it has {_shaped(given)}, and the model has {_shaped(own)}"
        raise InputError(KEY, path, remedy)
    if broken := not_finite(found):
        raise InputError(KEY, path, f"has weights that are not finite, the first is {broken[0]}")
    load_state(model, {**whole, **{names[name]: value for name, value in found.items()}})
    other_shape = [name for name in own if name in named and name not in found]
    parts = {
        "not there": [name for name in own if name not in named],
        "of another shape or type there": other_shape,
        "not used": [name for name in named if name not in own],
    }
    told = [f"{what}: {some(names, NAMED)}" for what, names in parts.items() if names]
    return "; ".join([f"{len(found)} of {len(own)} initial weights are from {path}", *told])


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by their names, without running code that it may contain."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"its part {damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = _state_dict(content)
        tensors = {str(name): value.to_dense() for name, value in content.items() if isinstance(value, Tensor)}
        if empty := [name for name, value in tensors.items() if value.is_meta]:
            raise ValueError(f"its {empty[0]} has a shape and no numbers")
        return tensors
    except Exception as error:  # a damaged file can make the readers raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        if isinstance(error, UnpicklingError):  # whose text is advice to run the code
            reason = "it has none, or code that is not run"
        remedy = f"is no state dict, .safetensors or checkpoint ({reason}); write one with"
        raise InputError(KEY, str(path), f"{remedy} torch.save(model.state_dict(), PATH)") from None


def _state_dict(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict in a file: its own entries, those under ``state_dict``, or the only one beside other things."""
    if isinstance(found := content.get("state_dict", content), Mapping) and any(map(torch.is_tensor, found.values())):
        return found
    inner = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    inner = {key: value for key, value in inner.items() if any(isinstance(each, Tensor) for each in value.values())}
    if len(inner) > 1:
        raise ValueError(f"it has several, {', '.join(map(str, inner))}")
    return next(iter(inner.values()), content)


def _beginnings(names: Collection[str]) -> list[str]:
    """What most names begin with, each up to a dot: "", and as of wrappers "module." and "module._orig_mod."."""
    counts = Counter(name[: dot.end()] for name in names for dot in re.finditer(r"\.", name))
    return ["", *(each for each, count in counts.items() if 2 * count > len(names))]


def _renamed(state: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + name.removeprefix(old): value for name, value in state.items()}


def _fitting(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given entries that a model has too, in the same shape, in the model's type."""
    return {
        name: given[name].to(value.dtype)
        for name, value in own.items()
        if name in given
        and given[name].shape == value.shape
        and given[name].is_floating_point() == value.is_floating_point()
    }


def _shaped(state: Mapping[str, Tensor]) -> str:
    return next((f"{name} {list(value.shape)}" for name, value in state.items()), "no tensors") + (
        f" and {len(state) - 1} more" if len(state) > 1 else ""
    )
