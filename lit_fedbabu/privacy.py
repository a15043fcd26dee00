"""Local differential privacy of what a client shares: its update is clipped, and gets noise before it leaves."""

import math
from collections.abc import Sequence

import numpy as np
from flwr.supercore.differential_privacy import add_gaussian_noise_inplace, compute_clip_model_update

from lit_fedbabu.config import Config

DELTA = 1e-5
"""Of (epsilon, delta)-differential privacy, for which epsilon is told."""


def protect(arrays: Sequence[np.ndarray], received: Sequence[np.ndarray], config: Config) -> list[np.ndarray]:
    """Shared arrays whose distance to the received ones is clipped in the L2 norm, all together, with Gaussian noise.

    The noise has the standard deviation ``noise-multiplier`` times ``clipping-norm`` (McMahan et al. 2018, Algorithm 1,
    at the client instead of the server). It comes from the system's entropy: noise that followed from the seed could be
    taken off again by whoever knows the seed.
    """
    protected = list(arrays)
    if config.clipping_norm and any(not np.array_equal(*pair) for pair in zip(arrays, received, strict=True)):
        compute_clip_model_update(protected, received, config.clipping_norm)
    if config.noise_multiplier:
        np.random.seed()
        add_gaussian_noise_inplace(protected, config.noise_multiplier * config.clipping_norm)
    return protected


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
        f" {whole:.3g} for the {participations} rounds of the client that is drawn most; losses and image"
        " counts have none"
    )
