"""Methods of users: SCAFFOLD and APFL of examples/methods, against their equations written out."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from examples.methods import apfl, scaffold
from lit_fedbabu import Task
from lit_fedbabu.algorithms.algorithm import Algorithm, Update
from lit_fedbabu.config import Config
from lit_fedbabu.finetune import main as finetune_main
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.records.results import read_results
from lit_fedbabu.report import main as report_main
from lit_fedbabu.training import memory
from lit_fedbabu.training.client_update import own_module
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.server.test_federate import stopped_and_resumed
from tests.support import NARROW, model_by_hand, tiny_config

SCAFFOLD, BABU, APFL = (
    f"examples.methods.{name}" for name in ("scaffold:scaffold", "scaffold:scaffold_babu", "apfl:apfl")
)


class Sgd(own_tasks.Windows):
    """Sensor windows, learned by plain SGD."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


sgd = Task(Sgd, own_tasks.Sensors, score="test_f1")


def config_of(algorithm, **options):
    return tiny_config(
        **{
            "algorithm": algorithm, "model_name": NARROW, "precision": "64-true", "momentum": 0.0, "weight_decay": 0.0,
            "num_clients": 3, "fraction_train": 1.0, "augmentation": "none", "partitioner": "dirichlet",
            "dirichlet_alpha": 3.0,
        } | options
    )  # fmt: skip


def of_task(algorithm):
    task = {"task": f"{__name__}:sgd", "num-clients": 3, "num-server-rounds": 3, "num-local-epochs": 1}
    more = {"num-finetune-epochs": 1, "precision": "32-true", "fraction-train": 0.7, "algorithm": algorithm}
    return Config.from_run_config({**task, **more})


def shared_after(folder, config):
    return read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW, algorithm=config.algorithm).shared


def rounds_by_hand(config, step, finish):
    """Rounds of plain SGD in which ``step`` gives a client's direction; returns the shared weights after each."""
    experiment = Experiment(config)
    model = model_by_hand(experiment).double()
    trained = [name for name, _ in model.named_parameters() if experiment.algorithm.shared in ("full", name[:4])]
    after = []
    for server_round in range(1, config.num_server_rounds + 1):
        rate, updates = config.learning_rate_in(server_round), []
        for client in range(config.num_clients):
            local, steps = copy.deepcopy(model), 0
            weights = {name: weight for name, weight in local.named_parameters() if name in trained}
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            for images, labels in data.train_dataloader():
                batch = data.prepare(images, None), labels
                direction = step(client, local, weights, batch, rate, steps == 0)
                with torch.no_grad():
                    for name, weight in weights.items():
                        weight.sub_(rate * direction[name])
                steps += 1
            updates.append((data.num_train, {name: weight.detach() for name, weight in weights.items()}))
            finish(client, dict(model.named_parameters()), updates[-1][1], steps * rate)
        finish(None, None, None, None)
        total = sum(count for count, _ in updates)
        mean = {name: sum(count * state[name] for count, state in updates) / total for name in trained}
        model.load_state_dict(mean, strict=False)
        after.append(mean)
    assert len({count for count, _ in updates}) > 1
    return after


