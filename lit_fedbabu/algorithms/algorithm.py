"""What a method of federated learning is: what travels, what trains, and hooks for whatever it does in its own way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import FRAME, PARTS, parts_of

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

EPOCHS = "num_local_epochs"
"""The option with the length of a client's training."""


EXTRA = "extra:"
"""How the names of extra arrays begin in messages, where they stand beside shared weights."""

STATE = "state."
"""How the names of what the algorithm keeps on the server begin in the server's file."""


class Update(NamedTuple):
    """What a client made of a round.

    Args:
        shared: the weights that travel, by their names in the model.
        kept: what the client keeps for itself until its next round: weights by their names in the model, and other
            tensors under names that begin with one of the algorithm's ``state`` and a dot.
        extras: the arrays that it sends besides, with names, shapes and types as of ``Algorithm.sends``.
    """

    shared: dict[str, Tensor]
    kept: dict[str, Tensor]
    extras: Mapping[str, Tensor] = {}


class Received(NamedTuple):
    """What the server got of a client in a round.

    Args:
        client: its number.
        num_train: its training samples.
        shared: its shared weights, by their names in the model.
        extras: what it sent besides.
    """

    client: int
    num_train: int
    shared: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]


class Combined(NamedTuple):
    """What the server made of a round.

    Args:
        shared: the weights that clients begin the next round with, by their names in the model.
        state: what the server keeps until then, with the names of ``Algorithm.server_state``.
    """

    shared: Mapping[str, Tensor]
    state: Mapping[str, Tensor]


class Beginning(Protocol):
    """What is known before the first round."""

    @property
    def config(self) -> Config:
        """The experiment."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The shared weights, without buffers."""

    @property
    def model(self) -> Mapping[str, Tensor]:
        """All weights and buffers of the initial model, also those that are not shared."""

    def other(self, number: int) -> Mapping[str, Tensor]:
        """The shared weights and buffers of another random model, by its number from 1."""


class Server(Protocol):
    """The server in a round."""

    @property
    def config(self) -> Config:
        """The experiment."""

    @property
    def server_round(self) -> int:
        """Number of the round, from 1."""

    @property
    def shared(self) -> Mapping[str, Tensor]:
        """The weights that the clients began with."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What the server has kept."""

    @property
    def weights(self) -> Sequence[str]:
        """The names of the shared weights without buffers, in the order of ``Algorithm.sends``."""

    def aggregate(self, updates: Sequence[Received]) -> dict[str, Tensor]:
        """One set of shared weights of those of the clients: their mean, or the step of the server's optimizer."""


