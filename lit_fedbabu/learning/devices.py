"""Several devices that train one client: a process for each, which all do the same on parts of the client's data.

Processes are forked before a client's round begins, so that nothing has to be sent to them. The first of them is the
one that answers: all that a round makes is there. They meet in files of a folder, and in Lightning's fits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.ground.files import whole
from lit_fedbabu.ground.places import scratch
from lit_fedbabu.learning.state import base_of, view_of
from lit_fedbabu.workers.warm import end_with_parent

LOOK_EVERY_S = 0.002
LEFT_TO_END_S = 10.0
"""Seconds that processes have to end by themselves when the first one has answered."""
LATE_S = 1.0
"""Seconds after a lost connection in which the system tells that a process has ended."""
SEED = "PL_GLOBAL_SEED"
"""The variable that Lightning seeds a fit on several devices from, and the order of shuffled samples."""


@dataclasses.dataclass
class _Device:
    """One of the processes: this one.

    Args:
        rank: which one it is; 0: the first.
        count: how many there are.
        folder: where they meet.
        others: in the first one the process of each other one, by its rank, that has not ended.
        fits: that have begun here, by which they know that they are at the same place.
        over: why there are no more fits; empty: there are.
    """

    rank: int
    count: int
    folder: Path
    others: dict[int, int]
    fits: int = 0
    over: str = ""

    def place(self, name: str, rank: int) -> Path:
        """The file in which a device says something in this fit."""
        return self.folder / f"{self.fits}-{name}-{rank}"

    def tell(self, name: str, said: Any) -> None:
        """Say something, as JSON, to the others."""
        with whole(self.place(name, self.rank)) as scratch:
            scratch.write_text(json.dumps(said))

    def exchange(self, name: str, said: Any) -> list[Any]:
        """What each device says at this place, by its rank; waits for all.

        Raises:
            RuntimeError: one of them has failed in this fit, or has ended.
        """
        self.tell(name, said)
        places = [self.place(name, rank) for rank in range(self.count)]
        while not all(place.exists() for place in places):
            if lost := self.lost():
                raise RuntimeError(lost)
            time.sleep(LOOK_EVERY_S)
        return [json.loads(place.read_text()) for place in places]

    def lost(self) -> str:
        """What another device has failed of in this fit, or how its process ended; empty: all are there."""
        for rank in range(self.count):
            if rank != self.rank and (place := self.place("error", rank)).exists():
                return f"device {rank + 1} of {self.count}: {json.loads(place.read_text())}"
        for rank, process in self.others.items():
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.others[rank]
                code = os.waitstatus_to_exitcode(status)
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
                return f"the process of device {rank + 1} of {self.count} {how}"
        return self.over

    def fail(self, error: Exception) -> None:
        """End the fits of all devices, of which none can go on without the others; only the first goes on.

        Raises:
            RuntimeError: the first of them lost another one, which is why its connection broke.
        """
        if self.rank:
            self.tell("error", told(error))
            _exit(1)
        deadline = time.monotonic() + LATE_S
        while isinstance(error, RuntimeError) and not (lost := self.lost()) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        self.end(0)
        self.over = "its devices were lost with a client that this worker was asked for before"
        if isinstance(error, RuntimeError) and lost:
            raise RuntimeError(lost) from error

    def end(self, wait_s: float) -> None:
        """Wait for the other processes, and kill those that have not ended after so many seconds."""
        deadline = time.monotonic() + wait_s
        for process in self.others.values():
            while not os.waitpid(process, os.WNOHANG)[0]:
                if time.monotonic() >= deadline:
                    os.kill(process, signal.SIGKILL)
                time.sleep(LOOK_EVERY_S)
        self.others = {}


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Here:
    """What this process is among those of several devices; None: it is alone."""

    device: _Device | None = None


def is_first() -> bool:
    """Whether this process answers, and writes what is kept."""
    return _Here.device is None or _Here.device.rank == 0


def refuse_other(config: Config) -> None:
    """Raise InputError where a client would train on another number of devices than was asked for."""
    if config.devices != (_Here.device.count if _Here.device else 1):
        remedy = "workers start a process for each device in lit-fedbabu run with engine=local alone; leave it out"
        raise InputError("trainer.devices", config.devices, remedy)


@contextmanager
def spread(count: int) -> Iterator[None]:
    """Do what is in the block in this process and in forks of it, one for each device; then only this one is left.

    This process must not have used a GPU yet, nor several CPU threads: neither can be forked.
    """
    if count == 1:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    place, rank, others = scratch(), 0, dict[int, int]()
    for other in range(1, count):
        process = os.fork()
        if not process:
            rank, others = other, {}
            end_with_parent()
            break
        others[other] = process
    _Here.device = _Device(rank, count, Path(place.name), others)
    try:
        yield
    finally:
        if rank:
            _exit(0)
        _Here.device.end(LEFT_TO_END_S)
        _Here.device = None
        place.cleanup()


def _drawn() -> int:
    """A seed of a fit."""
    return int(torch.randint(2**31, ()))


@contextmanager
def joined(what: str) -> Iterator[dict[str, Any]]:
    """Make one of all devices' fits in the block, and give the Trainer's options for it; alone there are none.

    Lightning seeds it, as after ``seed_everything``, from a number that the first device draws.

    Args:
        what: is fitted, so that devices of which one has failed do not go on with different clients.

    Raises:
        RuntimeError: another device has failed or has ended, also before, with another client.
    """
    device = _Here.device
    if device is None:
        yield {}
        return
    device.fits += 1
    before = os.environ.get(SEED)
    try:
        begun = device.exchange("begin", [what, _drawn()])
        if apart := [other for other, _ in begun if other != what]:
            raise RuntimeError(f"devices are apart: one is at {what}, another at {apart[0]}")
        store = FileStore(str(device.folder / f"{device.fits}-store"), device.count)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=store, rank=device.rank, world_size=device.count)
        os.environ[SEED] = str(begun[0][1])
        yield {
            "devices": device.count,
            "strategy": _Joined(find_unused_parameters=True),  # else a batch may leave gradients as they are
            "use_distributed_sampler": True,
            "plugins": [_Ranked(device.rank)],
        }
    except Exception as error:
        device.fail(error)
        raise
    finally:
        os.environ.pop(SEED, None)
        os.environ.update({} if before is None else {SEED: before})
        if distributed.is_initialized():
            distributed.destroy_process_group()


def over_all(sums: Sequence[float], weights: Iterable[Tensor]) -> list[float]:
    """Sums over what all devices saw in a fit that is over, of what this one saw; alone these.

    Args:
        sums: this device's.
        weights: that were trained, the same on all devices.

    Raises:
        RuntimeError: they are not the same, so that something moves them by what one device sees.
    """
    device = _Here.device
    if device is None:
        return list(sums)
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    found = device.exchange("end", [digest.hexdigest(), *sums])
    if len({each for each, *_ in found}) > 1:
        why = "the module, its optimizer or a callback moves them by what one device sees; leave trainer.devices out"
        raise RuntimeError(f"devices come to different weights: {why}")
    return [sum(each) for each in zip(*(own for _, *own in found), strict=True)]


class _Ranked(LightningEnvironment):
    """Tells Lightning which device this process is for.

    Args:
        rank: the device's.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._rank


class _Joined(DDPStrategy):
    """Lightning's DDP, for which all processes are there."""

    def _configure_launcher(self) -> None:
        """None starts others."""

    def configure_ddp(self) -> None:
        """Leave out the base, which all have, so that workers go on sharing its memory."""
        module = cast(Any, self.model)
        base = {id(value) for value in base_of(view_of(module)).values()}
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        module._ddp_params_and_buffers_to_ignore = [name for name, value in named if id(value) in base]
        super().configure_ddp()
        del module._ddp_params_and_buffers_to_ignore
