"""How a site is taken by its server: against the handlers of Flower's SuperLink, without its port."""

import json
import threading

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from lit_fedbabu import supernode
from lit_fedbabu.engines import admission, node
from lit_fedbabu.engines.admission import PatientClient, RefusedError

KEY = b"a public key"
ASKS = ActivateNodeRequest(public_key=KEY, heartbeat_interval=30.0)


class Server:
    """What a SuperLink answers."""

    def __init__(self):
        self.state = LinkStateFactory(":flwr-in-memory:", NoOpFederationManager(), ObjectStoreFactory()).state()
        self.status = None

    def answer(self, path, rpc_method, request, response_type, timeout=None):
        asked = httpx.Request("POST", f"http://server{path}")
        if self.status:
            raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(self.status, text="no"))
        try:
            if isinstance(request, ActivateNodeRequest):
                return fleet_handlers.activate_node(request, self.state)
            return fleet_handlers.register_node(request, self.state, enable_supernode_auth=True)
        except FlowerError as error:
            spec = API_ERROR_MAP[error.code]
            response = httpx.Response(spec.http_status_code, text=json.dumps(error.to_json(spec.public_message)))
            raise httpx.HTTPStatusError("", request=asked, response=response) from None

    def register(self):
        return self.state.create_node("me", "me", KEY, 0)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(FleetHttpClient, "_unary_unary", lambda self, **request: server.answer(**request))
    return server


@pytest.fixture
def client():
    return PatientClient("http://server")


def test_a_site_still_taken_for_alive_waits_until_it_is_not(server, client, monkeypatch, capsys):
    site = server.register()
    assert client.ActivateNode(ASKS).node_id == site, "at once, where nothing is in the way"
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            assert server.state.deactivate_node(site)

    monkeypatch.setattr(admission.time, "sleep", sleep)
    assert client.ActivateNode(ASKS).node_id == site
    assert slept == [10.0] * 3
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "waiting for the server to take this site again" in told and "10 s" in told


def test_a_key_that_is_not_registered_is_told_as_one_also_while_a_site_waits(server, client, monkeypatch):
    with pytest.raises(RefusedError, match="flwr supernode register"):
        client.ActivateNode(ASKS)
    site = server.register()
    client.ActivateNode(ASKS)
    monkeypatch.setattr(admission.time, "sleep", lambda seconds: server.state.delete_node("me", site))
    with pytest.raises(RefusedError, match="flwr supernode register"):
        client.ActivateNode(ASKS)


def test_no_key_and_a_wrong_clock_are_told_and_the_rest_is_left_to_flower(server, client):
    with pytest.raises(RefusedError, match="only sites with a registered key"):
        client.RegisterNode(RegisterNodeFleetRequest(public_key=KEY))
    server.status = 401
    with pytest.raises(RefusedError, match="clock"):
        client.ActivateNode(ASKS)
    for server.status in (412, 500, 503):
        with pytest.raises(httpx.HTTPStatusError):
            client.ActivateNode(ASKS)


def test_a_refused_key_is_one_line_with_the_file_and_ends_flowers_threads(monkeypatch, capsys):
    def refuse():
        assert fleet_http_connection.FleetHttpClient is PatientClient
        raise RefusedError("register it")

    ended = []
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", None)
    monkeypatch.setattr(node, "flower_supernode", refuse)
    monkeypatch.setattr(node, "trigger_exit_handlers", lambda run_before_force_exit: ended.append(True))
    monkeypatch.setattr(node.subprocess, "Popen", _Answers)
    assert supernode.main(["--auth-supernode-private-key", "keys/site-0"]) == 2
    assert capsys.readouterr().err == 'error: --auth-supernode-private-key = "keys/site-0": register it\n'
    assert ended


def test_a_site_that_the_server_takes_no_longer_ends_with_a_line(server, client, monkeypatch, capsys):
    """Flower ends the process by SIGINT then, with status 0 and no reason."""
    monkeypatch.setattr(PatientClient, "lost", False)
    server.register()
    client.ActivateNode(ASKS)

    def serve():
        server.status = 401
        with pytest.raises(httpx.HTTPStatusError):
            client.PullMessages(PullMessagesRequest())
        raise SystemExit(0)

    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr(node, "flower_supernode", serve)
    monkeypatch.setattr(node.subprocess, "Popen", _Answers)
    assert supernode.main(["--auth-supernode-private-key", "keys/site-0"]) == 2
    assert "the server takes this key no longer; was it revoked" in capsys.readouterr().err


class _Answers:
    """The process that answers messages, as it were."""

    def __init__(self, *_, **__):
        pass

    def wait(self):
        threading.Event().wait()
