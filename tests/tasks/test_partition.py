import dataclasses
import warnings
from contextlib import suppress

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import GroupedNaturalIdPartitioner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.learning import cache
from lit_fedbabu.tasks.images import partitioners, sources
from lit_fedbabu.tasks.images.partition import DEALT_BY, dealt
from lit_fedbabu.tasks.images.partitioners import PARTITIONERS
from lit_fedbabu.tasks.images.sources import Source
from lit_fedbabu.tasks.images.tables import Split
from lit_fedbabu.tasks.images.task import ImageClassification
from tests.support import BALANCED, counts, partition

ANYWHERE = [name for name in PARTITIONERS if name not in ("natural-id", "sites")]
"""Which need no column of owners, and deal anything."""


@pytest.mark.parametrize("partitioner", ANYWHERE)
@pytest.mark.parametrize("dataset", ["digits", pytest.param("cifar_like", marks=pytest.mark.slow)])
def test_no_image_has_two_owners_and_classes_agree_between_the_splits(partitioner, dataset, request):
    clients = {"exponential": 4, "square": 6, "linear": 10}.get(partitioner, 10 if dataset == "digits" else 100)
    config = Config(dataset="digits", partitioner=partitioner, num_clients=clients, dirichlet_alpha=1.0)
    if dataset == "cifar_like":
        request.getfixturevalue("cifar_like")
    source, dealt = ImageClassification(config).source, partition(config)
    for parts, split in ((dealt.train, source.train), (dealt.test, source.test)):
        everyone = np.concatenate(parts)
        assert len(parts) == clients
        assert len(everyone) == len(set(everyone.tolist())) > 0.7 * len(split.labels)
        assert min(map(len, parts)) > 0
    train, test = counts(dealt.train, source.train.labels), counts(dealt.test, source.test.labels)
    assert not (test > 0)[train == 0].any(), "a test image of a class that the client never trains on"
    shares = [values / values.sum(1, keepdims=True) for values in (train, test)]
    distances = np.abs(shares[0] - shares[1]).sum(1) / 2
    assert np.average(distances, weights=test.sum(1)) < 0.1


@pytest.mark.parametrize("partitioner", ANYWHERE)
def test_options_say_which_partitioners_read_them(partitioner):
    clients = {"exponential": 4, "square": 6}.get(partitioner, 10)
    config = Config(dataset="digits", partitioner=partitioner, num_clients=clients)
    readers = {field.name: field.metadata["read_by"].split(", ") for field in dataclasses.fields(Config)}
    for option, value in (("num_classes_per_client", 3), ("dirichlet_alpha", 5.0), ("lognormal_sigma", 0.1)):
        one, other = partition(config).train, partition(dataclasses.replace(config, **{option: value})).train
        changed = any(not np.array_equal(*parts) for parts in zip(one, other, strict=True))
        assert changed == (partitioner in readers[option]), option


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


@pytest.mark.parametrize("partitioner", ANYWHERE)
def test_the_seed_decides_the_split(partitioner):
    clients = {"exponential": 4, "square": 6}.get(partitioner, 10)
    config = Config(dataset="digits", partitioner=partitioner, num_clients=clients, dirichlet_alpha=1.0)
    first = partition(config)
    again, other = partition(config), partition(dataclasses.replace(config, seed=43))
    for one, two, three in zip(*((*each.train, *each.test) for each in (first, again, other)), strict=True):
        assert np.array_equal(one, two)
        assert not np.array_equal(one, three)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partitioner": "alphabet"}, "partitioner = .* must be one of classes"),
        ({"num_classes_per_client": 11}, "num-classes-per-client = 11: the dataset has 10 classes"),
        ({"num_clients": 2000}, "num-clients = 2000: the dataset has 1433 training images"),
        ({"num_clients": 200}, "num-clients = 200: 200 clients .* fewer training images than 10; .*min-client-images"),
        ({"partitioner": "iid", "num_clients": 1000, "min_client_images": 1}, "clients .* fewer test images than 1;"),
        ({"partitioner": "exponential", "num_clients": 6}, "fewer training images than 10;"),
        *(
            ({"partitioner": "inner-dirichlet", "num_clients": 4, "dirichlet_alpha": alpha}, "^dirichlet-alpha = ")
            for alpha in (1e-6, 5e-324, 1.7e308)
        ),
        ({"partitioner": "dirichlet", "num_clients": 4, "dirichlet_alpha": 1.7e308}, "or another dirichlet-alpha$"),
        *(
            ({"partitioner": "distribution", "lognormal_sigma": sigma, "min_client_images": 1}, "^lognormal-sigma = ")
            for sigma in (1000, 1e308)
        ),
        ({"partitioner": "exponential", "num_clients": 20}, "partitioner = .*num_partitions=20 .*; take fewer"),
        (
            {"partitioner": "distribution", "num_clients": 25},
            "num-clients = 25: .* multiple of .* 10 classes",
        ),
        (
            {"partitioner": "natural-id"},
            'natural-id-column = "": natural-id needs .* natural-id-column=writer_id',
        ),
        (
            {"partitioner": "shards", "num_clients": 800, "num_classes_per_client": 3, "min_client_images": 1},
            "num-clients = 800: with 3 shards each needs 2400 images; there are 1433; take fewer clients",
        ),
        (
            {"partitioner": "dirichlet", "num_clients": 1000},
            "partitioner = .*dirichlet.*attempts .* was reached; take fewer",
        ),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options, words):
    with pytest.raises(InputError, match=words) as caught:
        partition(Config(dataset="digits", **options))
    assert "\n" not in str(caught.value)


