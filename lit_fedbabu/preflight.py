"""Refuse what cannot run before anything starts; quick to import, for it leaves Lightning out."""

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
    algorithm_of(config)
    source = sources.source_of(config)
    build_model(config.model_name, len(source.class_names), model_seed(config), config.norm, source.channels)
    if config.normalization == "imagenet" and source.channels != 3:
        raise ConfigError(
            "normalization", config.normalization, "is of colour images; the dataset's are grey: take data"
        )
    partition(config)
