"""Models of two parts: a ``body`` that extracts features and a ``head`` that classifies them."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from lit_fedbabu.config import Config, ConfigError

PARTS = ("body", "head")
IMAGE_SIZE = 32
"""Height and width of the images, in pixels, that every model here takes."""


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(channels_out, track_running_stats=False),
        # Pooling and ReLU commute, values and gradients alike, and so ReLU has a quarter of the work.
        nn.MaxPool2d(2),
        nn.ReLU(),
    )


class FourConvNet(nn.Module):
    """The paper's 4convNet (App. A.1; ``CNNCifar`` of its official code), 115,658 parameters for 10 classes.

    Four blocks of 3x3 convolution with 64 channels, batch norm without running statistics, ReLU and
    2x2 max pooling, then one linear layer on 256 features. Weights start as PyTorch's defaults.

    Shapes: images (N, 3, 32, 32) to logits (N, num_classes).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        blocks = [_block(3 if i == 0 else 64, 64) for i in range(4)]
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(64 * 2 * 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


MODELS: dict[str, Callable[[int], nn.Module]] = {"FourConvNet": FourConvNet}


def build_model(model_name: str, num_classes: int, seed: int) -> nn.Module:
    """The initial model: the same weights wherever the same PyTorch builds it from the same seed.

    The caller's random state is left as it was.

    Raises:
        ConfigError: there is no model of that name.
    """
    if model_name not in MODELS:
        raise ConfigError("model-name", model_name, f"must be one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[model_name](num_classes)


def model_seed(config: Config) -> int:
    """The seed that every client and the server build the initial model from."""
    return config.derived_seed("model")


def parts_of(part: str) -> tuple[str, ...]:
    """The parts that a mode names: "full" is both, "none" is none, "body" and "head" are themselves."""
    return {"full": PARTS, "none": ()}.get(part, (part,))


def select(state: Mapping[str, Tensor], parts: Iterable[str]) -> dict[str, Tensor]:
    """The entries of a model's state that lie in the given parts, in the state's order."""
    prefixes = tuple(f"{part}." for part in parts)
    return {name: value for name, value in state.items() if name.startswith(prefixes)}
