"""A LightningModule of the user's own, seen as a body and a head."""

from __future__ import annotations

import json
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lit_fedbabu.ground.errors import told
from lit_fedbabu.learning.base import copied, frozen_names, still
from lit_fedbabu.learning.parts import PARTS, REST, parts_of, select, without
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import BASE, VIEWS, Base, base_of, load_state, state_of
from lit_fedbabu.learning.trainable import restrict
from lit_fedbabu.tasks.custom import state as outside
from lit_fedbabu.tasks.custom.data import foreign

if TYPE_CHECKING:
    from lit_fedbabu.tasks.custom.task import CustomTask

RATES = ("learning_rate", "lr")
"""Hyper-parameters of the user's module that a learning rate is written to."""


class CustomModule:
    """The user's LightningModule, seen as a body and a head.

    Args:
        lightning: the user's module.
        task: which says what of it is body and head.
        base: what the user's module froze when it was made; None: what is frozen now.

    Raises:
        InputError: a part that is named has no weights, or a weight lies in no part.
    """

    provenance: dict[str, Any]

    def __init__(self, lightning: L.LightningModule, task: CustomTask, base: Base | None = None) -> None:
        self.lightning = lightning
        self.task = task
        self.provenance = {}
        self.model = _view(lightning, task)
        setattr(self.model, BASE, base or Base(_frozen(lightning, self.model, task)))
        self._given: dict[str, bool] = {}
        VIEWS[lightning] = self.model

    @property
    def base(self) -> dict[str, Tensor]:
        """What its maker froze, also of what lies in no part, but for buffers there that are not persistent."""
        held = {id(value) for value in self._whole.values()}
        return {**base_of(self.model), **{name: value for name, value in self.rest.items() if id(value) in held}}

    def copy(self) -> CustomModule:
        return CustomModule(copied(self.lightning, self.base.values()), self.task, getattr(self.model, BASE))

    @property
    def _whole(self) -> dict[str, Tensor]:
        """The state of the user's module, also what its own ``state_dict`` leaves out."""
        return nn.Module.state_dict(self.lightning, keep_vars=True)

    @property
    def named(self) -> nn.Module:
        """The user's module."""
        return self.lightning

    @property
    def own_rate(self) -> float:
        """The learning rate among the module's own hyper-parameters; 0: it has none."""
        given = (self.lightning.hparams.get(key) for key in RATES)
        return next((float(value) for value in given if _is_number(value)), 0.0)

    def set_rate(self, rate: float) -> None:
        """Write a learning rate to the hyper-parameter, and to an attribute of that name; 0 leaves them."""
        for key in RATES if rate else ():
            if key in self.lightning.hparams:
                self.lightning.hparams[key] = rate
                if _is_number(getattr(self.lightning, key, None)):
                    setattr(self.lightning, key, rate)

    @contextmanager
    def with_provenance(self) -> Iterator[L.LightningModule]:
        """The user's module, which while the block lasts adds the provenance and all of its state to checkpoints.

        Of its hyper-parameters those are left out that reading would have to run code for.
        """
        users = self.lightning.on_save_checkpoint

        def add(checkpoint: dict[str, Any]) -> None:
            users(checkpoint)
            base = {id(value) for value in self.base.values()}
            for name in [name for name, value in self._whole.items() if id(value) in base]:
                checkpoint["state_dict"].pop(name, None)  # the module may leave it out itself
            checkpoint["hyper_parameters"] = outside.kept(checkpoint.get("hyper_parameters", {}))
            outside.add_rest(checkpoint, self.lightning, base)
            checkpoint["lit_fedbabu"] = json.loads(json.dumps(self.provenance))

        self.lightning.on_save_checkpoint = add  # type: ignore[method-assign]
        try:
            yield self.lightning
        finally:
            del self.lightning.on_save_checkpoint

    @property
    def rest(self) -> dict[str, Tensor]:
        """What it has in neither part, as of ``outside.rest_of``."""
        return outside.rest_of(self.lightning, self.model)

    def seen(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a state of the user's module by their names in body, head and ``rest``."""
        users = {id(value): name for name, value in self._whole.items()}
        names = {name: users[id(value)] for name, value in self.model.state_dict(keep_vars=True).items()}
        names |= {name: name.removeprefix(f"{REST}.") for name in self.rest}
        return {name: state[of_user] for name, of_user in names.items() if of_user in state}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Lay a state, as of ``seen``, over its own; raises ValueError where it is of another module."""
        rest = select(state, [REST])
        load_state(self.model, {**state_of(self.model), **without(state, rest)})
        outside.load_rest(self.lightning, rest)

    def parts_of(self, mode: str) -> tuple[str, ...]:
        """The parts that a mode names; "full" is all of the task's."""
        return self.task.parts if mode == "full" else parts_of(mode)

    def refuse_empty(self, needed: Mapping[str, Sequence[str]]) -> None:
        """Raise InputError where something is done with parts of which the task says that they are empty.

        Args:
            needed: what is done, and the parts that it is done with.
        """
        for what, parts in needed.items():
            if parts and not any(getattr(self.task.task, part, "own") for part in parts):
                remedy = f"{what} its {parts[0]} alone, which the task says to be empty; take another algorithm or part"
                raise self.task.refused(remedy)

    def set_mode(self, mode: str) -> None:
        """Choose what trains: parts as in "body+neck", or "full", of which the module itself may freeze weights."""
        self.freeze(mode)
        for name, weight in self.model.named_parameters():
            if name.partition(".")[0] in self.parts_of(mode) and name in self._given:
                weight.requires_grad_(self._given.pop(name))

    def freeze(self, mode: str) -> None:
        """Freeze what a mode does not name; ``set_mode`` gives it back as it was."""
        for name, weight in self.model.named_parameters():
            if name.partition(".")[0] not in self.parts_of(mode):
                self._given.setdefault(name, weight.requires_grad)
                weight.requires_grad_(False)


def _detach(module: nn.Module) -> None:
    """Cut what a layer has computed from its weights, as torch.nn.utils.weight_norm does, so that it can be copied."""
    for layer in module.modules():
        computed = {name: value for name, value in vars(layer).items() if isinstance(value, Tensor) and value.grad_fn}
        vars(layer).update({name: value.detach() for name, value in computed.items()})


def initial_module(task: CustomTask, seed: int, double: bool = False) -> CustomModule:
    """The user's module with its first weights, which follow from the seed.

    Raises:
        InputError: it cannot be made, or is not made of a body and a head.
    """
    with seeded(seed):
        try:
            lightning = task.task.module()
            if isinstance(lightning, L.LightningModule):
                lightning.configure_model()
        except Exception as error:  # whatever the user's code raises
            raise task.refused(f"its module cannot be made: {told(error)}") from error
    if not isinstance(lightning, L.LightningModule):
        raise task.refused(f"its module {foreign(lightning, 'LightningModule')}")
    for hook in ("training_step", "test_step"):
        if not is_overridden(hook, lightning):
            remedy = f"has no {hook}" + ("; add one that logs the score" if hook == "test_step" else "")
            raise task.refused(f"its {type(lightning).__name__} {remedy}")
    body = (task.task.body,) if isinstance(task.task.body, str) else task.task.body
    restrict(lightning, body, task.config.trainable, seed)
    if task.config.trainable != "all":
        still(lightning, frozen_names(lightning))
    _detach(lightning)
    return CustomModule(lightning.double() if double else lightning, task)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)  # also a number of NumPy


