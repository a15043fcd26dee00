"""Samples are counted in batches of any form that loaders give, and a length that is given is taken."""

import dataclasses

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from lit_fedbabu import Task
from lit_fedbabu.config import Config
from lit_fedbabu.tasks.custom.loaders import batches_of, samples_in
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment

ROWS = torch.ones(5, 3)


@dataclasses.dataclass
class Windows:
    name: str
    windows: Tensor


@pytest.mark.parametrize(
    "batch",
    [
        ROWS,
        [ROWS, torch.ones(5)],
        {"inputs": {"ids": ROWS}, "names": ["a"] * 5},
        BatchEncoding({"input_ids": ROWS, "labels": torch.ones(5)}),
        BaseModelOutput(last_hidden_state=ROWS),
        Windows("a", ROWS),
        ("a", Windows("b", ROWS)),
    ],
)
def test_samples_are_counted_in_batches_of_any_form(batch):
    assert samples_in(batch) == 5


class Numbers(IterableDataset[Tensor]):
    """A stream that says how long it is."""

    def __iter__(self):
        yield from torch.arange(22.0)[:, None]

    def __len__(self):
        return 22


class Streams(L.LightningDataModule):
    def __init__(self, client, num_clients, seed):
        super().__init__()

    def train_dataloader(self):
        return DataLoader(Numbers(), 4)

    def test_dataloader(self):
        return DataLoader(Numbers(), 4)


class Mean(L.LightningModule):
    """Has two optimizers, which step in turn, and for each a schedule over all steps of a round."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.body = nn.Linear(1, 1)
        self.head = nn.Linear(1, 1)
        self.steps: list[int] = []

    def training_step(self, batch, batch_idx):
        for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            loss = self.head(self.body(batch)).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            schedule.step()
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.head(self.body(batch)).square().mean())

    def configure_optimizers(self):
        self.steps.append(int(self.trainer.estimated_stepping_batches))
        return optimizers_of(self, self.steps[-1])


def optimizers_of(module, steps):
    optimizers = [torch.optim.Adam(part.parameters(), 0.01) for part in (module.body, module.head)]
    return optimizers, [torch.optim.lr_scheduler.OneCycleLR(each, 0.1, steps) for each in optimizers]


task = Task(Mean, Streams, score="test_loss", higher_is_better=False)


def test_a_stream_with_a_length_and_two_schedules_over_it(tmp_path):
    options = {"num_clients": 2, "num_server_rounds": 1, "num_local_epochs": 1.5, "precision": "32-true"}
    experiment = Experiment(Config(task=f"{__name__}:task", algorithm="fedavg", **options))
    experiment.check()
    data = experiment.client_data(0, 0)
    assert data.num_train == 22 and batches_of(data.module.train_dataloader()) == 6
    made, original = [], experiment.new_module
    experiment.new_module = lambda *states: made.append(original(*states)) or made[-1]
    trained = client_update(experiment, 0, 1, experiment.initial_shared(), 0.0, tmp_path)
    (lightning,) = (each.lightning for each in made)
    assert lightning.steps[-1] == 9, "an epoch and a half of six batches"
    expected = by_hand(original().lightning, 9)
    for name, value in expected.items():
        torch.testing.assert_close(trained.state[name], value, msg=name)


def by_hand(module, steps):
    """The weights after so many batches."""
    optimizers, schedules = optimizers_of(module, steps)
    for batch in ([*DataLoader(Numbers(), 4)] * 2)[:steps]:
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.zero_grad()
            module.head(module.body(batch)).square().mean().backward()
            optimizer.step()
            schedule.step()
    parts = {part: getattr(module, part).state_dict() for part in ("body", "head")}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
