"""Checkpoints: save, read, load. Reading runs no code that a file may contain, and needs no Lightning."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from lit_fedbabu.config import Config
from lit_fedbabu.config.rules import Kind, kind_of
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.files import whole
from lit_fedbabu.learning import pretrained
from lit_fedbabu.learning.parts import REST, select, without
from lit_fedbabu.learning.state import aliases, base_names, load_state, not_finite, state_of

if TYPE_CHECKING:
    from lightning import LightningModule

    from lit_fedbabu.learning.state import Learner

OUTSIDE = "lit_fedbabu_rest"
"""Where a checkpoint has what the module leaves out of its state, as buffers that are not persistent."""
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
        base: names of those that its maker froze, and that do not travel.
    """

    path: Path
    kind: str
    provenance: dict[str, Any]
    hyper_parameters: dict[str, Any]
    state: dict[str, Tensor]
    base: frozenset[str] = frozenset()

    @property
    def task(self) -> str:
        """The import path of the task of the user's own whose module this is; empty: it is of images."""
        return _task_of(self.provenance)

    @property
    def of(self) -> Kind:
        """The kind of task whose module this is."""
        return kind_of(self.task)

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
        model, _ = _saved(self.provenance).model(self.provenance, self.hyper_parameters, self.state)
        load_state(model, self.state)
        model.eval()
        return model

    def module(self) -> LightningModule:
        """The LightningModule with its weights, in evaluation mode."""
        return _saved(self.provenance).loaded(self.provenance, self.hyper_parameters, self.state).eval()


class Saved(Protocol):
    """What a module of a task's folder says of the task's checkpoints. It does not import Lightning until it must."""

    NEEDED: frozenset[str]
    """Keys of the provenance, beside those that every checkpoint has."""
    OPTIONS: frozenset[str]
    """Keys of the hyper-parameters."""

    def problem(self, provenance: Mapping[str, Any], options: Mapping[str, Any]) -> str:
        """What it says that no model can have, by its key; empty: nothing."""

    def names(self, provenance: Mapping[str, Any], options: Mapping[str, Any]) -> Sequence[str]:
        """The model, by every name that the checkpoint has for it."""

    def is_code(self, name: str) -> bool:
        """Whether a name is an import path of the user's own, which is not imported unless it is trusted."""

    def model(
        self, provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """A new model, and the entries of the checkpoint's state by the names there, with those of its base."""

    def loaded(
        self, provenance: Mapping[str, Any], options: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> LightningModule:
        """The LightningModule with such a state."""


def save(module: Learner, path: Path, written: Callable[[Path], None] = lambda scratch: None) -> None:
    """Write a Lightning checkpoint, whole or not at all. ``load_from_checkpoint(path)`` of the module reads it too.

    Args:
        module: whose ``provenance`` names a kind of ``KINDS``.
        path: of the file; its folder is made.
        written: as of ``files.whole``.

    Raises:
        RunError: weights are not finite.
    """
    from lit_fedbabu.learning.trainer import new_trainer  # imports Lightning, which takes seconds

    state = state_of(module.model)
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
    trainer.release()


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
        saved = _saved(provenance)
        missing = ({"config", "round", *saved.NEEDED} - provenance.keys()) | (saved.OPTIONS - options.keys())
        state: dict[str, Tensor] = {**content.get(OUTSIDE, {}), **content["state_dict"]}
        kind = provenance.get("kind") or _kind_of_0_1(provenance)
    except Exception as error:  # a damaged file can make the reader raise anything
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError("checkpoint", str(path), f"is not one that lit_fedbabu wrote ({reason})") from None
    if missing:
        remedy = f"was written by another version of lit_fedbabu: it does not say {', '.join(sorted(missing))}"
        raise InputError("checkpoint", str(path), remedy)
    if kind not in KINDS:
        remedy = f"was written by another version of lit_fedbabu: its kind is {kind}, not one of {', '.join(KINDS)}"
        raise InputError("checkpoint", str(path), remedy)
    if wrong := saved.problem(provenance, options):
        raise InputError("checkpoint", str(path), wrong)
    of, names = kind_of(_task_of(provenance)), saved.names(provenance, options)
    for name in names:
        if saved.is_code(name) and name != trusted:
            key = of.model.replace("_", "-")
            raise InputError(key, name, f"is code that the checkpoint names; give --{key} to trust it")
    model, state = saved.model(provenance, options, state)
    if wrong := _mismatch(model, state):
        raise InputError("checkpoint", str(path), f"has weights of another model than {names[0]}: {wrong}")
    if broken := not_finite(without(state, select(state, [REST]))):
        remedy = f"has weights that are not finite, the first is {broken[0]}; train again with a lower learning rate"
        raise InputError("checkpoint", str(path), remedy)
    tied = aliases(model)
    state = {key: state[key] for key in state if key not in tied}
    return Checkpoint(path, kind, provenance, options, state, base_names(model))


def load_module(path: str | Path, trusted: str = "") -> LightningModule:
    """The LightningModule of a saved model, in evaluation mode: a ``LitFedBABU``, or that of a task of your own.

    Args:
        path: of a checkpoint, or of the folder of a saved model.
        trusted: the import path of a model or of a task of your own that the checkpoint may import.

    Raises:
        InputError: the file is damaged, not a checkpoint of this package, names code that is not trusted, or lies on
            a base that cannot be had.
    """
    return read(Path(path), trusted).module()


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


def _saved(provenance: dict[str, Any]) -> Saved:
    """What reads checkpoints of this kind of task."""
    return cast(Saved, import_module(kind_of(_task_of(provenance)).saved.replace(":", ".")))


def _mismatch(model: nn.Module, state: dict[str, Tensor]) -> str:
    """The first weight that the model named in a checkpoint does not have as the checkpoint has it; empty: none."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items() if not name.startswith(f"{REST}.")}
    names = [*expected, *found]
    return next((f"{name} is {found.get(name)}" for name in names if found.get(name) != expected.get(name)), "")
