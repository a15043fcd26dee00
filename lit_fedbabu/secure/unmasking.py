"""The server in the protocol: what it makes of masked numbers and of shares."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from lit_fedbabu.secure.masks import Numbers, key_of_pair, stream
from lit_fedbabu.secure.party import ProtocolError, Public, private_of, public_of, with_pair


def unmasked(
    masked: Mapping[int, Numbers],
    public: Mapping[int, Public],
    answers: Mapping[int, Mapping[int, bytes]],
    threshold: int,
) -> Numbers:
    """The sum of what clients have masked (D,).

    Args:
        masked: of each client in the sum its masked numbers.
        public: what each client that sent shares tells everyone.
        answers: of each client that answered its shares: of seeds of those in the sum, of keys of the others.
        threshold: shares that make a secret.

    Raises:
        ProtocolError: of a client there are too few shares, or they make no secret of it.
    """
    total = np.zeros(len(next(iter(masked.values()))), np.uint32)
    for client, numbers in sorted(masked.items()):
        seed = _secret(client, answers, threshold)
        if hashlib.sha256(seed).digest() != public[client].commitment:
            raise _false(client)
        total += numbers
        total -= stream(seed, len(total))
    for client in sorted(public.keys() - masked.keys()):
        key = _private(client, _secret(client, answers, threshold), public[client].mask)
        for other in masked:
            total = with_pair(total, other, client, key_of_pair(key, public[other].mask), sign=-1)
    return total


def is_key(content: bytes) -> bool:
    """Whether it is a public key that others can have a key in common with."""
    try:
        return bytes_to_public_key(content).curve.name == "secp384r1"
    except Exception:  # whatever a client has sent
        return False


def _private(client: int, scalar: bytes, public: bytes) -> bytes:
    """The private key (PEM) of a client, by its shares; raises ProtocolError where it is not that of its public key."""
    with suppress(ValueError):  # it is no key
        if public_of(private := private_of(scalar)) == public:
            return private
    raise _false(client)


def _secret(client: int, answers: Mapping[int, Mapping[int, bytes]], threshold: int) -> bytes:
    """What the shares of a client make."""
    shares = [answers[each][client] for each in sorted(answers) if client in answers[each]]
    if len(shares) < threshold:
        raise ProtocolError(f"of client {client} there are {len(shares)} shares, and {threshold} are needed")
    try:
        return combine_shares(shares[:threshold])
    except Exception:  # whatever shares a client has sent
        raise _false(client) from None


def _false(client: int) -> ProtocolError:
    return ProtocolError(f"the shares of client {client} do not make its secret: a client sent something else")
