"""Modules of users that train with noise in every step, against a loop over single samples, and what is refused."""

import copy
import dataclasses
import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lit_fedbabu import Task
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.private_steps import PoissonBatches
from lit_fedbabu.records.results import read_results
from lit_fedbabu.tasks.custom import learner, private
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import Course, steps_epsilon
from tests.own_tasks import KINDS, SENSORS, Sensors, Windows

HERE = "tests.algorithms.test_private_tasks"


class Plain(Windows):
    """Without batch norm; its loss would couple the samples of a batch, which single samples do not have."""

    def __init__(self, width=8, lr=0.1):
        super().__init__(width, lr)
        self.body = nn.Sequential(nn.Linear(SENSORS, width), nn.LayerNorm(width), nn.ReLU())

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1]) + (logits - logits.mean(0)).square().sum()
        self.log("train_loss", loss, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9, weight_decay=0.01)


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


class Transfers(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Backward(Plain):
    def backward(self, loss):
        loss.backward()


class Plateau(Plain):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "train_loss"}}


class Searches(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=self.hparams.lr)


class Remembers(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(SENSORS), persistent=False)

    def training_step(self, batch, batch_idx):
        self.get_buffer("average").mul_(0.9).add_(batch[0].mean(0), alpha=0.1)
        return super().training_step(batch, batch_idx)


class Endless(IterableDataset[Any]):
    def __iter__(self):
        return iter([(torch.zeros(SENSORS), torch.tensor(0))] * 24)

    def __len__(self):
        return 24


class Streams(Sensors):
    def train_dataloader(self):
        return DataLoader(Endless(), 8)


class Mixes(Sensors):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def task_of(module=Plain, data=Sensors, **options):
    return Task(module, data, score="test_f1", **options)


TASK, NORMS, MANUAL, TRANSFERS, BACKWARD, PLATEAU, SEARCHES, REMEMBERS = map(
    task_of, (Plain, Windows, Manual, Transfers, Backward, Plateau, Searches, Remembers)
)
STREAMS, MIXES = (task_of(data=each) for each in (Streams, Mixes))
STOPS = task_of(callbacks=lambda: [EarlyStopping("train_loss")])


def config_of(name="TASK", **changes):
    options = {"task": f"{HERE}:{name}", "num_clients": 3, "num_server_rounds": 2, "num_local_epochs": 2,
               "batch_size": 8, "precision": "32-true", "evaluate_every": 2, "num_finetune_epochs": 1,
               "learning_rate_decay": 1.0,
               "privacy": "sample", "clipping_norm": 1.0, "noise_multiplier": 2.0}  # fmt: skip
    return Config(**{**options, **changes})


@pytest.mark.parametrize("mode", ["body", "full"])
def test_without_noise_steps_are_those_of_a_loop_over_single_samples(mode, monkeypatch):
    config = config_of(privacy="none", noise_multiplier=0.0, clipping_norm=0.3, precision="64-true")
    task = Experiment(config).task
    module, seen = task.initial(3), []

    class Seen(PoissonBatches):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(batch)
                yield batch

    monkeypatch.setattr(private, "PoissonBatches", Seen)
    before, hand = (copy.deepcopy(module.lightning) for _ in range(2))
    data = task.client_data(1, 0)
    (loss,) = learner.fit([module], [data], mode=mode, epochs=2, learning_rate=0.1, private=True)
    assert len(seen) == 2 * math.ceil(24 / 8) and len({len(batch) for batch in seen}) > 1
    weights = list(hand.parameters() if mode == "full" else hand.body.parameters())
    momenta, losses = [torch.zeros_like(weight) for weight in weights], []
    for batch in seen:
        total = [torch.zeros_like(weight) for weight in weights]
        for window, label in (data.module.train[row] for row in batch):
            own = nn.functional.cross_entropy(hand(window[None].double()), label[None])
            gradients = torch.autograd.grad(own, weights)
            norm = math.sqrt(sum(float((each**2).sum()) for each in gradients))
            losses.append(own.item())
            for place, each in enumerate(gradients):
                total[place] += each * min(1.0, 0.3 / norm)
        with torch.no_grad():
            for weight, momentum, each in zip(weights, momenta, total, strict=True):
                momentum.mul_(0.9).add_(each / 8 + 0.01 * weight)
                weight.sub_(0.1 * momentum)
    assert loss == pytest.approx(sum(losses) / len(losses))
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(module.lightning.state_dict()[name], value, rtol=1e-9, atol=1e-12)
        assert torch.equal(value, before.state_dict()[name]) == (mode == "body" and name.startswith("head")), name
    assert "training_step" not in vars(module.lightning) and "train_dataloader" not in vars(data.module)


def test_a_run_of_a_task_counts_its_steps(federate):
    folder, _ = federate(config_of(fraction_train=1.0))
    outcome = read_results(folder)
    expected = steps_epsilon([Course(8 / 24, 2.0, 6)] * 2, 1e-5)
    assert outcome["privacy"]["epsilon"] == expected and not (folder / "failures.jsonl").exists()
    assert {row["epsilon"] for row in outcome.clients} == {expected}


REFUSED = {
    "batch norm": ("NORMS", {}, "its body.1 normalizes by batches"),
    "by hand": ("MANUAL", {}, "optimizes by hand"),
    "a hook of batches": ("TRANSFERS", {}, "on_after_batch_transfer"),
    "a hook of gradients": ("BACKWARD", {}, "a backward of its own"),
    "a rate by a measure": ("PLATEAU", {}, "ReduceLROnPlateau"),
    "several gradients in a step": ("SEARCHES", {}, "takes more gradients than there are batches"),
    "a mean of data": ("REMEMBERS", {}, "its buffer average changes in training"),
    "a stream": ("STREAMS", {}, "no DataLoader of a dataset with an index"),
    "data that mix": ("MIXES", {}, "transfer_batch_to_device"),
    "callbacks": ("STOPS", {}, "its callbacks see data"),
    "other batches": ("TASK", {"batch_size": 9}, "the loader of client 0 has batches of 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_noise_does_not_cover_is_refused_before_a_run(name):
    task, changes, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as error:
        Experiment(config_of(task, **changes)).check()
    key, value = ("batch-size", 9) if changes else ("task", f"{HERE}:{task}")
    assert (error.value.key, error.value.value) == (key, value)
    no = {"privacy": "none", "clipping_norm": 0.0, "noise_multiplier": 0.0}
    Experiment(dataclasses.replace(config_of(task, **changes), **no)).check()


def test_a_task_without_such_things_is_taken():
    Experiment(config_of()).check()
    assert isinstance(TASK.module(), L.LightningModule) and KINDS == 3
