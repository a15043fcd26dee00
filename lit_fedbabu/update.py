"""What a client does with its model: train for a round, be evaluated, become personal."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lit_fedbabu import memory, sources, training
from lit_fedbabu.algorithms import algorithm_of, kept_state, shared_state
from lit_fedbabu.batches import ClientData, mean_and_std
from lit_fedbabu.cohort import stacked
from lit_fedbabu.config import Config
from lit_fedbabu.models import model_seed
from lit_fedbabu.module import LitFedBABU
from lit_fedbabu.steps import STEPS, Proximal

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def about(config: Config, **facts: Any) -> dict[str, Any]:
    """What a checkpoint says of its weights: where they come from, and what images and outputs mean."""
    mean, std = mean_and_std(config)
    names = sources.class_names_of(config)
    return {"config": config.experiment(), **facts, "class_names": names, "mean": mean, "std": std}


def initial_module(config: Config) -> LitFedBABU:
    """The module as every participant builds it before the first round: random body, random head."""
    channels = len(mean_and_std(config)[0])
    return training.new_module(config, len(sources.class_names_of(config)), model_seed(config), channels)


@lru_cache(maxsize=4)
def shared_names(config: Config) -> tuple[str, ...]:
    """Names of what travels, in the order of the model's state."""
    return tuple(shared_state(config, initial_module(config).model.state_dict()))


def received_module(
    config: Config,
    received: Mapping[str, Tensor],
    under: Mapping[str, Tensor] = NOTHING,
    over: Mapping[str, Tensor] = NOTHING,
) -> LitFedBABU:
    """The initial model with what was received laid over it, and what lies under and over that.

    Raises:
        ValueError: what was received is not exactly what the algorithm shares.
    """
    expected = shared_names(config)
    if received.keys() != set(expected):
        raise ValueError(f"received {sorted(received)}, but {config.algorithm} shares {sorted(expected)}")
    return _overlaid(config, under, received, over)


def own_module(
    config: Config, client: int, server_round: int, received: Mapping[str, Tensor], memories: Path | None
) -> LitFedBABU:
    """The model that is the client's when a round is over: what is evaluated, and what fine-tuning starts from.

    For an algorithm with personal models it is the personal one, for the others as at the start of a round.
    """
    remembered = _remembered(config, client, server_round, memories)
    if algorithm_of(config).personal:
        return received_module(config, received, over=remembered)
    return received_module(config, received, under=remembered)


Update = tuple[dict[str, Tensor], int, float]
"""Of a client: its shared state, its number of training images, its mean training loss of the last phase in nats."""


def client_update(
    config: Config,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    learning_rate: float,
    memories: Path | None = None,
) -> Update:
    """One client's part of one round: train what the algorithm trains, keep what it keeps, return what it shares.

    Randomness depends on (seed, round, client) alone.

    Args:
        config: the experiment.
        client: its number.
        server_round: the round's number, from 1.
        received: the shared state.
        learning_rate: of this round.
        memories: the folder of what clients keep; only algorithms that keep something need it.
    """
    return cohort_update(config, [client], server_round, received, learning_rate, memories)[0]


def cohort_update(
    config: Config,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    learning_rate: float,
    memories: Path | None = None,
) -> list[Update]:
    """The ``client_update`` of several clients, which are trained together: the same up to rounding."""
    algorithm = algorithm_of(config)
    data = [
        ClientData(config, client, config.derived_seed("train", server_round, client), pooled=algorithm.pooled)
        for client in clients
    ]
    remembered = [_remembered(config, client, server_round - 1, memories) for client in clients]
    modules = [received_module(config, received, under=NOTHING if algorithm.personal else own) for own in remembered]
    start = stacked(modules)
    step = STEPS[algorithm.step](config, server_round, start)
    pull = [Proximal(config.proximal_mu, start)] if algorithm.personal else []
    for part, epochs in algorithm.phases:
        losses = training.fit(
            modules, data, mode=part, epochs=getattr(config, epochs), learning_rate=learning_rate, callbacks=step
        )
    shared = [shared_state(config, module.model.state_dict()) for module in modules]
    if algorithm.personal:
        modules = [_overlaid(config, own) for own in remembered]
        epochs = config.num_local_epochs
        training.fit(modules, data, mode="full", epochs=epochs, learning_rate=learning_rate, callbacks=pull)
    for client, module in zip(clients, modules):
        if kept := kept_state(config, module.model.state_dict()):
            memory.keep(_folder(config, memories), client, server_round, kept)
    return [(state, len(own.train_set), loss) for state, own, loss in zip(shared, data, losses)]


def personal_model(
    config: Config, client: int, server_round: int, received: Mapping[str, Tensor], memories: Path | None = None
) -> tuple[LitFedBABU, training.Personal]:
    """A client's own model after a round, fine-tuned as ``finetune-*`` and ``num-finetune-epochs`` say.

    Randomness depends on (seed, client) alone.
    """
    return personal_models(config, [client], server_round, received, memories)[0]


def personal_models(
    config: Config,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None = None,
) -> list[tuple[LitFedBABU, training.Personal]]:
    """The ``personal_model`` of several clients, which are fine-tuned together: the same up to rounding."""
    modules = [own_module(config, client, server_round, received, memories) for client in clients]
    return list(zip(modules, training.personalize(modules, _finetune_data(config, clients))))


def initial_evaluations(
    config: Config,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None = None,
) -> list[training.Evaluation]:
    """Loss and accuracy on each client's test images of its own model after a round, as it is."""
    modules = [own_module(config, client, server_round, received, memories) for client in clients]
    return training.evaluate(modules, _finetune_data(config, clients))


def _finetune_data(config: Config, clients: Sequence[int]) -> list[ClientData]:
    return [ClientData(config, client, config.derived_seed("finetune", client)) for client in clients]


def with_running_statistics(config: Config, client: int, module: LitFedBABU) -> tuple[LitFedBABU, dict[str, float]]:
    """The client's model with running statistics of its training images, and what they change.

    Returns:
        The model, and on the client's test images (0 to 1) ``running_statistics_accuracy`` with them and
        ``one_by_one_accuracy`` without them, where each image is a batch of its own.
    """
    data, alone = (
        _finetune_data(dataclasses.replace(config, test_batch_size=size), [client])
        for size in (config.test_batch_size, 1)
    )
    fixed = training.with_running_statistics(module, data[0])
    return fixed, {
        "running_statistics_accuracy": training.evaluate([fixed], data)[0].accuracy,
        "one_by_one_accuracy": training.evaluate([module], alone)[0].accuracy,
    }


def _overlaid(config: Config, *states: Mapping[str, Tensor]) -> LitFedBABU:
    """The initial model with the states laid over it, one after the other."""
    module = initial_module(config)
    whole = dict(module.model.state_dict())
    for state in states:
        whole |= state
    module.model.load_state_dict(whole)
    return module


def _remembered(config: Config, client: int, server_round: int, memories: Path | None) -> dict[str, Tensor]:
    if not algorithm_of(config).kept:
        return {}
    return memory.recall(_folder(config, memories), client, server_round)


def _folder(config: Config, memories: Path | None) -> Path:
    if memories is None:
        raise ValueError(f"{config.algorithm} keeps models between rounds and was given no folder for them")
    return memories
