"""Differential privacy of what clients share: updates or gradients are clipped, and get noise; and what that is."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.config import Config
from lit_fedbabu.config.length import steps_of
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import parts_of

if TYPE_CHECKING:
    from torch import nn

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
    "sample": (
        "sample: each training sample of a client is protected from everyone who gets what clients share, the server"
        " too, by noise in every step of training; losses, accuracies and numbers of samples are sent as they are and"
        " not covered, nor are fine-tuned models, which have no noise and stay with their clients"
    ),
}
"""Of each kind of privacy: who is protected, from whom, and what is not covered."""
OF_SUMS = (
    "secure aggregation: a server that keeps to the protocol learns weighted sums of updates, each of more than half of"
    " a round's clients, and no single one; clients that help it can take their own off a sum, and as many as"
    " secure-threshold says can take the masks off; losses, accuracies and numbers of images are sent as they are"
)
"""What secure aggregation adds to that."""
AT_ONCE = 2**20
"""Numbers of an array that are widened to float64 together."""
LEAST_INTERVAL, OF_NOISE = 1e-3, 1e-4
"""Steps, in epsilon, that privacy losses are rounded up to; with little noise these are large, and so are the steps."""


def protect(arrays: Sequence[Array], received: Sequence[Array], config: Config) -> list[Array]:
    """Shared arrays with clipped distance to the received ones (L2 norm of all together), and local privacy's noise.

    With adaptive clipping the server clips, which alone knows how far. With privacy of samples clipping and noise are
    in the steps of training.

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
        if not config.adaptive_clipping and config.protection != "sample":
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
    pairs = ((np.ravel(new), np.ravel(old)) for new, old in zip(arrays, received, strict=True))
    parts = ((new[i : i + AT_ONCE], old[i : i + AT_ONCE]) for new, old in pairs for i in range(0, len(new), AT_ONCE))
    return math.sqrt(sum(float(np.sum(np.subtract(new, old, dtype=np.float64) ** 2)) for new, old in parts))


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
    refuse_without_accountant("central")
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


class Course(NamedTuple):
    """Steps of DP-SGD of a client in a round.

    Args:
        rate: the probability that a sample is in a batch.
        noise: the standard deviation of the noise, in clipping norms.
        steps: their number.
    """

    rate: float
    noise: float
    steps: int


def course_of(config: Config, algorithm: Algorithm, num_train: int) -> Course:
    """The steps of a client with so many training samples, in one round."""
    batches = math.ceil(num_train / config.batch_size)
    lengths = (config.length(field) for _, field in algorithm.phases)
    steps = sum(steps_of(batches, *length) for length in lengths)
    return Course(min(1.0, config.batch_size / num_train), config.noise_multiplier, steps)


def steps_epsilon(courses: Iterable[Course], delta: float) -> float:
    """The epsilon of the weights after all of these steps: data are neighbours if one has a sample more.

    A sample is in each batch by itself (Poisson), and moves the sum of gradients by 1 clipping norm at most. By the
    accountant of ``central_epsilon``.

    Raises:
        InputError: dp-accounting is not installed.
    """
    refuse_without_accountant("sample")
    counts = Counter[tuple[float, float]]()
    for rate, noise, steps in courses:
        counts[rate, noise] += steps
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    if not counts:
        return 0.0
    least = min(noise for _, noise in counts)
    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, max(LEAST_INTERVAL, OF_NOISE / least**2))
    for (rate, noise), steps in sorted(counts.items()):
        accountant.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), steps)
    return float(accountant.get_epsilon(delta))


def refuse_unbounded(config: Config, algorithm: Algorithm, model: nn.Module) -> None:
    """Raise InputError where noise in steps of training would not protect samples, or its accountant is missing."""
    from lit_fedbabu.learning.private_steps import mixing_layer  # imports Lightning, which takes seconds

    refuse_without_accountant("sample")
    if not parts_of(algorithm.shared):
        raise InputError("privacy", "sample", f"{config.algorithm} shares nothing that would need noise; take none")
    if not algorithm.by_steps:
        remedy = f"{config.algorithm} makes something of data beside gradients, without noise; take fedbabu or fedavg"
        raise InputError("privacy", "sample", remedy)
    if layer := mixing_layer(model):
        key = config.kind.model.replace("_", "-")
        remedy = f"its {layer} normalizes by batches, and privacy=sample bounds what one sample does"
        raise InputError(key, config.trusted, f"{remedy}; take group or layer normalization")


def refuse_uncounted(config: Config, algorithm: Algorithm) -> None:
    """Raise InputError where central privacy would not hold, or its accountant is missing."""
    refuse_without_accountant("central")
    if not algorithm.federates:
        raise InputError("privacy", "central", f"{config.algorithm} has no sum of clients' updates; take none")
    for hook, what in (("combine", "makes something of updates itself"), ("drawn", "chooses clients itself")):
        if getattr(type(algorithm), hook) is not getattr(Algorithm, hook):
            remedy = f"{config.algorithm} {what}, which is not counted; take another algorithm, as fedbabu"
            raise InputError("privacy", "central", remedy)


def refuse_unsummed(config: Config, algorithm: Algorithm, key: str, value: object) -> None:
    """Raise InputError where the server needs more than a sum of updates: all that secure aggregation gives it, and
    all that a buffered server makes of updates of different age.

    Args:
        config: the options.
        algorithm: theirs.
        key: of the option that is refused.
        value: its value.
    """
    if not algorithm.federates:
        raise InputError(key, value, f"{config.algorithm} has no sum of clients' updates; leave it out")
    for hook, what in (("combine", "needs each client's update by itself"), ("drawn", "chooses clients itself")):
        if getattr(type(algorithm), hook) is not getattr(Algorithm, hook):
            raise InputError(key, value, f"{config.algorithm} {what}; take another algorithm, as fedbabu")


def refuse_without_accountant(privacy: str) -> None:
    """Raise InputError where dp-accounting, which a value of ``privacy`` needs, is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        raise InputError("privacy", privacy, "needs dp-accounting: pip install 'lit-fedbabu[privacy]'")


def guarantee(config: Config, once: float, whole: float, rounds: int) -> str:
    """In a line what protection the shared arrays have; empty where none is asked for.

    Args:
        config: the options.
        once: epsilon of a round.
        whole: epsilon of all rounds, with local privacy and that of samples of those of the client that spends most.
        rounds: their number, likewise.
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
    if config.protection == "sample":
        return (
            f"{spent} after a round, {whole:.3g} after all, for a training sample more or less of the client that"
            " spends most; losses, accuracies and numbers of samples have none; such a run does not repeat"
        )
    drawn = f"{config.clients_per_round} of {config.num_federated} clients"
    how = f"a client more or less, where {drawn} are drawn on average"
    if config.client_sampling == "fixed":
        how = f"one client in place of another, where {drawn} are drawn"
    return f"{spent} after a round, {whole:.3g} after {rounds}, for {how}; such a run does not repeat"
