"""What a checkpoint of images says: classes, normalization, and the options that its model is made by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_fedbabu.config.options import is_trainable
from lit_fedbabu.learning.assembly import classifier
from lit_fedbabu.learning.base import put_under
from lit_fedbabu.learning.models import NORMS, is_timm
from lit_fedbabu.learning.state import base_of, load_state, over_base

if TYPE_CHECKING:
    from lightning import LightningModule

NEEDED = frozenset({"class_names", "mean", "std"})
OPTIONS = frozenset({"model_name", "num_classes", "norm", "channels"})


def problem(provenance: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What it says that no model can have, by its key; empty: nothing."""
    names, channels = provenance["class_names"], options["channels"]
    fits = {
        "model_name": isinstance(options["model_name"], str),
        "num_classes": type(options["num_classes"]) is int and options["num_classes"] > 0,
        "norm": options["norm"] in NORMS if isinstance(options["norm"], str) else False,
        "channels": type(channels) is int and channels in (1, 3),
        "dtype": options.get("dtype", "float32") in ("float32", "float64"),
        "image_size": type(size_of(options)) is int and size_of(options) > 0,
        "trainable": is_trainable(options.get("trainable", "all")),
        "head": options.get("head", "") in ("", "etf"),
        "model_seed": type(options.get("model_seed", 0)) is int,
        "neighbors": _are_neighbors(options.get("neighbors", ())),
    }
    for key in (key for key, fit in fits.items() if not fit):
        return f"has {key} = {json.dumps(options.get(key), default=str)}, which no model has"
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        return "has class_names that are no list of names"
    if len(names) != options["num_classes"]:
        return f"has {len(names)} class_names, and num_classes = {options['num_classes']}"
    for key in ("mean", "std"):
        values = provenance[key]
        numbers = isinstance(values, list | tuple) and all(type(each) in (int, float) for each in values)
        if not numbers or len(values) != channels or not all(map(math.isfinite, values)):
            return (
                f"has {key} = {json.dumps(values, default=str)}, which must be a number for each of {channels} channels"
            )
    size = provenance["config"].get("image-size", size_of({}))
    if size != size_of(options):
        return f"is of a model for images of {size_of(options)} pixels, and its configuration has image-size={size}"
    return ""


def names(provenance: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The model, also as the configuration calls it."""
    return [options["model_name"], str(provenance["config"].get("model-name", ""))]


def is_code(name: str) -> bool:
    """Whether a model's name is an import path of the user's own."""
    return ":" in name and not is_timm(name)


def model(
    provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A new model, and the weights by their names there.

    Raises:
        InputError: it lies on a base that cannot be had.
    """
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    neighbors = options.get("neighbors", ())
    voting = _fit(neighbors, options["num_classes"], weights)
    made = classifier({**options, "neighbors": neighbors if voting else ()})
    base = base_of(made)
    if base.keys() - weights.keys():
        put_under(made, base, provenance)
    return made, over_base(made, weights)


def loaded(provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]) -> LightningModule:
    """A classifier with a state as of ``model``."""
    from lit_fedbabu.learning.module import LitFedBABU  # imports Lightning, which takes seconds

    module = LitFedBABU(**options)
    load_state(module.model, state)
    module.provenance = dict(provenance)
    return module


def size_of(options: Mapping[str, Any]) -> int:
    """Height and width of the images in pixels; of version 0.1, which did not say it, 32."""
    size: int = options.get("image_size", 32)
    return size


def _fit(sizes: Sequence[int], num_classes: int, weights: Mapping[str, Tensor]) -> bool:
    """Whether the stored features are as many as it says, of classes that there are."""
    stored, labels = (weights.get(f"head.{name}", torch.empty(0)) for name in ("stored", "labels"))
    of_classes = labels.numel() > 0 and bool(((labels >= 0) & (labels < num_classes)).all())
    return list(stored.shape) == list(sizes[1:]) and of_classes


def _are_neighbors(sizes: Any) -> bool:
    """Whether these are none, or three numbers above 0."""
    numbers = isinstance(sizes, list | tuple) and all(type(each) is int and each > 0 for each in sizes)
    return numbers and len(sizes) in (0, 3)
