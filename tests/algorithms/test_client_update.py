import dataclasses
import re

import pytest
import torch
from torch.nn import functional

from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import parts_of, select
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training import memory
from lit_fedbabu.training.experiment import Experiment
from tests.support import NARROW, batches, client_data, model_by_hand, tiny, tiny_config


def sgd_by_hand(config, model, weights, stream, rate):
    """Momentum SGD with weight decay, written out (Sutskever form, as in PyTorch's documentation)."""
    velocity: dict[str, torch.Tensor] = {}
    for images, labels in stream:
        gradients = torch.autograd.grad(functional.cross_entropy(model(images), labels), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                step = gradient.add(weight, alpha=config.weight_decay)
                velocity[name] = velocity[name].mul_(config.momentum).add_(step) if name in velocity else step.clone()
                weight.add_(velocity[name], alpha=-rate)


def round_by_hand(experiment, model, client, server_round, rate):
    """A round of plain SGD, phase by phase, each with momentum from zero."""
    more = batches(experiment, client, server_round)
    for part, epochs in experiment.algorithm.phases:
        weights = select(dict(model.named_parameters()), parts_of(part))
        sgd_by_hand(experiment.config, model, weights, more(getattr(experiment.config, epochs)), rate)


OWN = ("pfedfda", "ditto", "feddyn", "feddyn-babu", "scaffold", "scaffold-babu", "apfl", "fedas", "centralized")
PLAIN = [name for name, row in ALGORITHMS.items() if row.step == "sgd" and not row.has_own_loss and name not in OWN]


@pytest.mark.parametrize("algorithm", PLAIN)
def test_one_client_is_sgd_by_hand_with_fresh_momentum_in_every_round(algorithm, tmp_path):
    experiment = tiny(
        algorithm=algorithm, num_local_epochs=2, num_head_epochs=1, num_clusters=1, augmentation="crop-flip"
    )
    model, state = model_by_hand(experiment), experiment.initial_shared()
    for server_round, rate in ((1, 0.1), (2, 0.01)):
        state, *_ = update.client_update(experiment, 3, server_round, state, rate, tmp_path)
        round_by_hand(experiment, model, 3, server_round, rate)
    ours = update.own_module(experiment, 3, 2, state, tmp_path).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_kept_is_what_is_trained_and_not_shared(algorithm, tmp_path):
    experiment = tiny(algorithm=algorithm, num_head_epochs=1)
    before = {name: value.clone() for name, value in experiment.new_module().model.state_dict().items()}
    extras = experiment.extras.down
    state, _, _, sent = update.client_update(experiment, 2, 5, experiment.initial_shared(), 0.1, tmp_path, extras)
    row = ALGORITHMS[algorithm]
    norms = {name for name in before if name.split(".")[:3:2] == ["body", "1"]} if row.private else set()
    assert len(norms) == (8 if row.private else 0), "weights and biases of four layers"
    kept = row.kept
    assert state.keys() == select(before, parts_of(row.shared)).keys() - norms - set(row.fixed)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors"))
    assert files == (["client_0002/round_0005.safetensors"] if kept else [])
    state_names = tuple(f"{each}." for each in row.state)
    recalled = memory.recall(tmp_path, 2, 5)
    remembered = {name: value for name, value in recalled.items() if not name.startswith(state_names)}
    assert {name.partition(".")[0] for name in recalled.keys() - remembered.keys()} == set(row.state)
    assert remembered.keys() == select(before, kept).keys() | norms
    heads = {name: value for name, value in sent.items() if algorithm == "fedpac" and name in before}
    own = {**state, **remembered, **heads}
    trained = {name for name, value in own.items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in trained} == set(row.trained)
    assert memory.recall(tmp_path, 2, 4) == memory.recall(tmp_path, 1, 5) == {}


SAME = {
    "FedProx without pull is FedAvg": ({"algorithm": "fedprox", "proximal_mu": 0.0}, {"algorithm": "fedavg"}),
    "FedProx+BABU without pull is FedBABU": ({"algorithm": "fedprox-babu", "proximal_mu": 0.0}, {}),
    "FedRep without head epochs is FedBABU": ({"algorithm": "fedrep", "num_head_epochs": 0}, {}),
    "pFedMe with one inner step is FedAvg at the product of its rates": (
        {
            "algorithm": "pfedme",
            "num_inner_steps": 1,
            "proximal_mu": 0.5,
            "inner_learning_rate": 0.25,
            "inner_learning_rate_decay": 1.0,
            "weight_decay": 0.0,
            "learning_rate": 0.5,
        },
        {"algorithm": "fedavg", "weight_decay": 0.0, "learning_rate": 0.0625},
    ),
    "MOON without its contrast is FedAvg": ({"algorithm": "moon", "moon_mu": 0.0}, {"algorithm": "fedavg"}),
    "MOON+BABU without its contrast is FedBABU": ({"algorithm": "moon-babu", "moon_mu": 0.0}, {}),
    "FedNova of equal steps is FedAvg": ({"algorithm": "fednova"}, {"algorithm": "fedavg"}),
    "FedNova+BABU of equal steps is FedBABU, of whatever sizes": (
        {"algorithm": "fednova-babu", "partitioner": "linear", "num_local_steps": 3},
        {"partitioner": "linear", "num_local_steps": 3},
    ),
    "FedDyn without alpha is FedAvg, of whatever sizes": (
        {"algorithm": "feddyn", "partitioner": "linear", "dynamic_alpha": 0.0},
        {"algorithm": "fedavg", "partitioner": "linear"},
    ),
    "FedDyn+BABU without alpha is FedBABU": ({"algorithm": "feddyn-babu", "dynamic_alpha": 0.0}, {}),
    "APFL shares what FedAvg shares": ({"algorithm": "apfl"}, {"algorithm": "fedavg"}),
    "FedALA that does not learn to mix is FedAvg": (
        {"algorithm": "fedala", "num_mixing_epochs": 0},
        {"algorithm": "fedavg"},
    ),
    "Ditto shares what FedAvg shares": ({"algorithm": "ditto"}, {"algorithm": "fedavg"}),
}

ELSEWHERE = re.compile(r"\+BABU|^(MOON|FedDyn|APFL|FedALA)")
"""What a method's own tests show of single updates."""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(each, id=name, marks=pytest.mark.slow if ELSEWHERE.search(name) else ())
        for name, each in SAME.items()
    ],
)
def test_algorithms_meet_where_they_are_the_same(changes, federate):
    states = []
    for change in changes:
        folder, _ = federate(tiny_config(model_name=NARROW, **change))
        states.append(LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict())
    same = torch.allclose if "pfedme" in changes[0].values() else torch.equal  # whose products are rounded otherwise
    assert all(same(states[0][name], states[1][name]) for name in states[0])


