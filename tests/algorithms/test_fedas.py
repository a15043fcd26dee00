"""FedAS against Algorithm 1 of Yang et al. 2024, written out."""

import copy

import pytest
import torch
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import Received
from lit_fedbabu.algorithms.fedas import TRACE, FedAs
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records import run_folder
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import client_update, own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_scaffold import bytes_of
from tests.algorithms.test_users_methods import config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed


def fedas_by_hand(config):
    """The state of the shared body, each client's model as it left it, and the traces of the last round."""
    experiment, seed = Experiment(config), config.derived_seed("model")
    start = build_model(config.model_name, 10, seed, config.norm).double().to(memory_format=torch.channels_last)
    shared, own, took_part = start.body.state_dict(), [copy.deepcopy(start) for _ in range(config.num_clients)], set()
    for server_round in range(1, config.num_server_rounds + 1):
        rate, bodies, traces = config.learning_rate_in(server_round), [], []
        for client in participants(config, server_round):
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            old, model = copy.deepcopy(own[client]).train(), own[client].train()
            model.body.load_state_dict(shared)
            options = {"lr": rate, "momentum": config.momentum, "weight_decay": config.weight_decay}
            if client in took_part:
                with torch.no_grad():
                    pairs = [(old.body(data.prepare(raw, None)), own) for raw, own in data.train_dataloader()]
                features, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
                means = {label: features[labels == label].mean(0) for label in set(labels.tolist())}
                sgd = torch.optim.SGD(model.body.parameters(), **options)
                for raw, batch_labels in data.train_dataloader():
                    sgd.zero_grad()
                    target = torch.stack([means[label] for label in batch_labels.tolist()])
                    (model.body(data.prepare(raw, None)) - target).square().mean().backward()
                    sgd.step()
            took_part.add(client)
            sgd = torch.optim.SGD(model.parameters(), **options)
            for raw, labels in data.train_dataloader():
                sgd.zero_grad()
                functional.cross_entropy(model(data.prepare(raw, None)), labels).backward()
                sgd.step()
            bodies.append({name: value.clone() for name, value in model.body.state_dict().items()})
            trace, seen = 0.0, copy.deepcopy(model)
            for raw, labels in data.train_dataloader():
                likelihood = seen(data.prepare(raw, None)).log_softmax(1).gather(1, labels[:, None]).mean()
                trace += sum(g.square().sum().item() for g in torch.autograd.grad(likelihood, list(seen.parameters())))
            traces.append(trace)
        shared = {
            name: sum(t * body[name] for t, body in zip(traces, bodies, strict=True)) / sum(traces)
            for name, value in shared.items()
            if value.is_floating_point()
        } | {name: value for name, value in bodies[0].items() if not value.is_floating_point()}
    return {f"body.{name}": value for name, value in shared.items()}, own, took_part, traces


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch-running", "momentum": 0.9, "weight_decay": 0.01, "fraction_train": 0.7},
        pytest.param({"num_server_rounds": 2}, marks=pytest.mark.slow),
    ],
)
def test_fedas_is_its_equations(options, federate):
    config = config_of("fedas", **{"num_server_rounds": 3, **options})
    folder, _ = federate(config)
    expected, own, took_part, traces = fedas_by_hand(config)
    assert max(traces) > 1.1 * min(traces), "clients count unequally"
    shared, memories, rounds = shared_after(folder, config), folder / run_folder.MEMORY, config.num_server_rounds
    floats = [name for name, value in shared.items() if value.is_floating_point()]
    for name in floats:
        assert torch.allclose(shared[name], expected[name], rtol=0, atol=1e-9), name
    for client in range(3):
        mine = memory.recall(memories, client, rounds)
        assert set(mine) == (set(own[client].state_dict()) if client in took_part else set())
        model = own_module(Experiment(config), client, rounds, shared, memories).model.state_dict()
        for name, value in own[client].state_dict().items():
            if value.is_floating_point():
                assert name not in mine or torch.allclose(mine[name], value, rtol=0, atol=1e-9), name
                assert torch.allclose(model[name], expected.get(name, value), rtol=0, atol=1e-9), name


def test_it_trains_as_fedper_where_it_aligns_nothing(tmp_path):
    config = config_of("fedas", num_alignment_epochs=0)
    trained = []
    for name in ("fedas", "fedper"):
        experiment = Experiment(config_of(name, num_alignment_epochs=0))
        state = experiment.initial_shared()
        for server_round in (1, 2):
            state, *_ = client_update(experiment, 0, server_round, state, 0.05, tmp_path / name)
        head = memory.recall(tmp_path / name, 0, 2)
        trained.append({**state, **{key: value for key, value in head.items() if key.startswith("head.")}})
    assert trained[0].keys() == trained[1].keys() and config.algorithm == "fedas"
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())


class OneServer:
    def __init__(self):
        self.state, self.shared = {}, {"w": torch.tensor([1.0])}

    def aggregate(self, updates):
        total = sum(each.num_train for each in updates)
        return {"w": sum(each.num_train * each.shared["w"] for each in updates) / total}


def test_clients_without_any_information_are_averaged_by_their_images():
    for traces, expected in (((0.0, 0.0), 4.0), ((1.0, 1.0), 3.5), ((0.0, 2.0), 2.0)):
        updates = [
            Received(client, count, {"w": torch.tensor([value])}, {TRACE: torch.tensor(trace, dtype=torch.float64)})
            for client, (count, value, trace) in enumerate(zip((2, 1), (5.0, 2.0), traces, strict=True))
        ]
        assert ALGORITHMS["fedas"].combine(OneServer(), updates).shared["w"].item() == pytest.approx(expected)
    assert FedAs("FedAS", "body", ()).problem(updates[0]._replace(extras={TRACE: torch.tensor(-1.0)}))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_stopped_run_goes_on_to_the_same_bytes(federate):
    whole, folder = stopped_and_resumed(config_of("fedas", num_server_rounds=3, fraction_train=0.7), federate)
    assert not (whole / run_folder.FAILURES).exists()
    assert bytes_of(whole) == bytes_of(folder) != {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: config_of("fedas", cohort_size=2), "cohort-size = 2: fedas trains clients one by one; take 0"),
        (lambda: config_of("fedas", aggregator="median"), 'aggregator = "median": fedas weights clients .*; take mean'),
        (lambda: config_of("fedas", clipping_norm=1.0), "clipping-norm = 1.0: does not bound trace, which fedas sends"),
        (
            lambda: config_of("fedas", trainer_options='{"accumulate_grad_batches": 2}'),
            "trainer.accumulate_grad_batches = 2: fedas measures on all of a client's batches",
        ),
        (lambda: of_task("fedas"), 'algorithm = "fedas": has a loss of its own, for images and their classes'),
    ],
)
def test_what_fedas_cannot_do_is_refused_before_a_run(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
