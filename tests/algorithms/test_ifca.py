"""IFCA against Algorithm 1 of Ghosh et al. 2020, written out."""

import copy
import dataclasses
import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import Received
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.finetune import main as finetune_main
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed
from tests.support import NARROW


def batches(experiment, client, *seed):
    data = experiment.client_data(client, experiment.config.derived_seed(*seed))
    return [(data.prepare(images, None), labels) for images, labels in data.train_dataloader()]


def cluster_of(experiment, client, models):
    """The model of least loss on all training images of a client."""
    seen = batches(experiment, client, "loss", client)
    with torch.no_grad():
        models = copy.deepcopy(models)
        losses = [sum(functional.cross_entropy(m(x), y, reduction="sum").item() for x, y in seen) for m in models]
    return min(range(len(models)), key=losses.__getitem__)


def rounds_by_hand(config):
    """The models at the end, and of each round the model that each client took."""
    experiment = Experiment(config)
    seeds = [config.derived_seed("model", *number) for number in ((), *((j,) for j in range(1, config.num_clusters)))]
    models = [
        build_model(NARROW, 10, seed, config.norm).double().to(memory_format=torch.channels_last) for seed in seeds
    ]
    taken = []
    for server_round in range(1, config.num_server_rounds + 1):
        rate = config.learning_rate_in(server_round)
        trained: dict[int, list[Any]] = {number: [] for number in range(len(models))}
        taken.append([cluster_of(experiment, client, models) for client in range(3)])
        for client, number in enumerate(taken[-1]):
            local, seen = copy.deepcopy(models[number]), batches(experiment, client, "train", server_round, client)
            for images, labels in seen:
                loss = functional.cross_entropy(local(images), labels)
                weights = list(local.parameters())
                with torch.no_grad():
                    for weight, move in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                        weight.sub_(rate * move)
            trained[number].append((sum(len(labels) for _, labels in seen), local.state_dict()))
        for number, states in trained.items():
            total = sum(count for count, _ in states)
            for name, value in models[number].state_dict().items() if states else ():
                value.copy_(sum(count * state[name] for count, state in states) / total)
    return models, taken


@pytest.mark.parametrize("norm", ["batch-running", pytest.param("batch", marks=pytest.mark.slow)])
def test_ifca_is_its_equations(norm, federate):
    config = config_of(
        "ifca", norm=norm, num_clusters=3, num_server_rounds=2, num_finetune_epochs=0, dirichlet_alpha=0.3, seed=3
    )
    folder, _ = federate(config)
    models, taken = rounds_by_hand(config)
    assert taken == [[2, 2, 0], [1, 2, 0]], "a model has several clients, one none, and a client takes another one"
    experiment, federation = Experiment(config), read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW)
    kept = memory.recall_from(folder / run_folder.SERVER, 2, "the server")
    for number, model in enumerate(models):
        for name, value in model.state_dict().items():
            found = kept[f"state.{number}.{name}"] if number else federation.shared[name]
            assert torch.allclose(found, value, rtol=0, atol=1e-12), (number, name)
    for row in read_results(folder)["clients"]:
        best = models[cluster_of(experiment, row["client"], models)]
        own = own_module(experiment, row["client"], 2, federation.shared, None, federation.extras).model.state_dict()
        assert all(torch.allclose(own[name], value, rtol=0, atol=1e-12) for name, value in best.state_dict().items())
        data = experiment.client_data(row["client"], 0)
        ((images, labels),) = data.test_dataloader()
        loss = functional.cross_entropy(best.eval()(data.prepare(images, None)), labels).item()
        assert row["initial_loss"] == pytest.approx(loss, abs=1e-10)


def test_one_cluster_is_fedavg_to_the_bit(federate):
    ours, plain = (config_of(name, num_clusters=1, precision="32-true") for name in ("ifca", "fedavg"))
    folders = [federate(config)[0] for config in (ours, plain)]
    states = [shared_after(folder, config) for folder, config in zip(folders, (ours, plain), strict=True)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    rows = [read_results(folder)["clients"] for folder in folders]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "task"])
def test_a_stopped_run_goes_on_to_the_same_bytes_and_is_fine_tuned(kind, federate, capsys):
    config = of_task("ifca") if kind == "task" else config_of("ifca", num_server_rounds=3, fraction_train=0.7)
    whole, folder = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()
    kept = [{path.name: path.read_bytes() for path in each.glob("server/*.safetensors")} for each in (whole, folder)]
    assert kept[0] == kept[1] != {}
    trusted = ["--task", config.task] if config.task else ["--model-name", NARROW]
    assert finetune_main([str(whole), "--plain", "--clients", "1", *trusted]) == 0
    again = next(path for path in whole.glob("finetune/*/results.json"))
    (row,), score = read_results(again.parent)["clients"], "f1" if config.task else "accuracy"
    assert row[f"personalized_{score}"] == read_results(whole)["clients"][1][f"personalized_{score}"]
    shutil.rmtree(whole / run_folder.SERVER)
    shutil.rmtree(whole / "finetune")
    assert finetune_main([str(whole), "--plain", "--clients", "1", *trusted]) == 2
    assert "ifca needs the run's folder server/ beside it" in capsys.readouterr().err


def test_a_site_has_all_models_for_its_fine_tuning(tmp_path):
    experiment = Experiment(config_of("ifca", num_clusters=3))
    extras, shared = experiment.extras.after, experiment.initial_shared()
    arrays = [value.numpy() for value in (*shared.values(), *extras.values())]
    FedBABUClient(experiment, 1, tmp_path / "memory").save(arrays, 2)
    found = read_federation(tmp_path / run_folder.LAST_CHECKPOINT, NARROW)
    assert found.extras.keys() == extras.keys() and {name[:2] for name in extras} == {"1.", "2."}
    assert all(torch.equal(value, found.extras[name]) for name, value in extras.items())
    assert not torch.equal(extras["1.head.weight"], extras["2.head.weight"])


def test_what_a_client_says_that_it_took_is_one_of_the_models():
    row = ALGORITHMS["ifca"]
    for sent, told in (([0, 1.0], ""), ([1.0, 1.0], "which model"), ([0, 0.5], "which model"), ([0, 0], "which model")):
        assert told in (reason := row.problem(Received(0, 1, {}, {"cluster": torch.tensor(sent)}))) and (
            bool(told) == bool(reason)
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"aggregator": "median"}, 'aggregator = "median": ifca has a mean for each of its models, .*; take mean'),
        ({"server_optimizer": "adam"}, 'server-optimizer = "adam": ifca has several models, .*; take none'),
        ({"clipping_norm": 1.0}, "clipping-norm = 1.0: does not bound cluster, which ifca sends besides weights"),
        ({"initial_weights": "start.pt"}, 'start.pt": with ifca models must begin with different'),
    ],
)
def test_what_ifca_cannot_do_is_refused_before_a_run(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Experiment(config_of("fedavg")).initial_shared(), "start.pt")
    with pytest.raises(InputError, match=told):
        Experiment(dataclasses.replace(config_of("ifca"), **options)).check()