def test_a_class_without_test_images_is_named_where_a_client_would_have_none(monkeypatch):
    kept = BALANCED.test.labels != 3
    test = Split(BALANCED.test.images[kept], BALANCED.test.labels[kept])
    monkeypatch.setattr(ImageClassification, "source", dataclasses.replace(BALANCED, test=test))
    with pytest.raises(InputError, match="fewer test images than 1; .*there is no test image of the classes d$"):
        partition(Config(dataset="digits"))


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError("label"), RuntimeError()])
def test_whatever_a_partitioner_raises_is_one_line(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("flwr_datasets.partitioner.IidPartitioner.load_partition", fail)
    reason = str(error) or "RuntimeError"
    with pytest.raises(InputError, match=f'partitioner = "iid": {reason}; take fewer clients'):
        partition(Config(dataset="digits", partitioner="iid", num_clients=3))


@pytest.mark.parametrize("partitioner", ANYWHERE)
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_labels_are_dealt_or_refused_in_one_line(partitioner, data, monkeypatch):
    """Without a warning of NumPy, and without an image that two clients have."""
    classes = data.draw(st.integers(2, 4))
    labels = [data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=40)) for _ in range(2)]
    train, test = (np.array([*range(classes), *each]) for each in labels)
    options = {
        "partitioner": partitioner,
        "num_clients": data.draw(st.integers(1, 12)),
        "num_classes_per_client": data.draw(st.integers(1, 5)),
        "min_client_images": data.draw(st.integers(1, 3)),
        "dirichlet_alpha": data.draw(st.sampled_from([1e-300, 1e-3, 1.0, 1e300])),
        "lognormal_sigma": data.draw(st.sampled_from([0.0, 2.0, 1e3, 1e300])),
    }
    splits = (Split(np.empty((len(each), 0)), each) for each in (train, test))
    source = Source(*splits, tuple("abcd"[:classes]), (0.5,), (0.5,))
    monkeypatch.setattr(ImageClassification, "source", source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            dealt = partition(Config(dataset="digits", **options))
        except InputError as error:
            assert "\n" not in str(error)
            return
    for parts in (dealt.train, dealt.test):
        everyone = np.concatenate(parts)
        assert len(everyone) == len(set(everyone.tolist()))


@pytest.fixture
def written(monkeypatch):
    """Labels of 30 writers, 20 training and 4 test images each, of which writer 7 writes class 7 and so on."""
    train, test = np.repeat(np.arange(30), 20), np.repeat(np.arange(30), 4)
    source = dataclasses.replace(
        BALANCED,
        train=Split(np.empty((600, 0)), train % 10, train),
        test=Split(np.empty((120, 0)), test % 10, test),
    )
    monkeypatch.setattr(ImageClassification, "source", source)
    return source


@pytest.mark.parametrize(("clients", "owners_each"), [(30, 1), (15, 2), (8, 3)])
def test_natural_owners_stay_whole_and_equally_many_make_a_client(clients, owners_each, written):
    dealt = partition(Config(partitioner="natural-id", num_clients=clients, natural_id_column="writer_id"))
    owned = [set(written.train.owners[part]) for part in dealt.train]
    assert [len(owners) for owners in owned] == [owners_each] * clients
    assert len(set().union(*owned)) == clients * owners_each, "no owner is in two clients"
    for owners, train, test in zip(owned, dealt.train, dealt.test, strict=True):
        assert len(train) == 20 * owners_each and len(test) == 4 * owners_each
        assert set(written.test.owners[test]) == owners


def test_natural_owners_are_grouped_as_flower_groups_them(written):
    config = Config(partitioner="natural-id", num_clients=8, natural_id_column="writer_id")
    rng = np.random.default_rng(config.derived_seed("partition"))
    order = rng.permutation(600)
    flowers = GroupedNaturalIdPartitioner("owner", 3, "drop-reminder")
    flowers.dataset = Dataset.from_dict({"owner": written.train.owners[order], "index": order})
    for client, part in enumerate(partition(config).train):
        assert part.tolist() == sorted(flowers.load_partition(client)["index"])


@pytest.mark.parametrize("partitioner", [name for name in ANYWHERE if name != "classes"])
def test_partitioners_deal_as_from_a_dataset(partitioner, monkeypatch):
    clients = {"exponential": 4, "square": 6}.get(partitioner, 10)
    config = Config(dataset="digits", partitioner=partitioner, num_clients=clients, dirichlet_alpha=1.0)
    quick = partition(config)

    class Slow:
        def __init__(self, dataset):
            self._dataset = dataset

        def __getattr__(self, name):
            return getattr(self._dataset, name)

        def __len__(self):
            return len(self._dataset)

        def select(self, rows):
            return np.array(self._dataset.select(rows)["index"])

        def shard(self, **options):
            return np.array(self._dataset.shard(**options)["index"])

    monkeypatch.setattr(partitioners, "_Index", Slow)
    slow = partition(config)
    for one, two in zip((*quick.train, *quick.test), (*slow.train, *slow.test), strict=True):
        assert one.tolist() == two.tolist()


@pytest.mark.parametrize(
    ("fraction", "told"), [(0.0, "120 of 600 training and 24 of 120 test images"), (0.2, "120 of 600 training images")]
)
def test_images_that_no_client_has_are_told(fraction, told, written):
    config = Config(
        partitioner="natural-id", num_clients=8, natural_id_column="writer_id", validation_fraction=fraction
    )
    assert ImageClassification(config).summary().endswith(f" classes each; left out are {told}")


def test_more_clients_than_natural_owners_are_refused(written):
    with pytest.raises(InputError, match="num-clients = 31: writer_id has 30 values in the training split"):
        partition(Config(partitioner="natural-id", num_clients=31, natural_id_column="writer_id"))


class Recorder:
    """A configuration that notes which of its options are read."""

    def __init__(self, config):
        self._config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self._config, name)


