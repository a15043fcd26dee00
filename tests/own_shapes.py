"""Modules of many shapes, as a test draws them, and modules that a checkpoint cannot bring back."""

import enum
import os
import pathlib

import lightning as L
import numpy as np
import torch
from torch import nn

from lit_fedbabu import Task
from tests.own_tasks import KINDS, SENSORS, Sensors

WIDTH = 4


class Shaped(L.LightningModule):
    """A classifier whose shape its hyper-parameters say.

    Args:
        backbone: in no part and frozen: "none", "drawn" from the seed, or "file", read from the file FILE names.
        head: whether it has one.
        norm: batch norm with running statistics in the body.
        buffers: "none", "state" or "scratch" (not persistent, from the file too): buffers that its outputs depend on.
        tied: two layers of the body are one.
        teacher: a frozen copy of the body, in no part, that its outputs depend on.
        late: layers are made in configure_model.
        lr: of SGD.
    """

    def __init__(
        self, backbone="none", head=True, norm=False, buffers="none", tied=False, teacher=False, late=False, lr=0.05
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net = None
        if not late:
            self.configure_model()

    def configure_model(self):
        if self.net is not None:
            return
        self.net = nn.ModuleDict()
        self.net["backbone"] = nn.Sequential(nn.Linear(SENSORS, SENSORS), nn.Tanh()).requires_grad_(False)
        if self.hparams.backbone == "file":
            self.net["backbone"].load_state_dict(torch.load(os.environ["FILE"], weights_only=True))
        self.net["first"] = nn.Sequential(nn.Linear(SENSORS, WIDTH), *[nn.BatchNorm1d(WIDTH)] * self.hparams.norm)
        self.net["second"] = nn.Linear(WIDTH, WIDTH)
        self.net["third"] = self.net["second"] if self.hparams.tied else nn.Linear(WIDTH, WIDTH)
        self.net["teacher"] = nn.Linear(SENSORS, WIDTH).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))
        for place in (self, self.net["second"]):
            if self.hparams.buffers != "none":
                offset = torch.randn(WIDTH)
                if self.hparams.buffers == "scratch":
                    offset = torch.load(os.environ["FILE"], weights_only=True)["0.bias"][:WIDTH].clone()
                place.register_buffer("offset", offset, persistent=self.hparams.buffers == "state")
        self.classifier = nn.Linear(WIDTH, KINDS).requires_grad_(self.hparams.head)

    def forward(self, windows):
        inputs = windows if self.hparams.backbone == "none" else self.net["backbone"](windows)
        features = self.net["third"](torch.relu(self.net["second"](torch.relu(self.net["first"](inputs)))))
        if self.hparams.buffers != "none":
            features = features + self.offset * self.net["second"].offset
        if self.hparams.teacher:
            features = features + self.net["teacher"](windows)
        return {"logits": self.classifier(features) * self.scale, "features": features}

    def training_step(self, batch, batch_idx):
        return {"loss": nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])}

    def test_step(self, batch, batch_idx):
        logits = self(batch[0])["logits"]
        self.log("test_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("test_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=self.hparams.lr)


def shaped(**shape):
    """The task of a shape."""
    body = ("net.first", "net.second", "net.third")
    head = ("classifier", "scale") if shape.get("head", True) else ()
    body = body if head else (*body, "scale")
    return Task(lambda: Shaped(**shape), Sensors, score="test_accuracy", body=body, head=head)


task = shaped()


class Kind(enum.Enum):
    ONE = 1


class Given(Shaped):
    def __init__(self, given=None):
        super().__init__()
        self.save_hyperparameters()


class Saves(Shaped):
    what: object = None

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = {"good": [1.0], "best": self.what}


def saving(what):
    module = Saves()
    module.what = what
    return module


class Unseeded(Shaped):
    def configure_model(self):
        super().configure_model()
        with torch.no_grad():
            self.net["backbone"][0].bias.fill_(int.from_bytes(os.urandom(2), "big"))


class Sets(Shaped):
    """Reads its pretrained weights where a Trainer starts."""

    def setup(self, stage):
        with torch.no_grad():
            self.net["first"][0].bias.fill_(1.0)


class Remembers(Shaped):
    """Its outputs depend on a number that training changes, and that is no buffer."""

    offset = 0.0

    def training_step(self, batch, batch_idx):
        self.offset += 1.0
        return super().training_step(batch, batch_idx)

    def forward(self, windows):
        found = super().forward(windows)
        return {**found, "logits": found["logits"] * (1 + self.offset)}


class Drops(Shaped):
    """Keeps its backbone out of checkpoints, which its code brings back."""

    def __init__(self):
        super().__init__(backbone="file")

    def on_save_checkpoint(self, checkpoint):
        for name in [each for each in checkpoint["state_dict"] if "backbone" in each]:
            del checkpoint["state_dict"][name]


class Masked(Shaped):
    def configure_model(self):
        super().configure_model()
        if not hasattr(self.net["second"], "mask"):
            self.net["second"].register_buffer("mask", torch.full((2,), -torch.inf))


class Unsaved(Shaped):
    """Cannot be made from its checkpoint alone."""

    def __init__(self, width):
        L.LightningModule.__init__(self)
        self.save_hyperparameters(ignore=["width"])
        self.hparams.update({"backbone": "none", "head": True, "norm": False, "buffers": "none", "tied": False,
                             "teacher": False, "lr": 0.05})  # fmt: skip
        self.net = None
        self.configure_model()


def _of(module, *given):
    body = ("net.first", "net.second", "net.third")
    return Task(lambda: module(*given), Sensors, score="test_accuracy", body=body, head=("classifier", "scale"))


enumerated, placed, called = _of(Given, Kind.ONE), _of(Given, pathlib.Path("here")), _of(Given, torch.relu)
numbered, weighed = _of(Given, np.float32(0.5)), _of(Given, torch.ones(2))
saves_numpy, saves_object = _of(saving, np.float64(0.5)), _of(saving, Kind.ONE)
unseeded, sets, remembers, masked = _of(Unseeded), _of(Sets), _of(Remembers), _of(Masked)
drops, unsaved = _of(Drops), _of(Unsaved, 3)
adapters = shaped(head=False)
