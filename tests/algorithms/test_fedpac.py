"""FedPAC against Algorithm 1 of Xu et al. 2023, written out."""

import copy
import json
import shutil
from itertools import combinations as combinations_of
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import Algorithm, Received
from lit_fedbabu.algorithms.fedpac import Aligned, FedPac, combinations
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.finetune import main as finetune_main
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.losses import Batch
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_pfedfda import SMALL, features_of
from tests.algorithms.test_users_methods import config_of, of_task
from tests.server.test_federate import stopped_and_resumed
from tests.support import NARROW, FakeGrid, model_by_hand


def least(v, h, client):
    """The combination of least expected error for a client: the best of the stationary points on all faces."""
    differences = [(h[client] - each).ravel() for each in h]
    matrix = torch.diag(torch.tensor(v, dtype=torch.float64)) + torch.stack(
        [torch.stack([one @ b for b in differences]) for one in differences]
    )
    found = []
    for face in (list(face) for size in range(1, len(v) + 1) for face in combinations_of(range(len(v)), size)):
        a = torch.zeros(len(v)).double()
        a[face] = torch.linalg.solve(matrix[face][:, face], torch.ones(len(face)).double())
        a /= a.sum()
        if a.min() >= 0:
            found.append((float(a @ matrix @ a), a.tolist()))
    return min(found)[1]


def sgd(experiment, client, server_round, model, part, loss, data):
    config = experiment.config
    rate, weights = config.learning_rate_in(server_round), list(model.get_submodule(part).parameters())
    moments = [torch.zeros_like(weight) for weight in weights]
    for images, labels in data.train_dataloader():
        z = model.body(data.prepare(images, None))
        gradients = torch.autograd.grad(loss(z, model.head(z), labels), weights)
        with torch.no_grad():
            for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
                moment.mul_(config.momentum).add_(gradient)
                weight.sub_(rate * moment)


def rounds_by_hand(config):
    """The shared model, heads of all clients, everyone's means by class, and the weights of heads in each round."""
    experiment = Experiment(config)
    model = model_by_hand(experiment).double()
    heads = [copy.deepcopy(model.head.state_dict()) for _ in range(config.num_clients)]
    everyone: dict[int, torch.Tensor] = {}
    shares = []
    for server_round in range(1, config.num_server_rounds + 1):
        clients, sent = participants(config, server_round), []
        for client in clients:
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            local = copy.deepcopy(model)
            local.head.load_state_dict(heads[client])
            z, labels = features_of(experiment, client, local)
            n, v, h = len(labels), 0.0, torch.zeros(10, 32).double()
            for label in set(labels.tolist()):
                own, p = z[labels == label], (labels == label).sum().item() / n
                h[label] = p * own.mean(0)
                v += p * torch.trace(own.T @ own).item() / len(own) - p**2 * (own.mean(0) @ own.mean(0)).item()

            def loss(z, logits, labels):
                total = functional.cross_entropy(logits, labels)
                for each, label in zip(z, labels.tolist(), strict=True):
                    if label in everyone:
                        away = ((each - everyone[label]) ** 2).sum() / 32
                        total = total + config.alignment_lambda * away / len(labels)
                return total

            sgd(experiment, client, server_round, local, "head", lambda _, *pair: functional.cross_entropy(*pair), data)
            sgd(experiment, client, server_round, local, "body", loss, data)
            z, labels = features_of(experiment, client, local)
            means = {label: (z[labels == label].mean(0), (labels == label).sum()) for label in set(labels.tolist())}
            sent.append((n, local, means, v / n, h))
        for label in range(10):
            if own := [means[label] for _, _, means, _, _ in sent if label in means]:
                everyone[label] = sum(count * mean for mean, count in own) / sum(count for _, count in own)
        v, h = [each[3] for each in sent], [each[4] for each in sent]
        shares.append([least(v, h, place) for place in range(len(clients))])
        trained = [each[1].head.state_dict() for each in sent]
        for client, weights in zip(clients, shares[-1], strict=True):
            heads[client] = {
                name: sum(weight * head[name] for weight, head in zip(weights, trained, strict=True))
                for name in ("weight", "bias")
            }
        total = sum(count for count, *_ in sent)
        for name, value in model.body.state_dict().items():
            value.copy_(sum(count * local.body.state_dict()[name] for count, local, *_ in sent) / total)
    return model, heads, everyone, shares


