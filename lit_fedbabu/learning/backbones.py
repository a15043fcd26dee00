"""Models whose body is a network of timm (PyTorch Image Models), named as in ``timm:resnet18``."""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_fedbabu.ground.errors import InputError, told

PREFIX = "timm:"


def parts_of_timm(
    model_name: str, num_classes: int, running: bool, channels: int, image_size: int
) -> tuple[nn.Module, nn.Module]:
    """The body and the head of a model: timm's network without its classifier, and a linear layer.

    Args:
        model_name: ``timm:`` and a name of ``timm.list_models()``, also with the tag of pretrained weights.
        num_classes: outputs of the head.
        running: whether batch norm has running statistics; else it uses those of each batch.
        channels: of the images.
        image_size: their height and width in pixels.

    Raises:
        InputError: timm is not installed, has no such model, or the model does not take these images.
    """
    timm, name = known(model_name), model_name.removeprefix(PREFIX)
    try:
        body = network(timm, name, channels, image_size)
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, channels, image_size, image_size))
        if features.ndim != 2:
            raise ValueError(f"its features are of shape {list(features.shape)}, and not a vector for each image")
    except Exception as error:  # whatever a model raises
        remedy = f"cannot be built for {channels} channels of {image_size} x {image_size} pixels: {told(error)}"
        raise InputError("model-name", model_name, remedy) from error
    if not running:
        _use_batch_statistics(body)
    return body.train(), nn.Linear(features.shape[1], num_classes)


def known(model_name: str) -> ModuleType:
    """The package timm, which has a model of this name.

    Raises:
        InputError: it is not installed, or has none.
    """
    name = model_name.removeprefix(PREFIX)
    if importlib.util.find_spec("timm") is None:
        raise InputError("model-name", model_name, "needs timm: pip install 'lit-fedbabu[timm]'")
    import timm  # takes seconds to import

    if not name or ":" in name or not timm.is_model(name):
        close = timm.list_models(f"{name[:6]}*")[:3] if name else []
        like = f"as {', '.join(close)}; " if close else ""
        raise InputError("model-name", model_name, f"timm has no such model; {like}timm.list_models() has all")
    return timm


def network(timm: ModuleType, name: str, channels: int, image_size: int, **options: Any) -> nn.Module:
    """Timm's network without its classifier, for images of these channels and, where it is of one size, of this one.

    ``options`` are as of ``timm.create_model``.
    """
    fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    size = {"img_size": image_size} if fixed else {}
    body: nn.Module = timm.create_model(name, num_classes=0, in_chans=channels, **size, **options)
    return body


def _use_batch_statistics(body: nn.Module) -> None:
    """Make batch norm use each batch's own statistics, as ``track_running_stats=False`` does."""
    for layer in body.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
