"""FedNova against its equations written out (Wang et al. 2020, section 4), and what its clients count."""

import copy
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_fedbabu import Task
from lit_fedbabu.algorithms.algorithm import Received, Update
from lit_fedbabu.algorithms.fednova import LENGTHS, FedNova
from lit_fedbabu.algorithms.steps import Counted
from lit_fedbabu.algorithms.table import ALGORITHMS
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.training.client_update import client_update, own_module
from lit_fedbabu.training.experiment import Experiment
from tests import own_tasks
from tests.algorithms.test_client_update import sgd_by_hand
from tests.server.test_federate import stopped_and_resumed
from tests.support import NARROW, failures_of, tiny_config


class Rated(own_tasks.Windows):
    """Sensor windows, learned by SGD with momentum and a rate that falls in every step."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.5, nesterov=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


rated = Task(Rated, own_tasks.Sensors, score="test_f1")


def unequal(**options):
    """Three clients with unequal numbers of images and steps, in float64."""
    return tiny_config(
        **{
            "algorithm": "fednova", "model_name": NARROW, "precision": "64-true", "num_clients": 3,
            "num_local_epochs": 2, "fraction_train": 1.0, "partitioner": "linear", "learning_rate": 0.05,
            "num_finetune_epochs": 0, "augmentation": "none", "evaluate_every": 10,
        } | options
    )  # fmt: skip


def of_task(task="rated", **options):
    given = {"task": f"{__name__}:{task}" if task == "rated" else task, "num-clients": 3, "num-server-rounds": 3}
    given |= {"num-local-epochs": 1, "num-finetune-epochs": 1, "precision": "32-true", "fraction-train": 0.7}
    return Config.from_run_config({**given, "algorithm": "fednova", **options})


def norm_of(steps, rho):
    """||a_i||_1, in the paper's closed form."""
    return steps if rho == 0 else (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


def rounds_by_hand(config):
    """The state of the global model after the rounds, and what FedAvg would have made of the last one."""
    experiment = Experiment(config)
    seed = config.derived_seed("model")
    model = build_model(config.model_name, 10, seed, config.norm).double().to(memory_format=torch.channels_last)
    trained = [name for name, _ in model.named_parameters() if experiment.algorithm.shared in ("full", name[:4])]
    for server_round in range(1, config.num_server_rounds + 1):
        rate, states, norms, sizes = config.learning_rate_in(server_round), [], [], []
        for client in range(config.num_clients):
            local = copy.deepcopy(model)
            local.train()
            weights = {name: weight for name, weight in local.named_parameters() if name in trained}
            data = experiment.client_data(client, config.derived_seed("train", server_round, client))
            epochs = range(config.num_local_epochs)
            stream = [(data.prepare(images, None), own) for _ in epochs for images, own in data.train_dataloader()]
            sgd_by_hand(config, local, weights, stream, rate)
            states.append(local.state_dict())
            norms.append(norm_of(len(stream), config.momentum))
            sizes.append(data.num_train)
        assert len(set(norms)) == 3
        shares = [size / sum(sizes) for size in sizes]
        before, after = model.state_dict(), {}
        mean = {n: sum(p * each[n].double() for p, each in zip(shares, states, strict=True)) for n in before}
        effective = sum(p * norm for p, norm in zip(shares, norms, strict=True))
        for name in before:
            if name not in trained:
                after[name] = mean[name].to(before[name].dtype)
                continue
            pairs = zip(shares, norms, states, strict=True)
            direction = sum(p * (before[name] - each[name]) / norm for p, norm, each in pairs)
            after[name] = before[name] - effective * direction
        model.load_state_dict(after)
    return model.state_dict(), mean


@pytest.mark.parametrize(
    ("algorithm", "momentum", "norm"),
    [
        ("fednova", 0.9, "batch-running"),
        pytest.param("fednova-babu", 0.9, "batch", marks=pytest.mark.slow),
        pytest.param("fednova", 0.0, "batch", marks=pytest.mark.slow),
    ],
)
def test_fednova_is_its_equations(algorithm, momentum, norm, federate):
    config = unequal(algorithm=algorithm, momentum=momentum, norm=norm)
    folder, _ = federate(config)
    expected, mean = rounds_by_hand(config)
    shared = read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared
    assert any("running" in name for name in shared) == (norm == "batch-running")
    for client in range(3):
        own = own_module(Experiment(config), client, 2, shared, None).model.state_dict()
        for name, value in expected.items():
            assert torch.allclose(own[name], value, rtol=0, atol=1e-11), name
    assert max((shared[name] - mean[name]).abs().max() for name in shared) > 1e-5, "lengths matter"


class Line(L.LightningModule):
    """Weights whose gradient is 1 in every step, so that they move by the length of their way."""

    def __init__(self, **options):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.body, self.model.head = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        self.late = options.pop("late", False)
        self.decay = options.pop("decay", 1.0)
        self.by_hand = options.pop("by_hand", False)
        self.automatic_optimization = not self.by_hand
        self.options = options

    def training_step(self, batch, number):
        head = 0.0 if self.late and number < 2 else self.model.head.weight.sum()
        loss = self.model.body.weight.sum() + head
        if self.by_hand:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        groups = [{"params": self.model.body.parameters()}, {"params": self.model.head.parameters(), "lr": 0.7}]
        optimizer = torch.optim.SGD(groups, lr=0.1, **self.options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 1.0},
        {"momentum": 0.5, "nesterov": True, "decay": 0.8},
        {"momentum": 0.5, "dampening": 0.3, "late": True},
        {"momentum": 0.5, "by_hand": True},
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_length_is_the_way_of_a_weight_whose_gradient_is_1(options, accumulate):
    if accumulate > 1 and options.get("by_hand"):
        return  # Lightning accumulates nothing in steps by hand
    module = Line(**options).double()
    before = {name: value.item() for name, value in module.model.named_parameters()}
    counted = Counted("fednova")
    for times in (1, 2):  # a second fit has a momentum of its own
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accumulate_grad_batches=accumulate, callbacks=[counted],
        )  # fmt: skip
        trainer.fit(module, DataLoader(range(6), batch_size=1))
        for name, value in module.model.named_parameters():
            way = before[name] - value.item()
            assert math.isclose(counted.lengths[name], way, rel_tol=1e-12), (name, times)


