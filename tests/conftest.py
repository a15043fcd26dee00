import os
import random
import zlib

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lit_fedbabu.config import Config
from lit_fedbabu.server.federate import federate as federate_on
from lit_fedbabu.tasks.images.task import ImageClassification
from lit_fedbabu.training.experiment import Experiment
from tests.support import BALANCED, FakeGrid, tiny_config, write_tiny_dataset


def pytest_addoption(parser):
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden anew (make golden)")


@pytest.fixture(scope="session", autouse=True)
def machine(tmp_path_factory):
    """A cache of the session's own, and a dataset so small that a federation takes a second."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    tiny_config.dataset = str(write_tiny_dataset(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def same_draws(request):
    """What a test draws is the same in every run; privacy's noise is not, for it comes from the system."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """Figures take a seventh of a small run's time; a test that looks at them has the mark ``pictures``."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(SummaryWriter, "add_figure", lambda *arguments, **options: None)


@pytest.fixture
def federate(tmp_path):
    """Run a whole federation in this process; returns (run folder, grid)."""
    count = 0

    def run(config, grid=None):
        nonlocal count
        count += 1
        grid = grid or FakeGrid(config)
        options = {**config.to_run_config(), "output-dir": str(tmp_path), "run-name": f"run{count}"}
        return federate_on(grid, Experiment(Config.from_run_config(options))), grid

    return run


@pytest.fixture(scope="session")
def finished(machine, tmp_path_factory):
    """The folder of a federation of one round, for tests that leave it as it is."""
    place = {"output_dir": str(tmp_path_factory.mktemp("finished")), "run_name": "run"}
    config = tiny_config(num_server_rounds=1, num_finetune_epochs=2, **place)
    return federate_on(FakeGrid(config), Experiment(config))


@pytest.fixture
def one_core(monkeypatch):
    """Work in this process; that many processes give the same numbers is tested in test_run.py."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture
def cifar_like(monkeypatch):
    """Labels of CIFAR-10's sizes, without its images."""
    monkeypatch.setattr(ImageClassification, "source", BALANCED)
    return Config()
