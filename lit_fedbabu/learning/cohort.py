"""Many clients as one: a module whose weights have a leading axis of clients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lit_fedbabu.learning.base import copied
from lit_fedbabu.learning.losses import Batch
from lit_fedbabu.learning.module import LitFedBABU, PartModule
from lit_fedbabu.learning.state import Learner, aliases, base_names, load_state, places_of, state_of

Group = tuple[list[int], Tensor, Tensor]
"""A clients whose batches are equally large, their images (A, B, C, S, S) and labels (A, B)."""


class LitCohort(PartModule):
    """The modules of several clients, trained together.

    Every weight and buffer of ``model`` but the base has a leading axis of clients, and ``vmap`` gives each client's
    batch to its own weights, so batch statistics are a client's own. SGD acts on every number by itself, so its
    state is each client's own too. A client that has no more batches in an epoch stands still, weights and momentum,
    until the next epoch. Random layers, such as dropout, draw other numbers than they do for one client after another.

    Args:
        members: the clients' modules. They get their weights back from ``unstack``.
    """

    def __init__(self, members: Sequence[LitFedBABU]) -> None:
        super().__init__()
        self.save_hyperparameters(dict(members[0].hparams))
        self._members = tuple(members)  # a tuple, so that their weights are not weights of this module
        self.model = copied(members[0].model, members[0].base.values())
        tied = aliases(self.model)
        for name, value in stack(members).items():
            owner, leaf = self._owner(name)
            is_weight = isinstance(getattr(owner, leaf), nn.Parameter)
            setattr(owner, leaf, nn.Parameter(value) if is_weight else value)
        for name, first in tied.items():
            setattr(*self._owner(name), getattr(*self._owner(first)))
        self.frozen = members[0].frozen
        self.set_mode(self.hparams["mode"])

    @property
    def members(self) -> Sequence[LitFedBABU]:
        return self._members

    def unstack(self) -> None:
        """Give every client's module its weights."""
        state = state_of(self.model)
        for place, member in enumerate(self._members):
            load_state(member.model, {name: value[place] for name, value in state.items()})

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that has a tensor, and the tensor's name there."""
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def on_fit_start(self) -> None:
        for member in self._members:
            member.to(self.device)
            member.on_fit_start()
        self._losses, self._seen = torch.zeros(2, len(self._members), device=self.device, dtype=self.weights_dtype)

    def on_test_start(self) -> None:
        self.on_fit_start()

    def training_step(self, batch: list[Group], batch_idx: int) -> Tensor:
        total = torch.zeros((), device=self.device)
        for clients, images, labels in batch:
            losses = self._losses_of(clients, images, labels)
            rows = self._rows(clients)
            self._losses[rows] += losses.detach() * labels.shape[1]
            self._seen[rows] += labels.shape[1]
            total = total + losses.sum()
        return total

    def _losses_of(self, clients: list[int], images: Tensor, labels: Tensor) -> Tensor:
        """Each client's mean loss over its batch (A,)."""
        own = [loss for client in clients if (loss := self._members[client].loss) is not None]
        if not own:
            logits = self._each(clients, images)
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            return losses.view(labels.shape).mean(1)
        features = self._each(clients, images, "body")
        batches = zip(images, features, self._each(clients, features, "head"), labels, strict=True)
        return torch.stack([loss(Batch(*each)) for loss, each in zip(own, batches, strict=True)])

    def on_train_end(self) -> None:
        for member, loss, count in zip(self._members, self._losses, self._seen, strict=True):
            member.train_loss.update(loss / count)

    def on_train_batch_start(self, batch: list[Group], batch_idx: int) -> None:
        active = {client for clients, _, _ in batch for client in clients}
        self._still = [place for place in range(len(self._members)) if place not in active]
        self._snapshots: list[tuple[Tensor, Tensor]] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Save what must not move. Lightning calls this after the callbacks have changed gradients."""
        if not self._still:
            return
        self._snapshots = [
            (values, values[self._still].clone())
            for weight in self.model.parameters()
            for values in (weight.detach(), optimizer.state[weight].get("momentum_buffer"))
            if weight.requires_grad and values is not None
        ]

    def on_train_batch_end(self, outputs: Any, batch: list[Group], batch_idx: int) -> None:
        for values, before in self._snapshots:
            values[self._still] = before

    def test_step(self, batch: list[Group], batch_idx: int) -> None:
        for clients, images, labels in batch:
            for client, own_logits, own_labels in zip(clients, self._each(clients, images), labels, strict=True):
                self._members[client].observe(own_logits, own_labels)

    def validation_step(self, batch: list[Group], batch_idx: int) -> None:
        self.test_step(batch, batch_idx)

    def predict_step(
        self, batch: list[Group], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """For every client what a single module gives: features (B, F), logits (B, num_classes) and labels (B,)."""
        predicted: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for clients, images, labels in batch:
            features = self._each(clients, images, "body")
            own = self.in_weights_dtype(features.flatten(2), self._each(clients, features, "head"), labels)
            predicted |= dict(zip(clients, zip(*own, strict=True), strict=True))
        return predicted

    def _rows(self, clients: list[int]) -> slice | list[int]:
        """Where the clients are on the leading axis. For all of them a slice, which neither copies nor waits."""
        return slice(None) if len(clients) == len(self._members) else clients

    def _each(self, clients: list[int], inputs: Tensor, part: str = "") -> Tensor:
        """The model, or a part of it, of each client on the client's own inputs (A, B, ...)."""
        module = self.model.get_submodule(part)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        alike = {name for name in state if f"{part}.{name}".lstrip(".") in base_names(self.model)}
        rows = {name: value[self._rows(clients)] for name, value in state.items() if name not in alike}
        places = {place: name for place, name in places_of(module).items() if name in rows}

        def one(own: dict[str, Tensor], x: Tensor) -> Any:
            held = {place: own[name] for place, name in places.items()}
            return functional_call(module, held, (x,), tie_weights=False)

        outputs: Tensor = vmap(one, randomness="different")(rows, inputs)
        if len(clients) < len(self._members):
            for name, buffer in module.named_buffers():
                if name in rows:
                    buffer[clients] = rows[name]
        return outputs


def stack(modules: Sequence[Learner]) -> dict[str, Tensor]:
    """The states of the modules' models as one, with a leading axis of clients. Of a single module: its state."""
    states = [state_of(module.model) for module in modules]
    if len(states) == 1:
        return states[0]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
