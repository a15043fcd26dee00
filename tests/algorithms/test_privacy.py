import math
from collections import Counter

import numpy as np
import pytest
import torch
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from scipy import stats

from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.parts import select
from lit_fedbabu.records import run_folder
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.training import memory, privacy
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.privacy import update_norm
from tests.support import NARROW, failing, tiny, tiny_config

DELTA = 1e-5
ORDER = {"server-round": 1, "learning-rate": 0.1}


def local_guarantee(config, times):
    once, whole = (privacy.epsilon(config.noise_multiplier, count) for count in (1, times))
    return privacy.guarantee(config, once, whole, times)


def sent(folder, **options):
    """What a client receives and sends in its first round, as one vector each, and the configuration."""
    experiment = tiny(model_name=NARROW, **options)
    received = [value.numpy() for value in experiment.initial_shared().values()]
    arrays, _, _ = FedBABUClient(experiment, 1, folder).fit(received, ORDER)
    assert [(array.shape, array.dtype) for array in arrays] == [(array.shape, array.dtype) for array in received]
    return [np.concatenate([array.ravel() for array in each]) for each in (received, arrays)]


def test_an_update_is_clipped_in_its_length_and_not_in_its_direction(tmp_path):
    received, free = sent(tmp_path)
    moved = free - received
    length = np.linalg.norm(moved)
    _, clipped = sent(tmp_path, clipping_norm=float(length / 3))
    np.testing.assert_allclose(clipped - received, moved / 3, rtol=1e-3, atol=1e-6)
    _, whole = sent(tmp_path, clipping_norm=float(2 * length))
    np.testing.assert_allclose(whole, free, rtol=0, atol=1e-6)


def test_noise_is_gaussian_and_does_not_follow_from_the_seed(tmp_path):
    options = {"clipping_norm": 0.5, "noise_multiplier": 3.0}
    _, clipped = sent(tmp_path, clipping_norm=0.5)
    np.random.seed(0)
    _, one = sent(tmp_path, **options)
    np.random.seed(0)
    _, two = sent(tmp_path, **options)
    assert len(one) > 200 and not np.array_equal(one, two)
    noise = np.concatenate([one, two]) - np.concatenate([clipped, clipped])
    assert stats.kstest(noise / 1.5, "norm").pvalue > 1e-6


@pytest.mark.parametrize("algorithm", ["fedbabu", "fedper"])
def test_only_what_is_shared_is_noised(algorithm, tmp_path):
    kept = []
    for place, options in (("free", {}), ("noised", {"clipping_norm": 0.1, "noise_multiplier": 1.0})):
        received, arrays = sent(tmp_path / place, algorithm=algorithm, **options)
        kept.append(memory.recall(tmp_path / place, 1, 1))
    assert len(arrays) == sum(
        value.numel() for value in select(tiny(model_name=NARROW).initial_shared(), ["body"]).values()
    )
    assert kept[0].keys() == kept[1].keys() and bool(kept[0]) == (algorithm == "fedper")
    assert all(torch.equal(kept[1][name], value) for name, value in kept[0].items()), "a head of one's own has no noise"


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
def test_protection_leaves_the_generator_of_numpy_as_it_was(noise_multiplier):
    np.random.seed(3)
    np.random.normal(size=3)  # keeps half a pair of normals, which the state holds too
    received, trained = [np.zeros(5, np.float32)], [np.ones(5, np.float32)]
    before = np.random.get_state(legacy=False)
    (protected,) = privacy.protect(trained, received, Config(clipping_norm=1.0, noise_multiplier=noise_multiplier))
    assert not np.array_equal(protected, trained[0])
    np.testing.assert_equal(np.random.get_state(legacy=False), before)


def test_protection_changes_neither_what_was_trained_nor_what_was_received():
    received, trained = [np.zeros(5, np.float32)], [np.ones(5, np.float32)]
    privacy.protect(trained, received, Config(clipping_norm=1.0, noise_multiplier=1.0))
    assert received[0].tolist() == [0.0] * 5
    assert trained[0].tolist() == [1.0] * 5


def test_a_client_that_did_not_move_is_not_clipped():
    arrays = [np.ones(3, np.float32)]
    assert np.array_equal(privacy.protect(arrays, arrays, Config(clipping_norm=1.0))[0], arrays[0])


@pytest.mark.parametrize(("noise_multiplier", "participations"), [(1.0, 1), (4.0, 1), (4.0, 8), (50.0, 8)])
def test_epsilon_is_the_least_that_the_gaussian_mechanism_has(noise_multiplier, participations):
    found = privacy.epsilon(noise_multiplier, participations)
    spread = noise_multiplier / math.sqrt(participations)

    def delta(epsilon):
        """The hockey-stick divergence of two Gaussians 2 apart, integrated numerically."""
        x = np.linspace(-40 * spread, 40 * spread, 2_000_001)
        here, there = (stats.norm.pdf(x, mean, spread) for mean in (1, -1))
        return np.trapezoid(np.maximum(here - np.exp(epsilon) * there, 0), x)

    assert delta(found) == pytest.approx(DELTA, rel=1e-2)
    assert privacy.epsilon(noise_multiplier, participations + 1) > found


