"""FedDyn against Algorithm 1 of Acar et al. 2021, written out."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

from lit_fedbabu import Task
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.learning.state import state_of
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import client_update, own_module
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.server.test_federate import stopped_and_resumed
from tests.support import NARROW, tiny_config

by_hand = Task(own_tasks.ByHand, own_tasks.Sensors, score="test_f1")


def config_of(**options):
    """Three clients with unequal numbers of images, two of them in a round, in float64."""
    return tiny_config(
        **{
            "algorithm": "feddyn", "model_name": NARROW, "precision": "64-true", "num_clients": 3,
            "fraction_train": 0.7, "partitioner": "linear", "learning_rate": 0.05, "augmentation": "none",
            "num_finetune_epochs": 0, "evaluate_every": 10, "dynamic_alpha": 0.1, "num_server_rounds": 2,
        } | options
    )  # fmt: skip


def of_task(**options):
    given = {"task": f"{__name__}:by_hand", "num-clients": 3, "num-server-rounds": 3, "num-local-epochs": 1}
    given |= {"num-finetune-epochs": 1, "precision": "32-true", "fraction-train": 0.7}
    return Config.from_run_config({**given, "algorithm": "feddyn", **options})


def rounds_by_hand(config):
    """The state of the shared model, h, and g_i of the clients that took part."""
    experiment, alpha = Experiment(config), config.dynamic_alpha
    seed = config.derived_seed("model")
    model = build_model(config.model_name, 10, seed, config.norm).double().to(memory_format=torch.channels_last)
    trained = [name for name, _ in model.named_parameters() if experiment.algorithm.shared in ("full", name[:4])]
    h = {name: torch.zeros_like(model.state_dict()[name]) for name in trained}
    gradients: dict[int, dict[str, torch.Tensor]] = {}
    for server_round in range(1, config.num_server_rounds + 1):
        x = {name: value.clone() for name, value in model.state_dict().items()}
        rate, states, sizes = config.learning_rate_in(server_round), [], []
        for client in participants(config, server_round):
            local, g = copy.deepcopy(model), gradients.get(client, {name: torch.zeros_like(h[name]) for name in h})
            local.train()
            y = {name: weight for name, weight in local.named_parameters() if name in trained}
            optimizer = torch.optim.SGD(y.values(), rate, config.momentum, weight_decay=config.weight_decay)
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            for images, labels in data.train_dataloader():
                linear = sum((g[name] * weight).sum() for name, weight in y.items())
                pull = sum((weight - x[name]).square().sum() for name, weight in y.items())
                optimizer.zero_grad()
                loss = functional.cross_entropy(local(data.prepare(images, None)), labels)
                (loss - linear + alpha / 2 * pull).backward()
                optimizer.step()
            states.append(local.state_dict())
            sizes.append(data.num_train)
            gradients[client] = {name: g[name] - alpha * (states[-1][name] - x[name]) for name in h}
        assert len(set(sizes)) == len(sizes) == 2
        for name, value in h.items():
            h[name] = value - alpha / config.num_clients * sum(each[name] - x[name] for each in states)
        for name, value in x.items():
            mean = sum(size * each[name].double() for size, each in zip(sizes, states, strict=True)) / sum(sizes)
            model.state_dict()[name].copy_(mean.to(value.dtype) - (h[name] / alpha if name in h else 0))
    return model.state_dict(), h, gradients


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch-running"},
        pytest.param({"algorithm": "feddyn-babu", "num_server_rounds": 3}, marks=pytest.mark.slow),
        pytest.param({"momentum": 0.0, "weight_decay": 0.0, "dynamic_alpha": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_feddyn_is_its_equations(options, federate):
    config = config_of(**options)
    folder, _ = federate(config)
    expected, h, gradients = rounds_by_hand(config)
    shared = read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared
    last, memories = config.num_server_rounds, folder / run_folder.MEMORY
    kept = memory.recall_from(folder / run_folder.SERVER, last, "the server")
    assert kept.keys() == {f"state.{name}" for name in h} and max(value.abs().max() for value in h.values()) > 1e-4
    for name, value in h.items():
        assert torch.allclose(kept[f"state.{name}"], value, rtol=0, atol=1e-11), name
    for client in range(config.num_clients):
        mine = memory.recall(memories, client, last)
        assert mine.keys() == {f"gradient.{name}" for name in gradients.get(client, ())}
        for name, value in gradients.get(client, {}).items():
            assert torch.allclose(mine[f"gradient.{name}"], value, rtol=0, atol=1e-11), name
        own = own_module(Experiment(config), client, last, shared, memories).model.state_dict()
        for name, value in expected.items():
            assert torch.allclose(own[name], value, rtol=0, atol=1e-11), name


def test_a_client_that_never_took_part_begins_with_a_gradient_of_zero(tmp_path):
    config = config_of(dynamic_alpha=0.3)
    pulled = dataclasses.replace(config, algorithm="fedprox", proximal_mu=0.3)
    received = Experiment(config).initial_shared()
    trained = [client_update(Experiment(each), 0, 2, received, 0.05, tmp_path / "new") for each in (config, pulled)]
    for name, value in trained[1].state.items():
        assert torch.equal(trained[0].state[name], value), name
    given = {f"gradient.{name}": torch.ones_like(value) for name, value in received.items()}
    memory.keep(tmp_path / "old", 0, 1, given)
    other = client_update(Experiment(config), 0, 2, received, 0.05, tmp_path / "old")
    assert not torch.equal(other.state["head.weight"], trained[0].state["head.weight"])
    experiment = Experiment(config)
    models = [own_module(experiment, client, 1, received, tmp_path / "old").model for client in (0, 1)]
    for name, value in state_of(models[0]).items():
        assert torch.equal(value, state_of(models[1])[name]), "what is evaluated is the shared model of all"


def test_h_is_the_mean_of_all_clients_gradients(federate):
    config = config_of(num_clients=4, fraction_train=0.5, num_server_rounds=2)
    folder, _ = federate(config)
    kept = memory.recall_from(folder / run_folder.SERVER, 2, "the server")
    mine = [memory.recall(folder / run_folder.MEMORY, client, 2) for client in range(4)]
    assert not all(mine), "one never took part"
    for name, value in kept.items():
        mean = sum(each.get(name.replace("state.", "gradient."), 0 * value) for each in mine) / 4
        assert torch.allclose(value, mean, rtol=0, atol=1e-12), name


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("kind", ["task", "images"])
def test_a_stopped_run_goes_on_to_the_same_bytes(kind, federate):
    config = of_task() if kind == "task" else config_of(num_server_rounds=3)
    whole, folder = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()
    kept = [{path.name: path.read_bytes() for path in each.glob("server/*.safetensors")} for each in (whole, folder)]
    assert kept[0] == kept[1] != {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"aggregator": "krum"}, 'aggregator = "krum": feddyn adds up the updates of clients, .*; take mean'),
        ({"server_optimizer": "adam"}, 'server-optimizer = "adam": feddyn has a server\'s step; take none'),
        ({"clipping_norm": 1.0}, "clipping-norm = 1.0: with feddyn a client keeps .*; take another algorithm"),
        ({"cohort_size": 2}, "cohort-size = 2: feddyn trains clients one by one; take 0"),
    ],
)
def test_what_feddyn_cannot_do_is_refused_before_a_run(options, told):
    with pytest.raises(InputError, match=told):
        Experiment(config_of(**options)).check()
