import dataclasses

import numpy as np
import pytest

from lit_fedbabu import sources
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.partition import PARTITIONERS, partition
from tests.helpers import BALANCED, counts


@pytest.mark.parametrize("partitioner", PARTITIONERS)
@pytest.mark.parametrize("dataset", ["digits", "cifar_like"])
def test_no_image_has_two_owners_and_classes_agree_between_the_splits(partitioner, dataset, request):
    clients = 10 if dataset == "digits" else 100
    config = Config(dataset="digits", partitioner=partitioner, num_clients=clients, dirichlet_alpha=1.0)
    if dataset == "cifar_like":
        request.getfixturevalue("cifar_like")
    source = sources.load("digits")
    dealt = partition(config)
    for parts, split in ((dealt.train, source.train), (dealt.test, source.test)):
        everyone = np.concatenate(parts)
        assert len(parts) == clients
        assert len(everyone) == len(set(everyone.tolist())) > 0.7 * len(split.labels)
        assert min(map(len, parts)) > 0
    train, test = counts(dealt.train, source.train.labels), counts(dealt.test, source.test.labels)
    assert not (test > 0)[train == 0].any(), "a test image of a class that the client never trains on"
    shares = [values / values.sum(1, keepdims=True) for values in (train, test)]
    assert np.abs(shares[0] - shares[1]).sum(1).mean() / 2 < 0.1


def test_default_split_is_equal_in_size_and_has_exactly_s_classes(cifar_like):
    for per_client in (2, 5, 10):
        dealt = partition(dataclasses.replace(cifar_like, num_classes_per_client=per_client))
        train, test = counts(dealt.train, BALANCED.train.labels), counts(dealt.test, BALANCED.test.labels)
        assert set(map(len, dealt.train)) == {500}
        assert set(map(len, dealt.test)) == {100}
        assert set((train > 0).sum(1)) == set((test > 0).sum(1)) == {per_client}
        assert (train == 5 * test).all()


def test_default_split_mixes_classes_at_random(cifar_like):
    train = counts(partition(cifar_like).train, BALANCED.train.labels)
    assert len({tuple(np.flatnonzero(row)) for row in train}) > 30


def test_default_split_of_unequal_classes_keeps_sizes_equal():
    dealt = partition(Config(dataset="digits", num_clients=20))
    assert len(set(map(len, dealt.train))) == len(set(map(len, dealt.test))) == 1


def test_shards_are_the_papers(cifar_like):
    dealt = partition(dataclasses.replace(cifar_like, partitioner="shards"))
    train, test = counts(dealt.train, BALANCED.train.labels), counts(dealt.test, BALANCED.test.labels)
    assert (train.sum(1) == 500).all() and (test.sum(1) == 100).all()
    assert set(np.unique(train)) <= {0, 250, 500}
    assert (train == 5 * test).all()
    assert 0 < ((train > 0).sum(1) == 1).sum() < 25, "some clients draw one class twice"


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_the_seed_decides_the_split(partitioner):
    config = Config(dataset="digits", partitioner=partitioner, num_clients=10, dirichlet_alpha=1.0)
    first = partition(config)
    partition.cache_clear()
    again, other = partition(config), partition(dataclasses.replace(config, seed=43))
    for one, two, three in zip(first.train + first.test, again.train + again.test, other.train + other.test):
        assert np.array_equal(one, two)
        assert not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partitioner": "alphabet"}, "partitioner = .* must be one of classes"),
        ({"num_classes_per_client": 11}, "num-classes-per-client = 11: the dataset has 10 classes"),
        ({"num_clients": 2000}, "num-clients = 2000: the dataset has 1433 training images"),
        ({"num_clients": 1000}, "num-clients = 1000: 1000 clients .* no training image"),
        ({"partitioner": "iid", "num_clients": 1000}, "num-clients = 1000: .* no test image"),
        ({"partitioner": "dirichlet", "num_clients": 1000}, "partitioner = .*dirichlet.*num-clients"),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        partition(Config(dataset="digits", **options))
    assert "\n" not in str(caught.value)
