import pytest
import torch
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.support import batches, model_by_hand, tiny, tiny_config


@pytest.mark.parametrize("algorithm", ["fedprox", "ditto"])
def test_the_proximal_pull_is_a_quadratic_loss(algorithm, tmp_path):
    experiment = tiny(algorithm=algorithm, proximal_mu=0.7, num_local_epochs=2, weight_decay=0.0)
    model = model_by_hand(experiment)
    anchor = {name: value.detach().clone() for name, value in model.named_parameters()}
    more = batches(experiment, 0, 1)
    if algorithm == "ditto":  # the shared model has seen its epochs before the personal one starts
        list(more(experiment.config.num_local_epochs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=experiment.config.momentum)
    for images, labels in more(experiment.config.num_local_epochs):
        distance = sum((weight - anchor[name]).square().sum() for name, weight in model.named_parameters())
        optimizer.zero_grad()
        (functional.cross_entropy(model(images), labels) + 0.7 / 2 * distance).backward()
        optimizer.step()
    state, *_ = client_update(experiment, 0, 1, experiment.initial_shared(), 0.1, tmp_path)
    ours = memory.recall(tmp_path, 0, 1) if algorithm == "ditto" else state
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("alpha", "server_round"), [(0.0, 1), (0.05, 1), (0.05, 2)])
def test_per_fedavg_steps_by_the_gradient_after_an_inner_step(alpha, server_round):
    experiment = tiny(
        algorithm="per-fedavg", inner_learning_rate=alpha, inner_learning_rate_decay=0.2, num_local_epochs=2,
        weight_decay=0.0,
    )  # fmt: skip
    rate = alpha * 0.2 ** (server_round - 1)
    model = model_by_hand(experiment)
    weights = list(model.parameters())
    velocity = None
    assert len(list(batches(experiment, 0, server_round)(1))) % 2 == 1, "an epoch has a batch without a partner"
    more = batches(experiment, 0, server_round)
    for _ in range(experiment.config.num_local_epochs):
        epoch = list(more(1))
        for (images, labels), (other_images, other_labels) in zip(epoch[0::2], epoch[1::2], strict=False):
            before = [weight.detach().clone() for weight in weights]
            inner = torch.autograd.grad(functional.cross_entropy(model(images), labels), weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, inner, strict=True):
                    weight.sub_(gradient, alpha=rate)
            outer = torch.autograd.grad(functional.cross_entropy(model(other_images), other_labels), weights)
            velocity = [0.9 * old + new for old, new in zip(velocity, outer, strict=True)] if velocity else list(outer)
            with torch.no_grad():
                for weight, old, step in zip(weights, before, velocity, strict=True):
                    weight.copy_(old - 0.1 * step)
    state, *_ = client_update(experiment, 0, server_round, experiment.initial_shared(), 0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("server_round", [1, 2])
def test_pfedme_steps_towards_what_inner_steps_on_the_same_batch_find(server_round):
    experiment = tiny(
        algorithm="pfedme", num_inner_steps=3, proximal_mu=0.7, inner_learning_rate=0.05,
        inner_learning_rate_decay=0.2, weight_decay=0.0,
    )  # fmt: skip
    rate = 0.05 * 0.2 ** (server_round - 1)
    model = model_by_hand(experiment)
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=experiment.config.momentum)
    for images, labels in batches(experiment, 0, server_round)(1):
        start = [weight.detach().clone() for weight in weights]
        for _ in range(3):
            pull = sum((weight - before).square().sum() for weight, before in zip(weights, start, strict=True))
            loss = functional.cross_entropy(model(images), labels) + 0.7 / 2 * pull
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.sub_(gradient, alpha=rate)
        for weight, before in zip(weights, start, strict=True):
            weight.grad = 0.7 * (before - weight.detach())
            weight.data.copy_(before)
        optimizer.step()
    state, *_ = client_update(experiment, 0, server_round, experiment.initial_shared(), 0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_pfedme_refuses_several_batches_for_a_step():
    with pytest.raises(InputError, match=r"accumulate_grad_batches = 2: pfedme takes steps of its own for each batch"):
        Experiment(tiny_config(algorithm="pfedme", trainer_options='{"accumulate_grad_batches": 2}')).check()
