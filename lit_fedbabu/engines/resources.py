"""How many workers and nodes a machine has for a run."""

import os

import torch

from lit_fedbabu.config import Config
from lit_fedbabu.ground import system

NODES_PER_WORKER = 16
"""Nodes are many more than workers, so that the clients of a round divide evenly among the workers."""


def worker_environments(config: Config) -> list[dict[str, str]]:
    """Variables for each worker: there is one for every GPU, or for every ``num-threads`` cores."""
    if gpus := torch.cuda.device_count():
        named = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in (named or list(map(str, range(gpus))))[:gpus]]
    return [{} for _ in range(max(1, system.available_cores() // config.num_threads))]


def nodes_of(config: Config) -> int:
    """How many nodes the clients are dealt to."""
    return min(config.num_clients, NODES_PER_WORKER * len(worker_environments(config)))
