"""Engines as users write them: functions that give a Flower grid; and loggers, functions that give Lightning's."""

import json
from contextlib import contextmanager

from lightning.pytorch.loggers import Logger

from tests.support import FakeGrid

closed: list[str] = []
number = 3


def grid(config):
    return FakeGrid(config, 2)


@contextmanager
def opened(config):
    try:
        yield FakeGrid(config)
    finally:
        closed.append(config.run_name)


def nothing(config):
    return None


def fails(config):
    return 1 / 0


class Lines(Logger):
    """A line of JSON for each round."""

    name = version = "lines"

    def __init__(self, folder):
        super().__init__()
        self.file = folder / "lines.jsonl"

    def log_hyperparams(self, params, *args, **options):
        pass

    def log_metrics(self, metrics, step=None):
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
