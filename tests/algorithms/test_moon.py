"""MOON against its equations written out, and the seam for losses that it stands on."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

from lit_fedbabu import Algorithm
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.records import run_folder
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task, rounds_by_hand, shared_after
from tests.server.test_federate import stopped_and_resumed
from tests.support import files_that_decide, model_by_hand


def moon_by_hand(config, mu, temperature):
    """The shared weights after each round, and every client's last model."""
    last = [model_by_hand(Experiment(config)).double() for _ in range(3)]
    received = {}

    def unit(body, images):
        features = body(images)
        return features / features.norm(dim=1, keepdim=True)

    def step(client, local, weights, batch, rate, is_first):
        images, labels = batch
        if is_first:
            received[client] = copy.deepcopy(local)
        features = unit(local.body, images)
        near, far = ((features * unit(each.body, images).detach()).sum(1) for each in (received[client], last[client]))
        contrast = torch.log(1 + torch.exp((far - near) / temperature)).mean()
        loss = functional.cross_entropy(local(images), labels) + mu * contrast
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    def finish(client, before, trained, length):
        if client is not None:
            last[client] = copy.deepcopy(last[client])
            last[client].load_state_dict(trained, strict=False)

    return rounds_by_hand(config, step, finish), last


@pytest.mark.parametrize("algorithm", ["moon", "moon-babu"])
def test_moon_is_its_equations(algorithm, federate):
    config = config_of(algorithm, num_server_rounds=2, moon_mu=3.0, moon_temperature=0.2)
    folder, _ = federate(config)
    after, last = moon_by_hand(config, 3.0, 0.2)
    shared = shared_after(folder, config)
    assert shared.keys() == after[-1].keys()
    for name, value in after[-1].items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
    plain, _ = moon_by_hand(config, 0.0, 0.2)
    assert max((value - plain[-1][name]).abs().max() for name, value in shared.items()) > 1e-4, "the loss matters"
    experiment = Experiment(config)
    own = own_module(experiment, 1, 2, shared, folder / run_folder.MEMORY).model.state_dict()
    initial = model_by_hand(experiment).double().state_dict()
    assert all(torch.equal(value, shared.get(name, initial[name])) for name, value in own.items())
    assert max((last[1].state_dict()[name] - value).abs().max() for name, value in shared.items()) > 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("algorithm", [pytest.param("moon", marks=pytest.mark.slow), "moon-babu"])
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(algorithm, federate):
    config = config_of(algorithm, num_server_rounds=3, fraction_train=0.7, precision="32-true")
    whole, _ = stopped_and_resumed(config, federate)
    assert any("memory" in name for name in files_that_decide(whole))


class Scaled(Algorithm):
    """A loss that is no module."""

    def losses(self, cohort, modules):
        return [lambda batch: 0.5 * functional.cross_entropy(batch.logits, batch.labels) for _ in modules]


FULL = (("full", "num_local_epochs"),)
scaled = Scaled("Scaled", "full", FULL)


def test_a_loss_of_ones_own_is_what_trains(federate):
    config = config_of(f"{__name__}:scaled", num_server_rounds=1)
    halved = dataclasses.replace(config, algorithm="fedavg", learning_rate=config.learning_rate / 2)
    ours, plain = (shared_after(federate(each)[0], each) for each in (config, halved))
    assert all(torch.allclose(value, plain[name], rtol=0, atol=1e-12) for name, value in ours.items())


def sharpened(num_classes, norm, channels):
    """A model that does something between its body and its head."""

    class Model(BodyAndHead):
        def forward(self, images):
            return self.head(2 * self.body(images))

    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 32 * 32, 4))
    return Model(body, torch.nn.Linear(4, num_classes))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("moon"), 'algorithm = "moon": has a loss of its own, for images and their classes'),
        (lambda: config_of("moon", model_name=f"{__name__}:sharpened"), r"does more than head\(body\(images\)\)"),
        (lambda: config_of("moon", moon_mu=-1.0), "moon-mu = -1.0: must be at least 0"),
        (lambda: config_of("moon", moon_temperature=0.0), "moon-temperature = 0.0: must be greater than 0"),
    ],
)
def test_what_moon_cannot_do_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()


def test_other_methods_take_a_model_that_moon_refuses():
    Experiment(config_of("fedavg", model_name=f"{__name__}:sharpened")).check()
