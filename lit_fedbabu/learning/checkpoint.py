"""Checkpoints: save, read, load. Reading runs no code that a file may contain, and needs no Lightning."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_fedbabu.config import Config
from lit_fedbabu.errors import InputError, RunError
from lit_fedbabu.files import whole
from lit_fedbabu.learning import pretrained
from lit_fedbabu.learning.models import NORMS, build_model, in_format, is_timm
from lit_fedbabu.learning.own_state import users_state
from lit_fedbabu.learning.parts import PARTS, REST, select
from lit_fedbabu.learning.state import aliases, load_state, not_finite

if TYPE_CHECKING:
    from lit_fedbabu.learning.module import LitFedBABU
    from lit_fedbabu.learning.own_module import OwnModule

KINDS = ("federation", "personal", "newcomer")
"""A federation's shared model; the personal model of one of its clients; the model of someone who had no part in it."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: of the file.
        kind: one of ``KINDS``.
        provenance: ``config``, ``round``, what the task says of outputs (of images ``class_names``, ``mean``, ``std``),
            and what else is known of the weights: ``rounds`` (the history of a federation), ``client``, ``data``,
            ``running_statistics``.
        hyper_parameters: of ``LitFedBABU``, or of the user's module.
        state: the model's weights by their names, ``body...`` and ``head...``, and of a task's module ``rest...``, what
            it has in neither.
    """

    path: Path
    kind: str
    provenance: dict[str, Any]
    hyper_parameters: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def task(self) -> str:
        """The import path of the task of the user's own whose module this is; empty: it is of images."""
        return _task_of(self.provenance)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the model takes."""
        return _size(self.hyper_parameters)

    def config(self) -> Config:
        """The configuration of the federation.

        Raises:
            InputError: it has options that this version does not know.
        """
        try:
            return Config.from_run_config(self.provenance["config"])
        except InputError as error:
            remedy = f"was written by another version of lit_fedbabu: {error}"
            raise InputError("checkpoint", str(self.path), remedy) from None

    def build(self) -> nn.Module:
        """The model with its weights, in evaluation mode."""
        options = self.hyper_parameters
        dtype: torch.dtype = getattr(torch, options.get("dtype", "float32"))
        model = in_format(_new_model(options), dtype)
        load_state(model, self.state)
        model.eval()
        return model


def save(module: LitFedBABU | OwnModule, path: Path, written: Callable[[Path], None] = lambda scratch: None) -> None:
    """Write a Lightning checkpoint, whole or not at all. ``load_from_checkpoint(path)`` of the module reads it too.

    Args:
        module: whose ``provenance`` names a kind of ``KINDS``.
        path: of the file; its folder is made.
        written: as of ``files.whole``.

    Raises:
        RunError: weights are not finite.
    """
    from lit_fedbabu.learning.trainer import new_trainer  # imports Lightning, which takes seconds

    state = module.model.state_dict()
    if broken := not_finite(state):
        raise RunError(f"{path} is not written: its weights are not finite, the first is {broken[0]}")
    if module.provenance["kind"] not in KINDS:
        raise ValueError(f"kind {module.provenance['kind']!r} is none of {', '.join(KINDS)}")
    is_double = next(module.model.parameters()).dtype == torch.float64
    trainer = new_trainer(Config(precision="64-true" if is_double else "32-true"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path, written) as scratch, module.with_provenance() as lightning:
        trainer.strategy.connect(lightning)
        trainer.save_checkpoint(scratch, weights_only=True)


def read(path: Path, trusted: str = "") -> Checkpoint:
    """Read a checkpoint, without running any code that it may contain.

    Args:
        path: of the file, or of a folder as ``pretrained`` writes it.
        trusted: the import path of the user's own model or task that may be imported.

    Raises:
        InputError: the file is damaged, not of this version of the package, or names a model that is code.
    """
    try:
        content = pretrained.read(path) if path.is_dir() else _of_file(path)
        provenance, options = content["lit_fedbabu"], content.get("hyper_parameters", {})
        task = _task_of(provenance)
        missing = (
            {"config", "round"} if task else {"config", "round", "class_names", "mean", "std"}
        ) - provenance.keys()
        missing |= set() if task else {"model_name", "num_classes", "norm", "channels"} - options.keys()
        state = users_state(content)
        kind = provenance.get("kind") or _kind_of_0_1(provenance)
        size = provenance.get("config", {}).get("image-size", 32)
    except Exception as error:  # a damaged file can make the reader raise anything
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError("checkpoint", str(path), f"is not one that lit_fedbabu wrote ({reason})") from None
    if missing:
        remedy = f"was written by another version of lit_fedbabu: it does not say {', '.join(sorted(missing))}"
        raise InputError("checkpoint", str(path), remedy)
    if kind not in KINDS:
        remedy = f"was written by another version of lit_fedbabu: its kind is {kind}, not one of {', '.join(KINDS)}"
        raise InputError("checkpoint", str(path), remedy)
    if wrong := "" if task else _wrong(provenance, options):
        raise InputError("checkpoint", str(path), wrong)
    if not task and size != _size(options):
        remedy = f"is of a model for images of {_size(options)} pixels, and its configuration has image-size={size}"
        raise InputError("checkpoint", str(path), remedy)
    model_name = task or options["model_name"]
    for name in (model_name, str(provenance["config"].get("model-name", ""))):
        if ":" in name and not is_timm(name) and name != trusted and not (task and name != task):
            key = "task" if task else "model-name"
            raise InputError(key, name, f"is code that the checkpoint names; give --{key} to trust it")
    model, state = _of_task(task, state) if task else (_new_model(options), _without_prefix(state))
    if wrong := _mismatch(model, state):
        raise InputError("checkpoint", str(path), f"has weights of another model than {model_name}: {wrong}")
    if broken := not_finite(select(state, PARTS)):
        remedy = f"has weights that are not finite, the first is {broken[0]}; train again with a lower learning rate"
        raise InputError("checkpoint", str(path), remedy)
    tied = aliases(model)
    return Checkpoint(path, kind, provenance, options, {key: state[key] for key in state if key not in tied})


def load(path: Path, trusted: str = "") -> LitFedBABU:
    """The LightningModule of a checkpoint of images, in evaluation mode; arguments and errors as of ``read``."""
    from lit_fedbabu.learning.module import LitFedBABU  # imports Lightning, which takes seconds

    checkpoint = read(path, trusted)
    module = LitFedBABU(**checkpoint.hyper_parameters)
    load_state(module.model, checkpoint.state)
    module.provenance = checkpoint.provenance
    return module.eval()


def _wrong(provenance: dict[str, Any], options: dict[str, Any]) -> str:
    """What a checkpoint of images says that no model can have, by its key; empty: nothing."""
    names, channels = provenance["class_names"], options["channels"]
    fits = {
        "model_name": isinstance(options["model_name"], str),
        "num_classes": type(options["num_classes"]) is int and options["num_classes"] > 0,
        "norm": options["norm"] in NORMS if isinstance(options["norm"], str) else False,
        "channels": type(channels) is int and channels in (1, 3),
        "dtype": options.get("dtype", "float32") in ("float32", "float64"),
        "image_size": type(_size(options)) is int and _size(options) > 0,
    }
    for key in (key for key, fit in fits.items() if not fit):
        return f"has {key} = {json.dumps(options.get(key), default=str)}, which no model has"
    if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
        return "has class_names that are no list of names"
    if len(names) != options["num_classes"]:
        return f"has {len(names)} class_names, and num_classes = {options['num_classes']}"
    for key in ("mean", "std"):
        values = provenance[key]
        numbers = isinstance(values, list | tuple) and all(type(each) in (int, float) for each in values)
        if not numbers or len(values) != channels or not all(map(math.isfinite, values)):
            return (
                f"has {key} = {json.dumps(values, default=str)}, which must be a number for each of {channels} channels"
            )
    return ""


def _of_file(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"its part {damaged} is damaged")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _kind_of_0_1(provenance: dict[str, Any]) -> str:
    """The kind of a checkpoint of version 0.1, which did not say it."""
    return "federation" if "rounds" in provenance else "newcomer" if "data" in provenance else "personal"


def _task_of(provenance: dict[str, Any]) -> str:
    return str(provenance["config"].get("task", ""))


def _of_task(path: str, state: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A new module of a task, seen as body and head, and the entries of a checkpoint's state by the names there."""
    from lit_fedbabu.learning.own_module import initial_module  # imports Lightning, which takes seconds
    from lit_fedbabu.tasks.own import OwnTask

    module = initial_module(OwnTask(Config(task=path)), 0)
    return module.model, module.seen(state)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): value for name, value in state.items()}


def _new_model(options: dict[str, Any]) -> nn.Module:
    model_name, norm, channels = options["model_name"], options["norm"], options["channels"]
    return build_model(model_name, options["num_classes"], 0, norm, channels, _size(options))


def _size(options: dict[str, Any]) -> int:
    """Height and width of the images; of version 0.1, which did not say it, 32."""
    size: int = options.get("image_size", 32)
    return size


def _mismatch(model: nn.Module, state: dict[str, Tensor]) -> str:
    """The first weight that the model named in a checkpoint does not have as the checkpoint has it; empty: none."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(f"{REST}.")}
    names = [*expected, *found]
    return next((f"{name} is {found.get(name)}" for name in names if found.get(name) != expected.get(name)), "")
