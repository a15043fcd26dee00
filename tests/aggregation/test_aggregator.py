"""Aggregators, against their definitions written out, and in runs that are stopped and resumed."""

import dataclasses
import gc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file

from lit_fedbabu.aggregation import table
from lit_fedbabu.aggregation.aggregator import Trained
from lit_fedbabu.config import AGGREGATORS
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.training.experiment import Experiment
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, files_that_decide, tiny_config

CLIENTS, F = 11, 2


def config_of(**options):
    return tiny_config(
        **{"num_clients": 20, "fraction_train": 0.6, "num_malicious": F, "min_client_images": 1} | options
    )


def weights():
    """Large weights, as of batch norm's variances, that clients move a little; the last two move far."""
    draws = np.random.default_rng(1)
    before = {"a": draws.normal(1000, 1, (4, 3)).astype(np.float32), "b": np.array(3.0, np.float32)}
    moves = [{name: draws.normal(0, 1e-2, value.shape) for name, value in before.items()} for _ in range(CLIENTS)]
    for client in (CLIENTS - 2, CLIENTS - 1):
        moves[client] = {name: move + 50 for name, move in moves[client].items()}
    trained = [{n: np.asarray(v + move[n], np.float32) for n, v in before.items()} for move in moves]
    return ArrayRecord({n: Array(v) for n, v in before.items()}), [
        Trained(client, 1 + client, arrays) for client, arrays in enumerate(trained)
    ]


def flat(arrays):
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in ("a", "b")])


def scores(moves, rivals):
    """Krum's: the sum of squared distances to the n - f - 2 closest others."""
    distances = [sorted(float(np.sum((moves[i] - moves[j]) ** 2)) for j in rivals if j != i) for i in rivals]
    return np.array([sum(each[: len(rivals) - F - 2]) for each in distances])


def by_hand(name, moves, counts):
    everyone = list(range(len(moves)))
    best = np.argsort(scores(moves, everyone))
    if name == "median":
        return np.median(moves, axis=0)
    if name == "trimmed-mean":
        return np.sort(moves, axis=0)[2:-2].mean(axis=0)
    if name == "krum":
        return moves[best[0]]
    if name == "multi-krum":
        chosen = best[: len(moves) - F - 2]
        return np.average(moves[chosen], axis=0, weights=counts[chosen])
    if name == "norm-bound":
        norms = np.linalg.norm(moves, axis=1)
        return np.average(moves * np.minimum(1, np.median(norms) / norms)[:, None], axis=0, weights=counts)
    if name == "bulyan":
        chosen = moves[best[: len(moves) - 2 * F]]
        near = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[: len(chosen) - 2 * F]
        return np.take_along_axis(chosen, near, axis=0).mean(axis=0)
    return np.average(moves, axis=0, weights=counts)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_is_its_definition(name, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # which Flower's Bulyan calls twelve times
    before, updates = weights()
    start = flat({key: array.numpy() for key, array in before.items()})
    moves = np.stack([flat(update.arrays) - start for update in updates])
    made = table.aggregator_of(config_of(aggregator=name)).aggregate(1, before, updates)
    assert {key: (array.dtype, tuple(array.shape)) for key, array in made.items()} == {
        key: (array.dtype, tuple(array.shape)) for key, array in before.items()
    }
    expected = start + by_hand(name, moves, np.array([update.num_train for update in updates]))
    found = flat({key: array.numpy() for key, array in made.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=5e-5)
    assert (np.abs(found - start).max() < 0.1) == (name != "mean"), "two of eleven move the mean far, and not these"


def test_flowers_mean_as_a_users_strategy_is_the_mean():
    before, updates = weights()
    mine = table.aggregator_of(config_of(aggregator="flwr.serverapp.strategy:FedAvg")).aggregate(1, before, updates)
    ours = table.aggregator_of(config_of()).aggregate(1, before, updates)
    for name, array in ours.items():
        np.testing.assert_allclose(mine[name].numpy(), array.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "FedAvgM",
        "FedAdam",
        "FedYogi",
        "FedAdagrad",
        "FedMedian",
        "Krum",
        pytest.param("Bulyan", marks=pytest.mark.slow),
    ],
)
def test_what_flowers_strategies_keep_is_written_and_read_whole(name, tmp_path, monkeypatch):
    for identity in ("_task_id", "_run_id", "_node_id"):  # as in a command before its run
        monkeypatch.setattr(TaskIdentity, identity, None)
    config = config_of(aggregator=f"flwr.serverapp.strategy:{name}")
    before, updates = weights()
    whole = table.aggregator_of(config)
    after = whole.aggregate(1, before, updates)
    save_file(dict(whole.state()), tmp_path / "kept")
    resumed = table.aggregator_of(config, load_file(tmp_path / "kept"))
    expected, found = (each.aggregate(2, after, updates) for each in (whole, resumed))
    assert all(np.array_equal(expected[key].numpy(), found[key].numpy()) for key in expected)
    moments = {key for key in whole.state() if key.startswith("m_t.")}
    assert moments == ({"m_t.a", "m_t.b"} if name in ("FedAdam", "FedYogi", "FedAdagrad") else set())


@pytest.mark.slow
@pytest.mark.parametrize("aggregator", ["median", "tests.own_strategies:Shrinks", "tests.own_strategies:momentum"])
def test_a_stopped_run_is_resumed_to_the_same_bytes(aggregator, federate):
    options = {"num_clients": 3, "fraction_train": 1.0, "num_malicious": 0, "num_server_rounds": 3}
    config = tiny_config(aggregator=aggregator, model_name=NARROW, evaluate_every=3, **options)
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 3))
    stopped = whole.parent / "run2"
    federate(dataclasses.replace(config, resume=str(stopped)))
    assert files_that_decide(stopped) == files_that_decide(whole)
    kept = {path.name: path.read_bytes() for path in (whole / run_folder.SERVER).glob("*")}
    assert bool(kept) == (":" in aggregator)
    assert kept == {path.name: path.read_bytes() for path in (stopped / run_folder.SERVER).glob("*")}
    plain, _ = federate(dataclasses.replace(config, aggregator="mean"))
    shared = [read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared for folder in (whole, plain)]
    assert any(not np.allclose(shared[0][name], shared[1][name]) for name in shared[0]), "it does something"


