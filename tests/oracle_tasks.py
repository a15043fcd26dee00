"""Modules, data and callbacks that are drawn: ``tests.oracle_tasks:task`` is the one of ``draw``."""

import copy
import dataclasses

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

INPUTS, KINDS, ROWS = 5, 3, 22
PARTS = {"body": ("body", "teacher"), "head": ("head",)}


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a module, its data and its callbacks are like."""

    freeze: str = ""
    layer: str = ""
    dropout: bool = False
    tied: bool = False
    teacher: str = ""
    optimization: str = "one"
    schedule: str = ""
    hook: str = ""
    logs: str = ""
    skips: bool = False
    compiled: bool = False
    validates: bool = False
    loader: str = ""
    of_task: str = ""
    of_module: str = ""


draw = Draw()


class Net(L.LightningModule):
    def __init__(self, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.draw = draw
        first = nn.Linear(INPUTS, 6)
        if draw.layer in ("weight_norm", "spectral_norm"):
            getattr(parametrizations, draw.layer)(first)
        norm = nn.BatchNorm1d(6) if draw.layer == "batch_norm" else nn.Identity()
        self.body = nn.Sequential(first, norm, nn.ReLU(), nn.Linear(6, 6))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, KINDS))
        if draw.dropout:
            self.body.append(nn.Dropout(0.2))
            self.head.insert(0, nn.Dropout(0.2))
        if draw.tied:
            self.head[-2].weight = self.head[-4].weight
        self.teacher = copy.deepcopy(self.body) if draw.teacher else nn.Identity()
        self.teacher.requires_grad_(False)
        self.body.register_buffer("means", torch.zeros(INPUTS))
        self.body.register_buffer("calls", torch.zeros(()), persistent=False)
        self._freeze_at("init")
        if draw.compiled:
            self.head[-1] = torch.compile(self.head[-1], backend="eager")
        if draw.hook == "forward":
            self.head[0].register_forward_hook(self.doubled)
        self.automatic_optimization = draw.optimization in ("one", "lbfgs")

    def doubled(self, layer, inputs, output):
        return output * (2 if self.training else 1)

    def _freeze_at(self, place):
        if self.draw.freeze == place:
            self.body[0].requires_grad_(False)

    def setup(self, stage):
        self._freeze_at("setup")

    def on_fit_start(self):
        self._freeze_at("fit_start")
        if self.draw.hook == "late":
            self.head[-1].register_forward_hook(self.doubled)
        if self.draw.logs == "by hand":
            self.logger.log_hyperparams(dict(self.hparams))

    def on_train_start(self):
        self._freeze_at("train_start")
        if self.draw.freeze == "thaw":
            self.body[0].requires_grad_(True)

    def _move_teacher(self, place):
        if self.draw.teacher == place:
            with torch.no_grad():
                for mine, its in zip(self.body.parameters(), self.teacher.parameters(), strict=True):
                    its.lerp_(mine, 0.1)

    def _loss(self, batch):
        if isinstance(batch, dict):
            batch = batch["a"]
        inputs, labels = batch
        features = self.body(inputs)
        loss = nn.functional.cross_entropy(self.head(features), labels)
        if self.draw.teacher:
            loss = loss + (features - self.teacher(inputs)).square().mean()
        return loss

    def training_step(self, batch, batch_idx):
        if self.draw.skips and batch_idx == 1 and self.automatic_optimization:
            return None
        with torch.no_grad():
            self.body.means.lerp_(batch["a"][0].mean(0) if isinstance(batch, dict) else batch[0].mean(0), 0.1)
            self.body.calls.add_(1)
        loss = self._loss(batch)
        self._move_teacher("step")
        if self.draw.logs:
            self.log("train_loss", loss, on_step=True, on_epoch=True)
        if self.draw.logs == "by hand":
            self.logger.experiment.add_scalar("loss", float(loss), self.global_step)
            self.logger.log_metrics({"loss": float(loss)})
        if not self.automatic_optimization:
            self._step_by_hand(batch, loss)
        return {"loss": loss} if self.draw.logs else loss

    def _step_by_hand(self, batch, loss):
        optimizers = self.optimizers()
        if self.draw.optimization == "by hand":
            optimizers.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizers, 0.5)
            optimizers.step()
        for optimizer in optimizers if self.draw.optimization == "toggles" else ():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        if self.draw.schedule and self.draw.optimization == "by hand":
            self.lr_schedulers().step()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._move_teacher("batch_end")

    def on_before_zero_grad(self, optimizer):
        self._move_teacher("before_zero_grad")

    def on_before_optimizer_step(self, optimizer):
        if self.draw.hook == "before_step":
            for weight in self.parameters():
                if weight.grad is not None:
                    weight.grad.mul_(0.5)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        if self.draw.hook == "optimizer_step" and self.trainer.global_step < 2:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (self.trainer.global_step + 1)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._move_teacher("optimizer_step")

    def on_train_epoch_end(self):
        if self.draw.logs:
            self.log("epochs", float(self.current_epoch))

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self._loss(batch))

    def configure_callbacks(self):
        return made(self.draw.of_module)

    def configure_optimizers(self):
        if self.draw.optimization == "toggles":
            return [torch.optim.Adam(part.parameters(), lr=self.hparams.lr) for part in (self.body, self.head)]
        if self.draw.optimization == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=self.hparams.lr, max_iter=2)
        weights = self.parameters()
        if "finetuning" in (self.draw.of_task, self.draw.of_module):
            weights = [weight for weight in weights if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.hparams.lr, weight_decay=0.1)
        lr = torch.optim.lr_scheduler
        if self.draw.schedule == "cycle":
            total = int(self.trainer.estimated_stepping_batches)
            return [optimizer], [{"scheduler": lr.OneCycleLR(optimizer, 0.1, max(total, 2)), "interval": "step"}]
        if self.draw.schedule == "epoch":
            return [optimizer], [lr.StepLR(optimizer, 1, 0.5)]
        if self.draw.schedule == "plateau":
            schedule = lr.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}
        return optimizer


class Finetuning(callbacks.BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.body[0])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.body[0], optimizer)


def made(name):
    """Lightning's callbacks of that name."""
    return {
        "": list,
        "finetuning": lambda: [Finetuning()],
        "averages": lambda: [callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)],
        "moving": lambda: [callbacks.EMAWeightAveraging(decay=0.5)],
        "stopping": lambda: callbacks.EarlyStopping("val_loss", min_delta=1.0, patience=1, strict=False),
        "kept": lambda: [callbacks.ModelCheckpoint(), callbacks.LearningRateMonitor()],
        "accumulates": lambda: [callbacks.GradientAccumulationScheduler({1: 2})],
    }[name]()


