"""FedBABU once more, from the paper's Algorithm 1 in plain PyTorch: no Lightning, no Flower, nothing of update.py."""

import copy
import json

import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu import runs
from lit_fedbabu.data import ClientData, augment, normalize
from lit_fedbabu.models import build_model, model_seed
from lit_fedbabu.module import LitFedBABU
from tests.helpers import FakeGrid, tiny_config


def local_sgd(model, weights, config, client, seed, epochs, rate):
    """Mini-batch SGD with momentum on some of the weights (Algorithm 1, ClientUpdate)."""
    data = ClientData(config, client, seed)
    augmentation = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.SGD(weights, lr=rate, momentum=config.momentum)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            functional.cross_entropy(model(normalize(augment(images, "crop-flip", augmentation))), labels).backward()
            optimizer.step()
    return len(data.train_set)


def accuracy(model, config, client):
    images, labels = ClientData(config, client, 0).test_set.tensors
    with torch.no_grad():
        return (model(normalize(images)).argmax(1) == labels).double().mean().item()


def algorithm_1(config) -> tuple[nn.Module, list[float], list[float]]:
    """K rounds of body averaging over all clients, then fine-tuning of the whole network."""
    server = build_model(config.model_name, 10, model_seed(config)).to(memory_format=torch.channels_last)
    rates = [0.1, 0.01, 0.001]  # K = 3: decayed after rounds 1 and 2
    for server_round in range(1, config.num_server_rounds + 1):
        bodies, counts = [], []
        for client in range(config.num_clients):
            local = copy.deepcopy(server)
            seed = config.derived_seed("train", server_round, client)
            epochs, rate = config.num_local_epochs, rates[server_round - 1]
            counts.append(local_sgd(local, local.body.parameters(), config, client, seed, epochs, rate))
            bodies.append(local.body.state_dict())
        mean = {k: sum(n * b[k].double() for n, b in zip(counts, bodies)) / sum(counts) for k in bodies[0]}
        server.body.load_state_dict(mean)
    initial, personalized = [], []
    for client in range(config.num_clients):
        local = copy.deepcopy(server)
        initial.append(accuracy(local, config, client))
        seed = config.derived_seed("finetune", client)
        local_sgd(local, local.parameters(), config, client, seed, config.num_finetune_epochs, 0.01)
        personalized.append(accuracy(local, config, client))
    return server, initial, personalized


def test_a_federation_is_algorithm_1(federate):
    config = tiny_config(
        num_clients=3, fraction_train=1.0, num_server_rounds=3, num_local_epochs=2, weight_decay=0.0,
        num_finetune_epochs=3, finetune_learning_rate=0.01,
    )  # fmt: skip
    torch.set_num_threads(config.num_threads)
    server, initial, personalized = algorithm_1(config)
    folder, _ = federate(config, FakeGrid(config, 2, shuffle=True))
    final = LitFedBABU.load_from_checkpoint(folder / runs.LAST_CHECKPOINT).model.state_dict()
    for name, value in server.state_dict().items():
        torch.testing.assert_close(final[name], value, rtol=0, atol=1e-6, msg=name)
    rows = json.loads((folder / "results.json").read_text())["clients"]
    assert [row["initial_accuracy"] for row in rows] == initial
    assert [row["personalized_accuracy"] for row in rows] == personalized
    assert len({*initial, *personalized}) > 2, "a problem that tells models apart"
