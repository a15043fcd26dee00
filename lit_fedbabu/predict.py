"""``python -m lit_fedbabu.predict MODEL IMAGE...``: classes of images by a saved model, or the model exported."""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.errors import InputError, one_line_errors

if TYPE_CHECKING:
    from lit_fedbabu.records.classifier import Classifier
    from lit_fedbabu.tasks.preprocessing import Named

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lit_fedbabu.predict",
        description="Print class and probability of images by a saved model, or write the model for other programs."
        " What cannot be read as an image is told, and the others are predicted; the exit status is then 2.",
    )
    what = "a .ckpt file, the folder of a saved model, or a run's folder with saved personal models"
    parser.add_argument("model", type=Path, metavar="MODEL", help=what)
    what = "a file, a folder, a pattern as in 'photos/*.png', or - for an image on standard input"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=what)
    parser.add_argument("--client", type=int, metavar="NUMBER", help="of a run's folder, whose model predicts")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, with all probabilities")
    parser.add_argument("--export", choices=SUFFIXES, help="write the model as ONNX, or as a program of torch.export")
    parser.add_argument("--out", type=Path, help="the file of --export; otherwise beside the model")
    parser.add_argument("--model-name", default="", help="the checkpoint's model if it is an import path: it is run")
    arguments = parser.parse_intermixed_args(argv)
    if not (arguments.images or arguments.export):
        raise InputError("IMAGE", "", "give one image or more, or --export")
    from lit_fedbabu.records.classifier import load_model  # these import PyTorch: first the cheap checks
    from lit_fedbabu.records.saved import find_model
    from lit_fedbabu.tasks.preprocessing import IMAGE_SIZE, read_named

    path, note = find_model(arguments.model, arguments.client)
    model = load_model(path, arguments.model_name)
    named = read_named(arguments.images, model.channels)
    if arguments.images and not named.names:
        for refused in named.refused[:-1]:
            print(f"error: {refused}", file=sys.stderr)
        raise named.refused[-1]
    if arguments.export:
        out = arguments.out or path.with_suffix(SUFFIXES[arguments.export])
        export(model, arguments.export, out)
        print(f"wrote {out}: float32 images (N, {model.channels}, {IMAGE_SIZE}, {IMAGE_SIZE}) in 0..1")
    if named.names:
        _print(model, named, arguments.json)
    for each in (note, *named.notes, *_notes(model)):
        if each:
            print(f"note: {each}", file=sys.stderr)
    for refused in named.refused:
        print(f"error: {refused}", file=sys.stderr)
    return 2 if named.refused else 0


def _print(model: "Classifier", named: "Named", as_json: bool) -> None:
    """A line for each image, in the order in which they were named."""
    names = model.class_names
    for image, row in zip(named.names, model.probabilities_of(named.images).tolist(), strict=True):
        best = max(range(len(names)), key=row.__getitem__)
        row_of_image: dict[str, Any] = {"image": image, "class": names[best], "probability": row[best]}
        if as_json:
            print(json.dumps({**row_of_image, "probabilities": dict(zip(names, row, strict=True))}))
        else:
            print(f"{image}  {names[best]}  {row[best]:.4f}")


def _notes(model: "Classifier") -> Iterator[str]:
    """What a person should know of the model's predictions."""
    from lit_fedbabu.algorithms.table import ALGORITHMS
    from lit_fedbabu.learning.parts import parts_of

    algorithm = ALGORITHMS[model.provenance["config"]["algorithm"]]
    if model.kind == "federation" and "head" not in parts_of(algorithm.shared):
        yield "this is a federation's body under a head that nobody trained; fine-tune it first"
    if model.normalizes_by_batch:
        yield (
            "this model normalizes by the batch, so that each prediction depends on the other images given;"
            " fine-tune with --running-statistics for one that does not"
        )


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

    from lit_fedbabu.tasks.preprocessing import IMAGE_SIZE

    if path.exists():
        raise InputError("--out", str(path), "exists and is not overwritten; take another name")
    if not path.parent.is_dir():
        raise InputError("--out", str(path), f"there is no folder {path.parent}")
    model = model.float()
    example = torch.rand(2, model.channels, IMAGE_SIZE, IMAGE_SIZE)
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
