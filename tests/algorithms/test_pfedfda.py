"""pFedFDA against Algorithm 1 of McLaughlin and Su 2024, written out."""

import copy
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional

from lit_fedbabu.algorithms import pfedfda
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import BodyAndHead
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import config_of, of_task
from tests.server.test_federate import stopped_and_resumed
from tests.support import model_by_hand

SMALL = f"{__name__}:small_model"


def small_model(num_classes, norm, channels):
    """A model of 32 features."""
    layers = nn.Conv2d(channels, 8, 3, stride=4), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return BodyAndHead(nn.Sequential(*layers), nn.Linear(32, num_classes))


def classifier(means, covariance, shares):
    """Logits of features by Gaussians of one covariance."""
    d = len(covariance)
    inverse = torch.linalg.inv((1 - 1e-4) * covariance + 1e-4 * covariance.trace() / d * torch.eye(d).double())
    weight = means @ inverse
    bias = torch.stack([-mean @ inverse @ mean / 2 for mean in means]) + shares.log()
    return weight, bias


def statistics(features, labels, means):
    present = [label for label in range(10) if (labels == label).any()]
    means = torch.stack([features[labels == each].mean(0) if each in present else means[each] for each in range(10)])
    scatter = sum(torch.outer(z, z) for z in features - means[labels])
    return means, scatter / (len(features) - 1) + torch.eye(features.shape[1]).double()


def mixture(features, labels, means, covariance):
    """The client's mixture, its shares of classes, and beta."""
    counts = torch.bincount(labels, minlength=10).double()
    shares = counts / counts.sum() + 1e-4
    shares = shares / shares.sum()
    fold, seen = torch.full((len(labels),), -1), [0] * 10
    for place, label in enumerate(labels.tolist()):
        if counts[label] > 1:
            fold[place], seen[label] = seen[label] % 2, seen[label] + 1
    fits = [statistics(features[fold == k], labels[fold == k], means) for k in range(2)]

    def loss(beta):
        total = 0.0
        for k, (own_means, own_covariance) in enumerate(fits):
            mixed = beta * own_means + (1 - beta) * means, beta * own_covariance + (1 - beta) * covariance
            weight, bias = classifier(*mixed, shares)
            held = fold == 1 - k
            total += functional.cross_entropy(features[held] @ weight.T + bias, labels[held]).item()
        return total

    beta = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-3}).x
    own = statistics(features, labels, means)
    return beta * own[0] + (1 - beta) * means, beta * own[1] + (1 - beta) * covariance, shares, beta


def features_of(experiment, client, model):
    data = experiment.client_data(client, 0)
    loader = data.predict_dataloader()[0]
    with torch.no_grad():
        parts = [(model.body(data.prepare(images, None)), labels) for images, labels in loader]
    return torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts])


def rounds_by_hand(config):
    experiment = Experiment(config)
    model = model_by_hand(experiment).double()
    generator = torch.Generator().manual_seed(config.derived_seed("means"))
    means = torch.rand(10, 32, generator=generator, dtype=torch.float64)
    covariance, betas = torch.eye(32).double(), []
    for server_round in range(1, config.num_server_rounds + 1):
        rate, updates = config.learning_rate_in(server_round), []
        for client in range(3):
            local, data = (
                copy.deepcopy(model),
                experiment.client_data(client, config.derived_seed("train", server_round, client)),
            )
            _, labels = features_of(experiment, client, local)
            shares = torch.bincount(labels, minlength=10).double() / len(labels) + 1e-4
            weight, bias = classifier(means, covariance, shares / shares.sum())
            weights = list(local.body.parameters())
            for images, seen in data.train_dataloader():
                logits = local.body(data.prepare(images, None)) @ weight.T + bias
                moves = torch.autograd.grad(functional.cross_entropy(logits, seen), weights)
                with torch.no_grad():
                    for each, move in zip(weights, moves, strict=True):
                        each.sub_(rate * move)
            *mixed, _, beta = mixture(*features_of(experiment, client, local), means, covariance)
            betas.append(beta)
            updates.append((data.num_train, local.body.state_dict(), mixed))
        total = sum(count for count, _, _ in updates)
        means, covariance = (sum(count * mixed[place] for count, _, mixed in updates) / total for place in range(2))
        for name, value in model.body.state_dict().items():
            value.copy_(sum(count * state[name] for count, state, _ in updates) / total)
    weight, bias = classifier(means, covariance, torch.full((10,), 0.1).double())
    model.head.load_state_dict({"weight": weight, "bias": bias})
    return model, means, covariance, betas


