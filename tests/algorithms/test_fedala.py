"""FedALA against Algorithm 1 of Zhang et al. 2023, written out."""

import copy
import dataclasses
import math
import statistics

import pytest
import torch
from torch.nn import functional

from lit_fedbabu import Task
from lit_fedbabu.algorithms.fedala import weights_of
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records import run_folder
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.algorithms.test_scaffold import bytes_of
from tests.algorithms.test_users_methods import config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed

by_hand = Task(own_tasks.ByHand, own_tasks.Sensors, score="test_f1")


def fedala_by_hand(config, mixed):
    """The state of the shared model, of each client l and W, and of each participation the number of passes."""
    experiment, seed = Experiment(config), config.derived_seed("model")
    shared = build_model(config.model_name, 10, seed, config.norm).double().to(memory_format=torch.channels_last)
    first = {name: shared.state_dict()[name].clone() for name in mixed}
    last = [dict(first) for _ in range(config.num_clients)]
    shares = [{name: torch.ones_like(value) for name, value in first.items()} for _ in last]
    learned, passes = set(), []
    for server_round in range(1, config.num_server_rounds + 1):
        rate, states, sizes = config.learning_rate_in(server_round), [], []
        x = {name: value.clone() for name, value in shared.state_dict().items()}
        for client in participants(config, server_round):
            local, share, old = copy.deepcopy(shared).train(), shares[client], last[client]
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            part = math.ceil(config.num_mixing_epochs * len(data.train_dataloader()))
            weights, losses = dict(local.named_parameters()), []
            while any((old[name] != x[name]).any() for name in mixed):
                seen = []
                for number, (raw, labels) in enumerate(data.train_dataloader()):
                    if number == part:
                        break
                    for name in mixed:
                        weights[name].data = old[name] + (x[name] - old[name]) * share[name]
                    loss = functional.cross_entropy(local(data.prepare(raw, None)), labels)
                    gradients = torch.autograd.grad(loss, [weights[name] for name in mixed])
                    for name, gradient in zip(mixed, gradients, strict=True):
                        moved = config.mixing_learning_rate * gradient * (x[name] - old[name])
                        share[name] = (share[name] - moved).clamp(0, 1)
                    seen += [loss.item()] * len(labels)
                losses.append(statistics.mean(seen))
                if client in learned or (len(losses) >= 10 and statistics.pstdev(losses[-10:]) < 0.1):
                    learned.add(client)
                    break
            passes.append(len(losses))
            local.load_state_dict(x)
            for name in mixed:
                weights[name].data = old[name] + (x[name] - old[name]) * share[name]
            options = {"lr": rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
            sgd = torch.optim.SGD(local.parameters(), **options)
            for raw, labels in data.train_dataloader():
                sgd.zero_grad()
                functional.cross_entropy(local(data.prepare(raw, None)), labels).backward()
                sgd.step()
            states.append(local.state_dict())
            sizes.append(data.num_train)
            last[client] = {name: states[-1][name].clone() for name in mixed}
        for name, value in shared.state_dict().items():
            value.copy_(sum(n * each[name].double() for n, each in zip(sizes, states, strict=True)) / sum(sizes))
    return shared.state_dict(), last, shares, passes


@pytest.mark.parametrize(
    ("options", "mixed"),
    [
        (
            {"norm": "batch-running", "momentum": 0.9, "weight_decay": 0.01, "fraction_train": 0.7},
            ["head.weight", "head.bias"],
        ),
        pytest.param({"num_mixing_layers": 9}, None, marks=pytest.mark.slow),
    ],
)
def test_fedala_is_its_equations(options, mixed, federate):
    config = config_of("fedala", num_server_rounds=3, mixing_learning_rate=40.0, num_mixing_epochs=0.4, **options)
    mixed = mixed or list(dict(Experiment(config).new_module().model.named_parameters()))
    folder, _ = federate(config)
    expected, last, shares, passes = fedala_by_hand(config, mixed)
    assert {0, 1} < set(passes) and max(passes) >= 10, "nothing to learn, once, and until it is steady"
    shared, memories = shared_after(folder, config), folder / run_folder.MEMORY
    for name, value in expected.items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-9), name
    for client in range(3):
        assert min(share.min() for share in shares[client].values()) < 1, "something was learned"
        mine = memory.recall(memories, client, 3)
        model = own_module(Experiment(config), client, 3, shared, memories).model.state_dict()
        for name, value in expected.items():
            old, share = (of[client].get(name) for of in (last, shares))
            if name in mixed:
                assert torch.allclose(mine[f"mixing.share.{name}"], share, rtol=0, atol=1e-8), name
                assert torch.allclose(mine[f"mixing.local.{name}"], old, rtol=0, atol=1e-9), name
                assert share.min() >= 0 and share.max() <= 1
            whole = value if name not in mixed else old + (value - old) * share
            assert torch.allclose(model[name], whole, rtol=0, atol=1e-8), (client, name)


def test_a_client_that_never_took_part_has_the_shared_model(tmp_path):
    experiment = Experiment(config_of("fedala"))
    received = {name: value + 1 for name, value in experiment.initial_shared().items()}
    model = own_module(experiment, 0, 1, received, tmp_path).model.state_dict()
    assert all(torch.equal(value, received[name]) for name, value in model.items())


def test_layers_are_counted_from_the_end():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2, bias=False)
    )
    assert weights_of(model, 1) == ["3.weight"]
    assert weights_of(model, 2) == ["2.weight", "2.bias", "3.weight"]
    assert weights_of(model, 5) == [name for name, _ in model.named_parameters()]


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("kind", ["task", "images"])
def test_a_stopped_run_goes_on_to_the_same_bytes(kind, federate):
    config = of_task("fedala") if kind == "task" else config_of("fedala", num_server_rounds=3, fraction_train=0.7)
    whole, folder = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()
    assert bytes_of(whole) == bytes_of(folder) != {}
    names = {name for path in whole.glob("memory/*/*.safetensors") for name in memory.load_file(path)}
    assert {"mixing.local.head.weight", "mixing.share.head.weight"} <= names


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: config_of("fedala", cohort_size=2), "cohort-size = 2: fedala trains clients one by one; take 0"),
        (
            lambda: config_of("fedala", trainer_options='{"accumulate_grad_batches": 2}'),
            "trainer.accumulate_grad_batches = 2: counts batches, of which fedala takes a part .*; leave it out",
        ),
        (
            lambda: dataclasses.replace(of_task("fedala"), task=f"{__name__}:by_hand"),
            "learns how to mix from gradients alone, and the task's module takes steps by hand; take another",
        ),
    ],
)
def test_what_fedala_cannot_do_is_refused_before_a_run(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
