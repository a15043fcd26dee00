"""SCAFFOLD against Algorithm 1 of Karimireddy et al. 2020, written out, and against the same as a user's file."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.records import run_folder
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests.algorithms.test_users_methods import BABU, SCAFFOLD, config_of, of_task, shared_after
from tests.server.test_federate import stopped_and_resumed
from tests.support import model_by_hand


def scaffold_by_hand(config, global_rate=1.0):
    """The shared weights after the rounds, c, and c_i of the clients that took part."""
    experiment, model = Experiment(config), model_by_hand(Experiment(config)).double()
    trained = [name for name, _ in model.named_parameters() if experiment.algorithm.shared in ("full", name[:4])]
    zeros = {name: torch.zeros_like(model.state_dict()[name]) for name in trained}
    own: dict[int, dict[str, torch.Tensor]] = {}
    c, rho = dict(zeros), config.momentum
    for server_round in range(1, config.num_server_rounds + 1):
        x = {name: model.state_dict()[name].clone() for name in trained}
        rate, ends, sizes, moved = config.learning_rate_in(server_round), [], [], []
        for client in participants(config, server_round):
            local, mine, velocity = copy.deepcopy(model), own.get(client, zeros), dict(zeros)
            y = {name: weight for name, weight in local.named_parameters() if name in trained}
            data, passed, length = (
                experiment.client_data(client, config.derived_seed("train", server_round, client)),
                0,
                0,
            )
            for images, labels in data.train_dataloader():
                loss = functional.cross_entropy(local(data.prepare(images, None)), labels)
                gradients = dict(zip(y, torch.autograd.grad(loss, list(y.values())), strict=True))
                with torch.no_grad():
                    for name, weight in y.items():
                        step = gradients[name] + config.weight_decay * weight - mine[name] + c[name]
                        velocity[name] = rho * velocity[name] + step
                        weight.sub_(rate * velocity[name])
                passed = rho * passed + 1
                length += passed
            ends.append({name: weight.detach() for name, weight in y.items()})
            sizes.append(data.num_train)
            own[client] = {n: mine[n] - c[n] + (x[n] - ends[-1][n]) / (length * rate) for n in trained}
            moved.append({name: own[client][name] - mine[name] for name in trained})
        assert len(set(sizes)) > 1
        for name in trained:
            mean = sum(size * end[name] for size, end in zip(sizes, ends, strict=True)) / sum(sizes)
            model.state_dict()[name].copy_(x[name] + global_rate * (mean - x[name]))
            c[name] = c[name] + sum(each[name] for each in moved) / config.num_clients
    return model.state_dict(), c, own


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9, "weight_decay": 0.01, "fraction_train": 0.7},
        {"server_optimizer": "momentum", "server_momentum": 0.0, "server_learning_rate": 1.5},
        pytest.param({"algorithm": "scaffold-babu", "momentum": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_scaffold_is_its_equations(options, federate):
    config = config_of(**{"algorithm": "scaffold", "num_server_rounds": 2, "learning_rate_decay": 0.5, **options})
    folder, _ = federate(config)
    expected, c, own = scaffold_by_hand(config, options.get("server_learning_rate", 1.0))
    shared, memories = shared_after(folder, config), folder / run_folder.MEMORY
    kept = memory.recall_from(folder / run_folder.SERVER, 2, "the server")
    for name, value in c.items():
        assert torch.allclose(kept[f"state.{name}"], value, rtol=0, atol=1e-9), name
    for client in range(3):
        mine = memory.recall(memories, client, 2)
        assert mine.keys() == {f"control.{name}" for name in own.get(client, ())}
        for name, value in own.get(client, {}).items():
            assert torch.allclose(mine[f"control.{name}"], value, rtol=0, atol=1e-9), name
        model = own_module(Experiment(config), client, 2, shared, memories).model.state_dict()
        for name, value in expected.items():
            assert torch.allclose(model[name], value, rtol=0, atol=1e-11), name
    plain = dataclasses.replace(config, algorithm="fedavg" if config.algorithm == "scaffold" else "fedbabu")
    other = shared_after(federate(plain)[0], plain)
    assert max((shared[name] - other[name]).abs().max() for name in shared) > 1e-5, "controls matter in round 2"


def bytes_of(folder):
    places = ("checkpoints", run_folder.MEMORY, run_folder.SERVER)
    files = [path for place in places for path in folder.glob(f"{place}/**/*.safetensors")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("row", "file", "kind"),
    [
        ("scaffold", SCAFFOLD, "images"),
        ("scaffold", SCAFFOLD, "task"),
        pytest.param("scaffold-babu", BABU, "images", marks=pytest.mark.slow),
    ],
)
def test_the_row_gives_the_same_bytes_as_the_file_of_a_user(row, file, kind, federate):
    folders, shared = [], []
    for name in (row, file):
        options = {"num_server_rounds": 3, "fraction_train": 0.7, "precision": "32-true"}
        config = of_task(name) if kind == "task" else config_of(name, **options)
        folders.append(federate(config)[0])
        shared.append(memory.recall_from(folders[-1] / run_folder.SERVER, 3, "the server"))
        shared[-1] |= {} if kind == "task" else shared_after(folders[-1], config)
    ours, theirs = (bytes_of(folder) for folder in folders)
    assert ours == theirs and any("memory" in name for name in ours) and any("server" in name for name in ours)
    assert shared[0].keys() == shared[1].keys()
    assert all(torch.equal(value, shared[1][name]) for name, value in shared[0].items())


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("kind", ["task", "images"])
def test_a_stopped_run_goes_on_to_the_same_bytes(kind, federate):
    options = {"num_server_rounds": 3, "fraction_train": 0.7, "momentum": 0.9}
    whole, folder = stopped_and_resumed(
        of_task("scaffold") if kind == "task" else config_of("scaffold", **options), federate
    )
    assert not (whole / run_folder.FAILURES).exists()
    assert bytes_of(whole) == bytes_of(folder) != {}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            lambda: config_of("scaffold", aggregator="krum"),
            'aggregator = "krum": scaffold adds up controls .*; take mean',
        ),
        (
            lambda: config_of("scaffold", clipping_norm=1.0),
            "clipping-norm = 1.0: does not bound .*, which scaffold sends",
        ),
        (lambda: config_of("scaffold-babu", cohort_size=2), "cohort-size = 2: scaffold-babu trains clients one by one"),
        (
            lambda: dataclasses.replace(of_task("scaffold"), task="tests.own_tasks:windows"),
            'algorithm = "scaffold": is of steps of torch.optim.SGD, and the .* those of AdamW; take fedavg',
        ),
    ],
)
def test_what_scaffold_cannot_do_is_refused_before_a_run(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()
