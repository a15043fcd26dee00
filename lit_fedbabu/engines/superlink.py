"""A SuperLink for one run. It ends with all processes that it started, even if its starter is killed."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import tomli_w

from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.ground.places import SCRATCH
from lit_fedbabu.ground.stops import SIGNALS, left_to_this_process
from lit_fedbabu.ground.system import PROGRESS
from lit_fedbabu.workers.worker import ALONE

START_TIMEOUT_S = 60
RAYS = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV_HOOK")
"""Variables that would lead Ray to a cluster of the user's, and not to the one of this run."""
NOT_PASSED_ON = (*RAYS, "PYTHONWARNINGS")
"""Flower's commands and Ray give warnings of their own, which are no errors of the run."""
RAY_PATH = 40
"""The longest folder name, in characters, in which Ray's sockets stay below the system's limit of 107."""


@contextmanager
def started(root: Path, progress: str = "") -> Iterator[Path]:
    """Start a SuperLink with a FLWR_HOME of its own, which is yielded, and end everything it started afterwards.

    Args:
        root: the folder of the app, in which it runs.
        progress: name of a file in the FLWR_HOME in which the server says how far it is; empty: it prints lines.

    Raises:
        RunError: it did not start.
    """
    with home_of_own() as home:
        port = free_port()
        own = {"address": f"127.0.0.1:{port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "own", "own": own}}))
        command = [
            sys.executable, *ALONE, "lit_fedbabu.engines.guard", "--insecure", "--simulation",
            "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port),
            "--database", str(home / "state.db"), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        own_ray = of_own_ray() | ({PROGRESS: str(home / progress)} if progress else {})
        with (home / "superlink.log").open("w") as log:
            link = subprocess.Popen(
                command, cwd=root, env=environment(home) | own_ray, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not listens(port):
            if link.poll() is not None or time.monotonic() > deadline:
                tail = (home / "superlink.log").read_text().strip().splitlines()[-1:]
                raise RunError(f"Flower's SuperLink did not start: {' '.join(tail)}")
            time.sleep(0.1)
        yield home


@contextmanager
def home_of_own() -> Iterator[Path]:
    """A new FLWR_HOME. Afterwards it is removed, and every process that has inherited it is ended.

    If this process is killed, a guard process does that.
    """
    home, guard = Path(tempfile.mkdtemp(prefix="lfb-")), None
    try:
        command = [sys.executable, "-m", "lit_fedbabu.engines.superlink", str(home)]
        with left_to_this_process():
            guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        yield home
    finally:
        end_all(home)
        shutil.rmtree(home, ignore_errors=True)
        if guard is not None:
            guard.communicate()


def of_own_ray() -> dict[str, str]:
    """Variables of a Ray that is started for one run alone: its ports are open to the network."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes of this FLWR_HOME."""
    own = {
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        SCRATCH: str(home),  # which goes with the run
        "PYTHONIOENCODING": "utf-8",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_worker_niceness": "0",  # else what it trains with starves beside other jobs
        "SPT_NOENV": "1",  # Ray's processes, which take names, keep their environment
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH') or os.defpath}",  # Ray needs a shell
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])),  # users' models
    }
    for name in ("NO_PROXY", "no_proxy"):  # what is said on this machine never goes through a proxy
        own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    if len(str(home)) <= RAY_PATH:
        own["RAY_TMPDIR"] = str(home)  # so that Ray's files go when the home goes
    users = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    return {"GLIBC_TUNABLES": system.MALLOC, **users, **own}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody on this machine listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_all(home: Path, at_once: bool = False) -> None:
    """End every process that inherited this FLWR_HOME or one below it: SuperLink, server, sites, Ray and its workers.

    Args:
        home: the FLWR_HOME.
        at_once: without time to clean up.
    """
    for end in [psutil.Process.kill] if at_once else [psutil.Process.terminate, psutil.Process.kill]:
        ours = [process for process in psutil.process_iter() if _belongs(process, home)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(ours, timeout=5)


def _belongs(process: psutil.Process, home: Path) -> bool:
    try:
        own = Path(process.environ().get("FLWR_HOME", ""))
        return own == home or home in own.parents
    except psutil.Error:
        return False


def main() -> None:
    """Guard the FLWR_HOME in the first argument: wait until the starter has ended, then end and remove what it left."""
    home = Path(sys.argv[1])
    for number in SIGNALS:  # what ends all processes of a job leaves the end of this one's work to it
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()  # ends when the other end of the pipe is closed, also by a kill
    end_all(home)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