@pytest.mark.parametrize(("noise_multiplier", "participations"), [(1.0, 1), (2.0, 3), (3.0, 8), (5.0, 20), (10.0, 80)])
def test_epsilon_is_that_of_googles_accountant(noise_multiplier, participations):
    """Its numbers are rounded up: by an interval at most for each round."""
    interval, found = 1e-4, privacy.epsilon(noise_multiplier, participations)
    once = from_gaussian_mechanism(noise_multiplier, sensitivity=2.0, value_discretization_interval=interval)
    whole = once.self_compose(participations) if participations > 1 else once
    assert found - 1e-6 <= whole.get_epsilon_for_delta(DELTA) <= found + participations * interval


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_leave(wrong):
    received = [np.zeros(1000, np.float32), np.zeros(2, np.float32)]
    trained = [np.ones(1000, np.float32), np.array([wrong, 0], np.float32)]
    with pytest.raises(ValueError, match="nothing is sent: its weights are not finite"):
        privacy.protect(trained, received, Config(clipping_norm=1.0))
    with pytest.raises(ValueError, match="nothing is sent: its update is too long"):
        privacy.protect([np.full(3, 1e200)], [np.zeros(3)], Config(clipping_norm=1.0))
    with pytest.raises(ValueError, match="nothing is sent: its weights with noise are not finite"):
        privacy.protect(received, received, Config(clipping_norm=1e30, noise_multiplier=1e30))


def test_epsilon_counts_rounds_in_which_a_client_stands_in_for_others(federate, monkeypatch, capsys):
    config = tiny_config(
        model_name=NARROW, clipping_norm=1.0, noise_multiplier=2.0, num_server_rounds=4, num_clients=3,
        fraction_train=0.34, evaluate_every=4, seed=0,
    )  # fmt: skip
    drawn = [client for server_round in range(1, 5) for client in participants(config, server_round)]
    bad = max(drawn, key=drawn.count)
    failing(monkeypatch, lambda client, _: client == bad)
    folder, grid = federate(config)
    asked = [message for message in grid.messages if message.metadata.message_type == "train"]
    counts = Counter(client for message in asked for client in message.content["config"]["clients"])
    assert max(counts.values()) > max(drawn.count(client) for client in drawn), "another seed would show more"
    told = local_guarantee(config, max(counts.values()))
    assert run_folder.read_environment(folder)["privacy"] == told
    assert f"clients stood in for others or repeated a round: {told}" in capsys.readouterr().out


def test_the_run_tells_what_the_protection_amounts_to(federate, capsys):
    config = tiny_config(model_name=NARROW, clipping_norm=1.0, noise_multiplier=2.0, num_server_rounds=3)
    folder, _ = federate(config)
    drawn = [client for server_round in (1, 2, 3) for client in participants(config, server_round)]
    most = max(map(drawn.count, drawn))
    told = local_guarantee(config, most)
    assert f"epsilon {privacy.epsilon(2.0, 1):.3g} for a round" in told and f"for the {most} rounds" in told
    assert told in capsys.readouterr().out
    assert run_folder.read_environment(folder)["privacy"] == told
    assert "no differential privacy" in privacy.guarantee(tiny_config(clipping_norm=1.0), 0, 0, 0)
    assert privacy.guarantee(tiny_config(), 0, 0, 0) == ""


def on_the_wire(grid):
    """Of every client's update in a round: the received and the sent arrays, by their names."""
    for message, reply in zip(grid.messages, grid.replies, strict=True):
        if message.metadata.message_type != "train":
            continue
        received = {name: array.numpy() for name, array in message.content["arrays"].items()}
        for place, _ in enumerate(reply.content["metrics"]["client"]):
            yield received, {name: array.numpy()[place] for name, array in reply.content["arrays"].items()}


@pytest.mark.parametrize("bound", [1e-3, 0.05])
@pytest.mark.parametrize("name", ["plain", "scalar", "tied"])
def test_what_leaves_is_no_longer_than_the_clipping_norm(name, bound, federate):
    config = tiny_config(model_name=f"tests.own_models:{name}", algorithm="fedavg", clipping_norm=bound)
    _, grid = federate(config)
    norms = [update_norm(list(sent.values()), list(received.values())) for received, sent in on_the_wire(grid)]
    assert len(norms) == 6
    assert all(0.999 * bound < norm <= bound for norm in norms), "in float64, of all numbers that are on the wire"


@pytest.mark.parametrize("name", ["plain", "scalar", "tied"])
def test_every_number_that_leaves_has_noise(name, federate):
    """With a bound so small that only noise moves a number, and each tensor once."""
    config = tiny_config(
        model_name=f"tests.own_models:{name}", algorithm="fedavg", clipping_norm=1e-9, noise_multiplier=1e9
    )
    _, grid = federate(config)
    for received, sent in on_the_wire(grid):
        assert set(sent) == set(Experiment(config).shared_names) and not {"body.5.weight", "body.7.bias"} & set(sent)
        for key, value in sent.items():
            assert np.all(value != received[key]), key
            assert np.all(np.abs(value - received[key]) < 10), "a deviation of 1"


@pytest.mark.parametrize("shared", ["fedavg", "fedbabu"])
def test_buffers_that_are_shared_are_refused_under_clipping(shared):
    experiment = tiny(model_name="tests.own_models:counting", algorithm=shared, clipping_norm=1.0)
    with pytest.raises(InputError, match=r"clipping-norm = 1.0: would spoil body.1.running_mean.*num_batches_tracked"):
        experiment.check()
    tiny(model_name="tests.own_models:counting", algorithm="lg-fedavg", clipping_norm=1.0).check()
    tiny(model_name="tests.own_models:counting", algorithm=shared).check()
