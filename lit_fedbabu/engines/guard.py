"""Flower's SuperLink, guarded: who may give it runs is this user of this machine, and no one else.

Flower serves all its APIs on one port, and asks only SuperNodes who they are. Whoever reaches its control API can start
runs of any code, and whoever reaches its runtime API can take a run over.
"""

import ipaddress
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import uvicorn
from flwr.common.constant import FLWR_INTERNAL_GRPC_CONTROL_API, FLWR_INTERNAL_GRPC_FLEET_API
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.logger import console_handler
from flwr.superlink.cli.flower_superlink import (
    SuperLinkLifespan,
    _parse_args_run_superlink,
    _parse_superlink_lifespan_config,
)  # fmt: skip
from flwr.superlink.main import create_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lit_fedbabu.completion import complete

FLEET = "/v1/fleet/"
"""Paths of the API of SuperNodes, each of whose requests Flower checks for a registered key."""
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""Connections that have an end on this machine, with the users that they belong to (Linux)."""
ESTABLISHED = "01"


class Guard:
    """Passes on the requests of this user's processes on this machine, and those of SuperNodes where they have keys.

    Args:
        app: Flower's, which the requests are for.
        sites: whether SuperNodes from elsewhere may come; the app then has to check their keys.
    """

    def __init__(self, app: ASGIApp, sites: bool) -> None:
        self._app = app
        self._sites = sites

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the app answer it, as ASGI has it."""
        site = self._sites and scope["type"] == "http" and scope["path"].startswith(FLEET)
        if scope["type"] == "lifespan" or site or is_this_user(scope["client"], scope["server"]):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("only the user of this SuperLink, on its machine, may do this", 403)(
                scope, receive, send
            )


def is_this_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether the other end of a connection is a process of this user on this machine.

    Its end then is in the system's table as well, with its user, who a closed end no longer has. Where there is no such
    table, outside Linux, every user of this machine passes.

    Args:
        client: address and port of the other end.
        server: of this end.
    """
    tables = [table for table in TABLES if table.exists()]
    if not tables:
        return ipaddress.ip_address(client[0]).is_loopback
    return _has_row((line for table in tables for line in table.read_text().splitlines()), client, server)


def _has_row(lines: Iterable[str], client: tuple[str, int], server: tuple[str, int]) -> bool:
    wanted = [_entry(*client), _entry(*server), ESTABLISHED, str(os.getuid())]
    return any([row[1], row[2], row[3], row[7]] == wanted for line in lines if len(row := line.split()) > 9)


def _entry(host: str, port: int) -> str:
    """An address as the system's table has it: words of four bytes, as numbers of this machine's byte order."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"


def main() -> None:
    """Serve until a signal comes; options are those of ``flower-superlink``."""
    complete(_parse_args_run_superlink())
    for name in (FLWR_INTERNAL_GRPC_CONTROL_API, FLWR_INTERNAL_GRPC_FLEET_API):
        os.environ.pop(name, None)  # they would open further ports
    config = _parse_superlink_lifespan_config()
    uvicorn.run(
        Guard(create_app(config, SuperLinkLifespan), config.enable_supernode_auth), host=config.host,
        port=config.port, log_config=get_uvicorn_log_config(console_handler.level), ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile, proxy_headers=False,  # with which a client could say who it is
    )  # fmt: skip


if __name__ == "__main__":
    main()
