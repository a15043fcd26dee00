"""``python -m lit_fedbabu.predict CHECKPOINT IMAGE...``: classes of images by a saved model, or the model exported."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lit_fedbabu import sources
from lit_fedbabu.algorithms import ALGORITHMS
from lit_fedbabu.batches import normalize, with_channels
from lit_fedbabu.checkpoint import read_content
from lit_fedbabu.config import ConfigError, told_in_one_line
from lit_fedbabu.models import IMAGE_SIZE, parts_of
from lit_fedbabu.module import LitFedBABU

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


class Deployed(nn.Module):
    """The model with its normalization: what is exported.

    Shapes: images (N, C, 32, 32) in 0..1 to logits (N, num_classes).

    Args:
        module: a saved model.
    """

    def __init__(self, module: LitFedBABU) -> None:
        super().__init__()
        self.model = module.model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(module.about[name], dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


@told_in_one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.predict",
        description="Print class and probability of images by a saved model, or write the model for other programs.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt file")
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, with all probabilities")
    parser.add_argument("--export", choices=SUFFIXES, help="write the model as ONNX, or as a program of torch.export")
    parser.add_argument("--out", type=Path, help="the file of --export; otherwise beside the checkpoint")
    parser.add_argument("--model-name", default="", help="the checkpoint's model if it is an import path: it is run")
    arguments = parser.parse_intermixed_args(argv)
    if not (arguments.images or arguments.export):
        raise ConfigError("IMAGE", "", "give one image or more, or --export")
    module = load(arguments.checkpoint, arguments.model_name)
    images = read_images(arguments.images, len(module.about["mean"])) if arguments.images else None
    if arguments.export:
        path = arguments.out or arguments.checkpoint.with_suffix(SUFFIXES[arguments.export])
        export(module, arguments.export, path)
        print(f"wrote {path}: float32 images (N, {len(module.about['mean'])}, {IMAGE_SIZE}, {IMAGE_SIZE}) in 0..1")
    if images is None:
        return 0
    names = module.about["class_names"]
    for path, row in zip(arguments.images, probabilities(module, images).tolist(), strict=True):
        best = max(range(len(names)), key=row.__getitem__)
        told: dict[str, Any] = {"image": str(path), "class": names[best], "probability": row[best]}
        if arguments.json:
            print(json.dumps({**told, "probabilities": dict(zip(names, row, strict=True))}))
        else:
            print(f"{path}  {names[best]}  {row[best]:.4f}")
    about = module.about
    if "rounds" in about and "head" not in parts_of(ALGORITHMS[about["config"]["algorithm"]].shared):
        print("note: this is a federation's body under a head that nobody trained; fine-tune it first", file=sys.stderr)
    if module.hparams.norm == "batch":
        print(
            "note: this model normalizes by the batch, so that each prediction depends on the other images given;"
            " fine-tune with --running-statistics for one that does not",
            file=sys.stderr,
        )
    return 0


def load(path: Path, trusted_model: str = "") -> LitFedBABU:
    """A saved model in evaluation mode, read without running any code that the file may contain.

    Raises:
        ConfigError: as ``checkpoint.read_content``.
    """
    content = read_content(path, trusted_model)
    module = LitFedBABU(**content["hyper_parameters"])
    module.load_state_dict(content["state_dict"])
    module.about = content["lit_fedbabu"]
    return module.eval()


def read_images(paths: Sequence[Path], channels: int) -> np.ndarray:
    """Image files as (N, 32, 32, C) of uint8, resized as training images are.

    Raises:
        ConfigError: a file is missing or no image.
    """
    rows = []
    for path in paths:
        try:
            with Image.open(path) as image:
                rows.append(with_channels(sources.to_array(image)[None], channels))
        except (OSError, SyntaxError, ValueError) as error:
            reason = "is no file" if not path.is_file() else f"cannot be read as an image: {error}"
            raise ConfigError("IMAGE", str(path), reason) from None
    return np.concatenate(rows)


def probabilities(module: LitFedBABU, images: np.ndarray) -> Tensor:
    """Probabilities (N, num_classes) of images (N, 32, 32, C) of uint8, all of them in one batch."""
    dtype = next(module.model.parameters()).dtype
    with torch.inference_mode():
        batch = normalize(torch.from_numpy(images), module.about["mean"], module.about["std"], dtype)
        return module(batch).softmax(1)


def export(module: LitFedBABU, form: str, path: Path) -> None:
    """Write the model with its normalization, for any number of images at a time.

    Args:
        module: a saved model, in evaluation mode.
        form: "onnx" or "torch" (a program that ``torch.export.load`` reads).
        path: the file; an existing one is left alone.

    Raises:
        ConfigError: the file exists, cannot be written, or a package is missing.
    """
    if path.exists():
        raise ConfigError("--out", str(path), "exists and is not overwritten; take another name")
    if not path.parent.is_dir():
        raise ConfigError("--out", str(path), f"there is no folder {path.parent}")
    model = Deployed(module).float().eval()
    example = torch.rand(2, len(module.about["mean"]), IMAGE_SIZE, IMAGE_SIZE)
    sizes = ({0: torch.export.Dim("images")},)
    scratch = path.with_name(f".{path.name}")
    try:
        if form == "torch":
            torch.export.save(torch.export.export(model, (example,), dynamic_shapes=sizes), scratch)
        else:
            names = {"input_names": ["images"], "output_names": ["logits"]}
            torch.onnx.export(model, (example,), dynamo=True, dynamic_shapes=sizes, verbose=False, **names).save(
                scratch
            )
        scratch.replace(path)
    except ImportError as error:
        remedy = f"needs the package {error.name}: pip install onnx onnxscript"
        raise ConfigError("--export", form, remedy) from None
    except OSError as error:
        raise ConfigError("--out", str(path), f"cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
