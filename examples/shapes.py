"""A folder of images of another kind, and a model of one's own: run this file, then the command it prints."""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

SHAPES = ("circle", "square", "triangle", "cross")


def build(num_classes: int, norm, channels: int) -> nn.Module:
    """A small ResNet of torchvision, cut into a body and a head; ``norm`` makes its normalization layers."""
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm)
    body.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=2, padding=1, bias=False)  # the images are small
    body.fc = nn.Identity()
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(512, num_classes)))


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """One shape of a random colour, size and place on a noisy ground, 48 x 48 pixels."""
    image = Image.fromarray(rng.integers(0, 60, (48, 48, 3), dtype=np.uint8))
    pen, colour = ImageDraw.Draw(image), tuple(rng.integers(120, 256, 3).tolist())
    half = int(rng.integers(7, 16))
    x, y = (int(place) for place in rng.integers(half + 1, 47 - half, 2))
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=colour)
    else:
        pen.line((x - half, y, x + half, y), fill=colour, width=5)
        pen.line((x, y - half, x, y + half), fill=colour, width=5)
    return image


def write(folder: Path, train: int = 120, test: int = 40, shapes: Sequence[str] = SHAPES, seed: int = 0) -> None:
    """An image folder: ``train/circle/000.png`` and so on, so many images of each shape."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for shape in shapes:
            place = folder / split / shape
            place.mkdir(parents=True)
            for number in range(count):
                draw(shape, rng).save(place / f"{number:03d}.png")


if __name__ == "__main__":
    write(Path("data/shapes"))
    print(
        f"PYTHONPATH=. {sys.executable} -m lit_fedbabu.run dataset=data/shapes model-name=examples.shapes:build"
        " num-clients=8 num-server-rounds=6 fraction-train=0.5 batch-size=20 learning-rate=0.05"
    )
