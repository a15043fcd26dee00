"""Tasks of users: modules and data that were written without knowing of the package. ``tests.own_tasks:name``."""

import itertools
import os
import threading

import lightning as L
import torch
import torchmetrics
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset

from lit_fedbabu import Task

SENSORS, KINDS = 6, 3


class Windows(L.LightningModule):
    """A classifier of sensor windows with batch norm, dropout, AdamW with weight decay, and a schedule by step."""

    def __init__(self, width=8, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(SENSORS, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, KINDS)
        self.f1 = torchmetrics.F1Score(task="multiclass", num_classes=KINDS, average="macro")

    def forward(self, windows):
        return self.head(self.body(windows))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("test_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.f1(logits, batch[1])
        self.log("test_f1", self.f1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Sensors(L.LightningDataModule):
    """A person's windows; each person lacks a kind."""

    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.client, self.seed = client, seed

    def setup(self, stage):
        kinds = torch.randn(SENSORS, KINDS, generator=torch.Generator().manual_seed(self.seed))
        own = torch.Generator().manual_seed(1000 * self.seed + self.client)
        windows = torch.randn(60 + self.client, SENSORS, generator=own)
        labels = (windows @ kinds).argmax(1)
        kept = labels != self.client % KINDS
        windows, labels = windows[kept], labels[kept]
        self.train, self.test = TensorDataset(windows[:24], labels[:24]), TensorDataset(windows[24:], labels[24:])

    def train_dataloader(self):
        return DataLoader(self.train, 8, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.test, 32)


class Unfreezes(Windows):
    """Sets all of its weights free in every batch."""

    def on_train_batch_start(self, batch, batch_idx):
        self.requires_grad_(True)


class Moves(Windows):
    """Moves all of its weights by hand after every batch."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for weight in self.parameters():
                weight.add_(1.0)


class Drawn(Sensors):
    """Splits its windows by the global generator."""

    def setup(self, stage):
        super().setup(stage)
        everything: ConcatDataset[tuple[torch.Tensor, ...]] = ConcatDataset([self.train, self.test])
        self.train, self.test = torch.utils.data.random_split(everything, [0.7, 0.3])


class Regression(L.LightningModule):
    """A regression whose parts have names of their own, without a hyper-parameter for its rate."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"encoder": nn.Linear(SENSORS, 4), "readout": nn.Linear(4, 1)})
        self.scale = nn.Parameter(torch.ones(()))

    def _loss(self, batch):
        outputs = self.net["readout"](torch.tanh(self.net["encoder"](batch[0]))).squeeze(1) * self.scale
        return nn.functional.mse_loss(outputs, batch[1].float())

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def test_step(self, batch, batch_idx):
        self.log("test/error", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Empty(Sensors):
    def setup(self, stage):
        super().setup(stage)
        if self.client == 2:
            self.test = TensorDataset(*(each[:0] for each in self.test.tensors))


class Single(Sensors):
    """Client 3 has one window more than fits into its batches."""

    def setup(self, stage):
        super().setup(stage)
        if self.client == 3:
            self.train = TensorDataset(*(each[:17] for each in self.train.tensors))


class Headless(Windows):
    def __init__(self):
        super().__init__()
        self.classifier = self.head
        del self.head


class Tied(Windows):
    def __init__(self):
        super().__init__()
        self.body.append(nn.Linear(8, 8))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, KINDS))
        self.head[0].weight = self.body[-1].weight


class Extra(Windows):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


class Fails(Windows):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("shapes do not fit")


class HeadOnly(Windows):
    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class Plain(Windows):
    """Without dropout and schedule, by plain SGD."""

    def __init__(self, lr=0.01):
        super().__init__(lr=lr)
        self.body[-1].p = 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class ByHand(Plain):
    """The same with an optimizer for each part, whose steps it takes itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=self.hparams.lr) for part in (self.body, self.head)]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss


class Untold(ByHand):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


class Bags(Plain):
    """Its gradients of the body are sparse, or not."""

    def __init__(self, sparse=True):
        super().__init__()
        self.body = nn.EmbeddingBag(9, 8, sparse=sparse)

    def forward(self, windows):
        return super().forward(windows.clamp(-4, 4).long() + 4)


class Configured(Windows):
    """Makes its layers in configure_model."""

    def __init__(self):
        super().__init__()
        self.body = self.head = None

    def configure_model(self):
        if self.body is None:
            self.body, self.head = Windows().body, Windows().head


class Normed(Windows):
    """Has a weight that is computed from others, by which a module cannot be copied."""

    def __init__(self):
        super().__init__()
        torch.nn.utils.weight_norm(self.body[0])


class Replaces(Windows):
    def setup(self, stage):
        self.head = nn.Linear(8, KINDS)


class Grows(Windows):
    def __init__(self):
        super().__init__()
        self.body.register_buffer("means", torch.zeros(0))

    def on_train_batch_start(self, batch, batch_idx):
        self.body.means = torch.cat([self.body.get_buffer("means"), batch[0].mean(0)])


class Outside(Windows):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(SENSORS, affine=False)

    def forward(self, windows):
        return super().forward(self.norm(windows))


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"calls": 1}


class HasExtraState(Windows):
    def __init__(self):
        super().__init__()
        self.head = Stateful(8, KINDS)


class Locked(Windows):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class LogsTwice(Windows):
    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        self.log("f1", 1.0)


class LogsSteps(Windows):
    def test_step(self, batch, batch_idx):
        self.log("test_f1", 1.0, on_step=True, on_epoch=True)


class LogsOfSome(Windows):
    """Logs a measure of kinds that not everyone has; its score is no number for client 1."""

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        client = self.trainer.datamodule.client
        self.log("test_recall", float("nan") if client == 1 else 1.0)
        self.log(f"test_of_{client}", float(client))


class Rates(Regression):
    """Its hyper-parameter lr is no number."""

    def __init__(self, lr=None):
        super().__init__()
        self.save_hyperparameters()


class Several(Sensors):
    """Two loaders, of 3 and 6 batches."""

    def train_dataloader(self):
        return {size: DataLoader(self.train, size) for size in (8, 4)}


class Drops(Sensors):
    def train_dataloader(self):
        return DataLoader(self.train, 25 if self.client == 2 else 8, drop_last=True)


class Averages(L.Callback):
    """Ends a fit with other weights than its last batch."""

    def on_train_end(self, trainer, module):
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(0.5)


class Stops(L.Callback):
    """Ends the training of client 0 after an epoch."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.datamodule.client == 0


def newcomer():
    """Windows of a person who had no part."""
    return Sensors(client=77, num_clients=4, seed=42)


class Toggles(ByHand):
    """An optimizer for each part, the other part switched off meanwhile."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        return loss


class Writes(Windows):
    """Uses its logger by hand, as that of TensorBoard and of other services, and files beside it."""

    def on_fit_start(self):
        for logger in self.loggers:
            logger.log_hyperparams(self.hparams)
        assert isinstance(self.logger, TensorBoardLogger)
        self.logger.watch(self)
        self.logger.experiment.config.update({"width": 8})
        for folder in (self.logger.log_dir, self.logger.save_dir, self.trainer.log_dir, self.logger.experiment.dir):
            with open(os.path.join(folder, "notes.txt"), "a") as file:
                file.write(f"{self.logger.name} {self.logger.version}")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.logger.experiment.add_histogram("own", self.head.weight, self.global_step)
        self.logger.log_metrics({"own": loss.item()}, step=self.global_step)
        return loss


class Keeps(Windows):
    """Brings its own ModelCheckpoint."""

    def configure_callbacks(self):
        return callbacks.ModelCheckpoint(monitor="train_loss")


class Hooked(Windows):
    """Its hook holds the module."""

    def __init__(self):
        super().__init__()
        self.seen = 0

        def count(layer, inputs):
            self.seen += 1

        self.body.register_forward_pre_hook(count)


class Late(Windows):
    def on_fit_start(self):
        self.body[0].requires_grad_(False)


class LateBody(Windows):
    def on_fit_start(self):
        self.body.requires_grad_(False)


class Untested(Windows):
    test_step = L.LightningModule.test_step


class Silent(Plain):
    def training_step(self, batch, batch_idx):
        return None


class Teaches(Windows):
    """A teacher outside of the parts that follows its body."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(SENSORS, 8).requires_grad_(False)

    def on_before_zero_grad(self, optimizer):
        with torch.no_grad():
            self.teacher.weight.lerp_(self.body[0].weight, 0.5)


class Stream(IterableDataset[tuple[torch.Tensor, ...]]):
    def __init__(self, rows, endless):
        self.rows, self.endless = rows, endless

    def __iter__(self):
        places = itertools.cycle(range(len(self.rows))) if self.endless else range(len(self.rows))
        return (self.rows[place] for place in places)


class Streamed(Sensors):
    """Does not know how many windows it has."""

    endless = False

    def train_dataloader(self):
        return DataLoader(Stream(self.train, self.endless), 8)


class Endless(Streamed):
    endless = True


class Elsewhere(nn.Module):
    """Of the other package of Lightning's."""


Elsewhere.__module__ = "pytorch_lightning.core"
NAMES = {"body": ("net.encoder",), "head": ("net.readout", "scale")}
windows = Task(Windows, Sensors, score="test_f1")
moves = Task(Moves, Sensors, score="test_f1")
drawn = Task(Windows, Drawn, score="test_f1")
unfreezes = Task(Unfreezes, Sensors, score="test_f1")
regression = Task(Regression, Sensors, score="test/error", higher_is_better=False, **NAMES)
empty = Task(Windows, Empty, score="test_f1")
single = Task(Windows, Single, score="test_f1")
headless = Task(Headless, Sensors, score="test_f1")
tied = Task(Tied, Sensors, score="test_f1")
extra = Task(Extra, Sensors, score="test_f1")
fails = Task(Fails, Sensors, score="test_f1")
head_only = Task(HeadOnly, Sensors, score="test_f1")
not_logged = Task(Windows, Sensors, score="test_accuracy")
no_task = Windows


class AsObject:
    """A task that is no ``Task``, and imports nothing of this package."""

    score, higher_is_better, body = "test_f1", True, ("body",)

    def module(self):
        return Windows()

    def data(self, client, num_clients, seed):
        return Sensors(client, num_clients, seed)


class Half:
    module, score = Windows, "test_f1"


as_object, half = AsObject(), Half()
plain = Task(Plain, Sensors, score="test_f1")
by_hand = Task(ByHand, Sensors, score="test_f1")
sparse = Task(Bags, Sensors, score="test_f1")
dense = Task(lambda: Bags(sparse=False), Sensors, score="test_f1")
untold = Task(Untold, Sensors, score="test_f1")
configured = Task(Configured, Sensors, score="test_f1")
normed = Task(Normed, Sensors, score="test_f1")
replaces = Task(Replaces, Sensors, score="test_f1")
grows = Task(Grows, Sensors, score="test_f1")
outside = Task(Outside, Sensors, score="test_f1")
extra_state = Task(HasExtraState, Sensors, score="test_f1")
locked = Task(Locked, Sensors, score="test_f1")
logs_twice = Task(LogsTwice, Sensors, score="test_f1")
logs_steps = Task(LogsSteps, Sensors, score="test_f1")
of_some = Task(LogsOfSome, Sensors, score="test_recall", callbacks=lambda: [Stops()])
rates = Task(Rates, Sensors, score="test/error", **NAMES)
several = Task(Windows, Several, score="test_f1")
drops = Task(Windows, Drops, score="test_f1")
averages = Task(Windows, Sensors, score="test_f1", callbacks=lambda: [Averages()])
toggles = Task(Toggles, Sensors, score="test_f1")
writes = Task(Writes, Sensors, score="test_f1")
keeps = Task(Keeps, Sensors, score="test_f1", callbacks=lambda: [callbacks.TQDMProgressBar()])
checkpoints = Task(Windows, Sensors, score="test_f1", callbacks=lambda: [callbacks.ModelCheckpoint()])
hooked = Task(Hooked, Sensors, score="test_f1")
late = Task(Late, Sensors, score="test_f1")
late_body = Task(LateBody, Sensors, score="test_f1")
untested = Task(Untested, Sensors, score="test_f1")
silent = Task(Silent, Sensors, score="test_f1")
elsewhere = Task(Elsewhere, Sensors, score="test_f1")
elsewhere_data = Task(Windows, lambda **_: Elsewhere(), score="test_f1")
outside_teacher = Task(Teaches, Sensors, score="test_f1")
teaches = Task(Teaches, Sensors, score="test_f1", body=("body", "teacher"), base=())
based_teacher = Task(Teaches, Sensors, score="test_f1", body=("body", "teacher"))


class Trunk(Windows):
    """Its body is a layer of a trunk that it has frozen, with its statistics, and an adapter of two layers.

    The trunk is read from the file that TRUNK names, if there is one.
    """

    def __init__(self):
        super().__init__()
        trunk = nn.Sequential(nn.Linear(SENSORS, 32), nn.BatchNorm1d(32)).requires_grad_(False)
        if "TRUNK" in os.environ:
            trunk.load_state_dict(torch.load(os.environ["TRUNK"], weights_only=True))
        self.body = nn.Sequential(trunk.eval(), nn.ReLU(), nn.Linear(32, 8), nn.BatchNorm1d(8))
        self.outside = nn.Linear(SENSORS, SENSORS).requires_grad_(False)

    def forward(self, windows):
        return super().forward(windows + self.outside(windows))


class PlainTrunk(Trunk):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Dual(Trunk):
    """Two adapters of a frozen trunk, side by side."""

    def __init__(self):
        super().__init__()
        self.trunk = self.body[0]
        self.body, self.aside = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, windows):
        features = torch.relu(self.trunk(windows))
        return self.head(self.body(features) + self.aside(features))

    def configure_optimizers(self):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.SGD(weights, lr=self.hparams.lr, momentum=0.9)


dual = Task(Dual, Sensors, score="test_f1", parts={"aside": "aside"})
dual_in_body = Task(Dual, Sensors, score="test_f1", body=("body", "aside"))
dual_in_head = Task(Dual, Sensors, score="test_f1", head=("head", "aside"))
dual_nowhere = Task(Dual, Sensors, score="test_f1")
dual_twice = Task(Dual, Sensors, score="test_f1", parts={"aside": ("aside", "body")})
dual_named = Task(Dual, Sensors, score="test_f1", parts={"full": ("aside",)})
trunk = Task(Trunk, Sensors, score="test_f1")
plain_trunk = Task(PlainTrunk, Sensors, score="test_f1")
plain_carried = Task(PlainTrunk, Sensors, score="test_f1", base=())
carried = Task(Trunk, Sensors, score="test_f1", base=())
partly = Task(Trunk, Sensors, score="test_f1", base=("body.0.0",))
trained_base = Task(Trunk, Sensors, score="test_f1", base=("body",))
streamed = Task(Plain, Streamed, score="test_f1")
endless = Task(Plain, Endless, score="test_f1")
one_part = Task(Windows, Sensors, score="test_f1", body=("body", "head"), head=())
swa = Task(
    Windows, Sensors, score="test_f1", callbacks=lambda: [callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1)]
)
overlaps = Task(Regression, Sensors, score="test/error", body=("net", "scale"), head=("net.readout",))


def of_this_site(client, num_clients, seed):
    """The data of a machine that has those of one client: the client that this variable names."""
    if os.environ.get("SITE") != str(client):
        raise FileNotFoundError(f"the data of client {client} are elsewhere")
    return Sensors(client, num_clients, seed)


named = Task(Windows, Sensors, score="test_f1", client_names=("pump", "press, left", "7", "fan", "oven"))
twins = Task(Windows, Sensors, score="test_f1", client_names=("pump", "pump"))
on_sites = Task(Windows, of_this_site, score="test_f1")