@pytest.mark.parametrize(
    "options",
    [
        {"num_server_rounds": 3, "fraction_train": 0.7, "momentum": 0.9, "alignment_lambda": 20.0, "seed": 1},
        pytest.param({"cohort_size": 3}, marks=pytest.mark.slow),
    ],
)
def test_fedpac_is_its_equations(options, federate):
    more = {
        "model_name": SMALL,
        "num_head_epochs": 1,
        "num_finetune_epochs": 0,
        "dirichlet_alpha": 0.4,
        "evaluate_every": 5,
    }
    config = config_of("fedpac", **more | {"num_server_rounds": 2} | options)
    folder, _ = federate(config)
    model, heads, everyone, shares = rounds_by_hand(config)
    last = config.num_server_rounds
    federation = read_federation(folder / run_folder.LAST_CHECKPOINT, SMALL)
    for name, value in model.body.state_dict().items():
        assert torch.allclose(federation.shared[f"body.{name}"], value, rtol=0, atol=1e-11), name
    kept = memory.recall_from(folder / run_folder.SERVER, last, "the server")
    assert not (folder / run_folder.MEMORY).exists() or not any((folder / run_folder.MEMORY).rglob("*.safetensors"))
    for label in range(10):
        assert kept["state.seen"][label] == (label in everyone)
        mean = everyone.get(label, torch.zeros(32).double())
        assert torch.allclose(kept["state.centroids"][label], mean, rtol=0, atol=1e-11), label
    experiment = Experiment(config)
    for row in read_results(folder)["clients"]:
        client = row["client"]
        own = own_module(experiment, client, last, federation.shared, None, federation.extras).model.state_dict()
        for name, value in heads[client].items():
            assert torch.allclose(kept[f"state.own.head.{name}"][client], value, rtol=0, atol=1e-11), name
            assert torch.equal(own[f"head.{name}"], kept[f"state.own.head.{name}"][client])
        data = experiment.client_data(client, 0)
        ((images, labels),) = data.test_dataloader()
        z = model.body(data.prepare(images, None))
        loss = functional.cross_entropy(z @ heads[client]["weight"].T + heads[client]["bias"], labels).item()
        assert row["initial_loss"] == pytest.approx(loss, abs=1e-11)
    weights = np.concatenate([np.ravel(each) for each in shares])
    assert ((weights > 0.01) & (weights < 0.99)).any(), weights


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 15), st.floats(-6, 6))
def test_combinations_fulfil_the_conditions_of_a_minimum(seed, count, size, scale):
    """Karush-Kuhn-Tucker: slopes are the same where a is above 0, and nowhere less. The problem is convex."""
    random = np.random.default_rng(seed)
    h, v = random.normal(size=(count, size)) * 10.0**scale, random.exponential(size=count)
    h[random.random(count) < 0.2], v[random.random(count) < 0.2] = h[0], 0
    for client, a in enumerate(combinations(h, v)):
        assert a.min() >= 0 and a.sum() == pytest.approx(1, abs=1e-12)
        away = h - h[client]
        matrix = np.diag(v) + away @ away.T
        slopes, unit = matrix @ a, np.trace(matrix) / count or 1.0
        assert slopes.min() >= a @ slopes - 1e-12 * unit
        assert np.abs(slopes - a @ slopes)[a > 0].max() <= 1e-12 * unit / a[a > 0].min()


def test_clients_of_one_kind_share_and_others_do_not():
    h = np.array([[1.0, 0], [1.0, 0], [0, 9.0]])
    assert combinations(h, np.array([1.0, 3.0, 1.0])) == pytest.approx(
        np.array([[0.75, 0.25, 0], [0.75, 0.25, 0], [0, 0, 1]]), abs=0.02
    )
    assert (combinations(h, np.zeros(3)) == np.eye(3)).all(), "without variance its own has no error"


