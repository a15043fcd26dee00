"""How far diabetes has progressed after a year, in clinics that see one age group each: scikit-learn's diabetes."""

import lightning as L
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import R2Score


class Progression(L.LightningModule):
    def __init__(self, width=16, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 1)
        self.r2 = R2Score()

    def forward(self, inputs):
        return self.head(self.body(inputs)).squeeze(1)

    def training_step(self, batch, batch_idx):
        inputs, progression = batch
        return nn.functional.mse_loss(self(inputs), progression)

    def test_step(self, batch, batch_idx):
        inputs, progression = batch
        self.r2(self(inputs), progression)
        self.log("test_r2", self.r2)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)


class Clinic(L.LightningDataModule):
    """The patients of one age group; groups have about as many patients each, client 0 the youngest."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.num_clients, self.seed = client, num_clients, seed

    def setup(self, stage):
        inputs, progression = (torch.tensor(values).float() for values in load_diabetes(return_X_y=True))
        inputs = inputs * len(inputs) ** 0.5  # scikit-learn scales every column to a sum of squares of 1
        progression = (progression - 150) / 80  # about mean 0 and deviation 1
        own = inputs[:, 0].argsort(stable=True).tensor_split(self.num_clients)[self.client]
        patients = TensorDataset(inputs[own], progression[own])
        self.train, self.test = random_split(patients, [0.6, 0.4], torch.Generator().manual_seed(self.seed))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100)


class Diabetes:
    """The task, as an object: a module, data for each client, and the metric that clients are compared by."""

    score = "test_r2"

    def module(self):
        return Progression()

    def data(self, client, num_clients, seed):
        return Clinic(client, num_clients, seed)


task = Diabetes()
