"""Epsilon of central privacy against other ways to compute it, and against what an attacker finds out."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from scipy import stats

from lit_fedbabu.aggregation.aggregator import NoisedMean, Trained
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.server.sampling import drawn_anew
from lit_fedbabu.training import privacy


def central(noise_multiplier=1.0, clients=100, fraction=0.1, **options):
    return Config(
        privacy="central", clipping_norm=1.0, noise_multiplier=noise_multiplier, num_clients=clients,
        fraction_train=fraction, **options,
    )  # fmt: skip


def numeric(rounds, noise, one, other, delta=1e-5):
    """Epsilon of two mixtures of Gaussians in the plane or on a line, composed with themselves.

    The privacy loss is a histogram, and its sum over rounds a convolution, by a Fourier transform.

    Args:
        rounds: how many.
        noise: the standard deviation.
        one: pairs of weight and mean.
        other: likewise.
        delta: of differential privacy.
    """
    step = 1e-3
    size, wide = 2**19, np.linspace(-12 * noise, 12 * noise, 1201)
    across = wide if any(mean[1] for _, mean in (*one, *other)) else np.array([0.0])
    grid = np.stack(np.meshgrid(wide, across, indexing="ij"), -1)

    def density(mixture):
        return sum(weight * np.exp(-((grid - np.array(mean)) ** 2).sum(-1) / 2 / noise**2) for weight, mean in mixture)

    def excess(first, second):
        mass, loss = (first / first.sum()).ravel(), np.log(first / second).ravel()
        bins = np.bincount(np.rint(loss / step).astype(int) % size, mass, size)
        total = np.fft.irfft(np.fft.rfft(bins) ** rounds, size)
        losses = step * np.fft.fftfreq(size, 1 / size)
        return lambda epsilon: float(
            (np.maximum(total, 0) * np.maximum(0, -np.expm1(np.minimum(epsilon - losses, 0))))[losses > epsilon].sum()
        )

    found = []
    densities = density(one), density(other)
    for pair in (densities, densities[::-1]):
        at, low, high = excess(*pair), 0.0, 200.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle) > delta else (low, middle)
        found.append(high)
    return max(found)


@pytest.mark.parametrize(("noise", "fraction", "rounds"), [(1.0, 0.1, 80), (2.0, 0.5, 10), (0.7, 0.05, 3)])
def test_epsilon_of_poisson_sampling_is_that_of_another_accountant(noise, fraction, rounds):
    found = privacy.central_epsilon(central(noise, fraction=fraction), {1: rounds})
    expected = numeric(rounds, noise, [(1 - fraction, (0, 0)), (fraction, (1, 0))], [(1, (0, 0))])
    assert found == pytest.approx(expected, rel=5e-3)


def test_without_sampling_epsilon_is_on_the_curve_of_the_gaussian_mechanism():
    for sampling, distance in (("poisson", 1), ("fixed", 2)):
        found = privacy.central_epsilon(central(4.0, fraction=1.0, client_sampling=sampling), {1: 8})
        exact = privacy.epsilon(4.0 * 2 / distance, 8)  # of two clients that are 2 apart
        assert exact <= found <= exact * (1 + 1e-3)


TRIANGLES = {
    "apart": ((0, 0), (2, 0), (-2, 0)),  # no three points within a clipping norm of one, and so only a bound
    "in a line": ((-1, 0), (1, 0), (0, 0)),
    "at the ends": ((0, 0), (1, 0), (-1, 0)),
    "one moves": ((1, 0), (-1, 0), (1, 0)),
    "three corners": ((0, 1), (0.866, -0.5), (-0.866, -0.5)),
}


@pytest.mark.parametrize("name", TRIANGLES)
def test_epsilon_of_a_fixed_number_covers_any_client_in_place_of_another(name):
    """Of the drawn clients one is another: else the sum has somebody's update, here of one who is drawn with it."""
    somebody, one, other = TRIANGLES[name]
    noise, fraction, rounds = 3.0, 0.25, 6
    found = privacy.central_epsilon(central(noise, fraction=fraction, client_sampling="fixed"), {1: rounds})
    pair = [[(1 - fraction, somebody), (fraction, update)] for update in (one, other)]
    expected = numeric(rounds, noise, *pair)
    assert expected <= found * (1 + 1e-3)
    assert (found == pytest.approx(expected, rel=5e-3)) == (name == "apart")


