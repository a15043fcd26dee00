"""What clients learn: a model and the data of each client. Put your own in their places."""

import lightning as L
import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lit_fedbabu import Task


class Model(L.LightningModule):
    """A body that is shared, and a head that each client has for itself."""

    def __init__(self, width=16, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(13, width), nn.ReLU())
        self.head = nn.Linear(width, 3)
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def forward(self, inputs):
        return self.head(self.body(inputs))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def test_step(self, batch, batch_idx):
        inputs, labels = batch
        self.accuracy(self(inputs), labels)
        self.log("test_accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Data(L.LightningDataModule):
    """The wines of one client: clients have different ones, each as many."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.num_clients, self.seed = client, num_clients, seed

    def setup(self, stage):
        inputs, labels = (torch.tensor(values) for values in load_wine(return_X_y=True))
        inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).float()
        own = torch.arange(self.client, len(labels), self.num_clients)
        rows = TensorDataset(inputs[own], labels[own])
        self.train, self.test = random_split(rows, [0.6, 0.4], torch.Generator().manual_seed(self.seed))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=100)


task = Task(Model, Data, score="test_accuracy")