def test_pfedfda_is_its_equations(federate):
    config = config_of("pfedfda", model_name=SMALL, num_server_rounds=2, num_finetune_epochs=0, dirichlet_alpha=0.4)
    folder, _ = federate(config)
    model, means, covariance, betas = rounds_by_hand(config)
    federation = read_federation(folder / run_folder.LAST_CHECKPOINT, SMALL)
    kept = memory.recall_from(folder / run_folder.SERVER, 2, "the server")
    for name, value in {"state.means": means, "state.covariance": covariance}.items():
        assert torch.allclose(kept[name], value, rtol=0, atol=1e-9), name
    for name, value in model.state_dict().items():
        assert torch.allclose(federation.shared[name], value, rtol=1e-7, atol=1e-7), name
    assert max(betas) > 0.05 and len({round(beta, 3) for beta in betas}) > 2
    experiment = Experiment(config)
    for row in read_results(folder)["clients"]:
        client = row["client"]
        *mixed, shares, _ = mixture(*features_of(experiment, client, model), means, covariance)
        weight, bias = classifier(*mixed, shares)
        own = own_module(experiment, client, 2, federation.shared, None, federation.extras).model.state_dict()
        assert torch.allclose(own["head.weight"], weight, rtol=1e-7, atol=1e-7)
        assert torch.allclose(own["head.bias"], bias, rtol=1e-7, atol=1e-7)
        data = experiment.client_data(client, 0)
        ((images, labels),) = data.test_dataloader()
        logits = model.body(data.prepare(images, None)) @ weight.T + bias
        assert row["initial_loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-7)


def test_a_client_with_one_image_of_each_class_takes_everyones_head():
    features, labels = torch.rand(3, 4, dtype=torch.float64), torch.tensor([2, 0, 5])
    everyone = pfedfda.Gaussians(torch.rand(10, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    client = SimpleNamespace(extras=everyone._asdict(), features=lambda _: (features, labels))
    mixed, shares = pfedfda._mixture(client, {})
    assert all(torch.equal(*pair) for pair in zip(mixed, everyone, strict=True))
    assert shares.argsort(descending=True, stable=True)[:3].tolist() == [0, 2, 5] and shares.min() > 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_run_that_was_stopped_is_resumed_to_the_same_bytes(federate):
    options = {
        "model_name": SMALL,
        "num_server_rounds": 3,
        "fraction_train": 0.7,
        "precision": "32-true",
        "learning_rate": 0.01,
    }
    whole, folder = stopped_and_resumed(config_of("pfedfda", **options), federate)
    assert not (whole / run_folder.FAILURES).exists()
    kept = [{path.name: path.read_bytes() for path in each.glob("server/*.safetensors")} for each in (whole, folder)]
    assert kept[0] == kept[1] != {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("pfedfda"), 'algorithm = "pfedfda": is of features of images by their classes'),
        (
            lambda: config_of("pfedfda", model_name="tests.algorithms.test_feddbe:no_bias"),
            "has a Linear without a bias",
        ),
        (lambda: config_of("pfedfda", aggregator="median"), 'aggregator = "median": pfedfda takes the plain mean'),
        (lambda: config_of("pfedfda", server_optimizer="adam"), 'server-optimizer = "adam": .*; take none'),
        (lambda: config_of("pfedfda", clipping_norm=1.0), "clipping-norm = 1.0: does not bound means, covariance"),
    ],
)
def test_what_pfedfda_cannot_do_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
