"""Differential privacy of what clients share: updates are clipped, and get noise, each by itself or their sum."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError

Array = npt.NDArray[Any]

TRUST = {
    "none": "none: from what clients share, the server and whoever gets it may learn about their data",
    "local": (
        "local: each client is protected from everyone, the server too, by noise in the weights that it sends; losses,"
        " accuracies and numbers of images are sent as they are and not covered"
    ),
    "central": (
        "central: each client is protected from whoever gets shared weights, and not from the server, which is trusted"
        " to add the noise and to keep secret who was drawn; losses, accuracies and numbers of images are sent to it as"
        " they are, and what it writes of them (results, logs, histories in checkpoints, which round is best) is not"
        " covered"
    ),
}
"""Of each kind of privacy: who is protected, from whom, and what is not covered."""
LEAST_INTERVAL, OF_NOISE = 1e-3, 1e-4
"""Steps, in epsilon, that privacy losses are rounded up to; with little noise these are large, and so are the steps."""


def protect(arrays: Sequence[Array], received: Sequence[Array], config: Config) -> list[Array]:
    """Shared arrays with clipped distance to the received ones (L2 norm of all together), and local privacy's noise.

    With adaptive clipping the server clips, which alone knows how far.

    The noise is Gaussian of standard deviation ``noise-multiplier`` times ``clipping-norm`` (McMahan et al. 2018,
    Algorithm 1, at the client instead of the server). It comes from the system's entropy: noise that followed from the
    seed could be removed by anyone who knows the seed.

    Args:
        arrays: what the client has trained.
        received: what it was trained from, with the same shapes and types.
        config: of which ``privacy``, ``clipping-norm`` and ``noise-multiplier`` are read.

    Raises:
        ValueError: a number is not finite, before or after: it would show what clipping and noise are to hide.
    """
    protected = list(arrays)
    if config.clipping_norm:
        _refuse_not_finite(protected, "its weights are not finite; a lower learning-rate may help")
        if not config.adaptive_clipping:
            protected = _clipped(protected, received, config.clipping_norm)
    if config.protection == "local":
        rng, deviation = np.random.default_rng(), config.noise_multiplier * config.clipping_norm
        with np.errstate(over="ignore"):  # it is refused below
            noises = [np.asarray(rng.normal(0, deviation, array.shape)).astype(array.dtype) for array in protected]
            protected = [np.asarray(array + noise) for array, noise in zip(protected, noises, strict=True)]
        _refuse_not_finite(protected, "its weights with noise are not finite; take a smaller clipping-norm")
    return protected


def _refuse_not_finite(arrays: Sequence[Array], why: str) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"nothing is sent: {why}")


def update_norm(arrays: Sequence[Array], received: Sequence[Array]) -> float:
    """The L2 norm of what was moved, of all numbers together, in float64."""
    moved = (np.subtract(new, old, dtype=np.float64) for new, old in zip(arrays, received, strict=True))
    return math.sqrt(sum(float(np.sum(each**2)) for each in moved))


def _clipped(arrays: Sequence[Array], received: Sequence[Array], bound: float) -> list[Array]:
    norm, scale, clipped = update_norm(arrays, received), 1.0, list(arrays)
    if not math.isfinite(norm):  # of float64
        raise ValueError("nothing is sent: its update is too long to be clipped; a lower learning-rate may help")
    while norm > bound:  # once, and again where rounding to the arrays' type made it longer
        scale *= bound / norm * (1 - 1e-7)
        clipped = [
            np.asarray(old + scale * np.subtract(new, old, dtype=np.float64)).astype(old.dtype)
            for new, old in zip(arrays, received, strict=True)
        ]
        norm = update_norm(clipped, received)
    return clipped


def epsilon(noise_multiplier: float, participations: int, delta: float = 1e-5) -> float:
    """The epsilon, for a delta, of a client's shared arrays in so many rounds together, with local privacy.

    Two updates of a client differ by 2 clipping norms at most, and Gaussian mechanisms compose to one with the root of
    the sum of squares (Dong et al. 2022, Sec. 3); its curve is that of Balle and Wang 2018, Theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = 2 * math.sqrt(participations) / noise_multiplier

    def excess(epsilon: float) -> float:
        weighted = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - weighted - delta)

    return 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, mu * (mu / 2 + math.sqrt(-2 * math.log(delta))))