def test_fedbn_averages_all_but_what_clients_keep(federate):
    config = tiny_config(algorithm="fedbn", num_clients=3, fraction_train=1.0, num_server_rounds=2)
    folder, _ = federate(config)
    assert "Its normalization layers are as they began" in (folder / "README.md").read_text()
    assert not (folder / "projector_config.pbtxt").exists(), "no features of a body that no client has"
    federated = read_federation(folder / run_folder.LAST_CHECKPOINT)
    experiment = Experiment(config)
    own = [update.own_module(experiment, client, 2, federated.shared, federated.memories).model for client in range(3)]
    for name, value in own[0].state_dict().items():
        same = torch.equal(value, own[1].state_dict()[name])
        assert same == (name in federated.shared) == (name.split(".")[2:3] != ["1"]), name
    expected = experiment.initial_shared()
    for server_round in (1, 2):
        rate = config.learning_rate_in(server_round)
        trained = [
            update.client_update(experiment, client, server_round, expected, rate, folder / "again")
            for client in range(3)
        ]
        total = sum(each.num_train for each in trained)
        expected = {
            name: (sum(each.num_train * each.state[name].double() for each in trained) / total).float()
            for name in expected
        }
    assert all(torch.allclose(expected[name], value, atol=1e-6) for name, value in federated.shared.items())


def test_a_model_without_normalization_layers_is_refused_for_fedbn():
    with pytest.raises(InputError, match='algorithm = "fedbn": keeps normalization layers .* has none; take fedavg'):
        tiny(algorithm="fedbn", model_name="tests.support:plain_model").check()


def test_dittos_personal_model_goes_on_from_itself_and_is_the_clients_own(tmp_path):
    experiment = tiny(algorithm="ditto", proximal_mu=0.0)
    received, model = experiment.initial_shared(), model_by_hand(experiment)
    for server_round in (1, 2):
        state, *_ = update.client_update(experiment, 0, server_round, received, 0.1, tmp_path)
        more = batches(experiment, 0, server_round)
        list(more(experiment.config.num_local_epochs))
        sgd_by_hand(
            experiment.config, model, dict(model.named_parameters()), more(experiment.config.num_local_epochs), 0.1
        )
    ours = update.own_module(experiment, 0, 2, state, tmp_path).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert all(
        torch.equal(update.own_module(experiment, 1, 2, state, tmp_path).model.state_dict()[name], state[name])
        for name in state
    )


