import itertools
from types import SimpleNamespace

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import select
from lit_fedbabu.protocol.wire import ClientUpdate, TrainReply
from lit_fedbabu.records import run_folder
from lit_fedbabu.records.progress import Lines
from lit_fedbabu.server.sampling import participants
from lit_fedbabu.server.strategy import SharedParts
from lit_fedbabu.training import client_update as update
from lit_fedbabu.training.experiment import Experiment
from tests.support import (
    FakeGrid,
    tiny,
    tiny_config,
)


def test_the_average_is_over_clients_weighted_by_their_images(federate):
    config = tiny_config(partitioner="dirichlet", dirichlet_alpha=2.0, num_server_rounds=1)
    folder, grid = federate(config, FakeGrid(config, 2))
    initial = Experiment(config).new_module().model.state_dict()
    received = {name: value.clone() for name, value in select(initial, ["body"]).items()}
    updates = [update.client_update(Experiment(config), client, 1, received, 0.1) for client in participants(config, 1)]
    assert len({count for _, count, *_ in updates}) > 1
    total = sum(count for _, count, *_ in updates)
    final = LitFedBABU.load_from_checkpoint(folder / run_folder.LAST_CHECKPOINT).model.state_dict()
    for name in received:
        mean = sum(count * state[name].double() for state, count, *_ in updates) / total
        assert torch.equal(final[name], mean.float()), name


def test_clients_are_summed_in_the_order_of_their_numbers(tmp_path):
    config = tiny_config()
    board = SimpleNamespace(round=lambda *_: None)
    strategy = SharedParts(Experiment(config), [7], tmp_path, str(tmp_path), board, None, Lines())
    clients = participants(config, 1)
    identify_process()
    strategy.configure_train(1, ArrayRecord({"w": Array(np.zeros(1, np.float32))}), ConfigRecord(), None)
    # In float64, 2^60 + 1 is 2^60: the sum is 0 in this order and 1 if the 1 comes last.
    values = dict(zip(clients, np.float32([2.0**60, 1.0, -(2.0**60)]), strict=True))
    asked = Message(RecordDict(), 7, "train")

    def reply(client):
        trained = ClientUpdate(client, 1, 0.5, {"w": values[client].reshape(1)})
        return Message(TrainReply([trained]).to_record(), reply_to=asked)

    for order in itertools.permutations(clients):
        arrays, _ = strategy.aggregate_train(1, [reply(client) for client in order])
        assert arrays["w"].numpy().tolist() == [0.0]


def test_arrays_keep_their_names_and_types_on_the_wire():
    state = tiny().new_module().model.state_dict()
    record = ArrayRecord({name: Array(value.contiguous().numpy()) for name, value in state.items()})
    assert all(np.array_equal(record[name].numpy(), value.numpy()) for name, value in state.items())
    assert {record[name].dtype for name in state} == {"float32"}
