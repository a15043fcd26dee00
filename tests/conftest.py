import os
import random

import pytest
from flwr.app import Context, Message, RecordDict

from lit_fedbabu import client_app, server_app
from lit_fedbabu.config import Config


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Decoded images go to a folder of the test session, not to the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def tiny_config(**changes):
    """Six clients of the digits, two rounds: seconds."""
    options = {
        "dataset": "digits",
        "num_clients": 6,
        "num_server_rounds": 2,
        "num_local_epochs": 1,
        "fraction_train": 0.5,
        "num_finetune_epochs": 1,
        "evaluate_every": 1,
        "precision": "32-true",
        "weight_decay": 0.01,
    }
    return Config(**{**options, **changes})


class FakeGrid:
    """Flower's Grid in this process: real messages through the real ClientApp, without transport.

    Node ids are random, as in Flower. ``messages`` and ``replies`` keep all that went over the wire.
    """

    def __init__(self, config, nodes=1, shuffle=False, run_config=None):
        self.random = random.Random(nodes)
        ids = [self.random.getrandbits(60) for _ in range(nodes)]
        run_config = run_config or config.to_run_config()
        self.contexts = {
            node: Context(1, node, {"partition-id": place, "num-partitions": nodes}, RecordDict(), run_config)
            for place, node in enumerate(ids)
        }
        self.shuffle = shuffle
        self.messages, self.replies = [], []

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_src_node_id"] = 1
            replies.append(self.answer(message, self.contexts[node]))
        self.messages += messages
        self.replies += replies
        if self.shuffle:
            self.random.shuffle(replies)
        return replies

    def answer(self, message, context) -> Message:
        return client_app.app(message, context)


@pytest.fixture
def federate(tmp_path):
    """Run a whole federation in this process; returns (run folder, grid)."""
    count = 0

    def run(config, grid=None):
        nonlocal count
        count += 1
        grid = grid or FakeGrid(config)
        options = {**config.to_run_config(), "output-dir": str(tmp_path), "run-name": f"run{count}"}
        return server_app.federate(grid, Config.from_run_config(options)), grid

    return run