@pytest.mark.slow
def test_centralized_training_sees_the_images_of_all_clients(federate, capsys):
    experiment = tiny(algorithm="centralized", num_server_rounds=1)
    _, count, *_ = update.client_update(experiment, 0, 1, experiment.initial_shared(), 0.1)
    assert count == sum(
        len(client_data(experiment.config, client, 0).train_set) for client in range(experiment.config.num_clients)
    )
    folder, grid = federate(experiment.config)
    assert "one participant with all training images" in capsys.readouterr().out
    asked = [message for message in grid.messages if message.metadata.message_type == "train"]
    assert [message.content["config"]["clients"] for message in asked] == [[0]]
    one = {"num_clients": 1, "num_classes_per_client": 10, "num_server_rounds": 2}
    states = []
    for algorithm in ("centralized", "fedavg"):
        folder, _ = federate(tiny_config(algorithm=algorithm, **one))
        states.append(LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "with one client it is FedAvg"


def test_fedbabus_head_never_moves_and_never_travels():
    experiment = tiny(weight_decay=0.1, num_local_epochs=2)
    initial = {name: value.clone() for name, value in experiment.new_module().model.state_dict().items()}
    state, count, loss, *_ = update.client_update(experiment, 0, 1, experiment.shared(initial), 0.1)
    assert state.keys() == select(initial, ["body"]).keys()
    assert all(not torch.equal(state[name], initial[name]) for name in state if name.endswith("weight"))
    head = select(experiment.received_module(state).model.state_dict(), ["head"])
    assert all(torch.equal(head[name], initial[name]) for name in head)
    assert count == len(client_data(experiment.config, 0, 0).train_set)
    assert 0 < loss < 20


def test_a_clients_update_depends_on_seed_round_and_client_alone():
    experiment = tiny()
    received = experiment.initial_shared()

    def weights(seed=experiment.config.seed, server_round=1, client=0):
        changed = Experiment(dataclasses.replace(experiment.config, seed=seed))
        torch.manual_seed(torch.seed() % 1000)
        return update.client_update(changed, client, server_round, received, 0.1)[0]["body.0.0.weight"]

    first = weights()
    assert torch.equal(first, weights())
    for change in ({"seed": 1}, {"server_round": 2}, {"client": 1}):
        assert not torch.equal(first, weights(**change)), change


@pytest.mark.parametrize("part", ["head", "body", "full"])
def test_fine_tuning_starts_from_what_was_received_and_moves_its_part(part):
    experiment = tiny(finetune_part=part, finetune_learning_rate=0.05, num_finetune_epochs=3)
    received = experiment.initial_shared()
    before = {name: value.clone() for name, value in experiment.new_module().model.state_dict().items()}
    module, outcome = update.personal_model(experiment, 1, 1, received)
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in select(before, parts_of(part))), name
    assert [outcome.initial] == update.initial_evaluations(experiment, [1], 1, received)
    assert outcome.personalized.loss != outcome.initial.loss


def test_no_epoch_of_fine_tuning_leaves_the_model_as_received():
    experiment = tiny(num_finetune_epochs=0)
    _, outcome = update.personal_model(experiment, 1, 1, experiment.initial_shared())
    assert outcome.initial == outcome.personalized


def test_what_is_not_shared_is_not_accepted():
    experiment = tiny()
    everything = experiment.new_module().model.state_dict()
    with pytest.raises(ValueError, match="fedbabu shares"):
        experiment.received_module(everything)


@pytest.mark.parametrize(
    "algorithm", ["fedbabu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fedrep", "fedavg", "local"))]
)
def test_a_federation_of_one_client_is_sgd_by_hand(algorithm, federate):
    experiment = tiny(
        algorithm=algorithm, num_clients=1, num_classes_per_client=10, fraction_train=1.0, num_server_rounds=3,
        num_head_epochs=1,
    )  # fmt: skip
    model = model_by_hand(experiment)
    for server_round, rate in ((1, 0.1), (2, 0.1 * 0.1), (3, 0.1 * 0.1 * 0.1)):
        round_by_hand(experiment, model, 0, server_round, rate)
    folder, _ = federate(experiment.config)
    federated = read_federation(folder / run_folder.LAST_CHECKPOINT)
    ours = update.own_module(experiment, 0, 3, federated.shared, federated.memories).model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(ours[name], value), name
