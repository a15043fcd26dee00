"""The server's noise, and how far one client can move the sum below it."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from scipy import stats

from lit_fedbabu.aggregation.aggregator import AdaptiveNoisedMean, NoisedMean, Trained
from lit_fedbabu.aggregation.table import aggregator_of
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import RunError

SHAPES = {"body.weight": (20, 30), "body.bias": (30,), "body.scale": ()}


def record(rng, dtype=np.float64):
    return ArrayRecord({name: Array(np.asarray(rng.normal(size=shape), dtype)) for name, shape in SHAPES.items()})


def clients(rng, before, count, length):
    """Updates about so long, and a client each that did not move, that is far too long, and of one number."""
    moves = [{name: length * rng.normal(size=shape) / 25 for name, shape in SHAPES.items()} for _ in range(count)]
    moves += [{name: factor * value for name, value in moves[0].items()} for factor in (0, 1e6)]
    moves += [{name: np.full(shape, 9.0 * (name == "body.scale")) for name, shape in SHAPES.items()}]
    arrays = [{name: before[name].numpy() + value for name, value in move.items()} for move in moves]
    return [Trained(client, 10**client % 997, each) for client, each in enumerate(arrays)]


def flat(arrays):
    return np.concatenate([np.ravel(value) for value in arrays.values()])


def numbers(arrays):
    return flat({name: array.numpy() for name, array in arrays.items()})


def test_noise_is_gaussian_around_the_sum_of_the_clients_and_new_each_time():
    rng = np.random.default_rng(0)
    before, mean = record(rng), NoisedMean(0.5, 3.0, divisor=7)
    none: list[Trained] = []
    for updates in (clients(rng, before, 4, 0.3), none):
        total = flat(mean.total(before, updates))
        np.random.seed(0)
        noises = []
        for _ in range(2):
            made = mean.aggregate(1, before, updates)
            noises.append((numbers(made) - numbers(before)) * 7 - total)
        assert not np.any(noises[0] == noises[1])
        assert stats.kstest(np.concatenate(noises) / 1.5, "norm").pvalue > 1e-6
        correlation = np.corrcoef(*noises)[0, 1]
        assert abs(correlation) < 6 / np.sqrt(len(total))


def test_one_client_moves_the_sum_by_no_more_than_the_bound_and_can_move_it_so_far():
    rng = np.random.default_rng(1)
    before, bound = record(rng), 0.5
    mean = NoisedMean(bound, 1.0, divisor=7)
    updates = clients(rng, before, 6, 0.4)
    whole = flat(mean.total(before, updates))
    moved = []
    for place, left in enumerate(updates):
        without = [*updates[:place], *updates[place + 1 :]]
        moved.append(np.linalg.norm(whole - flat(mean.total(before, without))))
        for other in updates:
            replaced = flat(mean.total(before, [*without, other]))
            assert np.linalg.norm(whole - replaced) <= 2 * bound * (1 + 1e-9)
        turned = {name: 2 * before[name].numpy() - value for name, value in left.arrays.items()}
        opposite = flat(mean.total(before, [*without, left._replace(arrays=turned)]))
        assert np.linalg.norm(whole - opposite) == pytest.approx(2 * moved[-1])
    assert max(moved) <= bound * (1 + 1e-9) and moved[-1] == pytest.approx(bound) and moved[-3] == 0


def test_every_client_counts_once_and_the_divisor_stays():
    rng = np.random.default_rng(2)
    before = record(rng, np.float32)
    config = Config(privacy="central", clipping_norm=1e9, noise_multiplier=1.0, num_clients=40, fraction_train=0.1)
    mean = aggregator_of(config)
    assert isinstance(mean, NoisedMean) and mean.divisor == 4
    mean.noise_multiplier = 0.0
    for count in (0, 1, 3, 6):
        updates = clients(rng, before, count + 1, 1.0)[:count]
        made = mean.aggregate(1, before, updates)
        for name, array in before.items():
            old = array.numpy().astype(np.float64)
            moves = sum((update.arrays[name] - old for update in updates), np.zeros(old.shape))
            assert made[name].numpy().dtype == np.float32
            np.testing.assert_array_equal(made[name].numpy(), (old + moves / 4).astype(np.float32))


def test_noise_leaves_the_generator_of_numpy_as_it_was():
    before = record(np.random.default_rng(3))
    np.random.seed(3)
    state = np.random.get_state(legacy=False)
    NoisedMean(1.0, 1.0, 2).aggregate(1, before, [])
    np.testing.assert_equal(np.random.get_state(legacy=False), state)


def test_weights_that_are_not_finite_with_noise_end_the_run():
    before = record(np.random.default_rng(4), np.float32)
    with pytest.raises(RunError, match="round 3: weights with noise are not finite"):
        NoisedMean(1e30, 1e30, 2).aggregate(3, before, [])


@pytest.mark.parametrize(("noise", "divisor"), [(1.0, 10), (1.0, 100), (0.1, 4), (8.0, 200)])
def test_adaptive_clipping_costs_no_more_than_the_noise_that_was_asked_for(noise, divisor):
    """One client moves the sum by the bound, and the count, which begins at half a client, by a half."""
    mean = AdaptiveNoisedMean(0.5, noise, divisor, {})
    assert mean.noise_multiplier**-2 + (0.5 / mean.count_noise) ** 2 == pytest.approx(noise**-2)
    assert noise < mean.noise_multiplier <= 1.05 * noise * (1 + 1e-9) and mean.count_noise >= divisor / 20


def test_a_bound_that_adapts_follows_the_share_of_shorter_updates_with_noise():
    rng = np.random.default_rng(5)
    before = record(rng)
    updates = clients(rng, before, 6, 0.4)  # of nine, one of which does not move and two of which are too long
    norms = np.array([np.linalg.norm(flat(each.arrays) - numbers(before)) for each in updates])
    bound = float(np.sort(norms)[4] * 1.001)
    found = []
    for _ in range(400):
        mean = AdaptiveNoisedMean(bound, 2.0, 8, {})
        mean.aggregate(1, before, updates)
        found.append(math.log(mean.bound / bound) / -0.2)
    count = np.count_nonzero(norms <= bound)
    assert 0 < count < len(norms)
    noise = (np.array(found) * 8 - (count - len(norms) / 2)) / mean.count_noise
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    again = AdaptiveNoisedMean(99.0, 2.0, 8, mean.state())
    assert again.bound == mean.bound, "a run that is resumed goes on from it"


def test_a_bound_that_adapts_comes_to_the_median():
    rng = np.random.default_rng(6)
    before, lengths = record(rng), np.linspace(0.5, 1.5, 41)
    moves = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in lengths]
    updates = [
        Trained(0, 1, {name: before[name].numpy() + length * move[name] / np.linalg.norm(flat(move)) for name in move})
        for length, move in zip(lengths, moves, strict=True)
    ]
    for start in (0.05, 20.0):
        mean = AdaptiveNoisedMean(start, 1.0, len(updates), {})
        for server_round in range(1, 71):
            mean.aggregate(server_round, before, updates)
        assert mean.bound == pytest.approx(1.0, rel=0.2)