def _view(lightning: L.LightningModule, task: CustomTask) -> nn.Module:
    """A module whose ``body`` and ``head`` hold the weights of the user's module, and are not copies of them."""
    view = nn.Module()
    for part, named in {"body": task.task.body, "head": task.task.head, **task.task.parts}.items():
        names: Sequence[str] = named
        names = (names,) if isinstance(names, str) else tuple(names)
        held = None if names else nn.Module()
        for name in names:
            found = _found(lightning, name)
            if found is None:
                how = f"{part}=(...)" if part in PARTS else f'parts={{"{part}": (...)}}'
                remedy = f"{type(lightning).__name__} has no {name}, which is to be its {part}; say what is: {how}"
                raise task.refused(remedy)
            if names == (part,) and isinstance(found, nn.Module):
                held = found
                break
            held = held or nn.Module()
            _hang(held, name, found)
        view.add_module(part, held or nn.Module())
        if names and not any(weight.requires_grad for weight in view.get_submodule(part).parameters()):
            remedy = f"the {part} of {type(lightning).__name__} ({', '.join(names)}) has no weights to train"
            raise task.refused(remedy)
    _refuse_outside(lightning, view, task)
    return view


def _frozen(lightning: L.LightningModule, view: nn.Module, task: CustomTask) -> frozenset[str]:
    """The base by names of the view: what the module froze, or what of it the task names."""
    if task.task.base is None:
        return frozen_names(view)
    named = [task.task.base] if isinstance(task.task.base, str) else list(task.task.base)
    inside: set[int] = set()
    for name in named:
        found = _found(lightning, name)
        weights = [] if found is None else [found] if isinstance(found, nn.Parameter) else list(found.parameters())
        if not weights or any(weight.requires_grad for weight in weights):
            what = "has weights that train: freeze them in __init__" if weights else "is not there, or has no weights"
            raise task.refused(f"its base {name} {what}, or leave base=(...) out")
        inside |= {id(weight) for weight in weights}
    of_view = view.named_parameters(remove_duplicate=False)
    return frozen_names(view, {name for name, weight in of_view if id(weight) in inside})


def _found(lightning: nn.Module, name: str) -> nn.Module | nn.Parameter | None:
    """The module or weight of that name, as "net.encoder"."""
    found: Any = lightning
    for word in name.split("."):
        found = getattr(found, word, None)
    return found if isinstance(found, nn.Module | nn.Parameter) else None


def _hang(held: nn.Module, name: str, found: nn.Module | nn.Parameter) -> None:
    """Put a module or weight into another module, under its name."""
    *path, last = name.split(".")
    for word in path:
        if not hasattr(held, word):
            held.add_module(word, nn.Module())
        held = getattr(held, word)
    if isinstance(found, nn.Parameter):
        held.register_parameter(last, found)
    else:
        held.add_module(last, found)


def _refuse_outside(lightning: L.LightningModule, view: nn.Module, task: CustomTask) -> None:
    """Refuse weights that lie in no part, or in several."""
    inside = {part: {id(weight) for weight in view.get_submodule(part).parameters()} for part in task.parts}
    for name, weight in lightning.named_parameters(remove_duplicate=False):
        holds = [part for part, weights in inside.items() if id(weight) in weights]
        if len(holds) > 1:
            remedy = f"its weight {name} is in {' and '.join(holds)} at once; they cannot share it"
            raise task.refused(remedy)
        if not holds and weight.requires_grad:
            remedy = f"its weight {name} is in neither body nor head; add it to one: Task(..., body=(...), head=(...))"
            raise task.refused(remedy)
