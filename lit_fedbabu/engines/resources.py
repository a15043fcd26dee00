"""How many workers and nodes a machine has for a run."""

import os

import torch

from lit_fedbabu.config import Config
from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.workers.worker import FORKS

NODES_PER_WORKER = 16
"""Nodes are many more than workers, so that the clients of a round divide evenly among the workers."""


def worker_environments(config: Config) -> list[dict[str, str]]:
    """Variables for each worker: there is one for every ``trainer.devices`` GPUs, or so often ``num-threads`` cores.

    Raises:
        InputError: a client is to train on more devices than there are.
    """
    each, gpus, cores = config.devices, torch.cuda.device_count(), system.available_cores() // config.num_threads
    if each > 1 and not FORKS:
        raise InputError("trainer.devices", each, "needs Linux, where workers can be forked; leave it out")
    if each > 1 and each > (gpus or cores):
        there = f"{gpus} GPUs" if gpus else f"no GPU, and {cores} processes of num-threads = {config.num_threads}"
        raise InputError("trainer.devices", each, f"this machine has {there}; take no more, or leave it out")
    if gpus:
        named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        names = (named or list(map(str, range(gpus))))[:gpus]
        own = [names[first : first + each] for first in range(0, gpus - each + 1, each)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(some)} for some in own]
    return [{} for _ in range(max(1, cores // each))]


def nodes_of(config: Config) -> int:
    """How many nodes the clients are dealt to."""
    return min(config.num_clients, NODES_PER_WORKER * len(worker_environments(config)))
