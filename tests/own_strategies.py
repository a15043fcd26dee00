"""Flower strategies as users write them, and some that cannot aggregate."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM

momentum = FedAvgM(server_learning_rate=1.0, server_momentum=0.5)


class Shrinks(FedAvg):
    """Half of the way from the old weights to the clients', less in every round, and only from clients with images."""

    def __init__(self):
        super().__init__(min_train_nodes=1, min_available_nodes=1)
        self.rounds, self.factors, self.before, self.sizes = 0, {"now": 0.5}, ArrayRecord(), ()

    def configure_train(self, server_round, arrays, config, grid):
        self.before = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.sizes = tuple(reply.content["metrics"]["num-examples"] for reply in replies)
        mean, metrics = super().aggregate_train(server_round, replies)
        self.rounds += 1
        factor, self.factors["now"] = self.factors["now"], self.factors["now"] * 0.9
        old = {name: array.numpy() for name, array in self.before.items()}
        return ArrayRecord(
            {name: Array(np.asarray(old[name] + factor * (array.numpy() - old[name]))) for name, array in mean.items()}
        ), metrics


class Draws(FedAvg):
    def __init__(self):
        super().__init__()
        self.random = random.Random(1)

    def aggregate_train(self, server_round, replies):
        self.random.random()
        return super().aggregate_train(server_round, replies)


class Grows(FedAvg):
    """Keeps what no file can have from its first round on."""

    seen = None

    def aggregate_train(self, server_round, replies):
        self.seen = {server_round}
        return super().aggregate_train(server_round, replies)


class Nothing(FedAvg):
    def aggregate_train(self, server_round, replies):
        return None, None


class Renames(FedAvg):
    def aggregate_train(self, server_round, replies):
        mean, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({f"my.{name}": array for name, array in mean.items()}), metrics


class Divides(FedAvg):
    def aggregate_train(self, server_round, replies):
        return 1 / 0


class Crowd(FedAvg):
    def __init__(self):
        super().__init__(min_available_nodes=1000)


number = 3
