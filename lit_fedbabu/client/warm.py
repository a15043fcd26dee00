"""A process that has imported everything and forks for every message of a site.

Flower starts a new process for every message, and each would import PyTorch and Lightning again. This one is started by
the first message and ends with its SuperNode. A fork answers one message and ends, so messages share only imports.
"""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from flwr.app import Context, Message

from lit_fedbabu import system

Answers = Mapping[str, Callable[[Message, Context], Message]]

START_TIMEOUT_S = 300.0
WATCH_S = 2.0
"""Seconds between two checks that the SuperNode still runs."""


def answer(what: str, message: Message, context: Context) -> Message:
    """What ``handlers.ANSWERS`` has under that name answers.

    Raises:
        RuntimeError: it raised something, or its process was killed.
    """
    if not sys.platform.startswith("linux"):  # elsewhere a fork of a process with PyTorch in it is not safe
        from lit_fedbabu.client.handlers import ANSWERS

        return ANSWERS[what](message, context)
    with _connected(_address()) as connection:
        try:
            connection.send((what, message, context))
            answered: Message
            raised: str
            answered, raised = connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process that was to {what} was killed; the node may be out of memory") from None
    if raised:
        raise RuntimeError(raised)
    return answered


def _address() -> Path:
    """The socket of this SuperNode and this code, in a folder that only this user can enter.

    Raises:
        RuntimeError: the folder belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"lit_fedbabu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise RuntimeError(f"{folder} must be a folder of yours that others cannot enter; remove it, or set TMPDIR")
    return folder / f"{os.getppid()}-{system.source_digest()}"


def _connected(address: Path) -> Connection:
    """A connection to the warm process, which is started if it does not run."""
    if (connection := _connection(address)) is not None:
        return connection
    environment = {"GLIBC_TUNABLES": system.MALLOC, **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(system.package_folder().parent), os.getenv("PYTHONPATH")])
    )
    command = [sys.executable, "-m", "lit_fedbabu.client.warm", str(address), str(os.getppid())]
    started = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (connection := _connection(address)) is None:
        if started.poll() or time.monotonic() > deadline:
            raise RuntimeError("the process that answers messages did not start; the SuperNode's log says why")
        time.sleep(0.05)
    return connection


def _connection(address: Path) -> Connection | None:
    with socket.socket(socket.AF_UNIX) as end:
        try:
            end.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return Connection(end.detach())


def main() -> None:
    """Answer at the address in the first argument until the process in the second one has ended."""
    address, parent = Path(sys.argv[1]), int(sys.argv[2])
    import fcntl  # which not every system has

    lock = address.with_name(f"{address.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another message had the same idea
    from lit_fedbabu.client.handlers import ANSWERS  # takes seconds, which is what all this is for

    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        server.settimeout(WATCH_S)
        while psutil.pid_exists(parent):
            _reap()
            try:
                end, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                try:
                    _answer(ANSWERS, Connection(end.detach()))
                finally:
                    os._exit(0)
            end.close()
    address.unlink(missing_ok=True)
    Path(lock.name).unlink(missing_ok=True)
    for child in psutil.Process().children():
        child.kill()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(answers: Answers, connection: Connection) -> None:
    """In a fork: answer one message, and end early if the asking process ends."""
    what, message, context = connection.recv()

    def end_with_who_asked() -> None:
        connection.poll(None)  # nothing more is sent: this is the end of the connection
        os._exit(1)

    threading.Thread(target=end_with_who_asked, daemon=True).start()
    try:
        reply: tuple[Message | None, str] = answers[what](message, context), ""
    except Exception as error:
        traceback.print_exc()
        reply = None, f"{type(error).__name__}: {error}"
    connection.send(reply)


if __name__ == "__main__":
    main()
