"""A saved model as a folder, in the form of model hubs: weights as safetensors, and what they mean as JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.files import write_json, write_whole
from lit_fedbabu.learning.state import not_finite

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
"""``lit_fedbabu`` (provenance) and ``hyper_parameters`` as in a checkpoint, and the digest of the weights."""


def is_saved(folder: Path) -> bool:
    """Whether the folder has a saved model."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def write(
    folder: Path, provenance: Mapping[str, Any], hyper_parameters: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write a model into a folder, which is made.

    Args:
        folder: its place; files of the same names are replaced.
        provenance: as of ``checkpoint.Checkpoint``.
        hyper_parameters: as of ``checkpoint.Checkpoint``.
        state: the model's weights by their names.

    Raises:
        RunError: weights are not finite.
    """
    from safetensors.torch import save

    if broken := not_finite(state):
        raise RunError(f"{folder} is not written: its weights are not finite, the first is {broken[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    separate = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}  # tied ones, too
    weights = save(separate, metadata={"format": "pt"})
    write_whole(folder / WEIGHTS, weights)
    known = {"library_name": "lit_fedbabu", "sha256": hashlib.sha256(weights).hexdigest()}
    content = {**known, "hyper_parameters": dict(hyper_parameters), "lit_fedbabu": dict(provenance)}
    write_json(folder / CONFIG, content)


def read(folder: Path) -> dict[str, Any]:
    """The content of a folder as that of a checkpoint: ``lit_fedbabu``, ``hyper_parameters`` and ``state_dict``.

    Raises:
        ValueError: it is damaged, or lacks a file.
    """
    from safetensors.torch import load

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"it has no {name}")
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != content["sha256"]:
        raise ValueError(f"{WEIGHTS} is damaged, or of another model than {CONFIG}")
    state: dict[str, torch.Tensor] = load(weights)
    return {**content, "state_dict": state}
