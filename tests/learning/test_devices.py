"""Clients that train on several devices: here processes on CPU cores, as Lightning's DDP has them."""

import dataclasses
import os
import signal
import socket
import tempfile
from pathlib import Path

import lightning as L
import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from lit_fedbabu import run
from lit_fedbabu.algorithms.algorithm import EPOCHS, Algorithm
from lit_fedbabu.config import Config
from lit_fedbabu.engines import resources
from lit_fedbabu.engines.resources import worker_environments
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import devices
from lit_fedbabu.learning.devices import spread
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.tasks.custom.loaders import undealt
from lit_fedbabu.training.client_update import client_update
from lit_fedbabu.training.experiment import Experiment
from lit_fedbabu.training.memory import recall
from lit_fedbabu.workers.worker import FORKS
from tests import own_tasks
from tests.support import files_that_decide

CLIENT = 1
pytestmark = pytest.mark.skipif(not FORKS, reason="forks")


@pytest.fixture(autouse=True)
def one_thread():
    """A process that has computed with several CPU threads cannot be forked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(task="windows", count=2, **options):
    given: dict[str, object] = {"task": f"tests.own_tasks:{task}", "num-clients": 4, "num-server-rounds": 3}
    given |= {"algorithm": "fedavg", "num-local-epochs": 2, "num-finetune-epochs": 1, "precision": "32-true"}
    given |= {"trainer.devices": count} if count > 1 else {}
    return Config.from_run_config({**given, **{key.replace("_", "-"): value for key, value in options.items()}})


def trained(config, memories, rounds=1):
    """The client's last update; the server sends its weights and what it sends back."""
    experiment = Experiment(config)
    received, extras = experiment.initial_shared(), None
    for server_round in range(1, rounds + 1):
        with spread(config.devices):
            update = client_update(experiment, CLIENT, server_round, received, 0.05, memories, extras)
        received = update.state
        if update.extras and experiment.extras.down:  # as what all clients together have sent
            extras = {name: 0.1 * update.extras[name] for name in experiment.extras.down}
    return update


@pytest.mark.parametrize(
    ("algorithm", "accumulate"), [("fedavg", 1), pytest.param("fedbabu", 2, marks=pytest.mark.slow)]
)
def test_a_client_is_trained_to_the_bits_of_a_plain_trainer_on_several_devices(algorithm, accumulate, tmp_path):
    config = config_of(algorithm=algorithm, trainer_options=f'{{"accumulate_grad_batches": {accumulate}}}')
    found = trained(config, tmp_path)
    with seeded(config.derived_seed("model")):
        module = own_tasks.Windows(lr=0.05)
    module.head.requires_grad_(algorithm != "fedbabu")
    data = own_tasks.Sensors(CLIENT, config.num_clients, config.seed)
    data._log_hyperparams = False
    with seeded(config.derived_seed("draws", 1, CLIENT)):
        L.seed_everything(int(torch.randint(2**31, ())))
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, num_sanity_val_steps=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule=data)
        finally:
            os.environ.pop("PL_GLOBAL_SEED")
            os.environ.pop("PL_SEED_WORKERS", None)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in found.state.items())


def test_a_base_stays_out_of_what_devices_exchange_and_changes_nothing(tmp_path):
    without, with_it = (trained(config_of(task, algorithm="fedbabu"), tmp_path / task) for task in ("trunk", "carried"))
    assert without.state and with_it.state.keys() - without.state.keys() == {
        name for name in with_it.state if name.startswith(("body.0.", "outside."))
    }
    assert all(torch.equal(value, with_it.state[name]) for name, value in without.state.items())


class Plain(L.LightningModule):
    """Plain SGD without what depends on the batch: the mean of gradients is that of one batch of all samples."""

    def __init__(self, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Linear(own_tasks.SENSORS, 5), nn.Linear(5, own_tasks.KINDS)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0]).tanh()), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test_f1", 0.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.5, weight_decay=0.1)


