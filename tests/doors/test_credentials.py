import os
import stat
from types import SimpleNamespace

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.control import control_handlers

from lit_fedbabu import credentials
from lit_fedbabu.engines.control import Control, key_of


def test_certificates_and_keys_are_made_once_and_are_what_flower_takes(tmp_path, capsys):
    folder = tmp_path / "credentials"
    words = [str(folder), "--sites", "2", "--host", "hub.example.org", "--host", "127.0.0.1"]
    assert credentials.main(words) == 0
    made = {path.name: path for path in folder.iterdir()}
    assert set(made) == {"ca.crt", "superlink.crt", "superlink.key", "site-0", "site-0.pub", "site-1", "site-1.pub"}
    root, server = (x509.load_pem_x509_certificate(made[name].read_bytes()) for name in ("ca.crt", "superlink.crt"))
    server.verify_directly_issued_by(root)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    for name in ("site-0", "site-1"):
        private = serialization.load_ssh_private_key(made[name].read_bytes(), None)
        public = serialization.load_ssh_public_key(made[f"{name}.pub"].read_bytes())
        assert private.public_key() == public and public.curve.name == "secp384r1"
    for name in ("site-0", "site-1", "superlink.key"):
        assert stat.S_IMODE(os.stat(made[name]).st_mode) == 0o600
    before = {name: path.read_bytes() for name, path in made.items()}
    assert credentials.main(words) == 2
    assert "is not empty, and nothing is overwritten" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sites", "0"], "--sites = 0: must be at least 1"),
        (["--sites", "1", "--host", "hüb"], "must be a name of ASCII letters or an IP address"),
    ],
)
def test_credentials_that_cannot_be_made_leave_no_folder(words, told, tmp_path, capsys):
    assert credentials.main([str(tmp_path / "new"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_sites_are_added_and_renewed_and_the_end_of_certificates_is_told(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "credentials"
    assert credentials.main([str(folder), "--sites", "2"]) == 0
    assert "825 days more" in capsys.readouterr().out.replace("824 days", "825 days")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert credentials.main([str(folder), "--add", "2"]) == 0
    assert {"site-2", "site-2.pub", "site-3", "site-3.pub"} == {path.name for path in folder.iterdir()} - before.keys()
    assert credentials.main([str(folder), "--renew", "1"]) == 0
    assert "revoke the old one, 1.old, with" in capsys.readouterr().out
    changed = {name for name, content in before.items() if (folder / name).read_bytes() != content}
    assert changed == {"site-1", "site-1.pub"}
    assert all((folder / f"{name}.old").read_bytes() == before[name] for name in changed)
    assert stat.S_IMODE(os.stat(folder / "site-1").st_mode) == stat.S_IMODE(os.stat(folder / "site-3").st_mode) == 0o600
    private = serialization.load_ssh_private_key((folder / "site-1").read_bytes(), None)
    assert private.public_key() == serialization.load_ssh_public_key((folder / "site-1.pub").read_bytes())
    monkeypatch.setattr(credentials, "SOON_DAYS", 900)
    assert credentials.main([str(folder), "--show"]) == 0
    told = capsys.readouterr().out
    assert "keys of the sites 0, 1, 2, 3;" in told and "note: make a new folder" in told
    assert credentials.main([str(folder), "--renew", "7"]) == 2
    assert "is no site here; there are 0, 1, 2, 3" in capsys.readouterr().err
    assert credentials.main([str(tmp_path), "--add", "1"]) == 2
    assert "has no ca.crt; make it with --sites" in capsys.readouterr().err
    assert credentials.main([str(folder), "--show", "--host", "x"]) == 2


@pytest.fixture
def superlink(monkeypatch):
    """The link state of a SuperLink, whose control API is Flower's own without its port."""
    state = LinkStateFactory(":flwr-in-memory:", NoOpFederationManager(), ObjectStoreFactory()).state()
    me = SimpleNamespace(flwr_aid="me", account_name="me")

    def answer(self, path, rpc_method, request, response_type, timeout=None):
        if isinstance(request, ListNodesRequest):
            return control_handlers.list_nodes(request, me, state)
        handlers = control_handlers.register_node, control_handlers.unregister_node
        return handlers[not isinstance(request, RegisterNodeRequest)](request, me, state)

    monkeypatch.setattr(ControlHttpClient, "_unary_unary", answer)
    return state


def test_a_revoked_site_is_taken_by_no_key_that_it_ever_had(superlink, tmp_path, capsys):
    folder = tmp_path / "credentials"
    assert credentials.main([str(folder), "--sites", "3"]) == 0
    control = Control("127.0.0.1:1", (folder / "ca.crt").read_bytes())
    publics = {}

    def register(site):
        publics[site] = key_of((folder / f"site-{site}.pub").read_bytes())
        control.register((folder / f"site-{site}.pub").read_bytes(), f"site-{site}")
        return publics[site]

    first = [register(site) for site in range(2)]
    before = sorted(path.name for path in folder.iterdir())
    for site, why in (("2", "none of its keys was ever registered"), ("7", "is no site"), ("../1", "is no site")):
        assert credentials.main([str(folder), "--revoke", site]) == 2
        assert why in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    assert credentials.main([str(folder), "--renew", "1"]) == 0
    second = register(1)
    assert credentials.main([str(folder), "--revoke", "1.old"]) == 0
    assert superlink.get_node_id_by_public_key(first[1]) is None
    assert superlink.get_node_id_by_public_key(second) is not None, "the new key still holds"
    assert credentials.main([str(folder), "--renew", "1"]) == 0  # which is not registered yet
    assert "1.old, with" in capsys.readouterr().out
    assert credentials.main([str(folder), "--revoke", "1"]) == 0
    told = capsys.readouterr().out
    assert "site-1.pub.old is revoked" in told and "site-1.pub was not registered" in told
    assert superlink.get_node_id_by_public_key(second) is None
    assert superlink.get_node_id_by_public_key(first[0]) is not None, "another site's"
    assert not {"site-1", "site-1.pub", "site-1.pub.old"} & {path.name for path in folder.iterdir()}
    assert credentials.main([str(folder), "--show"]) == 0
    assert "sites 0, 2; they hold until they are revoked; revoked: 1" in capsys.readouterr().out
    assert credentials.main([str(folder), "--add", "1"]) == 0
    assert (folder / "site-3.pub").exists() and not (folder / "site-1.pub").exists()
    assert credentials.main([str(folder), "--renew", "1"]) == 0
    register(1)
    assert credentials.main([str(folder), "--revoke", "1"]) == 0
    assert {"site-1.pub.revoked", "site-1.pub.revoked2"} <= {path.name for path in folder.iterdir()}


def test_a_revoke_that_reaches_no_superlink_or_is_refused_changes_nothing(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "credentials"
    assert credentials.main([str(folder), "--sites", "1"]) == 0
    words = [str(folder), "--revoke", "0", "--superlink", "127.0.0.1:1"]
    before = {path.name for path in folder.iterdir()}
    assert credentials.main(words) == 2
    assert '--superlink = "127.0.0.1:1": no SuperLink with this folder' in capsys.readouterr().err

    def refuse(self, path, **request):
        asked = httpx.Request("POST", f"http://server{path}")
        raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(403, text="only the user"))

    monkeypatch.setattr(ControlHttpClient, "_unary_unary", refuse)
    assert credentials.main(words) == 2
    assert "refuses with 403 (only the user); ask as its user" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == before
