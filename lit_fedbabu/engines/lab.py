"""A server and its sites on this machine as on real ones: a SuperLink with TLS, and SuperNodes with keys."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tomli_w

from lit_fedbabu.engines import superlink
from lit_fedbabu.engines.control import Control, Registered, key_of
from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import RunError

START_TIMEOUT_S = 180.0
"""Seconds that a process may take until it is there."""


class Lab:
    """Starts the programs. Those that it started end with ``superlink.end_all(home)``.

    Args:
        folder: of logs and the SuperLink's database, in which the programs run; it has ``credentials/``.
        home: the operator's FLWR_HOME; the programs have theirs below it.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = superlink.free_port()
        self.address = f"127.0.0.1:{self.port}"
        connection = {"address": self.address, "root-certificates": str(folder / "credentials" / "ca.crt")}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "own", "own": connection}}))

    def start(
        self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program whose log is ``NAME.log``; nothing that is typed here stops it."""
        with (self.folder / f"{name}.log").open("a") as log:
            environment = {**superlink.environment(self.home / name), **(variables or {})}
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        return self.processes[name]

    def superlink_command(self) -> list[str]:
        """The command that starts the SuperLink."""
        keys = self.folder / "credentials"
        return [
            system.program("lit-fedbabu"), "superlink", "--host=127.0.0.1", f"--port={self.port}",
            f"--ssl-ca-certfile={keys / 'ca.crt'}", f"--ssl-certfile={keys / 'superlink.crt'}",
            f"--ssl-keyfile={keys / 'superlink.key'}", "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", f"--database={self.folder / 'superlink.db'}",
        ]  # fmt: skip

    def site_command(self, site: int, node_config: str) -> list[str]:
        """The command that starts a site."""
        keys = self.folder / "credentials"
        return [
            system.program("lit-fedbabu"), "supernode", f"--superlink={self.address}",
            f"--root-certificates={keys / 'ca.crt'}", f"--auth-supernode-private-key={keys / f'site-{site}'}",
            f"--node-config={node_config}", f"--port={superlink.free_port()}",
        ]  # fmt: skip

    def start_superlink(self) -> None:
        """Start the SuperLink, and wait until it is there.

        Raises:
            RunError: it does not come.
        """
        self.start("superlink", self.superlink_command())
        self._wait(lambda: superlink.listens(self.port), ["superlink"])

    def register(self, sites: Sequence[int]) -> None:
        """Have the SuperLink take these sites."""
        for site in sites:
            self._control().register(self._public(site), f"site-{site}")

    def wait_for(self, sites: Sequence[int]) -> None:
        """Wait until the SuperLink has taken all of these sites.

        Raises:
            RunError: one of them has ended, or does not come.
        """
        keys = [key_of(self._public(site)) for site in sites]
        control = self._control()

        def there() -> bool:
            known: Mapping[bytes, Registered] = control.registered()
            return all(known[key].online for key in keys)

        self._wait(there, [f"site-{site}" for site in sites])

    def _control(self) -> Control:
        return Control(self.address, (self.folder / "credentials" / "ca.crt").read_bytes())

    def _public(self, site: int) -> bytes:
        return (self.folder / "credentials" / f"site-{site}.pub").read_bytes()

    def _wait(self, there: Callable[[], bool], names: Sequence[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not there():
            ended = [name for name in names if self.processes[name].poll() is not None]
            if ended or time.monotonic() > deadline:
                log = self.folder / f"{(ended or names)[0]}.log"
                last = " ".join(log.read_text().strip().splitlines()[-1:])
                raise RunError(f"{', '.join(ended or names)} did not start: {last}; all that was said is in {log}")
            time.sleep(0.5)
