"""FedDBE against Algorithm 1 of Zhang et al. 2023, written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import client_update, own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed
from tests.support import model_by_hand


def rounds_by_hand(config):
    """The shared model, the clients' vectors, and mean features of all."""
    experiment = Experiment(config)
    model = model_by_hand(experiment).double()
    own, everyone, mu = [torch.zeros(512).double() for _ in range(3)], None, config.dbe_momentum
    for server_round in range(1, config.num_server_rounds + 1):
        rate, updates = config.learning_rate_in(server_round), []
        for client in range(3) if server_round == 1 else participants(config, server_round):
            local, mean = copy.deepcopy(model), torch.zeros(512).double()
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            vector = own[client].clone().requires_grad_()
            weights = [*local.parameters(), vector]
            moments = [torch.zeros_like(weight) for weight in weights]
            for images, labels in data.train_dataloader():
                features = local.body(data.prepare(images, None))
                mean = (1 - mu) * mean.detach() + mu * features.mean(0)
                loss = functional.cross_entropy(local.head(features + vector), labels)
                if server_round > 1:
                    loss = loss + config.dbe_kappa * (0.5 * (mean - everyone) ** 2).mean()
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
                        if server_round == 1 and weight is vector:
                            continue
                        moment.mul_(config.momentum).add_(gradient)
                        weight.sub_(rate * moment)
            own[client] = vector.detach()
            updates.append((data.num_train, local.state_dict(), mean.detach()))
        total = sum(count for count, _, _ in updates)
        if server_round == 1:
            assert len({count for count, _, _ in updates}) > 1
            everyone = sum(count * mean for count, _, mean in updates) / total
            continue
        for name, value in model.state_dict().items():
            value.copy_(sum(count * state[name] for count, state, _ in updates) / total)
    return model, own, everyone


@pytest.mark.parametrize(
    "options",
    [
        {"dbe_kappa": 5.0, "dbe_momentum": 0.3, "momentum": 0.9, "fraction_train": 0.7},
        pytest.param({"num_server_rounds": 2}, marks=pytest.mark.slow),
    ],
)
def test_feddbe_is_its_equations(options, federate):
    config = config_of("feddbe", **{"num_server_rounds": 3, "num_finetune_epochs": 0, "evaluate_every": 1} | options)
    folder, grid = federate(config)
    model, own, everyone = rounds_by_hand(config)
    shared, experiment, last = shared_after(folder, config), Experiment(config), config.num_server_rounds
    for name, value in model.state_dict().items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
    kept = memory.recall_from(folder / run_folder.SERVER, last, "the server")
    assert kept.keys() == {"state.mean"}
    assert torch.allclose(kept["state.mean"], everyone, rtol=0, atol=1e-12)
    assert everyone.abs().max() > 0.01
    for row in read_results(folder)["clients"]:
        vector = own[row["client"]]
        found = own_module(experiment, row["client"], last, shared, folder / run_folder.MEMORY).model
        data = experiment.client_data(row["client"], 0)
        ((images, labels),) = data.test_dataloader()
        images = data.prepare(images, None)
        with torch.no_grad():
            logits = model.head(model.body(images) + vector)
            assert torch.allclose(found(images), logits, rtol=0, atol=1e-11)
        assert row["initial_loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-10)
    first = next(message for message in grid.messages if message.metadata.message_type == "train")
    assert sorted(first.content["config"]["clients"]) == [0, 1, 2]
    assert any(vector.abs().max() > 1e-4 for vector in own)


def test_its_first_round_moves_no_weight_and_keeps_nothing(tmp_path):
    experiment = Experiment(config_of("feddbe"))
    received = experiment.initial_shared()
    first, later = (client_update(experiment, 0, number, received, 0.1, tmp_path) for number in (1, 2))
    assert all(torch.equal(value, received[name]) for name, value in first.state.items())
    assert first.extras["mean"].abs().max() > 0 and not later.extras["mean"].any()
    assert memory.recall(tmp_path, 0, 1) == {} and memory.recall(tmp_path, 0, 2).keys() == {"own.mean"}
    assert not torch.equal(later.state["head.weight"], received["head.weight"])


@pytest.mark.usefixtures("one_core")
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(federate):
    whole, folder = stopped_and_resumed(config_of("feddbe", num_server_rounds=3, fraction_train=0.7), federate)
    assert not (whole / run_folder.FAILURES).exists()
    kept = [{path.name: path.read_bytes() for path in each.glob("server/*.safetensors")} for each in (whole, folder)]
    assert kept[0] == kept[1] != {}


def model_with(head):
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    return lambda num_classes, norm, channels: BodyAndHead(body, head(num_classes))


two_layers = model_with(lambda classes: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes)))
no_bias = model_with(lambda classes: nn.Linear(4, classes, bias=False))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("feddbe"), 'algorithm = "feddbe": has a loss of its own, for images and their classes'),
        (lambda: config_of("feddbe", model_name=f"{__name__}:two_layers"), "has a Sequential as its head, and this"),
        (lambda: config_of("feddbe", model_name=f"{__name__}:no_bias"), "has a Linear without a bias as its head"),
        (lambda: config_of("feddbe", num_server_rounds=1), "num-server-rounds = 1: feddbe measures .*; take 2 or more"),
        (lambda: config_of("feddbe", aggregator="median"), 'aggregator = "median": feddbe takes a mean of features'),
        (
            lambda: config_of("feddbe", clipping_norm=1.0),
            "clipping-norm = 1.0: does not bound mean, which feddbe",
        ),
        (lambda: config_of("feddbe", cohort_size=2), "cohort-size = 2: feddbe trains clients one by one; take 0"),
    ],
)
def test_what_feddbe_cannot_do_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
