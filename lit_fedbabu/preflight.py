"""Refuse what cannot run before anything starts; quick to import, for it leaves Lightning out."""

from lit_fedbabu import sources
from lit_fedbabu.algorithms import algorithm_of
from lit_fedbabu.config import Config
from lit_fedbabu.models import build_model, model_seed
from lit_fedbabu.partition import partition


def check(config: Config) -> None:
    """Check the names of algorithm and model, the dataset, and its partition.

    Raises:
        ConfigError: one line that names the key, the value and the remedy.
    """
    algorithm_of(config)
    build_model(config.model_name, 1, model_seed(config), config.norm)
    sources.load(config.dataset)
    partition(config)
