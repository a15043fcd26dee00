"""Many clients as one: a module whose weights have a leading axis of clients, and their batches side by side."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.data import DataLoader

from lit_fedbabu.batches import ClientData
from lit_fedbabu.module import LitFedBABU

Group = tuple[list[int], Tensor, Tensor]
"""A clients whose batches are equally large, their images (A, B, C, 32, 32) and labels (A, B)."""


class LitCohort(LitFedBABU):
    """The modules of several clients, trained together: made by ``LitCohort.of``.

    Every weight and buffer of ``model`` has a leading axis of clients, and ``vmap`` gives each client's batch to its
    own weights, so batch statistics are a client's own. SGD acts on every number by itself, and so is each client's
    own too. A client that has run out of batches in an epoch stands still, weights and momentum, until the next epoch.
    Random layers, as dropout, draw other numbers than they do for one client after another.
    """

    _members: list[LitFedBABU]

    @classmethod
    def of(cls, modules: Sequence[LitFedBABU]) -> "LitCohort":
        """The modules as one, which takes their weights and gives none back before ``hand_out``."""
        cohort = cls(**modules[0].hparams)
        cohort._members = list(modules)
        for name, value in stacked(modules).items():
            path, _, leaf = name.rpartition(".")
            owner = cohort.model.get_submodule(path)
            setattr(owner, leaf, nn.Parameter(value) if leaf in owner._parameters else value)
        cohort.set_mode(cohort.hparams.mode)
        return cohort

    @property
    def members(self) -> Sequence[LitFedBABU]:
        return self._members

    def hand_out(self) -> None:
        """Give every client's module its weights."""
        state = self.model.state_dict()
        for place, member in enumerate(self._members):
            member.model.load_state_dict({name: value[place] for name, value in state.items()})

    def on_fit_start(self) -> None:
        for member in self._members:
            member.to(self.device)
            member.on_fit_start()
        self._losses, self._seen = torch.zeros(
            2, len(self._members), device=self.device, dtype=self.weights_dtype
        )

    on_test_start = on_fit_start

    def training_step(self, batch: list[Group], batch_idx: int) -> Tensor:
        total = 0.0
        for clients, images, labels in batch:
            logits = self._each(clients, images)
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses = losses.view(labels.shape).mean(1)
            rows = self._rows(clients)
            self._losses[rows] += losses.detach() * labels.shape[1]
            self._seen[rows] += labels.shape[1]
            total = total + losses.sum()
        return total

    def on_train_end(self) -> None:
        for member, loss, count in zip(self._members, self._losses, self._seen):
            member.train_loss.update(loss / count)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note what must not move: Lightning calls this after the callbacks have had their say."""
        if not len(self._still):
            return
        self._noted = [
            (values, values[self._still].clone())
            for weight in self.model.parameters()
            for values in (weight.detach(), optimizer.state[weight].get("momentum_buffer"))
            if weight.requires_grad and values is not None
        ]

    def on_train_batch_start(self, batch: list[Group], batch_idx: int) -> None:
        active = {client for clients, _, _ in batch for client in clients}
        self._still = [place for place in range(len(self._members)) if place not in active]
        self._noted: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, outputs: Any, batch: list[Group], batch_idx: int) -> None:
        for values, before in self._noted:
            values[self._still] = before

    def test_step(self, batch: list[Group], batch_idx: int) -> None:
        for clients, images, labels in batch:
            for client, *observed in zip(clients, self._each(clients, images), labels):
                self._members[client].observe(*observed)

    def predict_step(self, batch: list[Group], batch_idx: int, dataloader_idx: int = 0) -> dict[int, tuple]:
        """By client what a single module gives: features (B, F), logits (B, num_classes) and labels (B,)."""
        predicted = {}
        for clients, images, labels in batch:
            features = self._each(clients, images, "body")
            logits = self._each(clients, features, "head")
            predicted |= dict(zip(clients, zip(*(each.to(self.weights_dtype) for each in (features.flatten(2), logits)), labels)))
        return predicted

    def _rows(self, clients: list[int]) -> slice | list[int]:
        """Where the clients are on the leading axis; without copying or waiting for the device if it is all of them."""
        return slice(None) if len(clients) == len(self._members) else clients

    def _each(self, clients: list[int], inputs: Tensor, part: str = "") -> Tensor:
        """The model, or a part of it, of each client on the client's own inputs (A, B, ...)."""
        module = self.model.get_submodule(part)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        rows = {name: value[self._rows(clients)] for name, value in state.items()}
        outputs = vmap(lambda own, x: functional_call(module, own, (x,)), randomness="different")(rows, inputs)
        if len(clients) < len(self._members):
            for name, buffer in module.named_buffers():
                buffer[clients] = rows[name]
        return outputs


class CohortData(L.LightningDataModule):
    """The batches of several clients side by side: each has its own order, augmentation and number of images."""

    def __init__(self, members: Sequence[ClientData]) -> None:
        super().__init__()
        self.members = members
        self.config = members[0].config

    def train_dataloader(self) -> "_SideBySide":
        return _SideBySide(dict(enumerate(member.train_dataloader() for member in self.members)))

    def test_dataloader(self) -> "_SideBySide":
        return _SideBySide(dict(enumerate(member.test_dataloader() for member in self.members)))

    val_dataloader = test_dataloader

    def predict_dataloader(self) -> list["_SideBySide"]:
        loaders = [member.predict_dataloader() for member in self.members]
        return [
            _SideBySide({client: own[kind] for client, own in enumerate(loaders) if len(own) > kind})
            for kind in range(max(map(len, loaders)))
        ]

    def on_after_batch_transfer(
        self, batch: tuple[list[int], list[int], Tensor, Tensor], dataloader_idx: int
    ) -> list[Group]:
        clients, sizes, images, labels = batch
        places = None
        if self.trainer.training and self.config.augmentation != "none":
            places = torch.cat([self.members[client].draw(size) for client, size in zip(clients, sizes)], 1)
        images = self.members[0].prepare(images, places)
        if len(set(sizes)) == 1:
            shape = len(sizes), sizes[0]
            return [(clients, images.unflatten(0, shape), labels.view(shape))]
        rows = list(zip(clients, images.split(sizes), labels.split(sizes)))
        groups = []
        for size in sorted(set(sizes), reverse=True):
            same = [row for row in rows if len(row[2]) == size]
            members, *tensors = zip(*same)
            groups.append((list(members), *map(torch.stack, tensors)))
        return groups


class _SideBySide:
    """Step by step the next batch of every client that still has one: clients, sizes, images and labels in a row."""

    def __init__(self, loaders: Mapping[int, DataLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return max(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[tuple[list[int], list[int], Tensor, Tensor]]:
        for step in zip_longest(*self.loaders.values()):
            own = {client: batch for client, batch in zip(self.loaders, step) if batch is not None}
            images, labels = zip(*own.values())
            yield list(own), [len(each) for each in labels], torch.cat(images), torch.cat(labels)


def stacked(modules: Sequence[LitFedBABU]) -> dict[str, Tensor]:
    """The states of the modules' models as one, with a leading axis of clients; of a single module its state."""
    states = [module.model.state_dict() for module in modules]
    if len(states) == 1:
        return states[0]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
