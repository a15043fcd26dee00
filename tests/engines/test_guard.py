"""Who may ask a SuperLink for what, and a node to import what."""

import asyncio
import os
import socket

import pytest

from lit_fedbabu.config import Config
from lit_fedbabu.engines import guard, node


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def ends(request):
    """Two ends of a connection of this process with itself."""
    family, host = request.param
    with socket.socket(family) as listening, socket.socket(family) as client:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listening.listen()
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        with server:
            yield client, server


def known(ends):
    _, server = ends
    return guard.is_this_user(server.getpeername()[:2], server.getsockname()[:2])


def test_a_process_of_this_user_is_known_and_another_users_is_not(ends, monkeypatch):
    assert known(ends)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not known(ends)


def test_an_end_that_is_closed_belongs_to_nobody(ends):
    """The system says then that it is root's, which a SuperLink in a container may be."""
    client, server = ends
    peer, own = server.getpeername()[:2], server.getsockname()[:2]
    client.close()
    assert not guard.is_this_user(peer, own)


def test_who_comes_from_another_machine_has_no_end_here(ends):
    _, server = ends
    host, port = server.getsockname()[:2]
    assert not guard.is_this_user((host, 1), (host, port))
    assert not guard.is_this_user(("192.0.2.1", server.getpeername()[1]), (host, port))


@pytest.mark.parametrize(
    ("path", "sites", "own", "status"),
    [
        ("/v1/control/start-run", True, True, 200),
        ("/v1/control/start-run", True, False, 403),
        ("/v1/runtime/acquire-task", True, False, 403),
        ("/v1/fleet/pull-messages", True, False, 200),
        ("/v1/fleet/pull-messages", False, False, 403),  # Flower then checks no keys
        ("/v1/fleet", True, False, 403),
        ("/openapi.json", True, False, 403),
        ("/v1/Fleet/pull-messages", True, False, 403),
    ],
)
def test_only_registered_sites_come_from_elsewhere(path, sites, own, status, monkeypatch):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    monkeypatch.setattr(guard, "is_this_user", lambda client, server: own)
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "client": ("192.0.2.1", 5), "server": ("192.0.2.2", 8443), "headers": []}
    asyncio.run(guard.Guard(app, sites)(scope, None, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("key", "path"),
    [(key, "os:system") for key in ("task", "model-name", "augmentation", "algorithm")],
)
def test_a_node_imports_nothing_that_only_the_server_names(key, path):
    run_config = Config(**{key.replace("-", "_"): path}).to_run_config()
    for other in ({}, {key: "my:own"}, {"client-id": 0}):
        with pytest.raises(ValueError, match=f'does not import os:system .*with {key}="os:system" in its --node-con'):
            node.refuse_unnamed_code(run_config, other)
    node.refuse_unnamed_code(run_config, {key: path})
    node.refuse_unnamed_code(Config(model_name="timm:resnet18", augmentation="none").to_run_config(), {})
    of_server = {"aggregator": "someones:rule", "engine": "someones:grid", "logger": "someones:logger"}
    node.refuse_unnamed_code(Config(**of_server).to_run_config(), {})  # a node imports none of these
