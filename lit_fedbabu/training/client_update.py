"""What a client does with its model: train for a round, be evaluated, become personal."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from torch import Tensor

from lit_fedbabu.learning.devices import is_first, refuse_other
from lit_fedbabu.learning.evaluation import Measured, Personalization
from lit_fedbabu.learning.losses import Loss
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import Learner
from lit_fedbabu.tasks.protocol import Data
from lit_fedbabu.training import memory, own_ledger
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.participation import CohortRound, Participation, needed, participation


class TrainedClient(NamedTuple):
    """What a round made of a client.

    Args:
        state: its shared weights.
        num_train: its training images.
        train_loss: mean over all images seen in the last phase, in nats.
        extras: what it sends besides.
    """

    state: dict[str, Tensor]
    num_train: int
    train_loss: float
    extras: Mapping[str, Tensor] = {}


def client_update(
    experiment: Experiment,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    learning_rate: float,
    memories: Path | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> TrainedClient:
    """One client's part of one round: train what the algorithm trains, keep what it keeps, return what it shares.

    Randomness depends on (seed, round, client) alone, also what the model draws from global generators.

    Args:
        experiment: with the algorithm and the client's data.
        client: its number.
        server_round: number of the round, from 1.
        received: the shared weights.
        learning_rate: of this round.
        memories: folder of what clients keep; only algorithms that keep something need it.
        extras: what the server sent besides; None: as in the first round.
    """
    return cohort_update(experiment, [client], server_round, received, learning_rate, memories, extras)[0]


def cohort_update(
    experiment: Experiment,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    learning_rate: float,
    memories: Path | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> list[TrainedClient]:
    """The ``client_update`` of several clients, which are trained together: the same up to rounding.

    A model that draws random numbers, as dropout does, draws others than for one client after another.
    """
    config, algorithm = experiment.config, experiment.algorithm
    refuse_other(config)
    data = [
        experiment.client_data(client, config.derived_seed("train", server_round, client), pooled=algorithm.pooled)
        for client in clients
    ]
    extras = experiment.extras.down if extras is None else extras
    participants = [
        participation(experiment, client, server_round - 1, received, memories, extras) for client in clients
    ]
    private = config.protection == "sample"
    cohort = CohortRound(experiment, participants, data, server_round, learning_rate, private=private)
    modules = [algorithm.start(each) for each in participants]
    for client, own in zip(clients, data, strict=True) if private else ():
        own_ledger.begin(experiment, client, server_round, own.num_train, memories)
    with seeded(config.derived_seed("draws", server_round, *clients)):
        losses = algorithm.train(cohort, modules)
    with seeded(config.derived_seed("personal-draws", server_round, *clients)):
        updates = algorithm.finish(dataclasses.replace(cohort, private=False), modules)
    for client, update in zip(clients, updates, strict=True):
        experiment.check_update(update)
        if update.kept and is_first():
            memory.keep(needed(memories, experiment), client, server_round, update.kept)
    pairs = zip(updates, data, losses, strict=True)
    return [TrainedClient(update.shared, own.num_train, loss, update.extras) for update, own, loss in pairs]


def _after(
    experiment: Experiment,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None,
    extras: Mapping[str, Tensor] | None,
) -> Participation:
    """A client when a round is over; ``extras`` are None before the first one."""
    sent = experiment.extras.after if extras is None else extras
    return participation(experiment, client, server_round, received, memories, sent)


def own_module(
    experiment: Experiment,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None,
    extras: Mapping[str, Tensor] | None = None,
) -> Learner:
    """The client's model when a round is over: what is evaluated, and what fine-tuning starts from.

    Raises:
        ValueError: what was received is not exactly what the algorithm shares.
    """
    return experiment.algorithm.own_model(_after(experiment, client, server_round, received, memories, extras))


def generic_modules(
    experiment: Experiment,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None,
    extras: Mapping[str, Tensor] | None = None,
) -> list[Learner]:
    """Of each client the model that is measured as ``initial``; empty if that is its own one."""
    hook = experiment.algorithm.generic_model
    found = [hook(_after(experiment, client, server_round, received, memories, extras)) for client in clients]
    return [each for each in found if each is not None]


def personal_model(
    experiment: Experiment,
    client: int,
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> tuple[Learner, Personalization]:
    """A client's own model after a round, fine-tuned as ``finetune-*`` and ``num-finetune-epochs`` say.

    Randomness depends on (seed, client) alone.
    """
    return personal_models(experiment, [client], server_round, received, memories, extras)[0]


def personal_models(
    experiment: Experiment,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> list[tuple[Learner, Personalization]]:
    """The ``personal_model`` of several clients, which are fine-tuned together: the same up to rounding."""
    modules = [own_module(experiment, client, server_round, received, memories, extras) for client in clients]
    personalized = personalize(experiment, clients, modules, finetuning_data(experiment, clients))
    if generic := generic_modules(experiment, clients, server_round, received, memories, extras):
        with seeded(experiment.config.derived_seed("evaluation-draws", *clients)):
            options = finetuning_of(experiment)
            options["epochs"] = 0
            measured = experiment.task.personalize(generic, finetuning_data(experiment, clients), **options)
        personalized = [own.beside(each) for own, each in zip(personalized, measured, strict=True)]
    return list(zip(modules, personalized, strict=True))


def personalize(
    experiment: Experiment,
    clients: Sequence[int],
    modules: Sequence[Learner],
    data: Sequence[Data],
    say: Callable[[Sequence[Measured]], None] = lambda _: None,
) -> list[Personalization]:
    """Fine-tune modules of clients in place, as the options say; ``say`` is told of the first one's evaluations."""
    config, method, options = experiment.config, experiment.algorithm, finetuning_of(experiment)
    if method.has_own_loss:  # so that these are images, whose classes are known
        losses = [method.tuning_loss(config, each.class_counts) for each in data]
        options["losses"] = [loss for loss in losses if loss is not None]
        options["turns"] = method.turns(config)
    with seeded(config.derived_seed("finetuning-draws", *clients)):
        if config.finetune_part == "knn":
            return experiment.classifier.vote(modules, data, config.knn_neighbors, config.knn_weight, say)
        return experiment.task.personalize(modules, data, **options, say=say)