class Participant(Protocol):
    """A client in a round, or after one."""

    @property
    def client(self) -> int:
        """Its number."""

    @property
    def config(self) -> Config:
        """The experiment."""

    @property
    def received(self) -> Mapping[str, Tensor]:
        """The shared weights, by their names in the model."""

    @property
    def memory(self) -> Mapping[str, Tensor]:
        """What the client kept when it took part last; empty if it never did."""

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """What the server sent besides, as of ``Algorithm.broadcast``; after a round as of ``broadcast_after``.

        Of arrays with a row for each client (``Algorithm.rows``) it has this client's alone, without the first axis.
        """

    def module(self, *states: Mapping[str, Tensor]) -> Learner:
        """A new module with the initial weights, over which the weights of states are laid, one after the other.

        Entries of states that are no weights of the model are left out.
        """

    def features(self, *states: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What such a module's body makes of the client's training images as they are (N, F), and their labels (N,)."""

    def training_loss(self, *states: Mapping[str, Tensor]) -> float:
        """The mean loss of such a module over the client's training data, as in training, but without a step."""


class Cohort(Protocol):
    """The clients that are trained together, most often one, in a round."""

    @property
    def config(self) -> Config:
        """The experiment."""

    @property
    def participants(self) -> Sequence[Participant]:
        """The clients."""

    @property
    def server_round(self) -> int:
        """Number of the round, from 1."""

    @property
    def learning_rate(self) -> float:
        """Of this round."""

    @property
    def class_counts(self) -> Sequence[Tensor]:
        """Of each client its training images by class (C,); for images alone."""

    @property
    def notes(self) -> dict[str, Any]:
        """What one hook leaves for the next in this round."""

    def step(self, name: str, modules: Sequence[Learner]) -> list[L.Callback]:
        """Callbacks for how a mini-batch moves weights, by a name of ``steps.STEPS``; the modules are the anchor."""

    def fit(
        self,
        modules: Sequence[Learner],
        part: str,
        field: str,
        callbacks: Sequence[L.Callback] = (),
        losses: Sequence[Loss] = (),
    ) -> list[float]:
        """Train a part of the modules in place for the epochs of an option; returns their mean losses in nats."""

    def show(
        self, modules: Sequence[Learner], callbacks: Sequence[L.Callback] = (), losses: Sequence[Loss] = ()
    ) -> list[float]:
        """Give callbacks and losses an epoch of training batches, without a step: the modules stay as they are."""

    def shared(self, module: Learner) -> dict[str, Tensor]:
        """The weights of a module that travel."""

    def kept(self, module: Learner) -> dict[str, Tensor]:
        """The weights of a module that its client keeps."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A method. As it stands it is a row: everything follows from its fields. A subclass overrides what is its own.

    Args:
        title: its name in tables and figures.
        shared: the part that travels: "body", "head", "full" or "none"; several as in "body+neck".
        phases: what a client trains in a round, one after the other: a part or several, and the option with the number
            of epochs.
        step: how a mini-batch moves the weights: a name of ``steps.STEPS``.
        private: parts that stay with the client although they lie in what is shared, as ("norm",).
        state: names of what a client keeps besides weights; what it keeps under them is named ``name.anything``.
        head: what takes the place of the head of models of images: "etf", as of ``learning.simplex``; empty: nothing.
        in_cohorts: whether several clients can be trained together; its callbacks then see weights with a leading axis.
        rows: names of what the server sends with a row for each client, who gets its own: ``name.anything``.
        parts: of the models; a task may have more than body and head.
    """

    title: str
    shared: str
    phases: tuple[tuple[str, str], ...]
    step: str = "sgd"
    private: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    head: str = ""
    in_cohorts: bool = True
    rows: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        if self.head not in ("", "etf"):
            raise ValueError(f'head = "{self.head}": must be "etf", or empty')

    def of_parts(self, parts: tuple[str, ...]) -> Self:
        """The same of models that have these parts: "full" is all of them."""
        if parts == PARTS:
            return self
        whole = {"full": "+".join(parts)}
        phases = tuple((whole.get(part, part), length) for part, length in self.phases)
        return dataclasses.replace(self, shared=whole.get(self.shared, self.shared), phases=phases, parts=parts)

    @property
    def pooled(self) -> bool:
        """Whether there is one participant, which has the training images of all clients."""
        return False

    @property
    def federates(self) -> bool:
        """Whether there are several clients' models to make one of."""
        return not self.pooled and bool(parts_of(self.shared))

    @property
    def trained(self) -> tuple[str, ...]:
        """The parts that a round trains."""
        return tuple(part for part in self.parts if any(part in parts_of(phase) for phase, _ in self.phases))

    @property
    def kept(self) -> tuple[str, ...]:
        """What a client keeps for itself: the parts that it trains and does not share, and its ``state``."""
        return (*(part for part in self.trained if part not in parts_of(self.shared)), *self.private, *self.state)

    @property
    def lengths(self) -> tuple[str, ...]:
        """The options with the epochs that a client trains in a round, one after the other."""
        return tuple(field for _, field in self.phases)

    def check(self, config: Config) -> None:
        """Raise InputError where it cannot do what the options ask for."""
        if self.step == "moreau-envelope":
            keys = {"accumulate_grad_batches", "devices"}
            refuse_of_trainer(config, keys, f"{config.algorithm} takes steps of its own for each batch")

    def check_steps(self, name: str, by_hand: bool) -> None:
        """Raise InputError where its step moves weights around an optimizer's, and a module takes steps by hand."""
        if by_hand and self.step in ("first-order-maml", "moreau-envelope"):
            remedy = "moves weights around each step of the optimizer, and the task's module takes steps by hand"
            raise InputError("algorithm", name, f"{remedy}; take another, as fedprox")

    def check_model(self, name: str, model: nn.Module) -> None:
        """Raise InputError where it cannot train a model of images; the name is that of the option."""
        if self.head:
            from lit_fedbabu.learning.simplex import refuse_unfit

            refuse_unfit(name, model)

    def check_optimizer(self, name: str, optimizer: Optimizer) -> None:
        """Raise InputError where its equations do not hold for an optimizer of a task's module, which is its own."""

    def drawn(self, config: Config, server_round: int, clients: list[int]) -> list[int]:
        """The clients that train in a round: those that were drawn for it."""
        return clients

    def start(self, client: Participant) -> Learner:
        """What a client begins a round with: the initial model, over it what it kept, and what it received."""
        return client.module(client.memory, client.received)

    def callbacks(self, cohort: Cohort, modules: Sequence[Learner]) -> list[L.Callback]:
        """Lightning's callbacks for the round's training, which see the modules' weights as ``cohort.stack`` does."""
        return cohort.step(self.step, modules)

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        """What each module is trained on in place of the cross-entropy; empty: the cross-entropy."""
        return ()

    @property
    def has_own_loss(self) -> bool:
        """Whether it has a loss of its own, which a task's module, with the user's loss, cannot be given."""
        hooks = ("losses", "tuning_loss", "turns")
        return any(getattr(type(self), hook) is not getattr(Algorithm, hook) for hook in hooks)

    @property
    def by_steps(self) -> bool:
        """Whether what it shares, and what a later round begins with, follows from what it received and from steps of
        ``Cohort.fit`` in ``train``, by the cross-entropy or a task's loss, and else from no data.

        Then noise in these steps is enough for ``privacy=sample``. Steps of ``finish`` have none: what they make may be
        kept to be evaluated. A method with hooks of its own says so by overriding this.
        """
        return not self.has_own_hooks and self.step != "moreau-envelope"

    @property
    def has_own_hooks(self) -> bool:
        """Whether it overrides what a client does in a round."""
        hooks = ("start", "callbacks", "losses", "train", "finish")
        return any(getattr(type(self), hook) is not getattr(Algorithm, hook) for hook in hooks)

    @property
    def of_features(self) -> bool:
        """Whether models of images must do no more than ``head(body(images))``."""
        return self.has_own_loss or bool(self.head)

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of weights that follow from the seed, and neither train nor travel."""
        return (FRAME,) if self.head else ()

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        """Train the modules in place, phase by phase; returns each one's mean loss in the last, in nats."""
        callbacks, own = self.callbacks(cohort, modules), self.losses(cohort, modules)
        losses = [float("nan")] * len(modules)
        for part, field in self.phases:
            losses = cohort.fit(modules, part, field, callbacks, own)
        return losses

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        """What each client shares and keeps of its trained module."""
        return [Update(cohort.shared(module), cohort.kept(module)) for module in modules]

    def own_model(self, client: Participant) -> Learner:
        """The client's model when a round is over: what is evaluated, and what fine-tuning starts from."""
        return client.module(client.memory, client.received)

    def generic_model(self, client: Participant) -> Learner | None:
        """What ``initial`` measures are of when a round is over, where it is another than ``own_model``."""
        return None

    def tuning_loss(self, config: Config, class_counts: Tensor) -> Loss | None:
        """What a client's fine-tuning trains on, by its numbers of images (C,); None: the cross-entropy."""
        return None

    def turns(self, config: Config) -> Sequence[tuple[str, int, float]]:
        """What fine-tuning trains after its epochs, by the cross-entropy: parts or weights, epochs and rates."""
        return ()

    def tuning_length(self, config: Config) -> int:
        """How often a model is evaluated in fine-tuning after the beginning."""
        return config.finetune_length + bool(self.turns(config))

    def sends(self, start: Beginning) -> Mapping[str, Tensor]:
        """What a client sends besides, as examples of names, shapes and types."""
        return {}

    def server_state(self, start: Beginning) -> Mapping[str, Tensor]:
        """What the server keeps before the first round."""
        return {}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What of the server's state is sent to the clients of a round."""
        return {}

    def broadcast_after(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What of the server's state clients need when a round is over, to be evaluated and fine-tuned."""
        return {}

    @property
    def needs_server(self) -> bool:
        """Whether a client's own model is made of more than shared weights and what it keeps."""
        return type(self).broadcast_after is not Algorithm.broadcast_after

    @property
    def alike(self) -> bool:
        """Whether a client whose update is far longer than those of the others has failed.

        Where clients keep parts of their own, as heads in FedRep, lengths say nothing: a head that fits moves little.
        """
        return not self.kept

    def problem(self, update: Received) -> str:
        """Why the extras of a client, which are finite, cannot be true, so that it has failed; empty if they can."""
        return ""

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        """What the server makes of a round. The updates are in the order of the clients' numbers."""
        return Combined(server.aggregate(updates), server.state)


def refuse_aggregator(config: Config, why: str) -> None:
    """Raise InputError for an aggregator other than the mean; the reason follows the method's name."""
    if config.aggregator != "mean":
        raise InputError("aggregator", config.aggregator, f"{config.algorithm} {why}; take mean")


def refuse_of_trainer(config: Config, keys: set[str], why: str) -> None:
    """Raise InputError where one of these arguments of Lightning's Trainer is given."""
    for key in sorted(keys & config.trainer.keys()):
        raise InputError(f"trainer.{key}", config.trainer[key], f"{why}; leave it out")


def mean_extra(updates: Sequence[Received], name: str) -> Tensor:
    """The mean of an extra array over clients, by training samples, in float64."""
    import torch

    total = sum(each.num_train for each in updates)
    return torch.stack([each.num_train / total * each.extras[name].double() for each in updates]).sum(0)


def refuse_other_head(name: str, model: nn.Module) -> None:
    """Raise InputError for a model whose head is not one linear layer with a bias; the name is that of the option."""
    from torch import nn

    head = model.get_submodule("head")
    if type(head) is not nn.Linear or head.bias is None:
        kind = "Linear without a bias" if type(head) is nn.Linear else type(head).__name__
        remedy = f"has a {kind} as its head, and this algorithm needs a torch.nn.Linear with a bias"
        raise InputError("model-name", name, f"{remedy}; take another model or algorithm")


@dataclasses.dataclass(frozen=True)
class Ditto(Algorithm):
    """The client also trains a whole model of its own, pulled towards the received one, and keeps it.

    Li et al. 2021 (Ditto), Algorithm 1. What is evaluated is that model.
    """

    @property
    def kept(self) -> tuple[str, ...]:
        return self.parts

    @property
    def lengths(self) -> tuple[str, ...]:
        return (*super().lengths, EPOCHS)

    @property
    def by_steps(self) -> bool:
        """What it shares is made without the personal model."""
        return True

    def start(self, client: Participant) -> Learner:
        return client.module(client.received)

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        received = [client.module(client.received) for client in cohort.participants]
        personal = [client.module(client.memory) for client in cohort.participants]
        cohort.fit(personal, "full", EPOCHS, cohort.step("proximal", received))
        pairs = zip(modules, personal, strict=True)
        return [Update(cohort.shared(module), cohort.kept(own)) for module, own in pairs]

    def own_model(self, client: Participant) -> Learner:
        return client.module(client.received, client.memory)


@dataclasses.dataclass(frozen=True)
class Centralized(Algorithm):
    """No federation: one participant trains on all images."""

    @property
    def pooled(self) -> bool:
        return True

    def drawn(self, config: Config, server_round: int, clients: list[int]) -> list[int]:
        return [0]
