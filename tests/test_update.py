import dataclasses

import pytest
import torch
from torch.nn import functional

from lit_fedbabu import runs, update
from lit_fedbabu.algorithms import ALGORITHMS, algorithm_of, shared_state
from lit_fedbabu.config import ConfigError
from lit_fedbabu.data import ClientData, augment, normalize
from lit_fedbabu.models import build_model, model_seed, parts_of, select
from lit_fedbabu.module import LitFedBABU
from tests.helpers import tiny_config


def batches(config, client, server_round):
    """The batches that a client sees in a round, drawn as the specification says: order, then augmentation."""
    data = ClientData(config, client, config.derived_seed("train", server_round, client))
    augmentation = torch.Generator().manual_seed(config.derived_seed("train", server_round, client) + 1)
    for _ in range(config.num_local_epochs):
        for images, labels in data.train_dataloader():
            yield normalize(augment(images, config.augmentation, augmentation)), labels


def sgd_by_hand(config, model, weights, stream, rate):
    """Momentum SGD with weight decay, written out (Sutskever form, as in PyTorch's documentation)."""
    velocity = {}
    for images, labels in stream:
        gradients = torch.autograd.grad(functional.cross_entropy(model(images), labels), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                step = gradient.add(weight, alpha=config.weight_decay)
                velocity[name] = velocity[name].mul_(config.momentum).add_(step) if name in velocity else step.clone()
                weight.add_(velocity[name], alpha=-rate)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_client_is_sgd_by_hand_with_fresh_momentum_in_every_round(algorithm):
    config = tiny_config(algorithm=algorithm, num_local_epochs=2, augmentation="crop-flip")
    torch.set_num_threads(config.num_threads)
    model = build_model(config.model_name, 10, model_seed(config)).to(memory_format=torch.channels_last)
    trained = select(dict(model.named_parameters()), parts_of(algorithm_of(config).trained))
    state = shared_state(config, update.initial_module(config).model.state_dict())
    for server_round, rate in ((1, 0.1), (2, 0.01)):
        state, _, _ = update.client_update(config, 3, server_round, state, rate)
        sgd_by_hand(config, model, trained, batches(config, 3, server_round), rate)
    by_hand = shared_state(config, model.state_dict())
    assert state.keys() == by_hand.keys()
    for name in state:
        assert torch.equal(state[name], by_hand[name]), name


def test_fedbabus_head_never_moves_and_never_travels():
    config = tiny_config(weight_decay=0.1, num_local_epochs=2)
    initial = {name: value.clone() for name, value in update.initial_module(config).model.state_dict().items()}
    state, count, loss = update.client_update(config, 0, 1, shared_state(config, initial), 0.1)
    assert state.keys() == select(initial, ["body"]).keys()
    assert all(not torch.equal(state[name], initial[name]) for name in state if name.endswith("weight"))
    head = select(update.received_module(config, state).model.state_dict(), ["head"])
    assert all(torch.equal(head[name], initial[name]) for name in head)
    assert count == len(ClientData(config, 0, 0).train_set)
    assert 0 < loss < 20


def test_a_clients_update_depends_on_seed_round_and_client_alone():
    config = tiny_config()
    received = shared_state(config, update.initial_module(config).model.state_dict())

    def weights(seed=config.seed, server_round=1, client=0):
        changed = dataclasses.replace(config, seed=seed)
        torch.manual_seed(torch.seed() % 1000)
        return update.client_update(changed, client, server_round, received, 0.1)[0]["body.0.0.weight"]

    first = weights()
    assert torch.equal(first, weights())
    for change in ({"seed": 1}, {"server_round": 2}, {"client": 1}):
        assert not torch.equal(first, weights(**change)), change


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_fine_tuning_starts_from_what_was_received_and_moves_its_part(part):
    config = tiny_config(finetune_part=part, finetune_learning_rate=0.05, num_finetune_epochs=3)
    received = shared_state(config, update.initial_module(config).model.state_dict())
    start = {name: value.clone() for name, value in update.initial_module(config).model.state_dict().items()}
    module, outcome = update.personal_model(config, 1, received)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, start[name]) == (name not in select(start, parts_of(part))), name
    assert outcome.initial == update.initial_evaluation(config, 1, received)
    assert outcome.personalized.loss != outcome.initial.loss


def test_no_epoch_of_fine_tuning_leaves_the_model_as_received():
    config = tiny_config(num_finetune_epochs=0)
    _, outcome = update.personal_model(
        config, 1, shared_state(config, update.initial_module(config).model.state_dict())
    )
    assert outcome.initial == outcome.personalized


def test_what_is_not_shared_is_not_accepted():
    config = tiny_config()
    everything = update.initial_module(config).model.state_dict()
    with pytest.raises(ValueError, match="fedbabu shares"):
        update.received_module(config, everything)


def test_an_unknown_algorithm_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match='algorithm = "fedbaboon": must be one of fedbabu, fedavg'):
        algorithm_of(tiny_config(algorithm="fedbaboon"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_federation_of_one_client_is_sgd_by_hand(algorithm, federate):
    config = tiny_config(
        algorithm=algorithm, num_clients=1, num_classes_per_client=10, fraction_train=1.0, num_server_rounds=3
    )
    torch.set_num_threads(config.num_threads)
    model = build_model(config.model_name, 10, model_seed(config)).to(memory_format=torch.channels_last)
    trained = select(dict(model.named_parameters()), parts_of(algorithm_of(config).trained))
    for server_round, rate in ((1, 0.1), (2, 0.1 * 0.1), (3, 0.1 * 0.1 * 0.1)):
        sgd_by_hand(config, model, trained, batches(config, 0, server_round), rate)
    folder, _ = federate(config)
    final = LitFedBABU.load_from_checkpoint(folder / runs.LAST_CHECKPOINT).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(final[name], value), name
