"""The only place that builds a Lightning Trainer."""

import logging
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_fedbabu.config import Config
from lit_fedbabu.ground.compat import cache_entry_points
from lit_fedbabu.learning.client_trainer import ClientTrainer
from lit_fedbabu.learning.precision import resolve_precision


@cache
def quiet_lightning() -> None:
    """Silence the greetings and advice of Lightning, once per process: a Trainer is built for each client and round.

    Each Trainer also reads the metadata of every installed package, which is most of its cost. That is cached. And
    whichever rank Slurm or torchrun has given this process, it is the only one of its Trainers, and logs.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    cache_entry_points()


def new_trainer(config: Config, **options: Any) -> ClientTrainer:
    """A Trainer for one client or cohort, on this machine's GPU if it has one. It saves nothing.

    Args:
        config: of which ``precision`` and ``num_threads`` are read.
        options: of Lightning's Trainer.
    """
    quiet_lightning()
    torch.set_num_threads(config.num_threads)
    alone: dict[str, Any] = {"devices": 1, "use_distributed_sampler": False}
    alone["plugins"] = [LightningEnvironment()]  # a worker is no task of Slurm, torchrun, MPI or LSF
    arguments: dict[str, Any] = {"logger": False, **config.trainer, **alone, **options}
    return ClientTrainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        precision=cast(Any, resolve_precision(config.precision)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def cohorts(config: Config, clients: Sequence[int]) -> list[list[int]]:
    """The clients, in their order, in groups that are trained together."""
    size = max(config.cohort_size, 1)
    return [list(clients[first : first + size]) for first in range(0, len(clients), size)]
