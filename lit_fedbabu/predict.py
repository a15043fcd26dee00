"""``python -m lit_fedbabu.predict CHECKPOINT IMAGE...``: classes of images by a saved model, or the model exported."""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.errors import InputError, one_line_errors

if TYPE_CHECKING:
    from lit_fedbabu.learning.classifier import Classifier

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@one_line_errors
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
        raise InputError("IMAGE", "", "give one image or more, or --export")
    from lit_fedbabu.algorithms.table import ALGORITHMS  # these import PyTorch: first the cheap checks
    from lit_fedbabu.learning.classifier import load_model
    from lit_fedbabu.learning.parts import parts_of
    from lit_fedbabu.tasks.preprocessing import read_images

    model = load_model(arguments.checkpoint, arguments.model_name)
    images = read_images(arguments.images, model.channels, model.image_size) if arguments.images else None
    if arguments.export:
        path = arguments.out or arguments.checkpoint.with_suffix(SUFFIXES[arguments.export])
        export(model, arguments.export, path)
        shape = f"(N, {model.channels}, {model.image_size}, {model.image_size})"
        print(f"wrote {path}: float32 images {shape} in 0..1")
    names = model.class_names
    rows = [] if images is None else model.probabilities_of_pixels(images).tolist()
    for path, row in zip(arguments.images, rows, strict=True):
        best = max(range(len(names)), key=row.__getitem__)
        row_of_image: dict[str, Any] = {"image": str(path), "class": names[best], "probability": row[best]}
        if arguments.json:
            print(json.dumps({**row_of_image, "probabilities": dict(zip(names, row, strict=True))}))
        else:
            print(f"{path}  {names[best]}  {row[best]:.4f}")
    algorithm = ALGORITHMS[model.provenance["config"]["algorithm"]]
    if model.kind == "federation" and "head" not in parts_of(algorithm.shared):
        print("note: this is a federation's body under a head that nobody trained; fine-tune it first", file=sys.stderr)
    if model.normalizes_by_batch:
        print(
            "note: this model normalizes by the batch, so that each prediction depends on the other images given;"
            " fine-tune with --running-statistics for one that does not",
            file=sys.stderr,
        )
    return 0


def export(model: "Classifier", form: str, path: Path) -> None:
    """Write the model with its normalization, for any number of images at a time.

    Args:
        model: a saved model.
        form: "onnx" or "torch" (a program that ``torch.export.load`` reads).
        path: the file; an existing one is left alone.

    Raises:
        InputError: the file exists, cannot be written, or a package is missing.
    """
    import torch

    if path.exists():
        raise InputError("--out", str(path), "exists and is not overwritten; take another name")
    if not path.parent.is_dir():
        raise InputError("--out", str(path), f"there is no folder {path.parent}")
    model = model.float()
    example = torch.rand(2, model.channels, model.image_size, model.image_size)
    sizes = ({0: torch.export.Dim("images")},)
    scratch = path.with_name(f".{path.name}")
    try:
        if form == "torch":
            content = io.BytesIO()  # PyTorch's own writing ends the process where the disk is full
            torch.export.save(torch.export.export(model, (example,), dynamic_shapes=sizes), content)
            scratch.write_bytes(content.getvalue())
        else:
            program = torch.onnx.export(
                model, (example,), dynamo=True, dynamic_shapes=sizes, verbose=False,
                input_names=["images"], output_names=["logits"],
            )  # fmt: skip
            if program is None:
                raise RuntimeError("PyTorch exported no ONNX program")
            program.save(scratch)
        scratch.replace(path)
    except ImportError as error:
        remedy = f"needs the package {error.name}: pip install onnx onnxscript"
        raise InputError("--export", form, remedy) from None
    except OSError as error:
        raise InputError("--out", str(path), f"cannot be written: {error.strerror}") from None
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
