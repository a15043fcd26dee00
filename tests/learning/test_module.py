"""LitFedBABU under a plain Trainer of Lightning, with loaders and callbacks that know nothing of the package."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lit_fedbabu import LitFedBABU


def loader(seed, shuffle=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 32, 32, generator=generator) + labels[:, None, None, None]
    return DataLoader(TensorDataset(images, labels), 8, shuffle=shuffle)


def plain_trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1, **quiet, **options)


def test_checkpoints_early_stopping_and_loggers_work(tmp_path):
    module = LitFedBABU(num_classes=3, mode="full", learning_rate=0.01)
    best = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max")
    stop = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    trainer = plain_trainer(tmp_path, max_epochs=5, callbacks=[best, stop])
    trainer.fit(module, loader(0, shuffle=True), loader(1))
    assert trainer.current_epoch == 2, "stopped where the loss did not fall by 100"
    assert 0 <= best.best_model_score <= 1
    again = LitFedBABU.load_from_checkpoint(best.best_model_path, weights_only=True)
    (metrics,) = plain_trainer(tmp_path).test(again, loader(1), verbose=False)
    images, labels = next(iter(DataLoader(loader(1).dataset, 24)))
    predicted = [again(part).argmax(1) for part in images.split(8)]  # batch norm uses the batch
    assert metrics["test_accuracy"] == pytest.approx((torch.cat(predicted) == labels).float().mean().item())
    assert metrics["test_loss"] > 0
    logged = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(logged.split(","))


def test_backbone_finetuning_finds_the_body(tmp_path):
    module = LitFedBABU(num_classes=3, mode="full", learning_rate=0.01)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=5)
    plain_trainer(tmp_path, max_epochs=1, callbacks=[callback]).fit(module, loader(0))
    after = module.model.state_dict()
    convolutions = [name for name, value in before.items() if name.startswith("body") and value.ndim == 4]
    assert len(convolutions) == 4, "which are frozen; batch norm goes on training, as Lightning does it"
    assert all(torch.equal(before[name], after[name]) for name in convolutions)
    assert not torch.equal(before["head.weight"], after["head.weight"])
