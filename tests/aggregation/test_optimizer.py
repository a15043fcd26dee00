"""Optimizers of the server, against their equations written out."""

import dataclasses

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.protocol.wire import ClientUpdate
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.federation import read_federation
from lit_fedbabu.server.server_state import ServerRounds
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from tests.server.test_federate import StoppedGrid
from tests.support import NARROW, files_that_decide, tiny, tiny_config


def config_of(**options):
    return tiny_config(
        **{"model_name": NARROW, "num_clients": 3, "fraction_train": 1.0, "num_server_rounds": 3, "evaluate_every": 3}
        | options
    )


def shared_after(folder):
    return read_federation(folder / run_folder.LAST_CHECKPOINT, NARROW).shared


def by_hand(config, move):
    """Rounds in which ``move`` makes new weights of a name, the old ones and the difference to the clients' mean."""
    experiment = Experiment(config)
    state = experiment.initial_shared()
    for server_round in range(1, config.num_server_rounds + 1):
        rate = config.learning_rate_in(server_round)
        updates = [client_update(experiment, client, server_round, state, rate) for client in range(3)]
        total = sum(update.num_train for update in updates)
        means = {name: sum(update.num_train / total * update.state[name] for update in updates) for name in state}
        state = {name: move(name, value, means[name] - value, server_round) for name, value in state.items()}
    return state


def test_momentum_is_a_running_sum_of_differences(federate):
    config = config_of(server_optimizer="momentum", server_learning_rate=0.7, server_momentum=0.5)
    velocity: dict[str, torch.Tensor] = {}

    def move(name, value, difference, server_round):
        velocity[name] = 0.5 * velocity.get(name, torch.zeros_like(value)) + difference
        return value + 0.7 * velocity[name]

    folder, _ = federate(config)
    for name, value in by_hand(config, move).items():
        torch.testing.assert_close(shared_after(folder)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adam_and_yogi_divide_by_the_root_of_a_second_moment(kind, federate):
    config = config_of(server_optimizer=kind, server_learning_rate=0.02, server_momentum=0.8, server_tau=0.01)
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}

    def move(name, value, difference, server_round):
        zero, square = torch.zeros_like(value), difference**2
        first[name] = 0.8 * first.get(name, zero) + 0.2 * difference
        before = second.get(name, zero)
        change = square - before if kind == "adam" else square * torch.sign(square - before)
        second[name] = before + 0.01 * change
        # Flower corrects Adam's bias, a round further than Kingma and Ba do, and leaves Yogi's as it is.
        correction = (1 - 0.99 ** (server_round + 1)) ** 0.5 / (1 - 0.8 ** (server_round + 1)) if kind == "adam" else 1
        return value + 0.02 * correction * first[name] / (second[name].sqrt() + 0.01)

    folder, _ = federate(config)
    for name, value in by_hand(config, move).items():
        torch.testing.assert_close(shared_after(folder)[name], value, rtol=1e-4, atol=1e-5)


def test_a_whole_step_without_momentum_is_the_plain_mean(federate):
    plain, _ = federate(config_of())
    whole, _ = federate(config_of(server_optimizer="momentum", server_learning_rate=1.0, server_momentum=0.0))
    for name, value in shared_after(plain).items():
        assert torch.equal(shared_after(whole)[name], value), name


def test_running_statistics_are_the_clients_mean(federate):
    options = {"norm": "batch-running", "num_server_rounds": 1, "evaluate_every": 1, "algorithm": "fedavg"}
    plain, _ = federate(config_of(**options))
    adam, _ = federate(config_of(**options, server_optimizer="adam"))
    theirs, ours = shared_after(plain), shared_after(adam)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) == ("running" in name or "num_batches" in name), name
        assert ours[name].dtype == value.dtype


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_a_stopped_run_goes_on_with_the_moments_that_it_had(kind, federate):
    config = config_of(server_optimizer=kind)
    whole, _ = federate(config)
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 3))
    stopped = whole.parent / "run2"
    moments = sorted(path.name for path in (stopped / run_folder.SERVER).glob("*.safetensors"))
    assert moments == ["round_0001.safetensors", "round_0002.safetensors"]
    federate(dataclasses.replace(config, resume=str(stopped)))
    assert files_that_decide(stopped) == files_that_decide(whole)
    kept = {path.name: path.read_bytes() for path in (whole / run_folder.SERVER).iterdir()}
    assert kept == {path.name: path.read_bytes() for path in (stopped / run_folder.SERVER).iterdir()}


@pytest.mark.parametrize("harm", ["deleted", "changed"])
def test_moments_that_are_not_those_of_the_run_are_refused(harm, federate, tmp_path):
    config = config_of(server_optimizer="yogi")
    with pytest.raises(KeyboardInterrupt):
        federate(config, StoppedGrid(config, "train", 3))
    stopped = tmp_path / "run1"
    path = stopped / run_folder.SERVER / "round_0002.safetensors"
    if harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    words = "is missing" if harm == "deleted" else "was changed"
    with pytest.raises(InputError, match=f"server/round_0002.safetensors {words}"):
        federate(dataclasses.replace(config, resume=str(stopped)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match='server-optimizer = "adam": local shares nothing with a server; take none'):
        Experiment(tiny_config(algorithm="local", server_optimizer="adam")).check()
    with pytest.raises(InputError, match='server-optimizer = "sgd": must be one of none, momentum, adam, yogi'):
        Config(server_optimizer="sgd")


def test_moments_that_are_not_finite_end_the_run_in_a_line(tmp_path):
    experiment = tiny(server_optimizer="momentum")
    server = ServerRounds(experiment, tmp_path, 0)
    before = ArrayRecord({name: Array(value.numpy()) for name, value in experiment.initial_shared().items()})
    arrays = {name: np.full_like(array.numpy(), np.inf) for name, array in before.items()}
    with pytest.raises(RunError, match="round 1: the server: what it keeps is not finite"):
        server.combine(1, before, [ClientUpdate(0, 1, 0.5, arrays)])
