"""A drawn module trains to the bits of a plain Trainer, or is refused in a line before a run."""

import copy
import math
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.memory import recall
from tests import oracle_tasks

CLIENT = 1
ALLOWED = (
    "which fractions of epochs need; give its dataset __len__",
    "no loss of its training_step depends on a weight of its body",
)
"""Why a drawn module may be refused."""


def some(*values):
    return st.sampled_from(values)


DRAWS = st.builds(
    oracle_tasks.Draw,
    freeze=some("", "init", "setup", "fit_start", "train_start", "thaw"),
    layer=some("", "batch_norm", "weight_norm", "spectral_norm"),
    dropout=st.booleans(),
    tied=st.booleans(),
    teacher=some("", "step", "batch_end", "before_zero_grad", "optimizer_step"),
    optimization=some("one", "one", "lbfgs", "by hand", "toggles"),
    schedule=some("", "cycle", "epoch", "plateau"),
    hook=some("", "forward", "late", "before_step", "optimizer_step"),
    logs=some("", "log", "by hand"),
    skips=st.booleans(),
    validates=st.booleans(),
    loader=some("", "drops", "drawn", "several", "combined", "stream", "other"),
    of_task=some("", "averages", "moving", "stopping", "kept", "accumulates", "finetuning"),
    of_module=some("", "averages", "moving", "stopping", "kept", "finetuning"),
)
LENGTHS = some((1, 0), (2, 0), (3, 0), (1.5, 0), (1, 2), (1, 6))
OPTIONS = some({}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}, {"reload_dataloaders_every_n_epochs": 1})


class Stops(L.Callback):
    """Ends a fit after a number of batches."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, trainer, *_):
        self.left -= 1
        trainer.should_stop = trainer.should_stop or self.left == 0


class Stands(L.Callback):
    """A head that its maker keeps in evaluation mode."""

    def on_train_batch_start(self, trainer, module, *_):
        module.head.eval()


def sensible(draw, epochs, steps, options):
    """Whether a plain Trainer takes the draw, and means the same by it."""
    partial = steps or epochs % 1
    callbacks = {draw.of_task, draw.of_module}
    by_hand = draw.optimization in ("by hand", "toggles")
    return not (
        (draw.schedule == "plateau" and (not draw.validates or by_hand or partial))
        or (draw.validates and partial)
        or (draw.optimization in ("toggles", "lbfgs") and (draw.schedule or options or callbacks - {"", "kept"}))
        or (by_hand and (options or draw.schedule == "cycle" or "averages" in callbacks or "accumulates" in callbacks))
        or (draw.skips and (partial or draw.schedule == "cycle" or by_hand))
        or ("accumulates" in callbacks and (partial or options or draw.schedule == "cycle"))
        or (partial and "accumulate_grad_batches" in options)
        or (draw.loader == "stream" and (draw.schedule == "cycle" or "averages" in callbacks))
        or (
            "averages" in callbacks
            and (partial or draw.schedule or draw.layer == "spectral_norm" or "moving" in callbacks)
        )
        or (
            "finetuning" in callbacks
            and (draw.freeze or draw.schedule or len(callbacks) > 1 or draw.optimization != "one")
        )
        or (draw.freeze == "thaw" and draw.layer == "spectral_norm")
    )


def plainly(draw, config, epochs, steps, options, folder, frozen):
    """The module after a plain Trainer."""
    with seeded(config.derived_seed("model")):
        module = oracle_tasks.Net()
        module.configure_model()
    data = oracle_tasks.Data(CLIENT, config.num_clients, config.seed)
    data._log_hyperparams = False
    extra: list[L.Callback] = []
    if frozen:
        module.head.requires_grad_(False)
        extra = [Stands()]
    if steps or epochs % 1:
        batches = {"combined": 2, "other": 3}.get(draw.loader, 4)
        steps = steps or math.ceil(epochs * batches)
        epochs = math.ceil(steps / batches)
        if draw.optimization in ("by hand", "toggles", "lbfgs"):
            extra, steps = [*extra, Stops(steps)], 0
    callbacks = oracle_tasks.made(draw.of_task)
    torch.set_num_threads(config.num_threads)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=int(epochs),
        max_steps=steps or -1,
        callbacks=[*(callbacks if isinstance(callbacks, list) else [callbacks]), *extra],
        logger=TensorBoardLogger(folder),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    with seeded(config.derived_seed("draws", 1, CLIENT)):
        trainer.fit(module, datamodule=data)
    return module


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def compare(draw, length, options, folder, algorithm="local"):
    """Train a drawn module for a round by the package and by a plain Trainer."""
    epochs, steps = length
    oracle_tasks.draw = draw
    given = {"task": "tests.oracle_tasks:task", "num-clients": 3, "num-server-rounds": 1, "algorithm": algorithm}
    given |= {"num-local-epochs": epochs, "num-local-steps": steps, "precision": "32-true", "num-finetune-epochs": 1}
    given |= {f"trainer.{key}": value for key, value in options.items()}
    experiment = Experiment(Config.from_run_config(given))
    try:
        experiment.check()
    except InputError as error:
        event(f"refused: {error.remedy[:40]}")
        assert any(why in str(error) for why in ALLOWED), error
        return
    event("trained")
    made, original = [], experiment.new_module
    experiment.new_module = lambda *args, **of: made.append(original(*args, **of)) or made[-1]
    trained = client_update(experiment, CLIENT, 1, experiment.initial_shared(), experiment.rate_in(1), folder)
    (ours,) = made
    before = copy.deepcopy(original().lightning.state_dict())
    plain = plainly(draw, experiment.config, epochs, steps, options, folder / "plain", algorithm == "fedbabu")
    found, expected = ours.lightning.state_dict(), plain.state_dict()
    if algorithm == "fedbabu":
        for name in expected:
            if name.startswith("head."):
                assert torch.equal(found[name], before[name]), name
    equal(found, expected)
    equal(dict(ours.lightning.named_buffers()), dict(plain.named_buffers()))
    for kind in ("callback_metrics", "logged_metrics"):
        equal(getattr(ours.lightning.trainer, kind), getattr(plain.trainer, kind))
    for count in ("global_step", "current_epoch", *(["max_epochs"] if draw.loader != "stream" else [])):
        assert getattr(ours.lightning.trainer, count) == getattr(plain.trainer, count), count
    kept = {**recall(folder, CLIENT, 1), **trained.state}
    own = ours.seen(expected)
    assert kept.keys() <= own.keys()
    equal(kept, {name: own[name] for name in kept})


def property_of(examples, algorithm):
    drawn: st.SearchStrategy[Any] = st.tuples(DRAWS, LENGTHS, OPTIONS).filter(
        lambda each: sensible(each[0], *each[1], each[2])
    )
    if algorithm == "fedbabu":  # a plain Trainer refuses the optimizer of a frozen part
        drawn = drawn.filter(lambda each: each[0].optimization != "toggles")

    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    health = list(HealthCheck)

    @settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=health)
    @given(drawn=drawn)
    def hold(tmp_path_factory, drawn):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compare(*drawn, tmp_path_factory.mktemp("oracle"), algorithm)

    return hold


test_a_round_is_that_of_a_plain_trainer = property_of(8, "local")
test_a_frozen_head_is_one_that_its_maker_froze = property_of(6, "fedbabu")
test_many_rounds_are_those_of_a_plain_trainer = pytest.mark.slow(property_of(300, "local"))
test_many_frozen_heads_are_those_that_their_makers_froze = pytest.mark.slow(property_of(300, "fedbabu"))
