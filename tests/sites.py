"""Sites: nodes that have images of their own."""

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from PIL import Image

from lit_fedbabu.config import Config
from tests.support import NARROW, FakeGrid

SITES = 3
MODEL = ["--model-name", NARROW]
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_site(folder, classes, count=12):
    """An image folder of noisy colours: ``train/red/0.png`` and so on."""
    rng = np.random.default_rng(sum(map(ord, str(folder.name))))
    for split in ("train", "test"):
        for name in classes:
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 56, (32, 32, 3)) + np.array(COLOURS[name])
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return folder


def site_config(tmp_path, **changes):
    options = {
        "dataset": "colours",
        "partitioner": "sites",
        "class_names": "red,green,blue",
        "normalization": "imagenet",
        "num_clients": SITES,
        "fraction_train": 1.0,
        "num_server_rounds": 2,
        "num_local_epochs": 1,
        "num_finetune_epochs": 1,
        "batch_size": 10,
        "learning_rate": 0.05,
        "evaluate_every": 1,
        "precision": "32-true",
        "model_name": NARROW,
        "output_dir": str(tmp_path / "server"),
        "run_name": "run",
    }
    return Config(**{**options, **changes})


class Sites(FakeGrid):
    """A grid of nodes with these node-configs; what a node raises comes back as Flower's SuperNodes send it."""

    def __init__(self, config, node_configs):
        super().__init__(config, len(node_configs))
        run_config = config.to_run_config()
        self.contexts = {
            node: Context(1, node, own, RecordDict(), run_config)
            for node, own in zip(self.contexts, node_configs, strict=True)
        }

    def answer(self, message, context):
        try:
            return super().answer(message, context)
        except Exception as error:
            return Message(Error(code=1, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
