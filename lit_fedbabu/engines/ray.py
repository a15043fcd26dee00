"""The engine ``ray``: Flower's messages go to workers on the nodes of a Ray cluster, or of a Ray that is started here.

A process of its own speaks with Ray. It ends with this one, and so do all workers, and the Ray that was started here.
"""

import importlib.util
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fedbabu.engines import superlink
from lit_fedbabu.ground.errors import InputError, RunError
from lit_fedbabu.ground.stops import left_to_this_process
from lit_fedbabu.records.run_folder import CONFIG
from lit_fedbabu.workers.serving import pickled
from lit_fedbabu.workers.worker import ALONE, LOG, WorkerDiedError, with_package

if TYPE_CHECKING:
    from lit_fedbabu.config import Config
    from lit_fedbabu.engines.local import LocalGrid
    from lit_fedbabu.protocol.handshake import Place
    from lit_fedbabu.records.progress import Lines
    from lit_fedbabu.training.experiment import Experiment

ERROR = re.compile(r"^(?:\[[^]]* [EFC] \d+ \d+\] (?:\([^)]*\) )?\S+: |(?=\w+Error: ))(.+)$", re.MULTILINE)
"""A line of Ray's that is an error, without time and place; or the last line of a traceback."""
CONNECT_S = 10.0
"""Seconds in which the machine of an address has to answer."""
START_S = 180.0
"""Seconds in which Ray and its workers have to start."""
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Variables of a Ray that is started here."""


class Workers:
    """Workers of a Ray cluster. They are asked as those of a ``Pool`` are.

    Args:
        process: that speaks with Ray.
        connection: to it.
        log: what it and Ray print.
        config: the experiment.
        folder: the run's.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", connection: Connection, log: Path, config: "Config", folder: Path
    ) -> None:
        self._process, self._connection, self._log, self._folder = process, connection, log, folder
        self._address = config.ray_address
        self._introduction = b""
        self._place: Place | None = None
        self._say: Callable[[str], None] = print
        self._kept = ""

    @contextmanager
    def grid(self, experiment: "Experiment", progress: "Lines") -> Iterator["LocalGrid"]:
        """A grid of nodes that the workers answer for, when there are workers.

        Raises:
            InputError: there is no cluster at the address, or it cannot do this run.
            RunError: no Ray could be started here.
        """
        from lit_fedbabu.engines.local import LocalGrid, logged, quiet_flower
        from lit_fedbabu.engines.resources import NODES_PER_WORKER

        self._say, self._experiment = progress.say, experiment
        self._kept = str(self._folder) if experiment.keeps else ""
        if not self._connection.poll(START_S):
            raise self._refused(f"nothing was heard within {START_S:.0f} s; {last_error(self._log)}")
        kind, told = self._received()
        if kind != "ready":
            raise self._refused(told)
        nodes = min(experiment.config.num_clients, NODES_PER_WORKER * told)
        with quiet_flower(), logged(self._folder):
            yield LocalGrid(experiment.config, nodes, self, progress)

    def answers(
        self, function: str, requests: Sequence[tuple[Any, ...]], shared: object = None, timeout_s: float | None = None
    ) -> Iterator[tuple[int, Any]]:
        """As of ``Pool.answers``. Every node of the cluster once answers the first request of all, for its place.

        Raises:
            RunError: a node cannot take part, or there are no workers any more.
        """
        packed = [pickled((function, request), shared) for request in requests]
        self._introduction = self._introduction or packed[0]
        try:
            self._connection.send((self._introduction, self._kept, packed, pickled(shared), timeout_s))
        except OSError:
            raise self._lost(last_error(self._log)) from None
        while (told := self._received())[0] != "over":
            match told:
                case "note", note:
                    self._say(note)
                case "answered", place, answer:
                    yield place, pickle.loads(answer)
                case "failed", place, reason:
                    yield place, WorkerDiedError(reason)
                case "introduced", machine, is_answer, answer:
                    self._connection.send(self._other(machine, is_answer, answer))
                case "refused", reason:
                    raise RunError(f"a node cannot take part: {reason}")
                case "lost", reason:
                    raise self._lost(reason)

    def _other(self, machine: str, is_answer: bool, answer: Any) -> str:
        """Why a node of the cluster cannot take part, by what it says of itself; empty: it can.

        That is compared with what is here, and with what the first node has said.

        Args:
            machine: its name.
            is_answer: whether it has answered.
            answer: packed, or why there is none.
        """
        from lit_fedbabu.learning.base import is_same
        from lit_fedbabu.protocol.handshake import Place

        reply = pickle.loads(answer) if is_answer else None
        if reply is None or reply.has_error():
            return str(reply.error.reason if reply else answer)
        place = Place.from_record(reply.content)
        if place.refusal:
            return place.refusal
        if place.initial_weights != self._experiment.config.initial_weights_digest:
            return "its initial-weights is another file; copy the server's to it, under the same path"
        if not is_same(place.base, self._experiment.base_facts.get("digest", "")):
            return "it has another base; give it the server's code, and files that it reads weights from"
        first = self._place = self._place or place
        if place.trains_on != first.trains_on:
            what = "the last bits of results depend" if place.precision == first.precision else "results depend"
            remedy = "" if place.precision == first.precision else "; give precision, as in precision=32-true"
            self._say(
                f"note: {machine} trains on {place.trains_on}, and others on {first.trains_on};"
                f" {what} on which of them trains a client{remedy}"
            )
        return ""

    def _received(self) -> tuple[Any, ...]:
        try:
            told: tuple[Any, ...] = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost(last_error(self._log)) from None
        return told

    def _refused(self, reason: str) -> Exception:
        if not self._address:
            return RunError(f"no Ray could be started here: {reason}")
        return InputError("ray-address", self._address, reason)

    def _lost(self, reason: str) -> RunError:
        remedy = f"; go on with resume = {self._folder}" if (self._folder / CONFIG).exists() else ""
        return RunError(f"the Ray cluster was lost: {reason}{remedy}")


