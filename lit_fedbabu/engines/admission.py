"""How a site is taken by its server. It waits until it is, and says why it never will be."""

import time
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    RegisterNodeFleetRequest,
    RegisterNodeFleetResponse,
)  # fmt: skip
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supernode.fleet_http_client import FleetHttpClient

from lit_fedbabu.ground.printing import say

TRY_EVERY_S = 10.0


class RefusedError(BaseException):
    """The server never takes this site as it is. It is no Exception, of which Flower says that there is no connection.

    Args:
        remedy: what is wrong and what to do.
    """

    def __init__(self, remedy: str) -> None:
        super().__init__(remedy)
        self.remedy = remedy


class PatientClient(FleetHttpClient):
    """Flower's, except for what it does when the server does not take the site, or takes it no longer."""

    lost = False
    """Whether the server took a site of this process, and then did not accept its key. Flower ends without a word."""
    _taken = False

    def RegisterNode(self, request: RegisterNodeFleetRequest) -> RegisterNodeFleetResponse:  # noqa: N802 # Flower's name
        """Register a site that has no key of its own.

        Raises:
            RefusedError: the server wants one.
        """
        try:
            return super().RegisterNode(request)
        except httpx.HTTPStatusError as error:
            if _code(error) == ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
                raise RefusedError("the server takes only sites with a registered key; give the site's") from None
            raise

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802 # Flower's name
        """Take part, as soon as the server no longer takes an earlier process of this site for alive.

        Raises:
            RefusedError: the key is not registered, or the time of this machine is wrong.
        """
        waits = False
        while True:
            try:
                answer = super().ActivateNode(request)
                self._taken = True
                return answer
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    raise RefusedError(
                        "the server does not accept what this key has signed; is the clock of this machine right?"
                    ) from None
                if _code(error) != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                    raise
            if not self._is_registered(request.public_key):
                raise RefusedError(
                    "no site has this key at the server; register its public key there with flwr supernode register,"
                    " or after a revoke that of a new key"
                )
            if not waits:
                say(
                    "waiting for the server to take this site again: it still counts the site as there, for about a "
                    f"minute after a crash or as long as another one has its key; tries every {TRY_EVERY_S:g} s"
                )
            waits = True
            time.sleep(TRY_EVERY_S)

    def _unary_unary(self, **request: Any) -> Any:
        try:
            return super()._unary_unary(**request)
        except httpx.HTTPStatusError as error:
            PatientClient.lost |= self._taken and error.response.status_code == httpx.codes.UNAUTHORIZED
            raise

    def _is_registered(self, public_key: bytes) -> bool:
        """Whether the server knows a key: it looks for that first, and then at the interval, which no site may have."""
        try:
            super().ActivateNode(ActivateNodeRequest(public_key=public_key, heartbeat_interval=0.0))
        except httpx.HTTPStatusError as error:
            return _code(error) != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
        return True


def _code(error: httpx.HTTPStatusError) -> int | None:
    told = FlowerError.from_json(error.response.text)
    return None if told is None else told.code