def central_epsilon(config: Config, attempts: Mapping[int, int]) -> float:
    """The epsilon, for ``delta``, of the shared weights of many rounds together, with central privacy.

    Where clients are drawn one by one (Poisson), data sets are neighbours if one has a client more, which moves the sum
    by 1 clipping norm; where a fixed number is drawn without replacement, if a client is another, which moves it by 2.
    By Google's accountant of privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), which rounds up.

    Args:
        config: of which options of privacy, and how many clients are drawn of how many, are read.
        attempts: of how many rounds how often the noised sum was made of the same clients: {1: 79, 2: 1} are 80 rounds
            of which one was repeated.

    Raises:
        InputError: dp-accounting is not installed.
    """
    refuse_without_accountant()
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    poisson, count, everyone = config.client_sampling == "poisson", config.clients_per_round, config.num_federated
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE if poisson else dp.NeighboringRelation.REPLACE_ONE
    accountant = PLDAccountant(relation, max(LEAST_INTERVAL, OF_NOISE / config.noise_multiplier**2))
    for times, rounds in sorted(attempts.items()):
        noise = config.noise_multiplier / math.sqrt(times)  # of so many sums of the same clients together
        if poisson:
            event = dp.PoissonSampledDpEvent(count / everyone, dp.GaussianDpEvent(noise))
        else:  # of all clients, each of which is sure to be there, so many at random
            event = dp.TruncatedSubsampledGaussianDpEvent(everyone, 1.0, count, noise)
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(config.delta))


def refuse_uncounted(config: Config, algorithm: Algorithm) -> None:
    """Raise InputError where central privacy would not hold, or its accountant is missing."""
    refuse_without_accountant()
    if not algorithm.federates:
        raise InputError("privacy", "central", f"{config.algorithm} has no sum of clients' updates; take none")
    for hook, what in (("combine", "makes something of updates itself"), ("drawn", "chooses clients itself")):
        if getattr(type(algorithm), hook) is not getattr(Algorithm, hook):
            remedy = f"{config.algorithm} {what}, which is not counted; take another algorithm, as fedbabu"
            raise InputError("privacy", "central", remedy)


def refuse_without_accountant() -> None:
    """Raise InputError where dp-accounting, which central privacy needs, is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        raise InputError("privacy", "central", "needs dp-accounting: pip install 'lit-fedbabu[privacy]'")


def guarantee(config: Config, once: float, whole: float, rounds: int) -> str:
    """In a line what protection the shared arrays have; empty where none is asked for.

    Args:
        config: the options.
        once: epsilon of a round.
        whole: epsilon of all rounds, with local privacy of those of the client that is asked most.
        rounds: their number.
    """
    if not config.clipping_norm:
        return ""
    if config.protection == "none":
        return f"updates are clipped to {config.clipping_norm:g}; without noise that is no differential privacy"
    spent = (
        f"{config.protection} differential privacy of shared weights with delta {config.delta:g}: epsilon {once:.3g}"
    )
    if config.protection == "local":
        return (
            f"{spent} for a round, {whole:.3g} for the {rounds} rounds of the client that is drawn most; losses,"
            " accuracies and numbers of images have none"
        )
    drawn = f"{config.clients_per_round} of {config.num_federated} clients"
    how = f"a client more or less, where {drawn} are drawn on average"
    if config.client_sampling == "fixed":
        how = f"one client in place of another, where {drawn} are drawn"
    return f"{spent} after a round, {whole:.3g} after {rounds}, for {how}; such a run does not repeat"
