"""The server's noise, and how far one client can move the sum below it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from scipy import stats

from lit_fedbabu.aggregation.aggregator import NoisedMean, Trained
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
