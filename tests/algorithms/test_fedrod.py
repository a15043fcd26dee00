"""FedRoD against its equations written out."""

import copy

import pytest
import torch
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task, rounds_by_hand, shared_after
from tests.server.test_federate import stopped_and_resumed
from tests.support import model_by_hand


def fedrod_by_hand(config):
    """The shared weights after each round, and every client's own head: weight and bias."""
    experiment = Experiment(config)
    own = [[torch.zeros(10, 512).double(), torch.zeros(10).double()] for _ in range(3)]
    labels_of = [torch.as_tensor(experiment.client_data(client, 0).train_set.labels) for client in range(3)]
    counts = [torch.stack([(labels == each).sum() for each in range(10)]) for labels in labels_of]

    def step(client, local, weights, batch, rate, is_first):
        images, labels = batch
        features = local.body(images)
        generic = local.head(features)
        present = counts[client] > 0
        shares = torch.where(present, counts[client] * generic.exp(), 0.0)
        balanced = -(shares.gather(1, labels[:, None])[:, 0] / shares.sum(1)).log().mean()
        weight, bias = head = [value.clone().requires_grad_() for value in own[client]]
        together = generic.detach() + functional.linear(features.detach(), weight, bias)
        moves = torch.autograd.grad(functional.cross_entropy(together, labels), head)
        own[client] = [value - rate * move for value, move in zip(own[client], moves, strict=True)]
        return dict(zip(weights, torch.autograd.grad(balanced, list(weights.values())), strict=True))

    return rounds_by_hand(config, step, lambda *_: None), own, counts


def loss_on_tests(experiment, client, model):
    data = experiment.client_data(client, 0)
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        return functional.cross_entropy(model(data.prepare(batch[0], None)), batch[1]).item()


def test_fedrod_is_its_equations(federate):
    config = config_of("fedrod", num_server_rounds=2, num_finetune_epochs=0, dirichlet_alpha=0.4)
    folder, _ = federate(config)
    after, own, counts = fedrod_by_hand(config)
    assert any((each == 0).any() for each in counts), "a class is absent at a client"
    shared, experiment = shared_after(folder, config), Experiment(config)
    for name, value in after[-1].items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
    generic = model_by_hand(experiment).double()
    generic.load_state_dict(after[-1])
    for row in read_results(folder)["clients"]:
        client = row["client"]
        personal = copy.deepcopy(generic)
        personal.head.weight.data += own[client][0]
        personal.head.bias.data += own[client][1]
        found = own_module(experiment, client, 2, shared, folder / run_folder.MEMORY).model.state_dict()
        for name, value in personal.state_dict().items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-12), name
        kept = memory.recall(folder / run_folder.MEMORY, client, 2)
        assert kept.keys() == {"own.head.weight", "own.head.bias"}
        assert row["initial_loss"] == pytest.approx(loss_on_tests(experiment, client, generic), abs=1e-10)
        assert row["personalized_loss"] == pytest.approx(loss_on_tests(experiment, client, personal), abs=1e-10)
        assert row["accuracy_epoch_0"] == row["personalized_accuracy"]
        assert abs(row["initial_loss"] - row["personalized_loss"]) > 1e-3


def test_its_generic_model_is_fedavgs_where_all_classes_are_equally_many(federate):
    options = {"num_server_rounds": 2, "partitioner": "classes", "num_classes_per_client": 10}
    ours, plain = (config_of(name, **options) for name in ("fedrod", "fedavg"))
    labels = Experiment(ours).client_data(1, 0).train_set.labels
    assert {list(labels).count(each) for each in range(10)} == {8}
    shared, other = (shared_after(federate(config)[0], config) for config in (ours, plain))
    for name, value in other.items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name


def test_a_fine_tuning_starts_from_the_personal_model(federate):
    config = config_of(
        "fedrod", num_server_rounds=1, finetune_learning_rate=1e-12, fraction_train=0.7, evaluate_every=1
    )
    folder, _ = federate(config)
    outcome = read_results(folder)
    took_part = {int(path.parent.name[-4:]) for path in folder.glob("memory/*/*.safetensors")}
    assert len(took_part) == 2
    for row in outcome["clients"]:
        assert (row["initial_loss"] == pytest.approx(row["personalized_loss"], abs=1e-6)) == (
            row["client"] not in took_part
        )
    assert outcome["rounds"][-1]["initial_accuracy"]["mean"] == outcome["summary"]["initial_accuracy"]["mean"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(federate):
    config = config_of("fedrod", num_server_rounds=3, fraction_train=0.7, precision="32-true")
    stopped_and_resumed(config, federate)


def two_layers(num_classes, norm, channels):
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 32 * 32, 4))
    return BodyAndHead(body, torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, num_classes)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("fedrod"), 'algorithm = "fedrod": has a loss of its own, for images and their classes'),
        (lambda: config_of("fedrod", model_name=f"{__name__}:two_layers"), "has a Sequential as its head, and the own"),
    ],
)
def test_what_fedrod_cannot_do_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
