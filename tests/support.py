import copy
import hashlib
import json
import random
import time

import datasets
import numpy as np
import psutil
import torch
from flwr.app import Context, Error, Message, RecordDict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_fedbabu import client_app
from lit_fedbabu.client.numpy_client import FedBABUClient
from lit_fedbabu.config import Config
from lit_fedbabu.ground.compat import identify_process
from lit_fedbabu.learning.models import BodyAndHead, build_model
from lit_fedbabu.personal.sweep import Personalizer, Tuning
from lit_fedbabu.records.results import results
from lit_fedbabu.records.run_folder import FAILURES, RESULTS
from lit_fedbabu.tasks.images.sources import Source
from lit_fedbabu.tasks.images.tables import Split
from lit_fedbabu.tasks.images.task import ImageClassification
from lit_fedbabu.tasks.images.transforms import augment, normalize
from lit_fedbabu.training.experiment import Experiment


def write_tiny_dataset(folder):
    """Ten classes of noise around a colour of their own, 24 training and 10 test images each, as parquet files."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 25, (10, 1, 1, 3))
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
    for split, count in (("train", 24), ("test", 10)):
        labels = list(range(10)) * count
        images = [(colours[label] + rng.integers(0, 230, (32, 32, 3))).astype(np.uint8) for label in labels]
        rows = {"img": [Image.fromarray(image) for image in images], "label": labels}
        path = folder / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return folder


def tiny_config(**changes):
    """Six clients of the tiny dataset, two rounds."""
    options = {
        "dataset": tiny_config.dataset,
        "num_clients": 6,
        "num_server_rounds": 2,
        "num_local_epochs": 1,
        "fraction_train": 0.5,
        "batch_size": 10,
        "num_finetune_epochs": 1,
        "num_etf_turns": 0,
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
        identify_process()
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
            replies.append(self.answer(message, self.contexts[node]))
        self.messages += messages
        self.replies += map(copy.deepcopy, replies)  # whose arrays leave them as they are read
        if self.shuffle:
            self.random.shuffle(replies)
        return replies

    def answer(self, message, context) -> Message:
        return client_app.app(message, context)


def failing(monkeypatch, whom, how=None):
    """Let ``whom(client, server_round)`` raise while training, or send what ``how`` makes of its arrays."""
    fit = FedBABUClient.fit

    def broken(self, parameters, order):
        arrays, count, told = fit(self, parameters, order)
        if not whom(self.client, order["server-round"]):
            return arrays, count, told
        if how is None:
            raise RuntimeError("boom")
        return how(arrays), count, told

    monkeypatch.setattr(FedBABUClient, "fit", broken)


def least_rounds(algorithm):
    """How many rounds a run of the method has at least: the first one of FedDBE measures alone."""
    return 1 + (algorithm == "feddbe")


def ours(folder):
    """Processes of Flower whose home is in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.environ().get("FLWR_HOME", ""):
                found.append(process)
        except psutil.Error:
            pass
    return found


def of_folder(temp):
    """Processes whose temporary folder this is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(temp):
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_for(look, seconds):
    """What a look finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def unavailable(message):
    """What Flower answers for a node that sends no heartbeat: the answer comes from Flower, and names no node."""
    reply = Message(Error(code=5, reason="Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def state_digest(state):
    """A short digest of names, shapes and bits of a state: equal exactly if the weights are."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


BALANCED = Source(
    train=Split(np.empty((50_000, 0)), np.arange(50_000) % 10),
    test=Split(np.empty((10_000, 0)), np.arange(10_000) % 10),
    class_names=tuple("abcdefghij"),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


def counts(parts, labels):
    return np.stack([np.bincount(labels[part], minlength=10) for part in parts])


def batches(experiment, client, server_round):
    """The batches that a client sees in a round, drawn as the specification says: order, then augmentation.

    Returns a function that yields those of so many epochs more.
    """
    config = experiment.config
    seed = config.derived_seed("train", server_round, client)
    data = experiment.client_data(client, seed)
    augmentation = torch.Generator().manual_seed(seed + 1)

    def more(epochs):
        for _ in range(epochs):
            for images, labels in data.train_dataloader():
                augmented = augment(images, config.augmentation, augmentation)
                yield normalize(augmented, *data.constants), labels

    return more


def model_by_hand(experiment):
    """The initial model, built without the package's own path to it."""
    torch.set_num_threads(experiment.config.num_threads)
    model = build_model(experiment.config.model_name, 10, experiment.config.derived_seed("model"))
    return model.to(memory_format=torch.channels_last)


NARROW = "tests.support:narrow_model"


def write_study(tmp_path, **options):
    """A study of two methods and two seeds on the tiny dataset; returns its file and its folder."""
    base = {
        key: value
        for key, value in tiny_config(model_name=NARROW).to_run_config().items()
        if value != Config().to_run_config()[key]
    }
    base |= {"algorithm": ["fedbabu", "fedper"], "seed": [1, 2], "output-dir": str(tmp_path / "out")}
    base |= {key.replace("_", "-"): value for key, value in options.items()}
    path = tmp_path / "study.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in base.items()))
    return path, tmp_path / "out" / "study"


def narrow_model(num_classes, norm, channels):
    """A model of a user's own, so small that a step takes a millisecond."""
    convolution = torch.nn.Conv2d(channels, 8, kernel_size=3, stride=4)
    body = torch.nn.Sequential(convolution, norm(8), torch.nn.ReLU(), torch.nn.Flatten())
    return BodyAndHead(body, torch.nn.Linear(512, num_classes))


def plain_model(num_classes, norm, channels):
    """The same without normalization layers."""
    body = torch.nn.Sequential(torch.nn.Conv2d(channels, 8, kernel_size=3, stride=4), torch.nn.Flatten())
    return BodyAndHead(body, torch.nn.Linear(512, num_classes))


def partition(config):
    """Which images each client has."""
    return ImageClassification(config).partition


def client_data(config, client, seed=0, **options):
    """The data of a client."""
    return ImageClassification(config).client_data(client, seed, **options)


def tiny(**changes):
    """The experiment of ``tiny_config``."""
    return Experiment(tiny_config(**changes))


def finetuned(federation, clients, config=None):
    """The content of the results.json of a fine-tuning of these clients."""
    config = config or federation.config
    personalizer = Personalizer(Experiment(config), federation, [Tuning(config, None)])
    rows = [personalizer.personalize(0, [client])[0] for client in clients]
    return results(config, federation.rounds, rows)


LISTS = {f"{name}_bin_{kind}" for name in ("initial", "personalized") for kind in ("images", "hits", "confidence")}
"""Those that are lists."""
MEASURES = {f"accuracy_epoch_{epoch}" for epoch in range(2)} | {
    f"{name}_{kind}"
    for name in ("initial", "personalized")
    for kind in ("accuracy", "loss", "calibration_error", "template_accuracy", "other_classes_accuracy", "f1", "auroc")
}
"""Entries of a client in results.json, for one epoch of fine-tuning, beside its number and that of its images."""


def files_that_decide(folder):
    """Checkpoints and results, byte for byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in [*folder.glob("checkpoints/*"), *folder.glob("memory/*/*.safetensors"), folder / RESULTS]
    }


def curves(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in ("time/seconds_per_round", "communication/bytes_down")  # the latter grows with the nodes
    }


def failures_of(folder):
    return [json.loads(line) for line in (folder / FAILURES).read_text().splitlines()]
