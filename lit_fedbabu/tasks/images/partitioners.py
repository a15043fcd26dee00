"""How images are dealt to clients: the values of the option ``partitioner``."""

import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.tasks.images.clients import LAYOUTS
from lit_fedbabu.tasks.images.sources import Source

Indices = npt.NDArray[np.int64]

REMEDY = "take fewer clients, a less skewed partitioner, or a lower min-client-images"


class Parts(Sequence[Indices]):
    """The images of each client as indices into a split: of many clients one array, and where each one's part begins.

    Args:
        rows: (N,) indices.
        starts: (clients,) where a client's part of ``rows`` begins.
        ends: (clients,) where it ends.
    """

    def __init__(self, rows: Indices, starts: Indices, ends: Indices) -> None:
        self.rows, self.starts, self.ends = rows, starts, ends

    @classmethod
    def of(cls, parts: Iterable[Indices]) -> Self:
        """One part for each client, which follow one another."""
        parts = list(parts)
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.concatenate(parts), np.concatenate([[0], ends[:-1]]), ends)

    @classmethod
    def owned(cls, clients: Indices, rows: Indices, count: int) -> Self:
        """Images (N,) by the clients (N,) that have them; of ``count`` clients, each client's in order."""
        counts = np.bincount(clients, minlength=count)
        ends = np.cumsum(counts)
        return cls(rows[np.lexsort((rows, clients))], ends - counts, ends)

    @classmethod
    def read(cls, numbers: Indices, count: int) -> Self:
        """Parts from how they are ``kept``, of so many clients; other numbers may follow.

        Raises:
            ValueError: there are too few numbers.
        """
        ends = np.array(numbers[:count])
        rows = numbers[count : count + ends[-1]]
        if len(rows) != ends[-1]:
            raise ValueError("a kept split is cut off")
        return cls(rows, np.concatenate([[0], ends[:-1]]), ends)

    @property
    def kept(self) -> tuple[Indices, Indices]:
        """Parts that follow one another as numbers for a file: where each ends, and the rows."""
        return self.ends, self.rows

    @property
    def sizes(self) -> Indices:
        """Images of each client (clients,)."""
        return self.ends - self.starts

    @property
    def pairs(self) -> tuple[Indices, Indices]:
        """Every image that a client has: the client, and the image."""
        follow = np.array_equal(self.starts[1:], self.ends[:-1])  # parts of sites are all images each
        rows = self.rows[self.starts[0] : self.ends[-1]] if follow else np.concatenate(list(self))
        return np.repeat(np.arange(len(self)), self.sizes), rows

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Indices]:
        return (self[client] for client in range(len(self)))

    @overload
    def __getitem__(self, client: int) -> Indices: ...
    @overload
    def __getitem__(self, client: slice) -> "Parts": ...
    def __getitem__(self, client: int | slice) -> "Indices | Parts":
        if isinstance(client, slice):
            return Parts(self.rows, self.starts[client], self.ends[client])
        return self.rows[self.starts[client] : self.ends[client]]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which images of the training and of the test split each client has."""

    train: Parts
    test: Parts


class Sizes(Mapping[int, tuple[int, int]]):
    """Training and test images of each client, by its number."""

    def __init__(self, partition: Partition) -> None:
        self._counts = np.stack([partition.train.sizes, partition.test.sizes], axis=1)

    def __getitem__(self, client: int) -> tuple[int, int]:
        if not 0 <= client < len(self):
            raise KeyError(client)
        train, test = self._counts[client].tolist()
        return train, test

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._counts)


def _by_classes(config: Config, source: Source) -> Partition:
    """Exactly s different classes for every client, and the same number of images for all.

    Every class goes to equally many clients, to within one. What does not divide evenly is left out.
    """
    rng = np.random.default_rng(config.derived_seed("partition"))
    classes = len(source.class_names)
    clients, per_client = config.num_clients, config.num_classes_per_client
    owners: list[list[int]] = [[] for _ in range(classes)]
    left = np.full(classes, clients * per_client // classes)
    left[rng.permutation(classes)[: clients * per_client % classes]] += 1
    for client in range(clients):
        must = np.flatnonzero(left == clients - client)  # else this class could not be placed any more
        free = np.flatnonzero((left > 0) & (left < clients - client))
        missing = per_client - len(must)
        weights = left[free] / left[free].sum() if missing else None
        drawn = rng.choice(free, missing, replace=False, p=weights).tolist() if missing else []
        for label in (*must.tolist(), *drawn):
            owners[label].append(client)
            left[label] -= 1

    def deal(labels: Indices) -> Parts:
        counts = np.bincount(labels, minlength=classes)
        size = min(counts[label] // len(owners[label]) for label in range(classes) if owners[label])
        dealt = [
            rng.permutation(np.flatnonzero(labels == label))[: size * len(owners[label])] for label in range(classes)
        ]
        everyone = np.array([client for each in owners for client in each])
        return Parts.owned(np.repeat(everyone, size), np.concatenate(dealt), clients)

    return Partition(deal(source.train.labels), deal(source.test.labels))


def _by_flower(make: Callable[[Config, Indices, int], Any]) -> Callable[[Config, Source], Partition]:
    """Let a partitioner of Flower Datasets deal the training split; the test split follows its class counts.

    Args:
        make: the partitioner, for a configuration, the training labels and a seed.
    """

    def deal(config: Config, source: Source) -> Partition:
        rng = np.random.default_rng(config.derived_seed("partition"))
        order = rng.permutation(len(source.train.labels))
        partitioner = make(config, source.train.labels, int(rng.integers(2**31)))
        train = _dealt(config, partitioner, {"label": source.train.labels[order], "index": order})
        return Partition(train, _test_like(train, source, rng))

    return deal


class _Index:
    """What a partitioner takes partitions from, in place of a ``Dataset``, which needs milliseconds for each."""

    def __init__(self, dataset: Any) -> None:
        self._index = np.asarray(dataset[:]["index"], dtype=np.int64)
        self.num_rows = len(self._index)
        self.unique = functools.cache(dataset.unique)

    def __len__(self) -> int:
        return self.num_rows

    def select(self, rows: Sequence[int]) -> Indices:
        return self._index[np.asarray(rows, dtype=np.int64)]

    def shard(self, num_shards: int, index: int, contiguous: bool) -> Indices:
        """The shard ``index`` of so many, which differ in size by one at most; contiguous ones alone."""
        size, more = divmod(self.num_rows, num_shards)
        start = size * index + min(index, more)
        return self._index[start : start + size + (index < more)]


def _dealt(config: Config, partitioner: Any, columns: dict[str, Indices]) -> Parts:
    """The column "index" as the partitioner deals it to the clients."""
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pages of advice on its own parameters, and pyarrow on sorting
            partitioner.load_partition(0)  # which deals them all
            partitioner._dataset = _Index(partitioner.dataset)
            parts = [partitioner.load_partition(client) for client in range(config.num_clients)]
    except Exception as error:  # what the partitioners of Flower Datasets raise is not documented
        reason = " ".join((str(error).split(". ")[0].strip() or type(error).__name__).split())
        if "dirichlet" not in config.partitioner:
            raise InputError("partitioner", config.partitioner, f"{reason}; {REMEDY}") from None
        if "robabilit" in reason:
            remedy = f"{config.partitioner} cannot draw with it ({reason}); take a value between 0.01 and 1000"
            raise InputError("dirichlet-alpha", config.dirichlet_alpha, remedy) from None
        raise InputError("partitioner", config.partitioner, f"{reason}; {REMEDY}, or another dirichlet-alpha") from None
    return Parts.of(np.sort(part) for part in parts)


def _test_like(train: Parts, source: Source, rng: np.random.Generator) -> Parts:
    """Deal each class of the test split in the proportions of the training split (largest remainder)."""
    clients, rows = train.pairs
    labels = source.train.labels[rows]
    dealt: list[tuple[Indices, Indices]] = []
    for label in range(len(source.class_names)):
        images = rng.permutation(np.flatnonzero(source.test.labels == label))
        owned = np.bincount(clients[labels == label], minlength=len(train))
        quota = owned * len(images) / max(owned.sum(), 1)
        counts = np.floor(quota).astype(int)
        ties = rng.permutation(len(train))
        largest = ties[np.argsort(-(quota - counts)[ties], kind="stable")]
        counts[largest[: round(quota.sum()) - counts.sum()]] += 1
        dealt.append((np.repeat(np.arange(len(train)), counts), images[: counts.sum()]))
    having, images = (np.concatenate(each) for each in zip(*dealt, strict=True))
    return Parts.owned(having, images, len(train))


def _by_owner(config: Config, source: Source) -> Partition:
    """Every client is an owner of images, or a group of as many owners as all others; owners left over are left out."""
    owners, test_owners = source.train.owners, source.test.owners
    if owners is None or test_owners is None:
        remedy = "natural-id needs the dataset's column that says whose an image is, as in natural-id-column=writer_id"
        raise InputError("natural-id-column", config.natural_id_column, remedy)
    order = np.random.default_rng(config.derived_seed("partition")).permutation(len(owners))
    values, first, numbers = np.unique(owners[order], return_index=True, return_inverse=True)
    found = len(values)
    if config.num_clients > found:
        remedy = f"{config.natural_id_column} has {found} values in the training split; take as many clients or fewer"
        if config.natural_id_column in ("", *LAYOUTS):
            names = ", ".join(source.owner_names[:3])
            remedy = f"the folders are those of {found} clients ({names}, ...); take as many or fewer"
        raise InputError("num-clients", config.num_clients, remedy)
    clients = np.argsort(np.argsort(first)) // (found // config.num_clients)  # by owners, in the order they come in

    def deal(owned: Indices, rows: Indices) -> Parts:
        kept = owned < config.num_clients
        return Parts.owned(owned[kept], rows[kept], config.num_clients)

    tested = np.flatnonzero(np.isin(test_owners, values))
    return Partition(deal(clients[numbers], order), deal(clients[np.searchsorted(values, test_owners[tested])], tested))


def _on_sites(config: Config, source: Source) -> Partition:
    """Deal nothing: a client has all images of this machine."""
    nothing = np.zeros(config.num_clients, dtype=np.int64)
    sizes = (len(split.labels) for split in (source.train, source.test))
    return Partition(*(Parts(np.arange(size), nothing, nothing + size) for size in sizes))


def _made(name: str, *arguments: Any, **options: Any) -> Any:
    """A partitioner of Flower Datasets by its name; their import takes seconds."""
    return getattr(importlib.import_module("flwr_datasets.partitioner"), f"{name}Partitioner")(*arguments, **options)


def _shards(config: Config, labels: Indices, seed: int) -> Any:
    shards = config.num_clients * config.num_classes_per_client
    if shards > len(labels):
        remedy = f"with {config.num_classes_per_client} shards each needs {shards} images; there are {len(labels)}"
        raise InputError("num-clients", config.num_clients, f"{remedy}; {REMEDY}")
    each = {"num_shards_per_partition": config.num_classes_per_client, "shuffle": True}
    return _made("Shard", config.num_clients, "label", **each, seed=seed)


def _pathological(config: Config, labels: Indices, seed: int) -> Any:
    how = config.num_clients, "label", config.num_classes_per_client
    return _made("Pathological", *how, class_assignment_mode="random", seed=seed)


def _dirichlet(config: Config, labels: Indices, seed: int) -> Any:
    how = config.num_clients, "label", config.dirichlet_alpha, config.min_client_images
    return _made("Dirichlet", *how, seed=seed)


def _inner_dirichlet(config: Config, labels: Indices, seed: int) -> Any:
    sizes = [len(labels) // config.num_clients] * config.num_clients
    return _made("InnerDirichlet", sizes, "label", config.dirichlet_alpha, seed=seed)


def _distribution(config: Config, labels: Indices, seed: int) -> Any:
    classes, clients, per_client = len(np.unique(labels)), config.num_clients, config.num_classes_per_client
    if clients % classes:
        remedy = f"distribution needs a multiple of the dataset's {classes} classes"
        raise InputError("num-clients", clients, remedy)
    pieces = np.random.default_rng(seed).lognormal(
        0, config.lognormal_sigma, (classes, clients * per_client // classes)
    )
    if not (np.isfinite(pieces) & (pieces > 0)).all():
        remedy = "is so large that sizes of pieces are zero or infinite; take a lower one, as 2.0"
        raise InputError("lognormal-sigma", config.lognormal_sigma, remedy)
    least = -(-config.min_client_images // per_client)
    return _made("Distribution", pieces, clients, per_client, "label", least, seed=seed)


def _sized(name: str) -> Callable[[Config, Indices, int], Any]:
    """A partitioner that needs nothing but the number of clients."""
    return lambda config, labels, seed: _made(name, config.num_clients)


PARTITIONERS: dict[str, Callable[[Config, Source], Partition]] = {
    "classes": _by_classes,
    "shards": _by_flower(_shards),
    "pathological": _by_flower(_pathological),
    "dirichlet": _by_flower(_dirichlet),
    "inner-dirichlet": _by_flower(_inner_dirichlet),
    "distribution": _by_flower(_distribution),
    "iid": _by_flower(_sized("Iid")),
    "linear": _by_flower(_sized("Linear")),
    "square": _by_flower(_sized("Square")),
    "exponential": _by_flower(_sized("Exponential")),
    "natural-id": _by_owner,
    "sites": _on_sites,
}
