import os
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from lit_fedbabu import credentials


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
    assert "unregister the old key" in capsys.readouterr().out
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
