"""``lit-fedbabu predict MODEL IMAGE...``: classes of images by a saved model, or the model exported."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.completion import Parser, bodies, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.printing import in_line, say, waiting

if TYPE_CHECKING:
    from lit_fedbabu.records.classifier import Classifier
    from lit_fedbabu.tasks.preprocessing import Named

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu predict",
        description="Print class and probability of images by a saved model, or write the model for other programs."
        " What cannot be read as an image is told, and the others are predicted; the exit status is then 2.",
    )
    what = "a .ckpt file, the folder of a saved model, or a run's folder with saved personal models"
    parser.add_argument("model", type=Path, metavar="MODEL", help=what)
    what = "a file, a folder, a pattern as in 'photos/*.png', or - for an image on standard input"
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=what)
    parser.add_argument("--client", metavar="CLIENT", help="of a run's folder, whose model predicts: number or name")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, with all probabilities")
    parser.add_argument("--export", choices=SUFFIXES, help="write the model as ONNX, or as a program of torch.export")
    what = "with --export: take raw images of any size, resizing inside; else of the model's size, between 0 and 1"
    parser.add_argument("--raw", action="store_true", help=what)
    parser.add_argument("--out", type=Path, help="the file of --export; otherwise beside the model")
    parser.add_argument("--model-name", default="", help="the checkpoint's model if it is an import path: it is run")
    complete(parser, model=bodies)
    arguments = parser.parse_intermixed_args(argv)
    if not (arguments.images or arguments.export):
        raise InputError("IMAGE", "", "give one image or more, or --export")
    if arguments.raw and not arguments.export:
        raise InputError("--raw", True, "is for --export; images that are predicted are resized anyway")
    if arguments.out and not arguments.export:
        raise InputError("--out", str(arguments.out), "is for --export; predictions are printed")
    if arguments.json and not arguments.images:
        raise InputError("--json", True, "is for images; give one or more")
    with waiting("loading PyTorch, then model and images"):
        return _predict(arguments)


def _predict(arguments: argparse.Namespace) -> int:
    from lit_fedbabu.records.classifier import load_model  # these import PyTorch: first the cheap checks
    from lit_fedbabu.records.saved import find_model
    from lit_fedbabu.tasks.preprocessing import read_named

    path, note = find_model(arguments.model, arguments.client)
    model = load_model(path, arguments.model_name)
    named = read_named(arguments.images, model.channels, model.image_size)
    if arguments.images and not named.names:
        for refused in named.refused[:-1]:
            say(f"error: {refused}", sys.stderr)
        raise named.refused[-1]
    if arguments.export:
        suffix = SUFFIXES[arguments.export]
        out = arguments.out or (path / f"model{suffix}" if path.is_dir() else path.with_suffix(suffix))
        from lit_fedbabu.records.export import export

        say(f"wrote {out}: {export(model, arguments.export, out, arguments.raw)}")
    for each in (note, *named.notes, *_notes(model)):
        if each:
            say(f"note: {each}", sys.stderr)
    if named.names:
        _print(model, named, arguments.json)
    for refused in named.refused:
        say(f"error: {refused}", sys.stderr)
    return 2 if named.refused else 0


def _print(model: "Classifier", named: "Named", as_json: bool) -> None:
    """A line for each image, in the order in which they were named."""
    names = model.class_names
    for image, row in zip(named.names, model.probabilities_of(named.images).tolist(), strict=True):
        best = max(range(len(names)), key=row.__getitem__)
        row_of_image: dict[str, Any] = {"image": image, "class": names[best], "probability": row[best]}
        if as_json:
            say(json.dumps({**row_of_image, "probabilities": dict(zip(names, row, strict=True))}))
        else:
            say(f"{in_line(str(image))}  {in_line(names[best])}  {row[best]:.4f}")


def _notes(model: "Classifier") -> Iterator[str]:
    """What a person should know of the model's predictions."""
    from lit_fedbabu.algorithms.table import shared_of
    from lit_fedbabu.learning.parts import PRIVATE, parts_of

    if model.kind == "federation" and "head" not in parts_of(shared_of(model.provenance)):
        yield "this is a federation's body under a head that nobody trained; fine-tune it first"
    if model.kind == "federation" and model.provenance.get(PRIVATE):
        yield "its normalization layers are as they began, for each client keeps its own; fine-tune it first"
    if model.normalizes_by_batch:
        yield (
            "this model normalizes by the batch, so that each prediction depends on the other images given;"
            " models that finetune saves do not"
        )


if __name__ == "__main__":
    sys.exit(main())
