"""The aggregator that a configuration names: one of the table, or a Flower strategy of the user's own."""

import copy
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from lit_fedbabu.aggregation.aggregator import (
    AdaptiveNoisedMean,
    Aggregator,
    Mean,
    NoisedMean,
    NormBound,
    Robust,
    Trained,
    too_few,
)
from lit_fedbabu.aggregation.strategy import OfStrategy
from lit_fedbabu.config import AGGREGATORS, Config
from lit_fedbabu.config.options import imported
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.ground.errors import InputError, RunError, told
from lit_fedbabu.training.experiment import Experiment

TRIED_ROUNDS = 2


def aggregator_of(config: Config, kept: Mapping[str, Tensor] | None = None) -> Aggregator:
    """The aggregator that the configuration names.

    Args:
        config: of which ``aggregator``, ``num-malicious``, ``trim-fraction``, ``norm-bound`` and options of privacy are
            read.
        kept: its ``state`` after the last round of a run that is resumed.

    Raises:
        InputError: there is none.
    """
    name = config.aggregator
    identify_process()  # also before the run, for what is built on Flower's strategies takes its messages
    if config.protection == "central":
        privacy = config.clipping_norm, config.noise_multiplier, config.clients_per_round
        return AdaptiveNoisedMean(*privacy, kept or {}) if config.adaptive_clipping else NoisedMean(*privacy)
    if name == "mean":
        return Mean()
    if name == "norm-bound":
        return NormBound(config.norm_bound)
    if name in AGGREGATORS:
        return Robust(name, config.num_malicious, config.trim_fraction)
    return OfStrategy(name, _strategy(name), config.num_federated, kept or {})


def check(experiment: Experiment) -> None:
    """Try the aggregator before a run.

    Raises:
        InputError: it has no use, a round has too few clients for it, or a strategy of the user's own gives no weights.
    """
    config, name = experiment.config, experiment.config.aggregator
    if name == "mean":
        return
    if not experiment.algorithm.federates:
        raise InputError("aggregator", name, f"{config.algorithm} has nothing to aggregate; take mean")
    count = config.min_clients_per_round or config.updates_per_step
    if problem := too_few(name, count, config.num_malicious, config.trim_fraction):
        which = "min-clients-per-round is" if config.min_clients_per_round else "a round has"
        which = "a step of the buffered server has" if config.is_buffered else which
        raise InputError("aggregator", name, f"{problem}, and {which} {count}; take more, or another aggregator")
    if name not in AGGREGATORS:
        shared = experiment.initial_shared()
        _try(config, ArrayRecord({key: Array(value.contiguous().numpy()) for key, value in shared.items()}), count)


def _try(config: Config, shared: ArrayRecord, count: int) -> None:
    """Let a strategy of the user's own aggregate clients that changed nothing."""
    aggregator = aggregator_of(config)
    updates = [Trained(client, 1, {name: array.numpy() for name, array in shared.items()}) for client in range(count)]
    try:
        for number in range(TRIED_ROUNDS):
            shared = aggregator.aggregate(number + 1, shared, updates)
            aggregator.state()
    except InputError:
        raise
    except RunError as error:
        raise InputError("aggregator", config.aggregator, f"fails in a trial with weights that stay: {error}") from None
    except Exception as error:  # whatever the user's code raises
        raise InputError("aggregator", config.aggregator, f"fails in a trial: {told(error)}") from error


def _strategy(path: str) -> Strategy:
    """A strategy of its own, by the import path of one or of what makes one."""
    remedy = f"must be one of {', '.join(AGGREGATORS)}, or the import path of a Flower strategy, or of what makes one"
    found = imported("aggregator", path, remedy)
    try:
        made = copy.deepcopy(found) if isinstance(found, Strategy) else found() if callable(found) else found
    except Exception as error:  # whatever the user's code raises
        raise InputError("aggregator", path, f"cannot be made: {told(error)}") from error
    if not isinstance(made, Strategy):
        raise InputError("aggregator", path, f"{remedy}; it is a {type(made).__name__}")
    return made
