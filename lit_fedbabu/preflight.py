"""Refuse what cannot run before anything starts; quick to import, for it leaves Lightning out."""

import torch

from lit_fedbabu import sources
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.models import build_model, model_seed
from lit_fedbabu.partition import partition


def check(config: Config, images: bool = True) -> None:
    """Check the names of algorithm and model, the dataset, and its partition.

    Args:
        config: the experiment.
        images: whether this machine has the clients' images; that of a server of sites has none.

    Raises:
        ConfigError: one line that names the key, the value and the remedy.
    """
    pooled = algorithm_of(config).pooled
    if pooled and config.on_sites:
        raise ConfigError("algorithm", config.algorithm, "needs all images in one place; take partitioner=iid")
    drawn = 1 if pooled else config.clients_per_round
    if config.min_clients_per_round > drawn:
        remedy = f"a round draws {drawn} of {config.num_clients} clients; take fewer, or a larger fraction-train"
        raise ConfigError("min-clients-per-round", config.min_clients_per_round, remedy)
    if not images:
        build_model(config.model_name, len(config.classes), model_seed(config), config.norm, 3)
        return
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


def trains_on(config: Config) -> str:
    """What decides the last bits on this machine, as in "cpu AVX2 in 32-true with torch 2.15.0"."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} in {resolve_precision(config.precision)} with torch {torch.__version__}"
