"""A client in the protocol of Bonawitz et al. 2017, Figure 4, without its signatures: its secrets, and what it sends.

Steps come one after the other, each once: keys, shares, masked numbers, and shares of those who are or are not in the
sum. A pair of clients has a mask that one adds and the other subtracts, and each client a mask of its own. Of every
client in the sum the server needs shares of the seed of its own mask, and of every other one shares of the key of its
masks with others. Who has both of one client can read its update, so nobody gives both.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import (
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from lit_fedbabu.secure.masks import Numbers, key_of_pair, stream

SEED_BYTES, SCALAR_BYTES = 32, 48
KEYS, SHARED, MASKED, OVER = "keys", "shared", "masked", "over"
"""What a client has sent."""


class Public(NamedTuple):
    """What a client tells everyone in a round.

    Args:
        mask: the public key of its masks with others (PEM).
        share: the public key that shares for it are encrypted with (PEM).
        commitment: SHA-256 of the seed of its own mask, by which wrong shares are seen.
    """

    mask: bytes
    share: bytes
    commitment: bytes


class ProtocolError(ValueError):
    """A step that a client refuses. The message says why."""


@dataclasses.dataclass
class Party:
    """A client in a round.

    Args:
        client: its number.
        server_round: number of the round, from 1.
        threshold: shares that make a secret.
        sent: what it has sent last.
        secrets: private keys of masks and of shares (PEM), and the seed of its own mask; empty when the round is over.
        peers: what the clients of the round, itself among them, tell everyone.
        shares: for each client whose shares it has, those of the seed and of the key.
        members: who has sent shares, itself among them.
        answer: what it gave at the end.
        summed: a round that it has given shares for, and the clients in its sum.
    """

    client: int
    server_round: int
    threshold: int
    sent: str = KEYS
    secrets: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    peers: dict[int, Public] = dataclasses.field(default_factory=dict)
    shares: dict[int, tuple[bytes, bytes]] = dataclasses.field(default_factory=dict)
    members: list[int] = dataclasses.field(default_factory=list)
    answer: dict[int, bytes] = dataclasses.field(default_factory=dict)
    summed: tuple[int, list[int]] = (0, [])

    @classmethod
    def begin(cls, client: int, server_round: int, threshold: int, summed: tuple[int, list[int]] = (0, [])) -> Self:
        """A client with new keys.

        Args:
            client: its number.
            server_round: number of the round.
            threshold: shares that make a secret.
            summed: of the round before, as it was left.
        """
        mask, share = (private_key_to_bytes(generate_key_pairs()[0]) for _ in range(2))
        secrets = mask, share, os.urandom(SEED_BYTES)
        return cls(client, server_round, threshold, secrets=secrets, summed=summed)

    @property
    def public(self) -> Public:
        """What it tells everyone."""
        mask, share, seed = self.secrets
        return Public(public_of(mask), public_of(share), hashlib.sha256(seed).digest())

    def share(self, server_round: int, peers: Mapping[int, Public]) -> dict[int, bytes]:
        """Shares of its secrets for each other client, which that client alone can read.

        Args:
            server_round: number of the round.
            peers: what the clients of the round tell everyone, itself among them.

        Raises:
            ProtocolError: they are too few, two have the same key, or its own are not there.
        """
        self._expect(server_round, KEYS)
        self._enough(peers)
        keys = [key for each in peers.values() for key in (each.mask, each.share)]
        if len(set(keys)) < len(keys) or peers.get(self.client) != self.public:
            raise ProtocolError("keys of clients are there twice, or its own are not there")
        mask, _, seed = self.secrets
        of_seed = create_shares(seed, self.threshold, len(peers))
        of_mask = create_shares(scalar_of(mask), self.threshold, len(peers))
        sent: dict[int, bytes] = {}
        for peer, of_both in zip(sorted(peers), zip(of_seed, of_mask, strict=True), strict=True):
            if peer == self.client:
                self.shares[peer] = of_both
            else:
                sent[peer] = encrypt(
                    self._key_with(peers[peer]), share_keys_plaintext_concat(self.client, peer, *of_both)
                )
        self.peers, self.sent = dict(peers), SHARED
        return sent

    def mask(self, server_round: int, numbers: Numbers, encrypted: Mapping[int, bytes]) -> Numbers:
        """The numbers with its own mask, and with those that it has with each client that sent shares.

        Args:
            server_round: number of the round.
            numbers: its quantized update (D,).
            encrypted: what each other client has sent to it.

        Raises:
            ProtocolError: these are too few clients, or others than those whose keys it was given.
        """
        self._expect(server_round, SHARED)
        self.members = sorted({*encrypted, self.client})
        self._enough(self.members)
        if not set(self.members) <= self.peers.keys() or self.client in encrypted:
            raise ProtocolError("shares are of clients that have sent no keys")
        for peer, content in encrypted.items():
            try:
                source, target, *of_both = share_keys_plaintext_separate(
                    decrypt(self._key_with(self.peers[peer]), content)
                )
            except InvalidToken:
                continue  # without this share others may be enough
            if (source, target) == (peer, self.client):
                self.shares[peer] = of_both[0], of_both[1]
        own, _, seed = self.secrets
        masked = numbers + stream(seed, len(numbers))
        for peer in self.members:
            if peer != self.client:
                masked = with_pair(masked, self.client, peer, key_of_pair(own, self.peers[peer].mask))
        self.sent = MASKED
        return masked

    def unmask(self, server_round: int, alive: Iterable[int], dead: Iterable[int]) -> dict[int, bytes]:
        """Its shares of the seeds of those in the sum, and of the keys of the others. Then it has no secret any more.

        The same question gets the same answer. Another one gets none, also when the round is begun anew: of two sums
        the difference would be a client's update.

        Args:
            server_round: number of the round.
            alive: clients in the sum.
            dead: those that sent shares and are not in it.

        Raises:
            ProtocolError: these are too few, not all, or not each once; or it has answered another question.
        """
        alive, dead = sorted(alive), sorted(dead)
        if (server_round, self.sent) == (self.server_round, OVER) and self.summed[1] == alive:
            return dict(self.answer)
        self._expect(server_round, MASKED)
        if sorted([*alive, *dead]) != self.members or self.client not in alive:
            raise ProtocolError("it gives one kind of share of each client that sent shares, and is in the sum itself")
        self._enough(alive)
        if self.summed[0] == server_round and self.summed[1] != alive:
            before = ", ".join(map(str, self.summed[1]))
            remedy = f"go on when clients {before} are there again"
            raise ProtocolError(
                f"it has unmasked another sum of this round, and the difference would show updates; {remedy}"
            )
        kinds = {**dict.fromkeys(alive, 0), **dict.fromkeys(dead, 1)}
        self.answer = {client: self.shares[client][kind] for client, kind in kinds.items() if client in self.shares}
        self.summed, self.sent = (server_round, alive), OVER
        self.secrets, self.shares = (b"", b"", b""), {}
        return dict(self.answer)

    def dumps(self) -> str:
        """All of it as JSON."""
        return json.dumps({field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @classmethod
    def loads(cls, text: str) -> Self:
        """Read what ``dumps`` wrote."""
        values = json.loads(text)
        values["secrets"] = tuple(map(base64.b64decode, values["secrets"]))
        values["peers"] = {int(each): Public(*map(base64.b64decode, own)) for each, own in values["peers"].items()}
        pairs = {int(each): tuple(map(base64.b64decode, own)) for each, own in values["shares"].items()}
        values["shares"] = pairs
        values["answer"] = {int(each): base64.b64decode(own) for each, own in values["answer"].items()}
        values["summed"] = tuple(values["summed"])
        return cls(**values)

    def _expect(self, server_round: int, sent: str) -> None:
        if (server_round, sent) != (self.server_round, self.sent):
            here = f"it has sent {self.sent!r} of round {self.server_round}"
            raise ProtocolError(
                f"steps come one after the other, each once: {here}, and was asked about round {server_round}"
            )

    def _enough(self, clients: Iterable[int]) -> None:
        if (count := len(list(clients))) < self.threshold:
            raise ProtocolError(f"{count} clients are fewer than the {self.threshold} that it takes")

    def _key_with(self, peer: Public) -> bytes:
        return generate_shared_key(bytes_to_private_key(self.secrets[1]), bytes_to_public_key(peer.share))


def with_pair(numbers: Numbers, client: int, peer: int, key: bytes, sign: int = 1) -> Numbers:
    """Numbers of a client with its mask with another one: the larger number of a client adds it; -1 takes it off."""
    mask = stream(key, len(numbers))
    return numbers + mask if (client > peer) == (sign > 0) else numbers - mask


def scalar_of(private: bytes) -> bytes:
    """The number that a private key (PEM) is, in 48 bytes, of which shares are a fifth as long as of the PEM."""
    return bytes_to_private_key(private).private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")


def private_of(scalar: bytes) -> bytes:
    """The private key (PEM) that a number is; raises ValueError where it is none."""
    return private_key_to_bytes(ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP384R1()))


def public_of(private: bytes) -> bytes:
    """The public key of a private one, both PEM."""
    return public_key_to_bytes(bytes_to_private_key(private).public_key())


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
