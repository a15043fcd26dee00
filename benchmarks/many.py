"""A task among many clients for ``scale``: what a client has is made when somebody asks for it."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lit_fedbabu


class Line(L.LightningModule):
    """A small network over ten numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(10, 8), nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        numbers, sums = batch
        return nn.functional.mse_loss(self.head(torch.relu(self.body(numbers))), sums)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Numbers(L.LightningDataModule):
    """Ten numbers and their sum, drawn for each client."""

    def __init__(self, client: int, num_clients: int, seed: int) -> None:
        super().__init__()
        self.client = client

    def setup(self, stage: str) -> None:
        numbers = torch.randn(12, 10, generator=torch.Generator().manual_seed(self.client))
        self.data = TensorDataset(numbers, numbers.sum(1, keepdim=True))

    def train_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(10)), 5)

    def test_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(10, 12)), 2)


task = lit_fedbabu.Task(Line, Numbers, "test/loss", higher_is_better=False)