QUICK = {"model_name": SMALL, "num_head_epochs": 1, "evaluate_every": 5}


def test_one_client_a_round_without_alignment_is_fedrep_to_the_bit(federate):
    options = {**QUICK, "num_server_rounds": 3, "fraction_train": 0.4, "precision": "32-true", "num_finetune_epochs": 0}
    ours, plain = (config_of(name, alignment_lambda=0.0, **options) for name in ("fedpac", "fedrep"))
    folders = [federate(config)[0] for config in (ours, plain)]
    states = [read_federation(folder / run_folder.LAST_CHECKPOINT, SMALL).shared for folder in folders]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    rows = [read_results(folder)["clients"] for folder in folders]
    assert rows[0] == rows[1]


mine = FedPac("Mine", "body", ALGORITHMS["fedpac"].phases)


def test_a_node_gets_rows_of_its_own_clients_alone_and_they_are_counted(federate):
    options = {**QUICK, "num_clients": 4, "num_server_rounds": 2, "fraction_train": 0.8, "num_finetune_epochs": 0}
    config = config_of(f"{__name__}:mine", **options)
    folder, grid = federate(config, FakeGrid(config, 2))
    kept = memory.recall_from(folder / run_folder.SERVER, 1, "the server")["state.own.head.weight"]
    down = {1: 0, 2: 0}
    for message in grid.messages:
        if message.metadata.message_type not in ("train", "evaluate"):
            continue
        arrays, clients = message.content["arrays"], sorted(message.content["config"]["clients"])
        assert arrays["extra:rows:clients"].numpy().tolist() == clients and len({each % 2 for each in clients}) == 1
        heads = arrays["extra:own.head.weight"].numpy()
        assert heads.shape == (len(clients), *kept.shape[1:])
        if message.metadata.message_type == "train":
            server_round = int(message.metadata.group_id)
            down[server_round] += sum(array.numpy().nbytes for array in arrays.values())
            if server_round == 2:
                assert (heads == kept[clients].numpy()).all()
    assert not torch.equal(kept[0], kept[1])
    costs = [json.loads(line) for line in (folder / run_folder.COSTS).read_text().splitlines()]
    assert [each["bytes_down"] for each in costs] == [down[1], down[2]]


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_stopped_run_goes_on_to_the_same_bytes_and_is_fine_tuned(federate, capsys):
    options = {**QUICK, "num_server_rounds": 3, "fraction_train": 0.7, "num_new_clients": 1}
    config = config_of("fedpac", num_clients=4, **options)
    whole, folder = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()
    kept = [{path.name: path.read_bytes() for path in each.glob("server/*.safetensors")} for each in (whole, folder)]
    assert kept[0] == kept[1] != {}
    experiment, federation = Experiment(config), read_federation(whole / run_folder.LAST_CHECKPOINT, SMALL)
    new = own_module(experiment, 3, 3, federation.shared, None, federation.extras).model.state_dict()
    assert torch.equal(new["head.weight"], experiment.new_module().model.state_dict()["head.weight"])
    assert finetune_main([str(whole), "--plain", "--clients", "1", "--model-name", SMALL]) == 0
    again = next(path for path in whole.glob("finetune/*/results.json"))
    (row,) = read_results(again.parent)["clients"]
    assert row["personalized_accuracy"] == read_results(whole)["clients"][1]["personalized_accuracy"]
    shutil.rmtree(whole / run_folder.SERVER)
    shutil.rmtree(whole / "finetune")
    assert finetune_main([str(whole), "--plain", "--clients", "1", "--model-name", SMALL]) == 2
    assert "fedpac needs the run's folder server/ beside it" in capsys.readouterr().err


