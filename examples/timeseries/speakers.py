"""Which of nine speakers says this vowel: recordings of 7 to 29 steps, of which each device has a few of each speaker.

The recordings are the JapaneseVowels of Kudo, Toyama and Shimbo (1999): 12 coefficients in each step.
"""

from functools import cache
from importlib.resources import files

import lightning as L
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchmetrics import F1Score

from lit_fedbabu import Task

SPEAKERS = 9


class Encoder(nn.Module):
    """Two convolutions over time and their mean over the steps that a recording has."""

    def __init__(self, width):
        super().__init__()
        convolutions = (nn.Conv1d(12, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU())
        self.convolutions = nn.Sequential(*convolutions)

    def forward(self, steps, lengths):
        """Features (recordings x width) of recordings x steps x 12; steps after a recording's length are padding."""
        features = self.convolutions(steps.transpose(1, 2))
        there = torch.arange(steps.shape[1], device=steps.device) < lengths[:, None]
        return (features * there[:, None]).sum(2) / lengths[:, None]


class Speakers(L.LightningModule):
    def __init__(self, width=64, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.body = Encoder(width)
        self.head = nn.Linear(width, SPEAKERS)
        self.f1 = F1Score(task="multiclass", num_classes=SPEAKERS, average="macro")

    def training_step(self, batch, batch_idx):
        steps, lengths, speakers = batch
        return nn.functional.cross_entropy(self.head(self.body(steps, lengths)), speakers)

    def test_step(self, batch, batch_idx):
        steps, lengths, speakers = batch
        self.f1(self.head(self.body(steps, lengths)), speakers)
        self.log("test_f1", self.f1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


@cache
def recordings(split):
    """Every recording of a split, "TRAIN" or "TEST", as steps x 12 coefficients and its speaker."""
    file = files("aeon") / "datasets" / "data" / "JapaneseVowels" / f"JapaneseVowels_{split}.ts"
    _, rows = file.read_text().split("@data\n")
    found = []
    for row in rows.splitlines():
        *coefficients, speaker = row.split(":")
        steps = torch.tensor([[float(value) for value in each.split(",")] for each in coefficients]).T
        found.append((steps, int(speaker) - 1))
    return found


def padded(batch):
    """Recordings of several lengths as one batch: steps, lengths, speakers."""
    steps, speakers = zip(*batch, strict=True)
    lengths = torch.tensor([len(each) for each in steps])
    return pad_sequence(steps, batch_first=True), lengths, torch.tensor(speakers)


class Device(L.LightningDataModule):
    """The recordings of one device: the files go speaker by speaker, and are dealt in turn."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.num_clients = client, num_clients

    def setup(self, stage):
        self.train, self.test = (recordings(split)[self.client :: self.num_clients] for split in ("TRAIN", "TEST"))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=5, shuffle=True, collate_fn=padded)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100, collate_fn=padded)


task = Task(Speakers, Device, score="test_f1")
