"""FedBABU on one page: split, rounds of body-only training, averaging, fine-tuning. PyTorch and Lightning alone.

Oh, Kim, Yun: FedBABU, ICLR 2022, Algorithm 1. Run ``python examples/fedbabu_by_hand.py``. From the package come the
images of each client, the network and the seeds, so that a run of the package gives the same bits, as a test holds.
"""

import copy
import logging
import warnings

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu import ClientData, Config
from lit_fedbabu.learning.models import build_model
from lit_fedbabu.tasks.images.task import ImageClassification

CONFIG = Config(
    dataset="digits",
    num_clients=10,
    num_server_rounds=4,
    num_local_epochs=2,
    fraction_train=0.4,
    batch_size=20,
    augmentation="crop",
    precision="32-true",
    evaluate_every=4,
)
Weights = dict[str, Tensor]


class Learner(L.LightningModule):
    """Trains a part of a network with SGD: the "body", or the "full" network."""

    def __init__(self, network: nn.Module, part: str = "full", rate: float = 0.0) -> None:
        super().__init__()
        self.network, self.rate = network, rate
        for name, weight in network.named_parameters():
            weight.requires_grad_(part == "full" or name.startswith(part))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(self.network(images), labels)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        hits = (self.network(images).argmax(1) == labels).double()
        self.log("accuracy", hits.mean(), batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        return torch.optim.SGD(trained, lr=self.rate, momentum=CONFIG.momentum)


def trainer(epochs: int = 0) -> L.Trainer:
    """A Trainer that prints and saves nothing."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_epochs=epochs, limit_val_batches=0, **quiet)


def accuracy(network: nn.Module, data: ClientData) -> float:
    """On a client's test images, 0 to 1."""
    (found,) = trainer().test(Learner(network), datamodule=data, verbose=False)
    return found["accuracy"]


def drawn(server_round: int) -> list[int]:
    """The clients of a round: a share f of all, without replacement."""
    draw = np.random.default_rng(CONFIG.derived_seed("sampling", server_round))
    count = max(1, int(CONFIG.fraction_train * CONFIG.num_clients))
    return sorted(draw.choice(CONFIG.num_clients, count, replace=False).tolist())


def rate_in(server_round: int) -> float:
    """A tenth of the learning rate after half of the rounds, and again after three quarters."""
    half, three_quarters = CONFIG.num_server_rounds // 2, CONFIG.num_server_rounds * 3 // 4
    return CONFIG.learning_rate * 0.1 ** ((server_round > half) + (server_round > three_quarters))


def federate() -> tuple[nn.Module, list[float], list[float]]:
    """The network after all rounds, and each client's initial and personalized accuracy."""
    torch.set_num_threads(1)
    images = ImageClassification(CONFIG)  # who has which images follows from the seed
    network = build_model("FourConvNet", 10, CONFIG.derived_seed("model"), "batch", images.channels)
    network = network.to(memory_format=torch.channels_last)

    for server_round in range(1, CONFIG.num_server_rounds + 1):
        bodies: list[tuple[int, Weights]] = []
        for client in drawn(server_round):
            data = images.client_data(client, CONFIG.derived_seed("train", server_round, client))
            local = Learner(copy.deepcopy(network), "body", rate_in(server_round))  # the head stays as it is
            trainer(CONFIG.num_local_epochs).fit(local, datamodule=data)
            bodies.append((data.num_train, local.network.body.state_dict()))
        names, total = network.body.state_dict(), sum(count for count, _ in bodies)
        mean = {name: sum(count * body[name].double() for count, body in bodies) / total for name in names}
        network.body.load_state_dict(mean)

    initial, personalized = [], []
    for client in range(CONFIG.num_clients):
        data = images.client_data(client, CONFIG.derived_seed("finetune", client))
        personal = copy.deepcopy(network)
        initial.append(accuracy(personal, data))
        trainer(CONFIG.num_finetune_epochs).fit(
            Learner(personal, "full", CONFIG.finetune_learning_rate), datamodule=data
        )
        personalized.append(accuracy(personal, data))
    return network, initial, personalized


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    _, before, after = federate()
    print(f"initial {100 * np.mean(before):.2f} %, personalized {100 * np.mean(after):.2f} %")
