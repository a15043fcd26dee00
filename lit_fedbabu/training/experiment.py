"""What follows from a configuration, worked out once in a process and handed down."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from lit_fedbabu.algorithms.algorithm import EXTRA, Algorithm, Update
from lit_fedbabu.algorithms.rows import numbered
from lit_fedbabu.algorithms.table import SHARED, algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import FINETUNING
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import initial_weights, one_copy
from lit_fedbabu.learning.base import facts_of
from lit_fedbabu.learning.parts import NORM, PRIVATE, parts_of, select, without
from lit_fedbabu.learning.state import BASE, Learner, base_names, norm_names, state_of
from lit_fedbabu.learning.timm_weights import with_pretrained
from lit_fedbabu.tasks.protocol import AnyTask, Classifies, Data, task_of
from lit_fedbabu.training.privacy import refuse_unbounded, refuse_uncounted, refuse_unsummed


class Extras(NamedTuple):
    """Arrays that travel besides the shared weights, as examples of their shapes and types.

    Args:
        down: from the server to clients.
        up: from a client to the server.
        after: from the server to clients, when a round is over.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    after: dict[str, Tensor]


class Experiment:
    """A configuration with its algorithm, its task and its initial model.

    Dataset, split and initial model are made when they are first asked for, and once.

    Args:
        config: the options.
        task: what clients learn; None: what the configuration says.
        initial: weights of body and head that the model starts from, over random ones; None: what the configuration
            says.

    Raises:
        InputError: there is no such algorithm, or no such file of initial weights.
    """

    def __init__(
        self,
        config: Config,
        task: AnyTask | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config if initial is not None else with_pretrained(config)
        self._given = initial
        self.starting_note = ""
        self.task: AnyTask = task or task_of(config)
        self.algorithm = algorithm_of(config).of_parts(self.task.parts)

    @property
    def classifier(self) -> Classifies:
        """The task, whose modules must classify; raises ValueError where they do not."""
        if not isinstance(self.task, Classifies):
            raise ValueError(f"{self.task.title} classifies nothing")
        return self.task

    def with_finetuning(self, config: Config) -> Experiment:
        """The same experiment with the options of fine-tuning of another one; dataset, split and model are shared."""
        self._initial  # noqa: B018 - built before the copy, so that both have it
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, **{name: getattr(config, name) for name in FINETUNING})
        return other

    @cached_property
    def _initial(self) -> Learner:
        module = self._made()
        one_copy.share(module.base)
        return module

    def _made(self) -> Learner:
        """The initial model, made anew."""
        module = self.task.initial(self.model_seed)
        if self._given is not None:
            module.load(self._given)
        elif self.config.initial_weights:
            self.starting_note = initial_weights.load(module.named, self.config.initial_weights)
        return module

    @property
    def model_seed(self) -> int:
        """The seed that every client and the server build the initial model from."""
        return self.config.derived_seed("model")

    def rate_in(self, server_round: int) -> float:
        """The learning rate of a round, from 1: of the configuration, else the module's own; 0: it has none."""
        if self.config.learning_rate:
            return self.config.learning_rate_in(server_round)
        return self.config.decayed(self._initial.own_rate, server_round)

    @property
    def finetuning_rate(self) -> float:
        """The learning rate of fine-tuning, as of ``rate_in``."""
        return self.config.finetune_learning_rate or self.rate_in(self.config.num_server_rounds)

    def new_module(self, *states: Mapping[str, Tensor]) -> Learner:
        """The initial model, random body and random head, with states laid over it, one after the other."""
        module = self._initial.copy()
        if states:
            base = base_names(module.model)
            module.load({name: state[name] for state in states for name in state if name not in base})
        return module

    @cached_property
    def shared_names(self) -> tuple[str, ...]:
        """Names of the weights that travel, in the order of the model's state."""
        return tuple(self.shared(state_of(self._initial.model)))

    def initial_shared(self) -> dict[str, Tensor]:
        """The shared weights before the first round."""
        return {name: value.clone() for name, value in self.shared(state_of(self._initial.model)).items()}

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all weights and buffers of the model."""
        return frozenset(state_of(self._initial.model))

    @cached_property
    def extras(self) -> Extras:
        """What travels besides the shared weights."""
        algorithm, state = self.algorithm, self.algorithm.server_state(self)
        down, after = (
            numbered(algorithm, self.config, sent)
            for sent in (algorithm.broadcast(state), algorithm.broadcast_after(state))
        )
        return Extras(down, dict(algorithm.sends(self)), after)

    @property
    def keeps(self) -> bool:
        """Whether clients write something down for their next round: weights, or what they spent of their privacy."""
        return bool(self.algorithm.kept) or self.config.protection == "sample"

    @cached_property
    def down_names(self) -> tuple[str, ...]:
        """Names of the arrays that ask a client to train: shared weights, and what is sent besides."""
        return (*self.shared_names, *(EXTRA + name for name in self.extras.down))

    @cached_property
    def after_names(self) -> tuple[str, ...]:
        """Names of the arrays that ask a client to evaluate, likewise."""
        return (*self.shared_names, *(EXTRA + name for name in self.extras.after))

    @cached_property
    def up_names(self) -> tuple[str, ...]:
        """Names of the arrays that a client answers with."""
        return (*self.shared_names, *(EXTRA + name for name in self.extras.up))

    def check_update(self, update: Update) -> None:
        """Raise ValueError where an algorithm sends or keeps something else than it declares."""
        name = self.config.algorithm
        for what, found, declared in (
            ("shares", update.shared, self.shared(state_of(self._initial.model))),
            ("sends", update.extras, self.extras.up),
        ):
            forms = [{key: (value.shape, value.dtype) for key, value in each.items()} for each in (found, declared)]
            if forms[0] != forms[1]:
                raise ValueError(f"{name} {what} {forms[0]}, and it declares {forms[1]}")
        state = tuple(f"{each}." for each in self.algorithm.state)
        if unknown := [key for key in update.kept if key not in self.names and not key.startswith(state)]:
            raise ValueError(f"{name} keeps {unknown[0]}, which is no weight and not declared in its state")

    @property
    def base(self) -> dict[str, Tensor]:
        """What of the initial model its maker froze: it does not travel."""
        return {name: value.detach() for name, value in self._initial.base.items()}

    @cached_property
    def base_facts(self) -> dict[str, Any]:
        """What checkpoints say of the base, as of ``base.facts``; empty where there is none."""
        model = self._initial.model
        weights = select(dict(model.named_parameters()), ["body"])
        trained = sum(value.numel() for name, value in weights.items() if name not in base_names(model))
        return {**facts_of(self.base, self.config), "trained": trained} if self.base else {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The shared weights before the first round, without buffers, as running statistics are."""
        weights = {name for name, _ in self._initial.model.named_parameters()}
        return {name: value for name, value in self.initial_shared().items() if name in weights}

    @property
    def model(self) -> Mapping[str, Tensor]:
        """All weights and buffers of the initial model, also those that are not shared."""
        return {name: value.clone() for name, value in state_of(self._initial.model).items()}

    def other(self, number: int) -> dict[str, Tensor]:
        """The shared weights and buffers of another random model, by its number from 1."""
        return self.shared(state_of(self.task.initial(self.config.derived_seed("model", number)).model))

    def shared(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a model's state that travel."""
        return without(select(state, parts_of(self.algorithm.shared)), {*self.private, *self.algorithm.fixed})

    def kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a model's state that a client keeps."""
        own = select(state, self.algorithm.kept)
        return {name: value for name, value in state.items() if name in own or name in self.private}

    @cached_property
    def private(self) -> frozenset[str]:
        """Names of weights that stay with the client although they lie in a part that is shared."""
        if NORM not in self.algorithm.private:
            return frozenset()
        if names := norm_names(self._initial.model):
            return names
        remedy = "keeps normalization layers with the clients, and the model has none; take fedavg"
        raise InputError("algorithm", self.config.algorithm, remedy)

    def received_module(self, received: Mapping[str, Tensor], under: Mapping[str, Tensor] | None = None) -> Learner:
        """The initial model, over it what lies ``under``, and over both what was received.

        Raises:
            ValueError: what was received is not exactly what the algorithm shares.
        """
        self.check_received(received)
        return self.new_module(under or {}, received)

    def check_received(self, received: Iterable[str]) -> None:
        """Raise ValueError unless these are the names of the weights that the algorithm shares."""
        if set(received) != set(self.shared_names):
            expected = sorted(self.shared_names)
            raise ValueError(f"received {sorted(received)}, but {self.config.algorithm} shares {expected}")

    def client_data(self, client: int, seed: int, pooled: bool = False, test_batch_size: int | None = None) -> Data:
        """The data of a client; arguments as of ``AnyTask.client_data``."""
        return self.task.client_data(client, seed, pooled, test_batch_size)

    def start(self) -> dict[str, Tensor]:
        """All weights and buffers of the initial model, also those in no part."""
        return {**state_of(self._initial.model), **self._initial.rest, **self.base}

    def provenance(self, kind: str, **facts: Any) -> dict[str, Any]:
        """What a checkpoint says of its weights: kind, configuration, and what images and outputs mean.

        Args:
            kind: one of ``checkpoint.KINDS``.
            facts: as ``round``, ``rounds``, ``client``, ``data``.
        """
        private = {PRIVATE: sorted(self.private)} if self.private else {}
        named = {SHARED: self.algorithm.shared} if ":" in self.config.algorithm else {}
        based = {BASE: self.base_facts} if self.base_facts else {}
        made = {**named, **private, **based}
        return {"kind": kind, "config": self.config.experiment(), **made, **facts, **self.task.provenance}

    def check(self, images: bool = True) -> None:
        """Check what can be checked before anything starts: algorithm, model, dataset and split.

        Args:
            images: whether this machine has the clients' images. A server of sites has none.

        Raises:
            InputError: one line that names the key, the value and the remedy.
        """
        config = self.config
        if self.algorithm.pooled and config.on_sites:
            raise InputError("algorithm", config.algorithm, "needs all images in one place; take partitioner=iid")
        drawn = 1 if self.algorithm.pooled else config.clients_per_round
        if config.min_clients_per_round > drawn:
            remedy = f"a round draws {drawn} of {config.num_federated} clients; take fewer, or a larger fraction-train"
            raise InputError("min-clients-per-round", config.min_clients_per_round, remedy)
        if config.over_selection > 1 and type(self.algorithm).drawn is not Algorithm.drawn:
            raise InputError(
                "over-selection", config.over_selection, f"{config.algorithm} itself says who trains; take 1"
            )
        self.algorithm.check(config)
        if config.server_optimizer != "none" and not parts_of(self.algorithm.shared):
            remedy = f"{config.algorithm} shares nothing with a server; take none"
            raise InputError("server-optimizer", config.server_optimizer, remedy)
        if config.cohort_size > 1 and not self.algorithm.in_cohorts:
            raise InputError("cohort-size", config.cohort_size, f"{config.algorithm} trains clients one by one; take 0")
        if config.protection == "sample":
            refuse_unbounded(config, self.algorithm, self._initial.named)
        self.task.check(self.algorithm, lambda: self._initial, self._made, images)
        self.private  # noqa: B018 - refuses a model without what is to be private
        if self.algorithm.rows:
            self.extras  # noqa: B018 - refuses more or fewer rows than clients
        if config.protection == "central":
            refuse_uncounted(config, self.algorithm)
        if config.is_buffered:
            refuse_unsummed(config, self.algorithm, "server-mode", config.server_mode)
            self._check_extras("server-mode", config.server_mode)
        if config.secure_aggregation:
            refuse_unsummed(config, self.algorithm, "secure-aggregation", True)
            self._check_summed()
        if config.clipping_norm:
            self._check_protected(self._initial.model)
        if config.initial_weights:
            self._initial  # noqa: B018 - reads the file, and refuses it where nothing fits

    def _check_extras(self, key: str, value: object) -> None:
        """Raise InputError for an option where clients send more than weights."""
        if self.extras.up:
            remedy = (
                f"{self.config.algorithm} sends {', '.join(self.extras.up)} besides weights; take another algorithm"
            )
            raise InputError(key, value, remedy)

    def _check_summed(self) -> None:
        """Raise InputError where secure aggregation would sum what is no change of a weight, as a counter."""
        self._check_extras("secure-aggregation", True)
        shared = self.initial_shared()
        if counters := [name for name, value in shared.items() if not value.is_floating_point()]:
            remedy = f"the model shares {', '.join(counters)}, which are no fractions; take other layers"
            raise InputError("secure-aggregation", True, remedy)

    def _check_protected(self, model: nn.Module) -> None:
        """Raise InputError where clipping and noise would act on buffers, as running statistics and counters."""
        if self.extras.up:
            remedy = f"does not bound {', '.join(self.extras.up)}, which {self.config.algorithm} sends besides weights"
            raise InputError("clipping-norm", self.config.clipping_norm, f"{remedy}; take another algorithm")
        parameters = dict(model.named_parameters())
        if buffers := [name for name in self.shared(state_of(model)) if name not in parameters]:
            remedy = f"would spoil {', '.join(buffers)}, which the model shares and does not train; take other layers"
            raise InputError("clipping-norm", self.config.clipping_norm, remedy)
