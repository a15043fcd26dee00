"""Which clients train in a round: drawn by (seed, round) alone, so that a run repeats, or by chance."""

from collections.abc import Iterable

import numpy as np

from lit_fedbabu.algorithms.table import algorithm_of
from lit_fedbabu.config import Config


def participants(config: Config, server_round: int) -> list[int]:
    """The clients that train in a round, drawn without replacement: int(f N), at least one, times
    ``over-selection``.

    Where all images are in one place, it is client 0 that has them.
    """
    return algorithm_of(config).drawn(config, server_round, config.drawn(server_round))


def drawn_anew(config: Config) -> list[int]:
    """The clients of a round with central privacy, drawn from the system's entropy, so that nobody can know them.

    Where ``client-sampling`` is poisson each is drawn by itself, ``clients_per_round`` on average; there can be none.
    """
    rng = np.random.default_rng()
    everyone, count = config.num_federated, config.clients_per_round
    if config.client_sampling == "poisson":
        return [int(client) for client in np.flatnonzero(rng.random(everyone) < count / everyone)]
    return sorted(rng.choice(everyone, count, replace=False).tolist())


def substitutes(config: Config, server_round: int, attempt: int, asked: Iterable[int], count: int) -> list[int]:
    """Clients, drawn from those that a round has not asked yet, in place of ``count`` that failed.

    In attempt 0, where nobody was asked, these are the ``participants``.
    """
    rest = np.delete(np.arange(config.num_federated), list(asked))
    rng = np.random.default_rng(config.derived_seed("sampling", server_round, *([attempt] if attempt else [])))
    return sorted(rng.choice(rest, min(count, len(rest)), replace=False).tolist())
