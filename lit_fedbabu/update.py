"""What a client does with its model: train for a round, be evaluated, become personal."""

from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor

from lit_fedbabu import sources, training
from lit_fedbabu.algorithms import algorithm_of, shared_state
from lit_fedbabu.config import Config
from lit_fedbabu.data import ClientData
from lit_fedbabu.models import model_seed
from lit_fedbabu.module import LitFedBABU


def initial_module(config: Config) -> LitFedBABU:
    """The module as every participant builds it before the first round: random body, random head."""
    return training.new_module(config, len(sources.load(config.dataset).class_names), model_seed(config))


@lru_cache(maxsize=4)
def shared_names(config: Config) -> tuple[str, ...]:
    """Names of what travels, in the order of the model's state."""
    return tuple(shared_state(config, initial_module(config).model.state_dict()))


def received_module(config: Config, received: Mapping[str, Tensor]) -> LitFedBABU:
    """A client's model at the start of a round or of fine-tuning: what was received over the initial model.

    Raises:
        ValueError: what was received is not exactly what the algorithm shares.
    """
    module = initial_module(config)
    expected = shared_state(config, module.model.state_dict())
    if received.keys() != expected.keys():
        raise ValueError(f"received {sorted(received)}, but {config.algorithm} shares {sorted(expected)}")
    module.model.load_state_dict({**module.model.state_dict(), **received})
    return module


def client_update(
    config: Config, client: int, server_round: int, received: Mapping[str, Tensor], learning_rate: float
) -> tuple[dict[str, Tensor], int, float]:
    """One client's part of one round: train what the algorithm trains, return what it shares.

    Randomness depends on (seed, round, client) alone.

    Returns:
        The shared state, the number of training images, and the mean training loss in nats.
    """
    data = ClientData(config, client, config.derived_seed("train", server_round, client))
    module = received_module(config, received)
    loss = training.fit(
        module,
        data,
        mode=algorithm_of(config).trained,
        epochs=config.num_local_epochs,
        learning_rate=learning_rate,
    )
    return shared_state(config, module.model.state_dict()), len(data.train_set), loss


def personal_model(config: Config, client: int, received: Mapping[str, Tensor]) -> tuple[LitFedBABU, training.Personal]:
    """A client's own model: fine-tuned from what was received, as ``finetune-*`` and ``num-finetune-epochs`` say.

    Randomness depends on (seed, client) alone.
    """
    data = ClientData(config, client, config.derived_seed("finetune", client))
    module = received_module(config, received)
    outcome = training.personalize(
        module,
        data,
        part=config.finetune_part,
        epochs=config.num_finetune_epochs,
        learning_rate=config.finetune_learning_rate,
    )
    return module, outcome


def initial_evaluation(config: Config, client: int, received: Mapping[str, Tensor]) -> training.Evaluation:
    """Loss and accuracy on the client's test images of what was received, as it is."""
    data = ClientData(config, client, config.derived_seed("finetune", client))
    return training.evaluate(received_module(config, received), data)