def test_a_site_keeps_its_own_head_for_its_fine_tuning(tmp_path):
    experiment = Experiment(config_of("fedpac"))
    extras, shared = experiment.extras.after, experiment.initial_shared()
    extras["own.head.bias"] = torch.arange(30).view(3, 10).double()
    sent = {name: value[[1]] for name, value in extras.items()}
    arrays = [value.numpy() for value in (*shared.values(), *sent.values())]
    FedBABUClient(experiment, 1, tmp_path / "memory").save(arrays, 2)
    found = read_federation(tmp_path / run_folder.LAST_CHECKPOINT, NARROW)
    assert {name: len(value) for name, value in found.extras.items()} == dict.fromkeys(extras, 1)
    own = own_module(experiment, 1, 2, found.shared, None, found.extras).model.state_dict()
    assert own["head.bias"].tolist() == list(range(10, 20))
    with pytest.raises(LookupError, match=r"rows of clients \[1\], and none of client 2"):
        own_module(experiment, 2, 2, found.shared, None, found.extras)


def test_what_has_no_part_in_a_round_stays_as_it_was_and_draws_nothing():
    old = {"own.head.weight": torch.rand(3, 3, 2), "own.head.bias": torch.rand(3, 3)}
    old |= {"centroids": torch.rand(3, 2), "seen": torch.tensor([1.0, 0, 0])}
    sent = {"head.weight": torch.rand(3, 2), "head.bias": torch.rand(3), "centroids": torch.rand(3, 2)}
    sent |= {"counts": torch.tensor([0, 4, 0]), "moments": torch.rand(3, 2), "variance": torch.tensor(0.5)}
    server = SimpleNamespace(state=old, aggregate=lambda updates: {})
    new = ALGORITHMS["fedpac"].combine(server, [Received(1, 4, {}, sent)]).state
    for part in ("head.weight", "head.bias"):
        assert torch.equal(new[f"own.{part}"][1], sent[part])
        assert torch.equal(new[f"own.{part}"][[0, 2]], old[f"own.{part}"][[0, 2]])
    assert new["seen"].tolist() == [1, 1, 0]
    assert torch.equal(new["centroids"], torch.stack([old["centroids"][0], sent["centroids"][1], old["centroids"][2]]))
    batch = Batch(torch.zeros(4), torch.rand(4, 2), torch.rand(4, 3), torch.tensor([2, 2, 2, 2]))
    seen, drawn = batch._replace(labels=torch.tensor([0, 2, 2, 2])), Aligned(new["centroids"], new["seen"], 9.0)
    assert drawn(batch) == functional.cross_entropy(batch.logits, batch.labels)
    assert drawn(seen) > functional.cross_entropy(seen.logits, seen.labels)


def test_what_cannot_be_true_is_a_failure():
    row, sent = ALGORITHMS["fedpac"], {"counts": torch.tensor([2, 1]), "variance": torch.tensor(0.5)}
    for changed, told in (
        ({}, ""),
        ({"counts": torch.tensor([4, -1])}, "images by class"),
        ({"counts": torch.tensor([2, 2])}, "not those of 3 training images"),
        ({"variance": torch.tensor(-0.5)}, "variance is below 0"),
    ):
        reason = row.problem(Received(0, 3, {}, sent | changed))
        assert told in reason and bool(told) == bool(reason)


class Short(Algorithm):
    def server_state(self, start):
        return {"mine.a": torch.zeros(2, 1)}

    def broadcast(self, state):
        return state


short = Short("Short", "full", (("full", "num_local_epochs"),), rows=("mine",))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: of_task("fedpac"), 'algorithm = "fedpac": has a loss of its own, for images and their classes'),
        (lambda: config_of("fedpac", model_name="tests.algorithms.test_feddbe:no_bias"), "has a Linear without a bias"),
        (lambda: config_of("fedpac", aggregator="median"), 'aggregator = "median": fedpac combines heads and means'),
        (lambda: config_of("fedpac", clipping_norm=1.0), "clipping-norm = 1.0: does not bound head.weight, head.bias"),
        (
            lambda: config_of(f"{__name__}:short"),
            r"test_fedpac:short.*sends mine.a of shape \[2, 1\], which needs a row for each of the 3 clients",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