def test_a_round_that_is_repeated_counts_as_two_sums_of_the_same_clients():
    config = central(2.0, fraction=0.2)
    twice = privacy.central_epsilon(config, {2: 5})
    mixture = [(0.8, (0, 0)), (0.2, (1, 0))]
    assert twice == pytest.approx(numeric(5, 2 / math.sqrt(2), mixture, [(1, (0, 0))]), rel=5e-3)
    assert twice > privacy.central_epsilon(config, {1: 10}), "other clients would be less"
    together = privacy.central_epsilon(config, {1: 4, 2: 1})
    assert privacy.central_epsilon(config, {1: 5}) < together < twice


def test_epsilon_moves_with_noise_delta_and_rounds_as_it_must():
    def of(rounds=20, **options):
        return privacy.central_epsilon(central(**options), {1: rounds})

    assert of() < of(rounds=21) and of(delta=1e-6) > of() > of(delta=1e-4)
    assert of(noise_multiplier=0.9) > of() > of(noise_multiplier=1.1) and of(fraction=0.2) > of()
    assert of(client_sampling="fixed") > of()
    assert 1e3 < of(noise_multiplier=0.05) < 1e4 and of(noise_multiplier=0.01) > 1e4, "little noise is no failure"
    assert of(rounds=5000, noise_multiplier=4.0) < 10


def test_an_accountant_that_is_not_installed_is_refused_by_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="lit-fedbabu\\[privacy\\]") as error:
        privacy.central_epsilon(central(), {1: 1})
    assert (error.value.key, error.value.value) == ("privacy", "central")


def p_value(count, guesses, right, epsilon, delta):
    """How likely so many right guesses are, at most (Steinke et al. 2023, Theorem 5.2, and its code)."""
    chance = 1 / (1 + math.exp(-epsilon))
    beta, alpha, total = stats.binom.sf(right - 1, guesses, chance), 0.0, 0.0
    for each in range(1, right + 1):
        total += stats.binom.pmf(right - each, guesses, chance)
        alpha = max(alpha, total / each)
    return min(1.0, beta + alpha * delta * 2 * count)


def audited(count, guesses, right, delta):
    """The largest epsilon that is refuted at 95 %."""
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(count, guesses, right, middle, delta) < 0.05 else (low, middle)
    return low


def attacked(noise_multiplier, rounds, count=600, guesses=120):
    """What an attacker of one run finds who sees all sums, of canaries of which each was a client by a coin."""
    rng = np.random.default_rng()
    there = np.flatnonzero(rng.random(count) < 0.5)
    config = central(1.0, clients=len(there), fraction=0.5)
    mean = NoisedMean(1.0, noise_multiplier, config.clients_per_round)
    before = ArrayRecord({"weight": Array(np.zeros(count))})
    updates = [Trained(client, 1, {"weight": np.eye(count)[canary]}) for client, canary in enumerate(there)]
    seen = np.zeros(count)
    for server_round in range(1, rounds + 1):
        made = mean.aggregate(server_round, before, [updates[client] for client in drawn_anew(config)])
        seen += made["weight"].numpy() * config.clients_per_round
    order = np.argsort(seen)
    said_there, said_away = order[-guesses // 2 :], order[: guesses // 2]
    right = np.isin(said_there, there).sum() + (~np.isin(said_away, there)).sum()
    return audited(count, guesses, int(right), 1e-5)


def test_an_audit_of_one_run_refutes_less_than_epsilon_and_more_without_noise():
    rounds, noise = 8, 2.5
    promised = privacy.central_epsilon(central(noise, fraction=0.5), {1: rounds})
    assert 0 < attacked(noise, rounds) < promised < 3 < attacked(1e-6, 2 * rounds), "each canary is drawn some time"
