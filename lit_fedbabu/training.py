"""The only place that builds a Lightning Trainer: fit, evaluate, personalize, save."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_fedbabu.batches import ClientData
from lit_fedbabu.config import Config, ConfigError
from lit_fedbabu.module import LitFedBABU

# A Trainer is built for every client and round: its greetings and advice are silenced here, once.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Cross-entropy (nats) and accuracy (0 to 1) on a client's test images, of which there are ``count``."""

    loss: float
    accuracy: float
    count: int


@dataclasses.dataclass(frozen=True)
class Personal:
    """A client's model while it is fine-tuned on its own data: evaluated before, and after every epoch."""

    curve: tuple[Evaluation, ...]

    @property
    def initial(self) -> Evaluation:
        """Of the model as received."""
        return self.curve[0]

    @property
    def personalized(self) -> Evaluation:
        """Of the model after the last epoch."""
        return self.curve[-1]

    def as_row(self) -> dict[str, float]:
        """As a client's entry in results.json, without the client's number."""
        return {
            "num_test": self.initial.count,
            "initial_accuracy": self.initial.accuracy,
            "personalized_accuracy": self.personalized.accuracy,
            "initial_loss": self.initial.loss,
            "personalized_loss": self.personalized.loss,
            **{f"accuracy_epoch_{epoch}": evaluation.accuracy for epoch, evaluation in enumerate(self.curve)},
        }


def resolve_precision(precision: str) -> str:
    """The Lightning precision that "auto" stands for on this machine; any other is itself.

    Raises:
        ConfigError: 16-mixed without a GPU, which Lightning would silently replace.
    """
    if precision == "16-mixed" and not torch.cuda.is_available():
        raise ConfigError("precision", precision, "needs a GPU, and this machine has none; take auto or 32-true")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16-mixed" if has_bf16 else "32-true"


def trains_on(config: Config) -> str:
    """What decides the last bits on this machine, as in "cpu AVX2 in 32-true with torch 2.15.0"."""
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device} in {resolve_precision(config.precision)} with torch {torch.__version__}"


def new_module(config: Config, num_classes: int, model_seed: int, channels: int = 3) -> LitFedBABU:
    """The module with its initial weights, not yet told what to train."""
    return LitFedBABU(
        model_name=config.model_name,
        num_classes=num_classes,
        norm=config.norm,
        channels=channels,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        model_seed=model_seed,
        dtype="float64" if config.precision == "64-true" else "float32",
    )


def fit(
    module: LitFedBABU,
    data: ClientData,
    *,
    mode: str,
    epochs: int,
    learning_rate: float,
    curve: list[Evaluation] | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> float:
    """Train a part of the module in place, with a fresh optimizer.

    Args:
        module: what to train.
        data: the client's images.
        mode: "body", "head" or "full".
        epochs: over the client's training images.
        learning_rate: of SGD.
        curve: takes an evaluation on the test images after every epoch; None evaluates nothing.
        callbacks: Lightning's, as of ``steps.STEPS``.

    Returns:
        The mean training loss over all images seen, in nats; nan if there was no epoch.
    """
    module.set_mode(mode)
    module.hparams.learning_rate = learning_rate
    module.train_loss.reset()
    if epochs == 0:
        return float("nan")
    watch = [] if curve is None else [_Curve(curve)]
    trainer = _trainer(
        data.config,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if watch else 0,
        callbacks=[*callbacks, *watch],
    )
    trainer.fit(module, datamodule=data)
    return module.train_loss.compute().item()


def evaluate(module: LitFedBABU, data: ClientData) -> Evaluation:
    """Loss and accuracy of the module on the client's test images."""
    _trainer(data.config).test(module, datamodule=data, verbose=False)
    return _evaluation(module, data)


def personalize(module: LitFedBABU, data: ClientData, *, part: str, epochs: int, learning_rate: float) -> Personal:
    """Fine-tune a part of the module in place on the client's training images; evaluate before and every epoch."""
    curve = [evaluate(module, data)]
    fit(module, data, mode=part, epochs=epochs, learning_rate=learning_rate, curve=curve)
    return Personal(tuple(curve))


def save_checkpoint(module: LitFedBABU, path: Path) -> None:
    """Write a Lightning checkpoint, whole or not at all; ``LitFedBABU.load_from_checkpoint(path)`` reads it."""
    trainer = _trainer(Config(precision="64-true" if module.hparams.dtype == "float64" else "32-true"))
    trainer.strategy.connect(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    trainer.save_checkpoint(scratch, weights_only=True)
    os.replace(scratch, path)


class _Curve(L.Callback):
    """Notes an evaluation after every epoch."""

    def __init__(self, curve: list[Evaluation]) -> None:
        self.curve = curve

    def on_validation_epoch_end(self, trainer: L.Trainer, module: LitFedBABU) -> None:
        self.curve.append(_evaluation(module, trainer.datamodule))


def _evaluation(module: LitFedBABU, data: ClientData) -> Evaluation:
    """What the module's metrics say of the test images since the last time."""
    count = len(data.test_set)
    hits = round(module.test_accuracy.compute().item() * count)  # the metric divides in float32
    evaluation = Evaluation(module.test_loss.compute().item(), hits / count, count)
    module.test_loss.reset()
    module.test_accuracy.reset()
    return evaluation


def _trainer(config: Config, **options: Any) -> L.Trainer:
    torch.set_num_threads(config.num_threads)
    return L.Trainer(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=1,
        precision=resolve_precision(config.precision),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