SEED = 7


class Halves(own_tasks.Sensors):
    def train_dataloader(self):
        return DataLoader(self.train, 4, shuffle=True)


class Wholes(own_tasks.Sensors):
    """Batches of what two devices see together, in the order that Lightning makes of a seed."""

    def train_dataloader(self):
        return DataLoader(self.train, 8, sampler=DistributedSampler(self.train, 1, 0, shuffle=True, seed=SEED))


METHODS = ["scaffold", "fedprox", "fednova", "feddyn", "ditto", "per-fedavg", "fedala", "fedrep"]


@pytest.mark.parametrize(
    "algorithm", [METHODS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in METHODS[1:])]
)
def test_two_devices_make_what_one_makes_of_batches_twice_as_large(algorithm, tmp_path, monkeypatch):
    """Also what a client keeps and sends besides."""
    monkeypatch.setattr(devices, "_drawn", lambda: SEED)
    updates, kept = [], []
    for count, data in ((2, Halves), (1, Wholes)):
        monkeypatch.setattr(own_tasks, "plain", own_tasks.Task(Plain, data, score="test_f1"))
        config = config_of("plain", count, algorithm=algorithm, proximal_mu=0.3, num_mixing_epochs=1)
        updates.append(trained(config, tmp_path / str(count), rounds=2))
        kept.append(recall(tmp_path / str(count), CLIENT, 2))
    both, one = updates
    assert both.train_loss == pytest.approx(one.train_loss, rel=1e-4) and both.num_train == one.num_train
    assert bool(kept[0]) == bool(Experiment(config).algorithm.kept)
    for found, expected in ((both.state, one.state), (both.extras, one.extras), kept):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


