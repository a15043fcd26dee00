"""Which photograph is this patch from: patches of 96 x 96 pixels of photographs that ship with scikit-image."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "immunohistochemistry", "rocket")
SIZE = 96


def cut(photograph, split, rng):
    """One patch of a grey photograph: for training of its left two thirds, for tests of the right third."""
    height, width = photograph.shape
    border = width * 2 // 3
    first, last = (0, border - SIZE) if split == "train" else (border, width - SIZE)
    left, top = rng.integers(first, last + 1), rng.integers(0, height - SIZE + 1)
    return Image.fromarray(photograph[top : top + SIZE, left : left + SIZE])


def write(folder, train=40, test=20, photographs=PHOTOGRAPHS, seed=0):
    """An image folder, ``train/astronaut/000.png`` and so on: so many patches of each photograph."""
    rng = np.random.default_rng(seed)
    for name in photographs:
        photograph = np.asarray(Image.fromarray(getattr(data, name)()).convert("L"))
        for split, count in (("train", train), ("test", test)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                cut(photograph, split, rng).save(place / f"{number:03d}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/patches"))
