"""Refuse what cannot run before anything starts; quick to import, for it leaves Lightning out."""

import torch

from lit_fedbabu import sources
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import build_model, model_seed
from lit_fedbabu.partition import partition


def check(config: Config) -> None:
    """Check the names of algorithm and model, the dataset, and its partition.

    Raises:
        ConfigError: one line that names the key, the value and the remedy.
    """
    drawn = 1 if algorithm_of(config).pooled else config.clients_per_round
    if config.min_clients_per_round > drawn:
        remedy = f"a round draws {drawn} of {config.num_clients} clients; take fewer, or a larger fraction-train"
        raise ConfigError("min-clients-per-round", config.min_clients_per_round, remedy)
    source = sources.source_of(config)
    build_model(config.model_name, len(source.class_names), model_seed(config), config.norm, source.channels)
    if config.normalization == "imagenet" and source.channels != 3:
        raise ConfigError(
            "normalization", config.normalization, "is of colour images; the dataset's are grey: take data"
        )
    partition(config)


def resolve_precision(precision: str) -> str:
    """The Lightning precision that "auto" stands for on this machine; any other is itself.

    Raises:
        ConfigError: 16-mixed without a GPU, which Lightning would silently replace.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigError("precision", precision, "needs a GPU, and this machine has none; take auto or 32-true")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16-mixed" if has_bf16 else "32-true"
