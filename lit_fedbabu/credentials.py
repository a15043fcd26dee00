"""``lit-fedbabu credentials FOLDER``: certificates and keys for a SuperLink and its sites."""

import datetime
import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lit_fedbabu.completion import Parser, complete
from lit_fedbabu.ground.errors import InputError, one_line_errors, some
from lit_fedbabu.ground.files import naming, new_folder
from lit_fedbabu.ground.printing import say, waiting

DAYS = 825
"""Validity of the certificates in days: the most that common clients accept."""
AUTHORITY = "ca.crt"
CERTIFICATES = (AUTHORITY, "superlink.crt")
PUBLIC = re.compile(r"site-(\d+)\.pub(\..*)?")
SITE = re.compile(r"(\d+)(\.old\d*)?")
REVOKED = "revoked"
SOON_DAYS = 60
LOCAL = ("localhost", "127.0.0.1")
"""What the SuperLink is called on its own machine, where runs are started."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu credentials",
        description="Make a certificate for a SuperLink, the authority that signed it, and a key pair for every site.",
    )
    parser.add_argument(
        "folder", type=Path, help="new or empty; with --add, --renew, --revoke and --show one that was made before"
    )
    parser.add_argument("--host", action="append", help="name or address of the SuperLink; several by several --host")
    one_of = parser.add_mutually_exclusive_group(required=True)
    one_of.add_argument("--sites", type=int, help="how many key pairs")
    one_of.add_argument("--add", type=int, metavar="SITES", help="make key pairs for so many sites more")
    one_of.add_argument("--renew", type=int, metavar="SITE", help="make a new key pair for the site of this number")
    about = (
        "have the SuperLink never again take the keys of the site of this number; 1.old: only the one before --renew 1"
    )
    one_of.add_argument("--revoke", metavar="SITE", help=about)
    one_of.add_argument(
        "--show", action="store_true", help="say which keys are there, and until when certificates are valid"
    )
    about = "with --revoke the address of the SuperLink; %(default)s"
    parser.add_argument("--superlink", metavar="HOST:PORT", default="127.0.0.1:8443", help=about)
    complete(parser)
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if arguments.sites is None:
        if arguments.host:
            raise InputError("--host", arguments.host[0], "is for a new folder; certificates are made with it")
        if not (folder / AUTHORITY).is_file():
            raise InputError("folder", str(folder), f"has no {AUTHORITY}; make it with --sites")
        if arguments.revoke is not None:
            return _revoked(folder, arguments.revoke, arguments.superlink)
        return _changed(folder, arguments.add, arguments.renew)
    if arguments.sites < 1:
        raise InputError("--sites", arguments.sites, "must be at least 1")
    for name in make(folder, arguments.sites, arguments.host or []):
        say(folder / name)
    _show_ends(folder)
    say("next: start lit-fedbabu superlink, and register the .pub files, as in docs/deployment.md")
    return 0


def make(folder: Path, sites: int, hosts: Iterable[str] = (), is_result: bool = True) -> list[str]:
    """Make a folder of certificates and keys; returns the names of its files.

    Args:
        folder: new or empty.
        sites: how many key pairs.
        hosts: names and addresses of the SuperLink, beside those that it has on its own machine.
        is_result: whether the command is done with it.

    Raises:
        InputError: the folder is not empty or cannot be made, or a host is none.
    """
    files = {
        **_certificates([_alternative(host) for host in dict.fromkeys([*hosts, *LOCAL])]),
        **_keys(range(sites)),
    }
    with new_folder("folder", folder, is_result=is_result) as scratch:
        _write(scratch, files)
    return list(files)


def _changed(folder: Path, add: int | None, renew: int | None) -> int:
    """Add or renew keys of sites in a folder, or say what it has; returns the exit status."""
    there, revoked = _sites(folder)
    made: dict[str, bytes] = {}
    old: list[Path] = []
    if add is not None:
        if add < 1:
            raise InputError("--add", add, "must be at least 1")
        first = max([*there, *revoked], default=-1) + 1
        made = _keys(range(first, first + add))
    elif renew is not None:
        if renew not in there + revoked:
            raise InputError("--renew", renew, f"is no site here; there are {some(map(str, there))}")
        made = _keys([renew])
        old = [_put_aside(folder / name, "old") for name in made] if renew in there else []
    _write(folder, made)
    for name in made:
        say(folder / name)
    if renew is not None:
        say(f"next: register site-{renew}.pub, and bring the site its new key")
        for path in old[:1]:
            say(f"then: revoke the old one, {path.name.removeprefix('site-')}, with credentials --revoke")
    elif add is not None:
        say("next: register the .pub files, and bring each new site its key and ca.crt")
    else:
        gone = f"; revoked: {some(map(str, revoked), len(revoked))}" if revoked else ""
        say(f"keys of the sites {some(map(str, there), len(there))}; they hold until they are revoked{gone}")
    _show_ends(folder)
    return 0


def _revoked(folder: Path, site: str, address: str) -> int:
    """Have the SuperLink take no more what was registered of a site; returns the exit status."""
    there, _ = _sites(folder)
    words = SITE.fullmatch(site)
    if not words or int(words[1]) not in there:
        raise InputError("--revoke", site, f"is no site here; there are {some(map(str, there))}")
    number, old = words[1], words[2]
    keys = sorted(folder.glob(f"site-{number}.pub{old or '*'}"), reverse=True)
    with waiting("loading Flower"):
        from lit_fedbabu.engines.control import Control, key_of
    control = Control(address, (folder / AUTHORITY).read_bytes())
    known = control.registered()
    found = {key: known.get(key_of(key.read_bytes())) for key in keys if REVOKED not in key.name}
    if not any(found.values()):
        remedy = (
            f"none of its keys was ever registered at {address}, and nothing was changed; is it the right SuperLink?"
        )
        raise InputError("--revoke", site, remedy)
    for key, registered in found.items():
        if registered is not None and registered.holds:
            control.unregister(registered.node)
        for path in (key.with_name(key.name.replace(".pub", "")), key):
            if path.exists():
                _put_aside(path, REVOKED)
        told = "was not registered" if registered is None else f"is revoked: {address} never takes it again"
        say(f"{key.name} {told}")
    if not old:
        say(f"a SuperNode with the key ends by itself; --renew {number} makes one with which the site may come back")
        say("next: start runs with as many num-clients as sites are left, and client-ids without a gap")
    return 0


def _sites(folder: Path) -> tuple[list[int], list[int]]:
    """The numbers of sites that have keys in a folder, and of those whose keys were all revoked."""
    found = [name for path in folder.iterdir() if (name := PUBLIC.fullmatch(path.name))]
    there = {int(name[1]) for name in found if not name[2]}
    return sorted(there), sorted({int(name[1]) for name in found} - there)


def _put_aside(path: Path, why: str) -> Path:
    """Give a file's name an ending that no other file has, the reason and from the second on a number; returns it."""
    endings = (path.with_name(f"{path.name}.{why}{number}") for number in chain([""], count(2)))
    return path.rename(next(place for place in endings if not place.exists()))


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        mode = 0o644 if name.endswith((".crt", ".pub")) else 0o600
        with naming(folder / name), open(os.open(folder / name, os.O_CREAT | os.O_WRONLY, mode), "wb") as file:
            file.write(content)


def _show_ends(folder: Path) -> None:
    """Say until when the certificates are valid."""
    ends = {
        name: x509.load_pem_x509_certificate((folder / name).read_bytes()).not_valid_after_utc for name in CERTIFICATES
    }
    soonest = min(ends.values())
    days = (soonest - datetime.datetime.now(datetime.UTC)).days
    say(f"certificates are valid until {soonest:%Y-%m-%d}, {max(0, days)} days more")
    if days < SOON_DAYS:
        say(f"note: make a new folder before, and bring every site the new {AUTHORITY}; their keys stay")


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


def _keys(sites: Iterable[int]) -> dict[str, bytes]:
    """A key pair for each site, in the form of OpenSSH, which is Flower's."""
    content = {}
    for site in sites:
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
