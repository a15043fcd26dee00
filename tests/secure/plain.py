"""Secure aggregation in whole numbers of Python: what can be made of a transcript, by no code of the package or Flower.

Keys by the group of P-384 (SEC 2), streams by AES of PyCryptodome, shares by interpolation in GF(2^128).
"""

import base64
import hashlib
import hmac

from Crypto.Cipher import AES

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
G = (
    0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
    0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
)


def add(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    slope = (3 * a[0] ** 2 - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    x = (slope**2 - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def times(number, point):
    found = None
    while number:
        if number & 1:
            found = add(found, point)
        point, number = add(point, point), number >> 1
    return found


def point_of(pem):
    """The point that a public key is: the last 96 bytes of its DER."""
    der = base64.b64decode("".join(pem.decode().splitlines()[1:-1]))
    return int.from_bytes(der[-96:-48], "big"), int.from_bytes(der[-48:], "big")


def key_of_pair(scalar, pem):
    """HKDF-SHA-256 (RFC 5869), of one block, of the common point's x."""
    secret = times(scalar, point_of(pem))[0].to_bytes(48, "big")
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, b"\x01", hashlib.sha256)


def stream(key, count):
    cipher = AES.new(key, AES.MODE_ECB)
    blocks = b"".join(cipher.encrypt(number.to_bytes(16, "big")) for number in range(-(-count // 4)))
    return [int.from_bytes(blocks[4 * place : 4 * place + 4], "little") for place in range(count)]


def multiply(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a >> 128:
            a ^= 2**128 + 0b10000111
    return product


def inverse(a):
    found, power = 1, a
    for _ in range(127):  # a^(2^128 - 2)
        power = multiply(power, power)
        found = multiply(found, power)
    return found


def secret_of(shares):
    """What shares make: a place, and for each 16 bytes of the secret a value, of which that at zero is the secret."""
    places = [int.from_bytes(share[:4], "little") for share in shares]
    whole = b""
    for begin in range(4, len(shares[0]), 16):
        value = 0
        for place, share in zip(places, shares, strict=True):
            term = int.from_bytes(share[begin : begin + 16], "big")
            for other in places:
                if other != place:
                    term = multiply(term, multiply(other, inverse(other ^ place)))
            value ^= term
        whole += value.to_bytes(16, "big")
    return whole[: -whole[-1]]  # without padding


def sum_of(masked, public, answers, threshold):
    """The sum of what clients have masked, of numbers modulo 2^32."""
    count = len(next(iter(masked.values())))
    total = [sum(int(numbers[place]) for numbers in masked.values()) for place in range(count)]

    def secret(client):
        return secret_of([given[client] for given in answers.values() if client in given][:threshold])

    for client in masked:
        total = [a - b for a, b in zip(total, stream(secret(client), count), strict=True)]
    for gone in public.keys() - masked.keys():
        scalar = int.from_bytes(secret(gone), "big")
        assert times(scalar, G) == point_of(public[gone].mask)
        for client in masked:
            sign = 1 if client > gone else -1
            pair = stream(key_of_pair(scalar, public[client].mask), count)
            total = [a - sign * b for a, b in zip(total, pair, strict=True)]
    return [each % 2**32 for each in total]