def test_momentum_of_a_users_strategy_is_that_of_the_servers_optimizer(federate):
    options = {"num_clients": 3, "fraction_train": 1.0, "num_server_rounds": 3, "model_name": NARROW}
    mine, _ = federate(tiny_config(aggregator="tests.own_strategies:momentum", **options))
    optimizer = {"server_optimizer": "momentum", "server_learning_rate": 1.0, "server_momentum": 0.5}
    ours, _ = federate(tiny_config(**optimizer, **options))
    for name, value in read_federation(ours / run_folder.LAST_CHECKPOINT, NARROW).shared.items():
        found = read_federation(mine / run_folder.LAST_CHECKPOINT, NARROW).shared[name]
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


OWN = "tests.own_strategies"
REFUSED = [
    (
        {"aggregator": "bulyan", "fraction_train": 0.5},
        "bulyan needs 11 or more of which 2 may be malicious, and a round",
    ),
    (
        {"aggregator": "krum", "min_clients_per_round": 6},
        "needs 7 or more .*, and min-clients-per-round is 6; take more",
    ),
    ({"aggregator": "trimmed-mean", "trim_fraction": 0.05}, "trim-fraction=0.05 would leave out none of them, and a r"),
    ({"aggregator": "median", "algorithm": "local"}, "local has nothing to aggregate; take mean"),
    ({"aggregator": f"{OWN}:number"}, "or the import path of a Flower strategy.*; it is a int"),
    ({"aggregator": f"{OWN}:Nothing"}, "round 1: .* gave no weights for 12 clients"),
    ({"aggregator": f"{OWN}:Renames"}, "gave weights of other names or shapes than those of the model"),
    ({"aggregator": f"{OWN}:Divides"}, "fails in a trial: ZeroDivisionError: division by zero"),
    ({"aggregator": f"{OWN}:Draws"}, "keeps random between rounds, which no file can have; keep numbers and arrays"),
    ({"aggregator": f"{OWN}:Grows"}, "keeps seen between rounds, which no file can have; keep numbers and arrays"),
    ({"aggregator": f"{OWN}:Crowd"}, "waits for more than the 20 clients of this federation"),
    ({"aggregator": f"{OWN}:absent"}, "has no attribute 'absent'"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[str(options["aggregator"]) for options, _ in REFUSED])
def test_what_cannot_aggregate_is_refused_before_a_run(options, told):
    with pytest.raises(InputError, match=f"^aggregator = .*{told}") as refused:
        table.check(Experiment(config_of(**options)))
    assert "\n" not in str(refused.value)


def test_a_name_that_is_none_is_refused_with_one_that_is_like_it():
    with pytest.raises(InputError, match=r"aggregator = .*, or an import path .*; did you mean trimmed-mean\?"):
        config_of(aggregator="trimed-mean")


def test_too_few_clients_after_failures_end_the_round():
    before, updates = weights()
    krum = table.aggregator_of(config_of(aggregator="krum"))
    with pytest.raises(RunError, match="round 4: 6 clients trained, and krum needs 7 or more"):
        krum.aggregate(4, before, updates[:6])
