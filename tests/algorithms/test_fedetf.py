"""FedETF against its equations (Li et al. 2023), written out."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from lit_fedbabu import Algorithm, finetune, load_model
from lit_fedbabu.body import main as body
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.simplex import frame
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.records.run_folder import LAST_CHECKPOINT
from lit_fedbabu.training.client_update import personal_model, personal_models
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task
from tests.server.test_federate import stopped_and_resumed
from tests.support import model_by_hand

SMALL = f"{__name__}:small"
HEAD = ("head.projection.weight", "head.projection.bias", "head.scale")


def logits_by_hand(body, head, images):
    weight, bias, scale, etf = head
    projected = body(images) @ weight.T + bias
    return scale * (projected / projected.square().sum(1, keepdim=True).sqrt()) @ etf


def step(loss, weights, rate):
    moves = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.sub_(rate * move)


def balanced(logits, labels, counts):
    shares = torch.where(counts > 0, counts * logits.exp(), 0.0)
    return -(shares.gather(1, labels[:, None])[:, 0] / shares.sum(1)).log().mean()


class ByHand:
    """A body, and projection, scale and frame as four tensors."""

    def __init__(self, body, head):
        self.body, self.head = body, [value.clone().requires_grad_() for value in head]

    def copy(self):
        return ByHand(copy.deepcopy(self.body), [value.detach() for value in self.head])

    def epoch(self, data, loss, weights, rate):
        for images, labels in data.train_dataloader():
            step(loss(logits_by_hand(self.body, self.head, data.prepare(images, None)), labels), weights, rate)

    def trained(self):
        return [*self.body.parameters(), *self.head[:3]]

    def on_tests(self, data):
        ((images, labels),) = data.test_dataloader()
        with torch.no_grad():
            logits = logits_by_hand(self.body, self.head, data.prepare(images, None))
            return functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def rounds_by_hand(config, initial):
    experiment = Experiment(config)
    counts_of = [torch.bincount(torch.as_tensor(experiment.client_data(c, 0).train_set.labels), minlength=10)
                 for c in range(3)]  # fmt: skip
    model = ByHand(model_by_hand(experiment).double().body, [initial[name] for name in (*HEAD, "head.etf")])
    for server_round in range(1, config.num_server_rounds + 1):
        updates = []
        for client, counts in enumerate(counts_of):
            local = model.copy()
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            loss = lambda logits, labels, counts=counts: balanced(logits, labels, counts)  # noqa: E731
            local.epoch(data, loss, local.trained(), config.learning_rate_in(server_round))
            updates.append((data.num_train, [value.detach() for value in local.trained()]))
        total = sum(count for count, _ in updates)
        with torch.no_grad():
            for place, weight in enumerate(model.trained()):
                weight.copy_(sum(count * values[place] for count, values in updates) / total)
    return experiment, model, counts_of


def test_fedetf_is_its_equations(federate):
    config = config_of(
        "fedetf",
        model_name=SMALL,
        num_server_rounds=2,
        dirichlet_alpha=0.4,
        finetune_learning_rate=0.05,
        num_etf_turns=2,
    )
    folder, _ = federate(config)
    federation = read_federation(folder / LAST_CHECKPOINT, SMALL)
    initial = Experiment(config).new_module().model.state_dict()
    experiment, model, counts_of = rounds_by_hand(config, initial)
    assert any((counts == 0).any() for counts in counts_of), "a class is absent at a client"
    named = dict(
        zip([*(f"body.{name}" for name, _ in model.body.named_parameters()), *HEAD], model.trained(), strict=True)
    )
    assert federation.shared.keys() == named.keys(), "the frame is not sent"
    for name, value in named.items():
        assert torch.allclose(federation.shared[name], value, rtol=0, atol=1e-11), name
    assert (federation.shared["head.scale"] - 10).abs() > 1e-4
    assert torch.equal(federation.initial["head.etf"], initial["head.etf"])
    for row in read_results(folder)["clients"]:
        client = row["client"]
        own, data = model.copy(), experiment.client_data(client, config.derived_seed("finetune", client))
        assert row["initial_loss"] == pytest.approx(own.on_tests(data)[0], abs=1e-10)
        own.epoch(data, lambda *pair, counts=counts_of[client]: balanced(*pair, counts), own.trained(), 0.05)
        assert row["accuracy_epoch_1"] == pytest.approx(own.on_tests(data)[1])
        for _ in range(2):
            for weights, rate in ((own.head[3:], 0.1), (own.head[:2], 0.05)):
                for _ in range(3):
                    own.epoch(data, functional.cross_entropy, weights, rate)
        loss, accuracy = own.on_tests(data)
        assert row["personalized_loss"] == pytest.approx(loss, abs=1e-10)
        assert row["accuracy_epoch_2"] == row["personalized_accuracy"] == pytest.approx(accuracy)
        assert "accuracy_epoch_3" not in row


@pytest.mark.parametrize(("features", "classes"), [(10, 10), (32, 10), (5, 2)])
def test_a_frame_has_columns_of_length_one_that_are_equally_far_apart(features, classes):
    found = frame(features, classes)
    expected = classes / (classes - 1) * torch.eye(classes).double() - torch.ones(classes, classes).double() / (
        classes - 1
    )
    assert torch.allclose(found.T @ found, expected, rtol=0, atol=1e-13)
    assert torch.allclose(found.sum(1), torch.zeros(features).double(), atol=1e-13)


def test_the_frame_follows_from_the_seed():
    first, same, other = (
        Experiment(config_of("fedetf", model_name=SMALL, seed=seed)).new_module().model.head.etf for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.allclose(first, other)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(federate):
    options = {"num_server_rounds": 3, "fraction_train": 0.7, "precision": "32-true"}
    stopped_and_resumed(config_of("fedetf", model_name=SMALL, **options), federate)


def test_clients_are_tuned_together_as_one_after_another():
    experiment = Experiment(config_of("fedetf", model_name=SMALL, dirichlet_alpha=0.4, num_etf_turns=1))
    together = personal_models(experiment, range(3), 0, experiment.initial_shared())
    for client, (module, outcome) in enumerate(together):
        alone, expected = personal_model(experiment, client, 0, experiment.initial_shared())
        for name, value in alone.model.state_dict().items():
            assert torch.allclose(module.model.state_dict()[name], value, rtol=0, atol=1e-10), name
        assert [each.accuracy for each in outcome.curve] == [each.accuracy for each in expected.curve]
        assert len(outcome.curve) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_its_models_are_tuned_saved_and_loaded(federate, tmp_path):
    trusted = {"model_name": SMALL}
    run, _ = federate(config_of("fedetf", num_server_rounds=1, precision="32-true", num_etf_turns=1, **trusted))
    begun = read_results(run)
    assert body([str(run), str(tmp_path / "shared"), "--model-name", SMALL]) == 0
    images = list(torch.randint(256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte().numpy())
    assert torch.equal(
        *(load_model(each, SMALL).probabilities(images) for each in (tmp_path / "shared", run / LAST_CHECKPOINT))
    )
    full, head, votes = finetune(run, part="full,head,knn", save=True, **trusted)
    assert full["clients"][0]["personalized_loss"] == begun["clients"][0]["personalized_loss"]
    assert ["accuracy_epoch_2" in each["clients"][0] for each in (full, head, votes)] == [True, False, False]
    etf = read_federation(run / LAST_CHECKPOINT, SMALL).initial["head.etf"]
    for outcome, name, moved in ((full, "head.etf", True), (head, "head.etf", False), (votes, "head.head.etf", False)):
        path = outcome.folder / "personal" / "client_0002.ckpt"
        state = LitFedBABU.load_from_checkpoint(path).model.state_dict()
        assert torch.equal(state[name], etf) != moved
        assert load_model(path, SMALL).probabilities(images).isfinite().all()
    (mine,) = finetune(tmp_path / "shared", data="digits", epochs=2, lr=0.1, save_to=tmp_path / "me", **trusted)
    assert list(json.loads((tmp_path / "me" / "config.json").read_text())["hyper_parameters"]["head"]) == list("etf")
    (again,) = finetune(tmp_path / "me", data="digits", epochs=0, **trusted)
    assert again["clients"][0]["initial_accuracy"] == pytest.approx(
        mine["clients"][0].get("running_statistics_accuracy", mine["clients"][0]["personalized_accuracy"])
    )
    assert again["clients"][0]["personalized_accuracy"] == again["clients"][0]["initial_accuracy"]


def small(num_classes, norm, channels):
    """A model of 16 features."""
    layers = nn.Conv2d(channels, 4, 3, stride=4), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return BodyAndHead(nn.Sequential(*layers), nn.Linear(16, num_classes))


def thin(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, 4)), nn.Linear(4, num_classes))


def test_a_head_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match='head = "simplex": must be "etf", or empty'):
        Algorithm("Mine", "full", (("full", "num_local_epochs"),), head="simplex")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("fedetf"), 'algorithm = "fedetf": has a loss of its own, for images and their classes'),
        (
            lambda: config_of("fedetf", model_name=f"{__name__}:thin"),
            "has 4 features, and a frame of 10 classes needs as many at least; take another model or algorithm",
        ),
        (
            lambda: config_of("fedetf", model_name="tests.algorithms.test_fedrod:two_layers"),
            "has a Sequential as its head, and a frame of classes takes the place of a torch.nn.Linear",
        ),
        (lambda: config_of("fedetf", num_etf_turns=-1), "num-etf-turns = -1: must be at least 0"),
    ],
)
def test_what_fedetf_cannot_do_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