def last_error(log: Path) -> str:
    """The last error that Ray has printed in the process that speaks with it, or what else is known."""
    errors = ERROR.findall(log.read_text(errors="replace") if log.exists() else "")
    return errors[-1][:200] if errors else "the process that speaks with Ray has ended"


@contextmanager
def connected(config: "Config", folder: Path) -> Iterator[Workers]:
    """Workers that start while this process does other things, and end with this context, or with this process.

    Args:
        config: the experiment.
        folder: the run's, in which workers log what they print, where their machine has it.

    Raises:
        InputError: Ray is not installed, or nobody is at the address.
        RunError: no guard of the processes could be started.
    """
    with driver(config.ray_address, "lit_fedbabu.engines.ray_driver") as (process, connection, log):
        connection.send(
            {
                "address": config.ray_address, "num_threads": config.num_threads, "path": sys.path,
                "current": os.getcwd(), "log": str(folder / LOG),
            }
        )  # fmt: skip
        yield Workers(process, connection, log, config, folder)


@contextmanager
def driver(address: str, module: str) -> "Iterator[tuple[subprocess.Popen[bytes], Connection, Path]]":
    """A process that speaks with Ray, a connection to it, and what it and Ray print.

    Args:
        address: as of ``ray-address``; the process gets it from its asker.
        module: that it runs, with the number of the connection.

    Raises:
        InputError: Ray is not installed, or nobody is at the address.
        RunError: no guard of the process could be started.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine", "ray", "Ray is not installed; install it with pip install 'flwr[simulation]'")
    if address not in ("", "auto"):
        _refuse_silent(address)
    with superlink.home_of_own() as home:
        environment = superlink.environment(home) | {"PYTHONPATH": with_package(os.environ.get("PYTHONPATH", ""))}
        if address:
            environment |= {name: os.environ[name] for name in superlink.RAYS if name in os.environ}
        else:
            environment |= OWN | superlink.of_own_ray()
        ours, theirs = socket.socketpair()
        log = home / "ray.log"
        command = [sys.executable, *ALONE, module, str(theirs.fileno())]
        with theirs, log.open("w") as file, left_to_this_process():
            process = subprocess.Popen(
                command, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            yield process, Connection(ours.detach()), log
        finally:
            if not address:  # Ray's processes wait for one another for seconds
                superlink.end_all(home, at_once=True)


def _refuse_silent(address: str) -> None:
    """Raise InputError where nobody listens at an address: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        remedy = f"no Ray answers there ({error.strerror or error}); ray status on its first machine names the address"
        raise InputError("ray-address", address, remedy) from None
