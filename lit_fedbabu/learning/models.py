"""Models of two parts: a ``body`` that extracts features and a ``head`` that classifies them."""

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.backbones import PREFIX, parts_of_timm
from lit_fedbabu.learning.parts import PARTS

Norm = Callable[[int], nn.Module]
"""Makes a normalization layer for a number of channels."""


def _group_norm(channels: int) -> nn.Module:
    """Of 32 groups (Wu and He 2018), or the most that divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, Norm] = {
    "batch": partial(nn.BatchNorm2d, track_running_stats=False),  # always the batch's own statistics, as in the paper
    "batch-running": nn.BatchNorm2d,  # running statistics in evaluation; they belong to the part they are in
    "group": _group_norm,  # of each image alone
}


class BodyAndHead(nn.Module):
    """A body and a head, one after the other."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


class FourConvNet(BodyAndHead):
    """The paper's 4convNet (App. A.1; ``CNNCifar`` of its official code), 115,658 parameters for 10 classes.

    Four blocks of 3x3 convolution with 64 channels, batch norm, ReLU and 2x2 max pooling, then one linear layer
    on 256 features for images of 32 pixels. Weights start as PyTorch's defaults.

    Shapes: images (N, channels, S, S) to logits (N, num_classes).
    """

    def __init__(self, num_classes: int, norm: Norm = NORMS["batch"], channels: int = 3, image_size: int = 32) -> None:
        def block(channels_in: int) -> nn.Sequential:
            convolution = nn.Conv2d(channels_in, 64, kernel_size=3, padding=1)
            # Pooling and ReLU commute, values and gradients alike, and so ReLU has a quarter of the work.
            return nn.Sequential(convolution, norm(64), nn.MaxPool2d(2), nn.ReLU())

        body = nn.Sequential(*map(block, (channels, 64, 64, 64)), nn.Flatten())
        super().__init__(body, nn.Linear(64 * (image_size // 16) ** 2, num_classes))


class MobileNet(BodyAndHead):
    """MobileNet (Howard et al. 2017, Table 1) for small images: a first stride of 1, and 32 x 32 become 2 x 2.

    A 3x3 convolution and 13 depthwise separable ones, of which four halve the size; the features are 1024.

    Shapes: images (N, channels, S, S), S any size, to logits (N, num_classes).
    """

    def __init__(self, num_classes: int, norm: Norm = NORMS["batch"], channels: int = 3) -> None:
        def convolution(channels_in: int, width: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(channels_in, width, size, stride, size // 2, groups=groups, bias=False)
            return nn.Sequential(layer, norm(width), nn.ReLU())

        layers = [convolution(channels, 32, 3)]
        channels_in = 32
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * [(512, 1)], (1024, 2),
                                 (1024, 1)):  # fmt: skip
            layers += [
                convolution(channels_in, channels_in, 3, stride, channels_in),
                convolution(channels_in, width, 1),
            ]
            channels_in = width
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(1024, num_classes))


class ResNet18(BodyAndHead):
    """ResNet-18 (He et al. 2016) for small images: torchvision's, with a 3x3 stem and no pooling after it.

    Shapes: images (N, channels, S, S), S any size, to logits (N, num_classes).
    """

    def __init__(self, num_classes: int, norm: Norm = NORMS["batch"], channels: int = 3) -> None:
        from torchvision.models import resnet18  # takes seconds to import

        body = resnet18(norm_layer=norm)
        body.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        body.maxpool = body.fc = nn.Identity()
        super().__init__(body, nn.Linear(512, num_classes))


MODELS: dict[str, Callable[..., nn.Module]] = {"FourConvNet": FourConvNet, "MobileNet": MobileNet, "ResNet18": ResNet18}

LEAST_SIZES = {"FourConvNet": 16, "MobileNet": 17, "ResNet18": 9}
"""The least height and width in pixels that each takes; FourConvNet takes its multiples."""


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def by_batch(model: nn.Module) -> list[str]:
    """The layers that normalize by the batch, so that a prediction depends on the other images of its batch."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)]
    return [name for name, layer in layers if layer.running_mean is None]


def build_model(
    model_name: str, num_classes: int, seed: int, norm: str = "batch", channels: int = 3, image_size: int = 32
) -> nn.Module:
    """The initial model: the same weights wherever the same PyTorch builds it from the same seed.

    The caller's random state is left as it was.

    Raises:
        InputError: there is no model of that name, it cannot be built or not for this size, or it is not made of a
            body and a head.
    """
    make = MODELS.get(model_name) or (None if is_timm(model_name) else _imported(model_name))
    refuse_unfit_size(model_name, image_size)
    if make is None and norm == "group":
        raise InputError("norm", norm, f"is not for {model_name}, which has layers of its own; take batch-running")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if make is None:
            running = norm == "batch-running"
            return BodyAndHead(*parts_of_timm(model_name, num_classes, running, channels, image_size))
        try:
            sized = {"image_size": image_size} if "image_size" in inspect.signature(make).parameters else {}
            model = make(num_classes, NORMS[norm], channels, **sized)
        except Exception as error:  # whatever a user's own function raises
            remedy = f"could not be built for {num_classes} classes and {channels} channels: {error!r}"
            raise InputError("model-name", model_name, remedy) from error
    parts = {name.partition(".")[0] for name in model.state_dict()} if isinstance(model, nn.Module) else set()
    if parts != set(PARTS):
        raise InputError("model-name", model_name, "must give a module whose weights are in a body and a head")
    return model


def is_timm(model_name: str) -> bool:
    """Whether the name is of a model of timm, as in ``timm:resnet18``."""
    return model_name.startswith(PREFIX)


def refuse_unfit_size(model_name: str, image_size: int) -> None:
    """Raise InputError where the images are not of a size that the model takes; known without the dataset."""
    least = LEAST_SIZES.get(model_name, 1)
    if model_name == "FourConvNet" and image_size % least:
        remedy = f"does not fit FourConvNet, which takes multiples of {least}, as 32, 64 or 224; others take any"
        raise InputError("image-size", image_size, remedy)
    if image_size < least:  # the last layers would see one pixel, of which batch norm refuses a batch of one image
        raise InputError("image-size", image_size, f"is too small for {model_name}; take {least} or more")


def in_format(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with weights of the type, in the memory format that convolutions are fastest in."""
    return model.to(dtype=dtype).to(memory_format=torch.channels_last)


def _imported(model_name: str) -> Callable[..., nn.Module]:
    """The user's own ``build(num_classes, norm, channels)``, named as in ``my_package.my_module:build``.

    It may have a fourth argument, ``image_size``.
    """
    remedy = f"must be one of {', '.join(MODELS)}, timm:NAME, or an import path as in my_package.my_module:build"
    if ":" not in model_name:
        raise InputError("model-name", model_name, remedy)
    build: Callable[..., nn.Module] = imported("model-name", model_name, remedy)
    return build