def gradients(model, weights, images, labels):
    found = torch.autograd.grad(functional.cross_entropy(model(images), labels), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def scaffold_by_hand(config):
    c: dict[str, torch.Tensor] = {}
    own: list[dict[str, torch.Tensor]] = [{} for _ in range(3)]
    deltas: list[dict[str, torch.Tensor]] = []

    def step(client, model, weights, batch, rate, is_first):
        found = gradients(model, weights, *batch)
        return {name: found[name] - own[client].get(name, 0) + c.get(name, 0) for name in weights}

    def finish(client, before, trained, length):
        if client is None:
            for name in deltas[0]:
                c[name] = c.get(name, 0) + sum(delta[name] for delta in deltas) / config.num_clients
            deltas.clear()
            return
        new = {n: own[client].get(n, 0) - c.get(n, 0) + (before[n].detach() - y) / length for n, y in trained.items()}
        deltas.append({name: value - own[client].get(name, 0) for name, value in new.items()})
        own[client] = new

    return rounds_by_hand(config, step, finish), c, own


@pytest.mark.parametrize("algorithm", [SCAFFOLD, pytest.param(BABU, marks=pytest.mark.slow)])
def test_scaffold_is_its_equations(algorithm, federate):
    config = config_of(algorithm, num_server_rounds=2)
    folder, _ = federate(config)
    after, c, own = scaffold_by_hand(config)
    shared = shared_after(folder, config)
    plain, _ = federate(dataclasses.replace(config, algorithm="fedavg" if algorithm == SCAFFOLD else "fedbabu"))
    other = shared_after(plain, config)
    assert shared.keys() == other.keys() == after[-1].keys()
    for name, value in after[-1].items():
        assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
    assert max((shared[name] - other[name]).abs().max() for name in shared) > 1e-4, "controls matter in round 2"
    kept = memory.recall_from(folder / run_folder.SERVER, 2, "the server")
    for name, value in c.items():
        assert torch.allclose(kept[f"state.{name}"], value, rtol=0, atol=1e-9)
        mine = memory.recall(folder / run_folder.MEMORY, 1, 2)[f"control.{name}"]
        assert torch.allclose(mine, own[1][name], rtol=0, atol=1e-9)


def test_scaffold_begins_as_fedavg(federate):
    configs = [config_of(name, num_server_rounds=1) for name in (SCAFFOLD, "fedavg")]
    shared = [shared_after(federate(config)[0], config) for config in configs]
    assert all(torch.equal(value, shared[1][name]) for name, value in shared[0].items())


def test_apfl_is_its_equations(federate):
    config = config_of(APFL, num_server_rounds=2)
    folder, _ = federate(config)
    experiment = Experiment(config)
    start = {name: value.detach() for name, value in model_by_hand(experiment).double().named_parameters()}
    v, a = [dict(start) for _ in range(3)], [0.5] * 3

    def step(client, model, weights, batch, rate, is_first):
        mixed = copy.deepcopy(model)
        own, share = v[client], a[client]
        w = {name: weight.detach() for name, weight in weights.items()}
        mixed.load_state_dict({n: share * own[n] + (1 - share) * w[n] for n in w}, strict=False)
        found = gradients(mixed, dict(mixed.named_parameters()), *batch)
        v[client] = {name: own[name] - rate * share * found[name] for name in own}
        if is_first:
            slope = sum(((own[name] - w[name]) * found[name]).sum().item() for name in own)
            a[client] = min(max(share - rate * slope, 0), 1)
        return gradients(model, weights, *batch)

    after = rounds_by_hand(config, step, lambda *_: None)
    shared = shared_after(folder, config)
    for client in range(3):
        model = own_module(experiment, client, 2, shared, folder / run_folder.MEMORY).model.state_dict()
        for name, value in after[-1].items():
            assert torch.allclose(shared[name], value, rtol=0, atol=1e-12), name
            mixed = a[client] * v[client][name] + (1 - a[client]) * value
            assert torch.allclose(model[name], mixed, rtol=0, atol=1e-12), name
    assert min(a) > 0 and max(a) != 0.5


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        pytest.param("images", APFL, marks=pytest.mark.slow),
        ("task", SCAFFOLD),
        pytest.param("images", SCAFFOLD, marks=pytest.mark.slow),
        pytest.param("task", APFL, marks=pytest.mark.slow),
    ],
)
def test_a_method_of_ones_own_is_resumed_to_the_same_bytes_and_reported(algorithm, kind, federate, capsys):
    config = of_task(algorithm) if kind == "task" else config_of(algorithm, num_server_rounds=3, fraction_train=0.7)
    whole, folder = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()
    assert [path.read_bytes() for path in sorted(whole.glob("server/*.safetensors"))] == [
        path.read_bytes() for path in sorted(folder.glob("server/*.safetensors"))
    ]
    assert any(whole.glob("memory/*/*.safetensors")) and (any(whole.glob("server/*")) == (algorithm == SCAFFOLD))
    refused = ["--task", config.task] if config.task else ["--model-name", NARROW]
    assert finetune_main([str(whole), "--plain", "--clients", "1", *refused]) == 2
    assert "is code that the checkpoint names; give --algorithm to trust it" in capsys.readouterr().err
    assert finetune_main([str(whole), "--plain", "--clients", "1", *refused, "--algorithm", algorithm]) == 0
    again = next(path for path in whole.glob("finetune/*/results.json"))
    (row,), score = read_results(again.parent)["clients"], "f1" if config.task else "accuracy"
    assert row[f"personalized_{score}"] == read_results(whole)["clients"][1][f"personalized_{score}"]
    assert report_main([str(whole), "--out", str(whole.parent / "report")]) == 0
    assert algorithm.partition(":")[2] in (whole.parent / "report" / "report.html").read_text()


def test_the_bytes_of_extra_arrays_are_counted(federate):
    _, ours = federate(config_of(SCAFFOLD, num_server_rounds=1))
    _, plain = federate(config_of("fedavg", num_server_rounds=1))
    sizes = [
        [len(m.content.array_records["arrays"]) for m in grid.messages if m.metadata.message_type == "train"]
        for grid in (ours, plain)
    ]
    assert sizes[0] == [2 * count for count in sizes[1]]


class Undeclared(Algorithm):
    def finish(self, cohort, modules):
        return [Update(cohort.shared(module), {}, {"more": torch.zeros(2)}) for module in modules]


class Secret(Algorithm):
    def finish(self, cohort, modules):
        return [Update(cohort.shared(module), {"diary": torch.zeros(2)}) for module in modules]


FULL = (("full", "num_local_epochs"),)
undeclared, secret = Undeclared("Undeclared", "full", FULL), Secret("Secret", "full", FULL)
number = 3


@pytest.mark.parametrize(
    ("name", "told"), [("undeclared", "sends"), ("secret", "keeps diary, which is no weight and not declared")]
)
def test_what_a_method_does_not_declare_fails_its_clients(name, told, federate):
    config = config_of(f"{__name__}:{name}", max_round_retries=0)
    with pytest.raises(RunError, match=f"clients trained and 3 are needed.*{told}"):
        federate(config)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"algorithm": f"{__name__}:nobody"}, "has no attribute 'nobody'"),
        ({"algorithm": f"{__name__}:number"}, "of your own; it is a int"),
        ({"algorithm": "no_such_module:x"}, "No module named 'no_such_module'"),
        ({"cohort_size": 2}, "cohort-size = 2: examples.methods.scaffold:scaffold trains clients one by one; take 0"),
        ({"momentum": 0.9}, "momentum = 0.9: SCAFFOLD's controls are of plain SGD; take 0"),
        (
            {"clipping_norm": 1.0},
            "clipping-norm = 1.0: does not bound .*, which examples.methods.scaffold:scaffold sends",
        ),
    ],
)
def test_what_a_method_of_ones_own_cannot_do_is_refused(options, told):
    with pytest.raises(InputError, match=told):
        Experiment(config_of(**{"algorithm": SCAFFOLD, **options})).check()


@pytest.mark.parametrize("file", [scaffold, apfl])
def test_the_examples_are_short_and_stand_on_public_names(file):
    text = Path(file.__file__).read_text()
    assert len(text.splitlines()) <= 90
    assert "lit_fedbabu." not in text