class Stream(IterableDataset[tuple[torch.Tensor, ...]]):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[place] for place in range(len(self.rows)))


class Batches:
    """Batches of something that is no DataLoader."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return 3

    def __iter__(self):
        order = torch.randperm(len(self.rows))[:18].view(3, 6)
        return (self.rows[each] for each in order)


class Data(L.LightningDataModule):
    def __init__(self, client, num_clients, seed):
        super().__init__()
        self.save_hyperparameters()
        self.draw = draw
        drawn = torch.Generator().manual_seed(7)
        rows = torch.randn(ROWS + 12, INPUTS, generator=drawn), torch.randint(KINDS, (ROWS + 12,), generator=drawn)
        self.rows, self.rest = (
            TensorDataset(*(each[place] for each in rows)) for place in (slice(ROWS), slice(-12, None))
        )

    def train_dataloader(self):
        whole = DataLoader(self.rows, 6, shuffle=True)
        if self.draw.loader == "drawn":
            torch.rand(1)
        return {
            "": lambda: whole,
            "drawn": lambda: whole,
            "drops": lambda: DataLoader(self.rows, 5, shuffle=True, drop_last=True),
            "several": lambda: {"a": whole, "b": DataLoader(self.rest, 6)},
            "combined": lambda: CombinedLoader({"a": whole, "b": DataLoader(self.rest, 6)}, "min_size"),
            "stream": lambda: DataLoader(Stream(self.rows), 6),
            "other": lambda: Batches(self.rows),
        }[self.draw.loader]()

    def val_dataloader(self):
        return DataLoader(self.rest, 6) if self.draw.validates else []

    def test_dataloader(self):
        return DataLoader(self.rest, 6)


class Drawn:
    """The task of the draw, as an object of one's own."""

    module, data, score, higher_is_better = Net, Data, "test_loss", False
    body, head = PARTS["body"], PARTS["head"]

    def callbacks(self):
        return made(draw.of_task)

    @property
    def base(self):
        """None of its frozen weights where some of these move."""
        return () if draw.teacher or draw.freeze == "thaw" else None


task = Drawn()