def test_a_split_of_many_clients_is_kept_by_all_that_decides_it(monkeypatch):
    source = sources.load("digits")
    owned = dataclasses.replace(
        source,
        train=dataclasses.replace(source.train, owners=np.arange(1433) % 20),
        test=dataclasses.replace(source.test, owners=np.arange(364) % 20),
    )
    monkeypatch.setattr("lit_fedbabu.tasks.images.partition.EVERYONE", 3)
    for name in ("natural-id", *ANYWHERE):
        clients = 10 if name == "distribution" else 4
        config = Config(dataset="digits", partitioner=name, num_clients=clients, validation_fraction=0.2, seed=5)
        config = Recorder(dataclasses.replace(config, natural_id_column="w" if name == "natural-id" else ""))
        with suppress(InputError):  # of sizes that grow too fast for so many clients
            one, two = dealt(config, owned), dealt(config, owned)
            assert isinstance(two.train.rows, np.memmap) and not isinstance(one.train.rows, np.memmap)
            for mine, theirs in zip((*one.train, *one.test), (*two.train, *two.test), strict=True):
                assert mine.tolist() == theirs.tolist()
        assert config.read <= {*DEALT_BY, "derived_seed", "on_sites"}, name
    kept = sorted((cache.folder() / cache.SPLITS).iterdir())
    assert len(kept) > 5 and {path.suffix for path in kept} == {".npy"}
    for path in kept:
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(RunError, match="this kept split is damaged; remove the file"):
        dealt(Config(dataset="digits", partitioner="iid", num_clients=4, validation_fraction=0.2, seed=5), owned)
    for path in kept:
        path.unlink()


def test_unequal_sizes_grow_as_their_names_say(cifar_like):
    for name, size_of in (("linear", float), ("square", np.square), ("exponential", np.exp)):
        config = dataclasses.replace(cifar_like, partitioner=name, num_clients=5, min_client_images=1)
        sizes = np.array([len(part) for part in partition(config).train])
        expected = np.array([size_of(place) for place in range(1, 6)])
        assert np.abs(sizes / sizes.sum() - expected / expected.sum()).max() < 1e-3, name


def test_dirichlet_gives_every_client_what_it_needs_and_alpha_decides_the_skew():
    config = Config(dataset="digits", num_clients=10, partitioner="dirichlet", dirichlet_alpha=0.5)
    labels = sources.load("digits").train.labels
    needy = counts(partition(dataclasses.replace(config, min_client_images=60)).train, labels)
    assert needy.sum(1).min() >= 60
    for partitioner in ("dirichlet", "inner-dirichlet"):
        largest = []
        for alpha in (0.2, 100.0):
            table = counts(
                partition(dataclasses.replace(config, partitioner=partitioner, dirichlet_alpha=alpha)).train, labels
            )
            largest.append((table.max(1) / table.sum(1)).mean())
            assert partitioner == "dirichlet" or set(table.sum(1)) == {len(labels) // 10}
        assert largest[0] > 0.4 > 0.2 > largest[1]


def test_a_split_is_told_in_a_line_and_in_a_table(cifar_like):
    told = "100 clients with 500 training images, 100 test images and 2 of 10 classes each"
    assert ImageClassification(cifar_like).summary() == told
    uneven = dataclasses.replace(cifar_like, partitioner="linear", num_clients=4)
    assert ImageClassification(uneven).summary().startswith("4 clients with 5000 to 20000 training images, ")
    lines = ImageClassification(cifar_like).class_counts().splitlines()
    assert lines[0] == "client,split,a,b,c,d,e,f,g,h,i,j" and len(lines) == 201
    assert sum(map(int, lines[1].split(",")[2:])) == 500
