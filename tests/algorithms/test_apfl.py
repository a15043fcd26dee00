"""APFL against Algorithm 1 of Deng et al. 2020, written out, and against the same as a user's file."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

from lit_fedbabu import Task
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records import run_folder
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.algorithms.test_scaffold import bytes_of
from tests.algorithms.test_users_methods import APFL, config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed

by_hand = Task(own_tasks.ByHand, own_tasks.Sensors, score="test_f1")


def apfl_by_hand(config):
    """The state of the shared model, and of each client that took part the mixture's model and a."""
    experiment, seed = Experiment(config), config.derived_seed("model")
    shared = build_model(config.model_name, 10, seed, config.norm).double().to(memory_format=torch.channels_last)
    models = [copy.deepcopy(shared) for _ in range(config.num_clients)]
    a, took_part = [config.mixing_alpha] * config.num_clients, set()
    for server_round in range(1, config.num_server_rounds + 1):
        rate, states, sizes = config.learning_rate_in(server_round), [], []
        for client in participants(config, server_round):
            took_part.add(client)
            w, v = copy.deepcopy(shared).train(), models[client]
            options = {"lr": rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
            sgd, own_sgd = (torch.optim.SGD(model.parameters(), **options) for model in (w, v))
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            for number, (raw, labels) in enumerate(data.train_dataloader()):
                images, share = data.prepare(raw, None), a[client]
                mixture = copy.deepcopy(v).train()  # with v's running statistics
                for mixed, own, theirs in zip(mixture.parameters(), v.parameters(), w.parameters(), strict=True):
                    mixed.data = share * own.data + (1 - share) * theirs.data
                functional.cross_entropy(mixture(images), labels).backward()
                pairs = list(zip(mixture.parameters(), v.parameters(), w.parameters(), strict=True))
                if number == 0:
                    slopes = [((own.data - theirs.data) * mixed.grad).sum() for mixed, own, theirs in pairs]
                    a[client] = min(max(share - rate * float(torch.stack(slopes).sum()), 0), 1)
                for mixed, own, _ in pairs:
                    own.grad = share * mixed.grad
                own_sgd.step()
                for (name, buffer), there in zip(v.named_buffers(), mixture.buffers(), strict=True):
                    assert name and buffer.copy_(there) is buffer
                sgd.zero_grad()
                functional.cross_entropy(w(images), labels).backward()
                sgd.step()
            states.append(w.state_dict())
            sizes.append(data.num_train)
        for name, value in shared.state_dict().items():
            mean = sum(size * each[name].double() for size, each in zip(sizes, states, strict=True)) / sum(sizes)
            value.copy_(mean)
    mixtures = {client: models[client] for client in took_part}
    for client, model in mixtures.items():
        for own, theirs in zip(model.parameters(), shared.parameters(), strict=True):
            own.data = a[client] * own.data + (1 - a[client]) * theirs.data
    return shared.state_dict(), mixtures, a


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch-running", "momentum": 0.9, "weight_decay": 0.01, "fraction_train": 0.7, "mixing_alpha": 0.3},
        pytest.param({"num_server_rounds": 3}, marks=pytest.mark.slow),
    ],
)
def test_apfl_is_its_equations(options, federate):
    config = config_of("apfl", **{"num_server_rounds": 2, **options})
    folder, _ = federate(config)
    expected, mixtures, a = apfl_by_hand(config)
    shared, memories, rounds = shared_after(folder, config), folder / run_folder.MEMORY, config.num_server_rounds
    for name, value in expected.items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
    for client in range(3):
        model = own_module(Experiment(config), client, rounds, shared, memories).model.state_dict()
        for name, value in (mixtures[client].state_dict() if client in mixtures else expected).items():
            assert torch.allclose(model[name], value, rtol=0, atol=1e-11), (client, name)
        if client in mixtures:
            assert memory.recall(memories, client, rounds)["mixing.a"].item() == pytest.approx(a[client], abs=1e-12)
            assert 0 < a[client] < 1 and a[client] != config.mixing_alpha


@pytest.mark.parametrize("kind", ["images", "task"])
def test_the_row_gives_the_same_bytes_as_the_file_of_a_user(kind, federate):
    folders = []
    for name in ("apfl", APFL):
        options = {"num_server_rounds": 3, "fraction_train": 0.7, "precision": "32-true"}
        folders.append(federate(of_task(name) if kind == "task" else config_of(name, **options))[0])
    ours, theirs = (bytes_of(folder) for folder in folders)
    if kind == "images":
        assert ours == theirs != {}
        return
    assert ours.keys() == theirs.keys() != set()
    for name in ours:  # the file leaves the mixture's running statistics out
        client, server_round = int(name.split("_")[1][:4]), int(name.split("_")[-1][:4])
        mine, other = (memory.recall(folder / run_folder.MEMORY, client, server_round) for folder in folders)
        assert other.keys() < mine.keys() and all("running" in key or "num_b" in key for key in mine.keys() - other)
        assert server_round > 1 or all(torch.equal(value, mine[key]) for key, value in other.items())


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("kind", ["task", "images"])
def test_a_stopped_run_goes_on_to_the_same_bytes(kind, federate):
    options = {"num_server_rounds": 3, "fraction_train": 0.7, "momentum": 0.9, "norm": "batch-running"}
    whole, folder = stopped_and_resumed(of_task("apfl") if kind == "task" else config_of("apfl", **options), federate)
    assert not (whole / run_folder.FAILURES).exists()
    assert bytes_of(whole) == bytes_of(folder) != {}


def of_other_task(name):
    return dataclasses.replace(of_task("apfl"), task=name)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: config_of("apfl", cohort_size=2), "cohort-size = 2: apfl trains clients one by one; take 0"),
        (
            lambda: config_of("apfl", trainer_options='{"gradient_clip_val": 1.0}'),
            "trainer.gradient_clip_val = 1.0: apfl trains a second model, which Lightning does not see; leave it out",
        ),
        (lambda: of_other_task(f"{__name__}:by_hand"), "takes a second step on each batch, .* by hand; take another"),
        (lambda: of_other_task("tests.own_tasks:windows"), "is of steps of torch.optim.SGD, .* AdamW; take fedavg"),
    ],
)
def test_what_apfl_cannot_do_is_refused_before_a_run(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
