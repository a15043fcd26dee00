"""What the operator asks of a SuperLink on this machine: which keys of sites it knows, to take one, to take no more."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.ground.printing import in_line


class Registered(NamedTuple):
    """A key that a SuperLink knows.

    Args:
        node: Flower's number of it.
        holds: whether it is still taken.
        online: whether its site is there.
    """

    node: int
    holds: bool
    online: bool


class Control:
    """A SuperLink, as its operator sees it.

    Args:
        address: of the SuperLink, as in 127.0.0.1:8443.
        authority: the certificate that it is known by, as in ``ca.crt``.
    """

    def __init__(self, address: str, authority: bytes) -> None:
        self._address = address
        own = RuntimeVersionHttpInterceptor("lit-fedbabu")
        self._client = ControlHttpClient.from_server_address(address, False, authority, [own])

    def registered(self) -> Mapping[bytes, Registered]:
        """The keys that were ever registered, by ``key_of``."""
        with self._answered():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {
            node.public_key: Registered(
                node.node_id, node.status != NodeStatus.UNREGISTERED, node.status == NodeStatus.ONLINE
            )
            for node in nodes
        }

    def register(self, public: bytes, name: str) -> None:
        """Take a site with this key from now on."""
        with self._answered():
            self._client.RegisterNode(RegisterNodeRequest(public_key=key_of(public), name=name))

    def unregister(self, node: int) -> None:
        """Take a site with the key of this number never again: Flower takes no key twice."""
        with self._answered():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            told = in_line(" ".join(error.response.text.split())[:200])
            remedy = f"refuses with {error.response.status_code} ({told}); ask as its user, on its own machine"
            raise InputError("--superlink", self._address, remedy) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = in_line(" ".join(str(error).split()))
            remedy = (
                f"no SuperLink with this folder's certificate answers there ({told}); start it, or give its address"
            )
            raise InputError("--superlink", self._address, remedy) from None


def key_of(public: bytes) -> bytes:
    """A public key as Flower keeps it, from one in the form of OpenSSH."""
    return load_ssh_public_key(public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
