"""A saved model for other programs: ONNX, or a program of torch.export."""

import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.files import whole
from lit_fedbabu.records.classifier import Classifier

ABOUT = "lit_fedbabu.json"
"""The file with the metadata in a program of torch.export."""


Sizes = dict[int, torch.export.Dim]
"""The axes of the input that may have any size."""
About = dict[str, str]
"""Metadata."""


class Raw(nn.Module):
    """A model that takes raw images of any size.

    Args:
        model: a saved model.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.size = model.image_size, model.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, H, W, C) of uint8."""
        pixels = images.permute(0, 3, 1, 2).float()
        resized = functional.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        logits: Tensor = self.model(resized.round() / 255)
        return logits


def export(model: Classifier, form: str, path: Path, raw: bool) -> str:
    """Write the model with its normalization, for any number of images at a time.

    Args:
        model: a saved model.
        form: "onnx" or "torch" (a program that ``torch.export.load`` reads).
        path: the file; an existing one is left alone.
        raw: whether it takes raw images and resizes them.

    Returns:
        What it takes, in a few words.

    Raises:
        InputError: the file exists, cannot be written, or a package is missing.
    """
    if path.exists():
        raise InputError("--out", str(path), "exists and is not overwritten; take another name")
    if not path.parent.is_dir():
        raise InputError("--out", str(path), f"there is no folder {path.parent}")
    model, count, size = model.float(), torch.export.Dim("images"), model.image_size
    if raw:
        example = torch.randint(0, 256, (2, 3 * size // 2, 2 * size, model.channels), dtype=torch.uint8)
        sizes = {0: count, 1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
        takes = f"uint8 images (N, height, width, {model.channels}) of any size"
    else:
        example = torch.rand(2, model.channels, size, size)
        sizes = {0: count}
        takes = f"float32 images (N, {model.channels}, {size}, {size}) in 0..1"
    about = {
        "input": takes,
        "output": "logits",
        "class_names": json.dumps(model.class_names),
        "image_size": str(size),
        "colours": "grey" if model.channels == 1 else "RGB",
        "resizing": "inside" if raw else "bilinear with antialiasing, as Pillow's resize(..., BILINEAR)",
        "normalization": "inside",
        "mean": json.dumps(model.provenance["mean"]),
        "std": json.dumps(model.provenance["std"]),
    }
    try:
        with whole(path) as scratch:
            write = _onnx if form == "onnx" else _torch
            write(Raw(model).eval() if raw else model, example, sizes, about, scratch)
    except ImportError as error:
        remedy = f"needs the package {error.name}: pip install onnx onnxscript"
        raise InputError("--export", form, remedy) from None
    except OSError as error:
        raise InputError("--out", str(path), f"cannot be written: {error.strerror}") from None
    return takes


def _torch(model: nn.Module, example: Tensor, sizes: Sizes, about: About, file: Path) -> None:
    content = io.BytesIO()  # PyTorch's own writing ends the process where the disk is full
    program = torch.export.export(model, (example,), dynamic_shapes=(sizes,))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # of weights in channels_last
        torch.export.save(program, content, extra_files={ABOUT: json.dumps(about)})
    file.write_bytes(content.getvalue())


def _onnx(model: nn.Module, example: Tensor, sizes: Sizes, about: About, file: Path) -> None:
    program = torch.onnx.export(
        model, (example,), dynamo=True, dynamic_shapes=(sizes,), verbose=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    if program is None:
        raise RuntimeError("PyTorch exported no ONNX program")
    program.model.metadata_props.update(about)
    program.save(file)