def test_a_client_sends_a_length_for_every_shared_weight():
    experiment = Experiment(unequal(algorithm="fednova-babu", norm="batch-running", num_local_steps=4, momentum=0.0))
    update = client_update(experiment, 0, 1, experiment.initial_shared(), 0.05)
    assert set(update.extras) == {LENGTHS} and len(experiment.weights) == 4 < len(experiment.shared_names)
    assert torch.allclose(update.extras[LENGTHS], torch.full((4,), 0.2, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.slow
@pytest.mark.parametrize("config", ["task", "images"])
def test_a_stopped_run_goes_on_to_the_same_bytes(config, federate):
    config = of_task() if config == "task" else unequal(num_server_rounds=3, fraction_train=0.7)
    whole, _ = stopped_and_resumed(config, federate)
    assert not (whole / run_folder.FAILURES).exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: unequal(aggregator="median"), 'aggregator = "median": fednova divides by numbers that .*; take mean'),
        (lambda: unequal(aggregator="norm-bound"), 'aggregator = "norm-bound": fednova divides by'),
        (lambda: unequal(cohort_size=2), "cohort-size = 2: fednova trains clients one by one; take 0"),
        (lambda: unequal(clipping_norm=1.0), "clipping-norm = 1.0: does not bound lengths, which fednova sends"),
        (
            lambda: of_task("tests.own_tasks:windows"),
            'algorithm = "fednova": is of steps of torch.optim.SGD, and the .* those of AdamW; take fedavg',
        ),
    ],
)
def test_what_fednova_cannot_do_is_refused_before_a_run(config, told):
    with pytest.raises(InputError, match=told):
        Experiment(config()).check()


@pytest.mark.slow
def test_a_client_whose_lengths_cannot_be_true_has_failed(federate, monkeypatch):
    honest = FedNova.finish

    def finish(self, cohort, modules):
        (update,) = honest(self, cohort, modules)
        sign = -1 if cohort.participants[0].client == 1 else 1
        return [Update(update.shared, update.kept, {LENGTHS: sign * update.extras[LENGTHS]})]

    monkeypatch.setattr(FedNova, "finish", finish)
    folder, _ = federate(unequal(num_server_rounds=1, max_round_retries=0, min_clients_per_round=2))
    (failure,) = failures_of(folder)
    assert failure["client"] == 1 and failure["reason"] == "its lengths are below 0"


def test_updates_of_equal_lengths_are_averaged_as_they_are():
    updates = [
        Received(client, 1, {"w": torch.tensor([0.1 * client])}, {LENGTHS: torch.tensor([0.1], dtype=torch.float64)})
        for client in range(3)
    ]
    assert sum(0.1 for _ in updates) / 3 != 0.1
    server = SimpleNamespace(
        weights=("w",), shared={"w": torch.tensor([0.7])}, state={}, aggregate=lambda each: {"all": each}
    )
    (averaged,) = ALGORITHMS["fednova"].combine(server, updates).shared.values()
    assert [each.shared["w"].item() for each in averaged] == [each.shared["w"].item() for each in updates]
