"""Local differential privacy of what a client shares: its update is clipped, and gets noise before it leaves."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_fedbabu.config import Config

Array = npt.NDArray[Any]

DELTA = 1e-5
"""The delta of (epsilon, delta)-differential privacy, for which epsilon is computed."""


def protect(arrays: Sequence[Array], received: Sequence[Array], config: Config) -> list[Array]:
    """Shared arrays with clipped distance to the received ones (L2 norm of all together) and Gaussian noise.

    The noise has the standard deviation ``noise-multiplier`` times ``clipping-norm`` (McMahan et al. 2018, Algorithm 1,
    at the client instead of the server). It comes from the system's entropy: noise that followed from the seed could be
    removed by anyone who knows the seed.

    Args:
        arrays: what the client has trained.
        received: what it was trained from, with the same shapes and types.
        config: of which ``clipping-norm`` and ``noise-multiplier`` are read.

    Raises:
        ValueError: a number is not finite, before or after: it would show what clipping and noise are to hide.
    """
    protected = list(arrays)
    if config.clipping_norm:
        _refuse_not_finite(protected, "its weights are not finite; a lower learning-rate may help")
        protected = _clipped(protected, received, config.clipping_norm)
    if config.noise_multiplier:
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


def epsilon(noise_multiplier: float, participations: int) -> float:
    """The epsilon, for DELTA, of a client's shared arrays in so many rounds together.

    Two updates of a client differ by 2 clipping norms at most, and Gaussian mechanisms compose to one with the root of
    the sum of squares (Dong et al. 2022, Sec. 3); its curve is that of Balle and Wang 2018, Theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = 2 * math.sqrt(participations) / noise_multiplier

    def excess(epsilon: float) -> float:
        weighted = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - weighted - DELTA)

    return 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, mu * (mu / 2 + 6))


def guarantee(config: Config, participations: int) -> str:
    """In a line what protection the shared arrays have; empty where none is asked for."""
    if not config.clipping_norm:
        return ""
    if not config.noise_multiplier:
        return f"updates are clipped to {config.clipping_norm:g}; without noise that is no differential privacy"
    once, whole = epsilon(config.noise_multiplier, 1), epsilon(config.noise_multiplier, participations)
    return (
        f"local differential privacy of shared weights with delta {DELTA:g}: epsilon {once:.3g} for a round,"
        f" {whole:.3g} for the {participations} rounds of the client that is drawn most; losses,"
        " accuracies and numbers of images have none"
    )
