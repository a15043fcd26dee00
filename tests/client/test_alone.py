"""Flower's own strategies drive the ClientApp of nodes that host one client each."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.training import own_ledger
from lit_fedbabu.training.client_update import client_update, personal_model
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, FakeGrid, tiny_config

EVERYONE = {"fraction_train": 1.0, "fraction_evaluate": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1,
            "min_available_nodes": 1}  # fmt: skip


def config_of(**options):
    return tiny_config(model_name=NARROW, num_clients=3, fraction_train=1.0, precision="64-true", **options)


def driven(strategy, config, rounds=2, state_path=None, **configs):
    """What a strategy of Flower makes of the experiment's initial weights."""
    grid = FakeGrid(config, nodes=config.num_clients)
    for context in grid.contexts.values() if state_path else ():
        context.node_config["state-path"] = str(state_path)
    return strategy.start(
        grid,
        ArrayRecord(Experiment(config).initial_shared()),
        num_rounds=rounds,
        **{name: ConfigRecord(content) for name, content in configs.items()},
    )


@pytest.mark.parametrize("strategy", [FedAvg(**EVERYONE), FedAvgM(**EVERYONE, server_learning_rate=1.0)])
@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_flowers_fedavg_ends_where_ours_does(algorithm, strategy, federate, tmp_path):
    config = config_of(algorithm=algorithm, evaluate_every=2)
    found = driven(strategy, config, state_path=tmp_path if algorithm == "fedper" else None)
    folder, _ = federate(config)
    ours = read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared
    theirs = found.arrays.to_torch_state_dict()
    assert theirs.keys() == ours.keys() == set(Experiment(config).shared_names)
    for name, value in ours.items():
        assert torch.allclose(theirs[name], value, rtol=0, atol=1e-6), name


def test_fedadam_steps_by_what_the_clients_trained():
    config = config_of()
    strategy = FedAdam(**EVERYONE, eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3)
    found = driven(strategy, config, rounds=1, train_config={"learning-rate": 0.05}).arrays.to_torch_state_dict()
    experiment = Experiment(config)
    initial = experiment.initial_shared()
    updates = [client_update(experiment, client, 1, initial, 0.05) for client in range(3)]
    total = sum(update.num_train for update in updates)
    moved = False
    for name, value in initial.items():
        mean = sum(update.num_train / total * update.state[name] for update in updates)
        first, second = 0.1 * (mean - value), 0.01 * (mean - value) ** 2
        norm = 0.01 * (1 - 0.99**2) ** 0.5 / (1 - 0.9**2)  # Flower corrects the first round's bias as a second one's
        expected = value + norm * first / (second.sqrt() + 1e-3)
        assert torch.allclose(found[name], expected, atol=1e-6), name
        moved |= not torch.allclose(found[name], mean, atol=1e-4)
    assert moved


def test_an_evaluation_answers_measures_of_the_client_weighted_by_its_images():
    config = config_of()
    found = driven(FedAvg(**EVERYONE), config, rounds=1, evaluate_config={"personalize": True})
    experiment = Experiment(config)
    received = found.arrays.to_torch_state_dict()
    personal = [personal_model(experiment, client, 1, received)[1] for client in range(3)]
    for name in ("initial", "personalized"):
        each, counts = zip(*((getattr(one, name).accuracy, one.initial.count) for one in personal), strict=True)
        assert found.evaluate_metrics_clientapp[1][f"{name}_accuracy"] == pytest.approx(
            np.average(each, weights=counts)
        )
    assert found.train_metrics_clientapp[1]["train_loss"] > 0


def test_what_clients_keep_in_a_run_does_not_go_into_another(tmp_path):
    config = config_of(algorithm="fedper")
    driven(FedAvg(**EVERYONE), config, rounds=1, state_path=tmp_path)
    (memories,) = tmp_path.iterdir()
    assert memories.name == "run_1" and len(list(memories.glob("memory/client_*/round_0001.safetensors"))) == 3


def test_clients_count_the_steps_that_protect_their_samples_whoever_asks(tmp_path):
    config = config_of(privacy="sample", norm="group", clipping_norm=1.0, noise_multiplier=1.0)
    driven(FedAvg(**EVERYONE), config, state_path=tmp_path)
    ledgers = sorted(tmp_path.glob("run_1/memory/*/steps.jsonl"))
    assert [file.parent.name for file in ledgers] == [f"client_{client:04d}" for client in range(3)]
    assert {len(own_ledger.courses(file)) for file in ledgers} == {2}


def test_a_node_that_hosts_several_clients_says_what_it_needs():
    config = config_of()
    grid = FakeGrid(config, nodes=2)
    (node, context), _ = grid.contexts.items()
    shared = ArrayRecord(Experiment(config).initial_shared())
    content = RecordDict({"arrays": shared, "config": ConfigRecord({"server-round": 1})})
    for kind in ("train", "evaluate"):
        with pytest.raises(ValueError, match="one of 2 nodes for num-clients = 3; Flower's own strategies"):
            grid.answer(Message(content, node, kind), context)


def test_what_a_strategy_would_leave_out_and_memories_without_a_place_are_refused():
    for algorithm, part, words in (
        ("fedbabu", "fedavg", "but fedbabu shares"),
        ("fedper", "fedper", "no state-path"),
        ("fednova", "fednova", "fednova sends more than weights, which Flower's own strategies do not"),
        ("feddyn", "feddyn", "feddyn has a server's step of its own, which Flower's own strategies do not take"),
    ):
        grid = FakeGrid(config_of(algorithm=algorithm), nodes=3)
        node, context = next(iter(grid.contexts.items()))
        arrays = ArrayRecord(Experiment(config_of(algorithm=part)).initial_shared())
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
        with pytest.raises(ValueError, match=words):
            grid.answer(Message(content, node, "train"), context)


@pytest.mark.parametrize(
    ("algorithm", "sent", "told"),
    [
        ("fedbabu", 0.1, "sends proximal-mu = 0.1, and the algorithm has none: take algorithm=fedprox or fedprox-babu"),
        ("fedprox", 0.1, "sends proximal-mu = 0.1, and proximal-mu is 0.7; the two must be the same"),
        ("fedprox", 0.7, ""),
        ("fedbabu", 0.0, ""),
    ],
)
def test_flowers_fedprox_is_refused_where_clients_would_not_be_pulled_so(algorithm, sent, told):
    config = config_of(algorithm=algorithm, proximal_mu=0.7, num_local_steps=1)
    grid = FakeGrid(config, nodes=3)
    node, context = next(iter(grid.contexts.items()))
    order = ConfigRecord({"server-round": 1, "proximal-mu": sent})
    content = RecordDict({"arrays": ArrayRecord(Experiment(config).initial_shared()), "config": order})
    if told:
        with pytest.raises(ValueError, match=told):
            grid.answer(Message(content, node, "train"), context)
    else:
        assert not grid.answer(Message(content, node, "train"), context).has_error()