class Breaks(Plain):
    """Does something on one of the devices in its second batch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and self.trainer.world_size == 2 and self.trainer.global_rank == Breaks.rank:
            Breaks.does(self)
        return super().training_step(batch, batch_idx)


def raises(module):
    raise ValueError("a bad sample")


def moves(module):
    module.body.weight.data.add_(1e-6)


def dies(module):
    os.kill(os.getpid(), signal.SIGKILL)


FAILURES = [
    (dies, 1, "the process of device 2 of 2 was killed by SIGKILL"),
    pytest.param(raises, 1, "device 2 of 2: ValueError: a bad sample", marks=pytest.mark.slow),
    pytest.param(raises, 0, "a bad sample", marks=pytest.mark.slow),
    pytest.param(moves, 1, "devices come to different weights", marks=pytest.mark.slow),
    pytest.param(moves, 0, "devices come to different weights", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("does", "rank", "why"), FAILURES)
def test_a_device_that_fails_is_told_and_nobody_waits_for_it(does, rank, why, tmp_path, monkeypatch):
    monkeypatch.setattr(own_tasks, "plain", own_tasks.Task(Breaks, Halves, score="test_f1"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Breaks.rank, Breaks.does = rank, does
    with pytest.raises((RuntimeError, ValueError), match=why):
        trained(config_of("plain"), tmp_path)
    assert not list(Path(tempfile.gettempdir()).glob("lit-fedbabu-*")) or does is dies, "all folders are gone"
    assert devices.is_first() and not torch.distributed.is_initialized() and "PL_GLOBAL_SEED" not in os.environ


def test_clients_after_one_that_lost_its_devices_fail_too(tmp_path, monkeypatch):
    monkeypatch.setattr(own_tasks, "plain", own_tasks.Task(Breaks, Halves, score="test_f1"))
    Breaks.rank, Breaks.does = 1, raises
    experiment = Experiment(config_of("plain"))
    with spread(2):
        for client, why in ((1, "a bad sample"), (2, "its devices were lost with a client")):
            with pytest.raises(RuntimeError, match=why):
                client_update(experiment, client, 1, experiment.initial_shared(), 0.05, tmp_path)


@pytest.mark.slow
def test_devices_of_different_clients_do_not_train_together(tmp_path):
    """As where one of several clients fails on one device before its training."""
    experiment = Experiment(config_of())
    told = "devices are apart: one is at client ., full, another at client ., full"
    with pytest.raises(RuntimeError, match=told), spread(2):
        client = 1 if devices.is_first() else 2
        client_update(experiment, client, 1, experiment.initial_shared(), 0.05, tmp_path)


def test_a_round_on_another_number_of_devices_is_refused():
    experiment = Experiment(config_of())
    with pytest.raises(InputError, match=r"trainer.devices = 2: .* engine=local alone"):
        client_update(experiment, CLIENT, 1, experiment.initial_shared(), 0.05)


REFUSED = [
    ({"trainer.devices": 0}, "must be at least 1"),
    ({"trainer.devices": 1.5}, "must be a whole number"),
    ({"trainer.devices": True}, "must be a whole number"),
    ({"trainer.strategy": "ddp"}, "leave it out"),
    ({"engine": "flower"}, "engine=flower starts no process for each device; take local"),
    ({"engine": "ray"}, "engine=ray starts no process for each device; take local"),
    ({"partitioner": "sites"}, "a site trains on one device; leave it out"),
    ({"num-local-steps": 3}, "count the batches of one device; take whole epochs"),
    ({"num-local-epochs": 0.5}, "count the batches of one device; take whole epochs"),
    ({"secure-aggregation": True}, "keeps secrets in one process; leave it out"),
    ({"privacy": "sample", "noise-multiplier": 1.0, "clipping-norm": 1.0}, "draws batches of its own"),
    ({"task": "", "dataset": "digits"}, "leave it out, or take a task of your own"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[next(iter(each)) for each, _ in REFUSED])
def test_what_several_devices_cannot_do_is_refused(options, told):
    given = {"task": "tests.own_tasks:windows", "precision": "32-true", "trainer.devices": 2, **options}
    with pytest.raises(InputError, match=f"trainer.*{told}"):
        Config.from_run_config(given)


@pytest.mark.parametrize("algorithm", ["pfedme", "apfl", "ifca"])
def test_methods_that_look_at_one_devices_part_are_refused(algorithm):
    with pytest.raises(InputError, match=rf"trainer.devices = 2: .*{algorithm} .*leave it out"):
        Experiment(config_of(algorithm=algorithm)).check()


class Looks(Algorithm):
    def callbacks(self, cohort, modules):
        return []


looks, row = Looks("Looks", "full", (("full", EPOCHS),)), Algorithm("Row", "full", (("full", EPOCHS),))


def test_a_users_method_with_hooks_is_refused():
    with pytest.raises(InputError, match=r"trainer.devices = 2: .*:looks has hooks of its own, .*; leave it out"):
        Experiment(config_of(algorithm=f"{__name__}:looks")).check()
    Experiment(config_of(algorithm=f"{__name__}:row")).check()


class Own(IterableDataset[int]):
    def __iter__(self):
        return iter(range(3))


class Every(torch.utils.data.Sampler[int]):
    def __iter__(self):
        return iter(range(3))

    def __len__(self):
        return 3


class Pairs(torch.utils.data.BatchSampler):
    pass


ROWS = TensorDataset(torch.zeros(6, 2))
LOADERS = [
    (lambda: DataLoader(ROWS, 2, shuffle=True), ""),
    (
        lambda: {"a": DataLoader(ConcatDataset([ROWS, ROWS]), 2, shuffle=True), "b": DataLoader(ROWS, 2, shuffle=True)},
        "",
    ),
    (lambda: DataLoader(ROWS, 2), "takes samples by a SequentialSampler"),
    (lambda: DataLoader(Own(), 2), "take a dataset with an index and shuffle=True"),
    (lambda: DataLoader(ROWS, 2, sampler=Every()), "takes samples by a Every"),
    (lambda: DataLoader(ROWS, 2, sampler=RandomSampler(ROWS, replacement=True)), "takes samples by a RandomSampler"),
    (lambda: DataLoader(ROWS, 2, sampler=RandomSampler(ROWS, num_samples=3)), "takes samples by a RandomSampler"),
    (
        lambda: DataLoader(ROWS, batch_sampler=Pairs(RandomSampler(ROWS), 2, False)),
        "makes batches by a sampler of its own",
    ),
    (lambda: {"a": DataLoader(ROWS, 2, shuffle=True), "b": ROWS}, "is a TensorDataset, which is not dealt to devices"),
]


@pytest.mark.parametrize(("loaders", "why"), LOADERS)
def test_loaders_that_lightning_would_not_deal_are_refused(loaders, why, monkeypatch):
    told = undealt(loaders, 2)
    assert why in told and bool(why) == bool(told)


def test_a_loader_that_lightning_cannot_make_anew_is_refused():
    assert "made anew for each device: MisconfigurationException" in undealt(lambda: DataLoader(ROWS, 2, True), 2)


def test_such_a_loader_is_refused_before_a_run():
    with pytest.raises(InputError, match=r"trainer.devices = 2: the training loader of client 0 takes samples by"):
        Experiment(config_of("streamed")).check()


@pytest.mark.parametrize(
    ("visible", "gpus", "count", "bound"),
    [("", 4, 2, ["0,1", "2,3"]), ("3,5,GPU-8f3a", 3, 2, ["3,5"]), ("", 3, 3, ["0,1,2"])],
)
def test_a_worker_is_bound_to_as_many_gpus_as_a_client_has(visible, gpus, count, bound, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in worker_environments(config_of(count=count))] == bound


def test_more_devices_than_a_machine_has_are_refused(monkeypatch):
    monkeypatch.setattr(resources.system, "available_cores", lambda: 5)
    assert len(worker_environments(config_of(count=2))) == 2
    with pytest.raises(
        InputError, match=r"trainer.devices = 3: this machine has no GPU, and 2 processes of num-threads"
    ):
        worker_environments(config_of(count=3, num_threads=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="trainer.devices = 2: this machine has 1 GPUs"):
        worker_environments(config_of(count=2))


class Listens(Plain):
    """Writes down which addresses its process has."""

    def training_step(self, batch, batch_idx):
        with Path(os.environ["ADDRESSES"]).open("a") as file:
            file.writelines(f"{each.laddr.ip}\n" for each in psutil.Process().net_connections("inet"))
        return super().training_step(batch, batch_idx)


listens = own_tasks.Task(Listens, Halves, score="test_f1")


@pytest.mark.slow
def test_devices_of_a_client_are_reached_from_no_other_machine(tmp_path, monkeypatch):
    own = {each.address for found in psutil.net_if_addrs().values() for each in found if each.family == socket.AF_INET}
    others = [name for name, found in psutil.net_if_addrs().items() if found[0].address in own - {"127.0.0.1"}]
    if not others:
        pytest.skip("this machine has no other address")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", others[0])  # as a cluster's administrator may have it
    monkeypatch.setenv("ADDRESSES", str(tmp_path / "addresses"))
    config = config_of(output_dir=str(tmp_path), run_name="a", num_server_rounds=1, num_clients=2)
    run(dataclasses.replace(config, task=f"{__name__}:listens"))
    assert {*(tmp_path / "addresses").read_text().split()} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_run_is_repeated_to_the_byte(tmp_path):
    """By workers of the engine local, of which each answers one request."""
    folders = []
    for number in range(2):
        config = config_of(algorithm="ditto", output_dir=str(tmp_path), run_name=f"run{number}", num_server_rounds=2)
        folders.append(tmp_path / f"run{number}")
        run(config)
        assert not (folders[-1] / "workers.log").exists(), (folders[-1] / "workers.log").read_text()
    first, second = map(files_that_decide, folders)
    assert first == second and any("memory" in str(name) for name in first)
