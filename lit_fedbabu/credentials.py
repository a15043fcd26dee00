"""``lit-fedbabu credentials FOLDER``: certificates and keys for a SuperLink and its sites."""

import datetime
import ipaddress
import os
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import naming, new_folder
from lit_fedbabu.ground.printing import say

DAYS = 825
"""Validity of the certificates in days: the most that common clients accept."""
LOCAL = ("localhost", "127.0.0.1")
"""What the SuperLink is called on its own machine, where runs are started."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu credentials",
        description="Make a certificate for a SuperLink, the authority that signed it, and a key pair for every site.",
    )
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--host", action="append", help="name or address of the SuperLink; several by several --host")
    parser.add_argument("--sites", type=int, required=True, help="how many key pairs")
    complete(parser)
    arguments = parser.parse_args(argv)
    if arguments.sites < 1:
        raise InputError("--sites", arguments.sites, "must be at least 1")
    hosts = [_alternative(host) for host in dict.fromkeys([*(arguments.host or []), *LOCAL])]
    with new_folder("folder", arguments.folder) as scratch:
        files = {**_certificates(hosts), **_keys(arguments.sites)}
        for name, content in files.items():
            mode = 0o644 if name.endswith((".crt", ".pub")) else 0o600
            with naming(scratch / name), open(os.open(scratch / name, os.O_CREAT | os.O_WRONLY, mode), "wb") as file:
                file.write(content)
    for name in files:
        say(arguments.folder / name)
    return 0


def _alternative(host: str) -> x509.GeneralName:
    """A name that the certificate is for."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InputError("--host", host, "must be a name of ASCII letters or an IP address") from None


def _certificates(hosts: list[x509.GeneralName]) -> dict[str, bytes]:
    """A new authority, whose key is not kept, and what it signs for the SuperLink."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _named("lit_fedbabu authority")
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    root = (
        _begun(authority, authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True}), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _begun(_named("lit_fedbabu SuperLink"), authority, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{**usage, "digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {
        "ca.crt": root.public_bytes(pem),
        "superlink.crt": server.public_bytes(pem),
        "superlink.key": _private(key, serialization.PrivateFormat.PKCS8),
    }


def _keys(sites: int) -> dict[str, bytes]:
    """A key pair for each site, in the form of OpenSSH, which is Flower's."""
    content = {}
    for site in range(sites):
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        content[f"site-{site}"] = _private(key, serialization.PrivateFormat.OpenSSH)
        content[f"site-{site}.pub"] = public + b"\n"
    return content


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """A certificate to which its extensions are still to be added."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


if __name__ == "__main__":
    sys.exit(main())
