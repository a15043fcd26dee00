"""A cluster: nodes that host their share of the clients, with what these keep on disks of their own."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from lit_fedbabu.finetune import main as finetune
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.results import read_results
from lit_fedbabu.server.federate import federate as federate_on
from lit_fedbabu.training.experiment import Experiment
from tests.sites import Sites
from tests.support import NARROW, FakeGrid, files_that_decide, tiny_config

NODES = 2


@pytest.fixture
def disks(tmp_path):
    """Node-configs of a cluster: a place, and a disk of its own."""
    return [
        {"partition-id": place, "num-partitions": NODES, "state-path": str(tmp_path / f"disk{place}")}
        for place in range(NODES)
    ]


def in_folder(tmp_path, **changes):
    return tiny_config(model_name=NARROW, algorithm="fedper", output_dir=str(tmp_path), **changes)


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_machine_with_memories_on_the_nodes(tmp_path, disks, federate, capsys):
    whole, _ = federate(tiny_config(model_name=NARROW, algorithm="fedper"))
    config = in_folder(tmp_path, run_name="cluster")
    folder = federate_on(Sites(config, disks), Experiment(config))
    assert not (folder / run_folder.MEMORY).exists()
    kept: dict[Path, bytes] = {}
    for place, disk in enumerate(disks):
        (memory,) = (tmp_path / f"disk{place}").glob(f"cluster-*/{run_folder.MEMORY}")
        numbers = {int(each.name.removeprefix("client_")) for each in memory.iterdir()}
        assert numbers and all(number % NODES == place for number in numbers), disk
        kept |= {path.relative_to(memory): path.read_bytes() for path in memory.glob("*/*.safetensors")}
    alone = whole / run_folder.MEMORY
    assert kept == {path.relative_to(alone): path.read_bytes() for path in alone.glob("*/*.safetensors")}
    of_whole = {name: value for name, value in files_that_decide(whole).items() if not name.startswith("memory")}
    assert files_that_decide(folder) == of_whole
    assert finetune([str(folder), "--model-name", NARROW]) == 2
    assert "copy every node's STATE_PATH/RUN/memory into the run's folder" in capsys.readouterr().err
    for place in range(NODES):
        (memory,) = (tmp_path / f"disk{place}").glob(f"cluster-*/{run_folder.MEMORY}")
        shutil.copytree(memory, folder / run_folder.MEMORY, dirs_exist_ok=True)
    assert finetune([str(folder), "--model-name", NARROW]) == 0
    (tuned,) = folder.glob("finetune/*")
    assert read_results(tuned)["clients"] == read_results(folder)["clients"]


def test_a_cluster_is_resumed_from_the_memories_on_its_nodes(tmp_path, disks, federate, monkeypatch):
    whole, _ = federate(tiny_config(model_name=NARROW, algorithm="fedper", num_server_rounds=3))
    config = in_folder(tmp_path, run_name="cluster", num_server_rounds=3)

    class Stops(Sites):
        def send_and_receive(self, messages, *, timeout=None):
            if len(self.messages) > 5:
                raise KeyboardInterrupt
            return super().send_and_receive(messages, timeout=timeout)

    with pytest.raises(KeyboardInterrupt):
        federate_on(Stops(config, disks), Experiment(config))
    resumed = dataclasses.replace(config, resume=str(tmp_path / "cluster"))
    folder = federate_on(Sites(resumed, disks), Experiment(resumed))
    assert read_results(folder) == read_results(whole)


def test_a_cluster_with_and_without_disks_is_refused(tmp_path, disks):
    del disks[1]["state-path"]
    config = in_folder(tmp_path, run_name="cluster")
    with pytest.raises(RunError, match="nodes 1 have no state-path, and others have"):
        federate_on(Sites(config, disks), Experiment(config))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_what_a_round_costs_on_the_wire_follows_the_formula(nodes, federate):
    """The formula of docs/cluster.md: shared bytes, once for every node that is asked and every client that answers."""
    config = tiny_config(model_name=NARROW, num_server_rounds=1, evaluate_every=1)
    grid = FakeGrid(config, nodes)
    experiment = Experiment(config)
    federate(config, grid)
    shared = sum(value.numpy().nbytes for value in experiment.initial_shared().values())
    asked = [message for message in grid.messages if message.metadata.message_type == "train"]
    answers = [reply for message, reply in zip(grid.messages, grid.replies, strict=True) if message in asked]

    def sent(messages):
        return sum(array.numpy().nbytes for each in messages for array in each.content["arrays"].values())

    clients = [client for message in asked for client in message.content["config"]["clients"]]
    assert len(clients) == config.clients_per_round
    assert sent(asked) == shared * len({client % nodes for client in clients})
    assert sent(answers) == shared * len(clients)