def initial_evaluations(
    experiment: Experiment,
    clients: Sequence[int],
    server_round: int,
    received: Mapping[str, Tensor],
    memories: Path | None = None,
    extras: Mapping[str, Tensor] | None = None,
) -> list[Measured]:
    """Measures of each client's model after a round, as it is, on the client's test images."""
    modules = generic_modules(experiment, clients, server_round, received, memories, extras) or [
        own_module(experiment, client, server_round, received, memories, extras) for client in clients
    ]
    with seeded(experiment.config.derived_seed("evaluation-draws", *clients)):
        return list(experiment.task.evaluate(modules, finetuning_data(experiment, clients)))


def with_running_statistics(experiment: Experiment, client: int, module: Learner) -> tuple[Learner, dict[str, float]]:
    """The client's model with running statistics of its training images, and what they change.

    Returns:
        The model, and on the client's test images (0 to 1) ``running_statistics_accuracy`` with them and
        ``one_by_one_accuracy`` without them, where each image is a batch of its own.
    """
    data, alone = finetuning_data(experiment, [client]), finetuning_data(experiment, [client], test_batch_size=1)
    with seeded(experiment.config.derived_seed("statistics-draws", client)):
        fixed = experiment.classifier.with_running_statistics(module, data[0])
        return fixed, {
            "running_statistics_accuracy": experiment.task.evaluate([fixed], data)[0].score,
            "one_by_one_accuracy": experiment.task.evaluate([module], alone)[0].score,
        }


def finetuning_data(experiment: Experiment, clients: Sequence[int], test_batch_size: int | None = None) -> list[Data]:
    """The data of clients in the order that fine-tuning sees."""
    return [
        experiment.client_data(
            client, experiment.config.derived_seed("finetune", client), test_batch_size=test_batch_size
        )
        for client in clients
    ]


class FineTuning(TypedDict):
    """Options of ``AnyTask.personalize``, of which methods with a loss of their own have the last two."""

    part: str
    epochs: int
    learning_rate: float
    losses: NotRequired[Sequence[Loss]]
    turns: NotRequired[Sequence[tuple[str, int, float]]]


def finetuning_of(experiment: Experiment) -> FineTuning:
    """Part, epochs and learning rate of fine-tuning."""
    config, rate = experiment.config, experiment.finetuning_rate
    return {"part": config.finetune_part, "epochs": config.num_finetune_epochs, "learning_rate": rate}
