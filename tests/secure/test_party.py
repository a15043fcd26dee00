"""The protocol between clients and a server, without models and messages."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from cryptography.fernet import InvalidToken
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt
from scipy.stats import chisquare

from lit_fedbabu.secure.masks import LEVELS, mean, quantized, stream
from lit_fedbabu.secure.party import Party, ProtocolError, scalar_of
from lit_fedbabu.secure.unmasking import is_key, unmasked
from tests.secure import plain

COUNT, THRESHOLD, LENGTH = 5, 3, 257
NUMBERS = {client: np.random.default_rng(client).integers(0, 2**32, LENGTH, dtype=np.uint32) for client in range(COUNT)}


class Round:
    """A round of clients 0 to 4, some of which are gone before a step."""

    def __init__(self, shares=(), masks=(), gone=()):
        everyone = range(COUNT)
        self.parties = {client: Party.begin(client, 1, THRESHOLD) for client in everyone}
        self.told = {client: party.public for client, party in self.parties.items()}
        self.sent = {
            client: party.share(1, self.told) for client, party in self.parties.items() if client not in shares
        }
        self.public = {client: self.told[client] for client in self.sent}
        self.masked = {
            client: self.parties[client].mask(1, NUMBERS[client], self.to(client))
            for client in self.sent if client not in masks
        }  # fmt: skip
        self.alive, self.dead = list(self.masked), sorted(self.sent.keys() - self.masked.keys())
        self.gone = gone

    def to(self, client):
        return {source: sent[client] for source, sent in self.sent.items() if source != client}

    def answers(self):
        asked = [client for client in self.alive if client not in self.gone]
        return {client: self.parties[client].unmask(1, self.alive, self.dead) for client in asked}


@pytest.mark.parametrize(
    "gone",
    [
        {},
        {"shares": [1]},
        {"masks": [0, 4]},
        {"gone": [2, 3]},
        {"shares": [0], "masks": [3]},
        {"shares": [4], "gone": [0]},
        {"masks": [2], "gone": [4]},
    ],
    ids=str,
)
def test_the_sum_is_that_of_whole_numbers_whoever_is_gone_at_whatever_step(gone):
    made = Round(**gone)
    answers = made.answers()
    found = unmasked(made.masked, made.public, answers, THRESHOLD)
    assert found.dtype == np.uint32
    by_hand = [sum(int(NUMBERS[client][place]) for client in made.alive) % 2**32 for place in range(LENGTH)]
    assert found.tolist() == by_hand
    assert plain.sum_of(made.masked, made.public, answers, THRESHOLD) == by_hand


def test_no_part_of_a_sum_can_be_unmasked_by_all_that_the_server_knows():
    """It has every seed and the key of who is gone, and takes off all masks that these make."""
    made = Round(masks=[4])
    answers = made.answers()
    seeds = {client: plain.secret_of([each[client] for each in answers.values()][:THRESHOLD]) for client in made.alive}
    without = {client: made.masked[client] - stream(seeds[client], LENGTH) for client in made.alive}
    gone = int.from_bytes(plain.secret_of([each[4] for each in answers.values()][:THRESHOLD]), "big")
    for client in made.alive:  # client 4 has the larger number
        without[client] += np.array(plain.stream(plain.key_of_pair(gone, made.public[client].mask), LENGTH), np.uint32)
    for size in range(1, len(made.alive)):
        for subset in itertools.combinations(made.alive, size):
            found, true = sum(without[each] for each in subset), sum(NUMBERS[each] for each in subset)
            assert np.count_nonzero(found == true) <= 1, subset
    assert (sum(without.values()) == sum(NUMBERS[each] for each in made.alive)).all()


def test_masked_numbers_are_uniform_and_no_two_rounds_are_alike():
    zeros = np.zeros(2**16, np.uint32)

    def masked():
        parties = {client: Party.begin(client, 1, 2) for client in range(3)}
        told = {client: party.public for client, party in parties.items()}
        sent = {client: party.share(1, told) for client, party in parties.items()}
        return parties[0].mask(1, zeros, {source: sent[source][0] for source in (1, 2)})

    first, second = masked(), masked()
    assert np.count_nonzero(first == second) <= 2
    for numbers in (first, second, first - second):
        for bits in (numbers & 255, numbers >> 24):
            assert chisquare(np.bincount(bits, minlength=256)).pvalue > 1e-6


def test_shares_are_read_by_whom_they_are_for_alone():
    parties = [Party.begin(client, 1, THRESHOLD) for client in range(COUNT)]
    told = {party.client: party.public for party in parties}
    sent = parties[0].share(1, told)
    own = [share for pair in parties[0].shares.values() for share in pair]
    hidden = [*own, scalar_of(parties[0].secrets[0]), parties[0].secrets[2]]
    for target, content in sent.items():
        assert not any(secret in content or secret[4:20] in content for secret in hidden)
        for other in parties:
            if other.client not in (0, target):
                with pytest.raises(InvalidToken):
                    decrypt(other._key_with(told[0]), content)
        opened = decrypt(parties[target]._key_with(told[0]), content)
        assert opened == decrypt(parties[0]._key_with(told[target]), content) and len(opened) > 68
    assert len(set(sent.values())) == len(sent) == COUNT - 1
    secrets = [secret for party in parties for secret in party.secrets]
    assert len(set(secrets)) == 3 * COUNT and {len(party.secrets[2]) for party in parties} == {32}


def refused(party, *question):
    with pytest.raises(ProtocolError) as caught:
        party.unmask(*question)
    return str(caught.value)


def test_a_client_gives_one_kind_of_share_of_each_client_and_answers_one_question():
    made = Round(masks=[4])
    party = made.parties[0]
    assert "one kind of share" in refused(party, 1, [0, 1, 2, 3], [3, 4])
    assert "one kind of share" in refused(party, 1, [0, 1, 2, 3, 4], [4])
    assert "one kind of share" in refused(party, 1, [0, 1, 2, 3], [])
    assert "one kind of share" in refused(party, 1, [1, 2, 3], [0, 4])
    assert "fewer than the 3" in refused(party, 1, [0, 1], [2, 3, 4])
    assert "each once" in refused(party, 2, [0, 1, 2, 3], [4])
    given = party.unmask(1, [0, 1, 2, 3], [4])
    assert given == party.unmask(1, [3, 2, 1, 0], [4])
    assert "each once" in refused(party, 1, [0, 1, 2], [3, 4])
    assert "each once" in refused(party, 1, [0, 1, 2, 3, 4], [])
    of_seed = [party.unmask(1, [0, 1, 2, 3], [4])[client] for client in range(4)]
    assert len({*of_seed, given[4]}) == COUNT


def test_a_round_that_is_begun_anew_is_unmasked_for_the_same_clients_alone():
    made = Round()
    summed = {client: (made.parties[client].unmask(1, made.alive, made.dead), made.parties[client].summed)[1]
              for client in made.alive}  # fmt: skip
    again = Round()
    for client, party in again.parties.items():
        party.summed = summed[client]
    assert "go on when clients 0, 1, 2, 3, 4 are there again" in refused_in(Round(masks=[4]), summed)
    assert (unmasked(again.masked, again.public, again.answers(), THRESHOLD) == sum(NUMBERS.values())).all()
    party = Party.begin(0, 2, THRESHOLD, summed[0])
    assert party.summed == (1, [0, 1, 2, 3, 4])


def refused_in(made, summed):
    made.parties[0].summed = summed[0]
    return refused(made.parties[0], 1, made.alive, made.dead)


def test_steps_come_one_after_the_other_each_once():
    made = Round()
    party = made.parties[0]
    for step in (lambda: party.share(1, made.told), lambda: party.mask(1, NUMBERS[0], made.to(0))):
        with pytest.raises(ProtocolError, match="it has sent 'masked' of round 1, and was asked about round 1"):
            step()
    fresh = Party.begin(0, 1, THRESHOLD)
    with pytest.raises(ProtocolError, match="it has sent 'keys' of round 1"):
        fresh.mask(1, NUMBERS[0], made.to(0))
    with pytest.raises(ProtocolError, match="and was asked about round 2"):
        fresh.share(2, {0: fresh.public})


def test_keys_of_too_few_or_twice_or_without_its_own_are_refused():
    parties = {client: Party.begin(client, 1, THRESHOLD) for client in range(COUNT)}
    told = {client: party.public for client, party in parties.items()}
    with pytest.raises(ProtocolError, match="2 clients are fewer than the 3 that it takes"):
        parties[0].share(1, {client: told[client] for client in (0, 1)})
    for false in ({**told, 0: told[1]}, {**told, 1: told[2]}, {client: told[client] for client in (1, 2, 3)}):
        with pytest.raises(ProtocolError, match="keys of clients are there twice, or its own are not there"):
            parties[0].share(1, false)
    made = Round()
    parties[0].share(1, told)
    with pytest.raises(ProtocolError, match="2 clients are fewer than the 3"):
        parties[0].mask(1, NUMBERS[0], {1: b""})
    with pytest.raises(ProtocolError, match="of clients that have sent no keys"):
        parties[0].mask(1, NUMBERS[0], {**made.to(0), 7: b""})


def test_a_client_whose_shares_are_garbage_hurts_nobody_while_others_are_enough():
    """Client 1 gets garbage from client 0 and has no share of it; the others have."""
    parties = {client: Party.begin(client, 1, THRESHOLD) for client in range(COUNT)}
    told = {client: party.public for client, party in parties.items()}
    sent = {client: party.share(1, told) for client, party in parties.items()}
    sent[0][1] = b"garbage"
    to = {client: {source: own[client] for source, own in sent.items() if source != client} for client in parties}
    masked = {client: party.mask(1, NUMBERS[client], to[client]) for client, party in parties.items()}
    answers = {client: party.unmask(1, list(parties), []) for client, party in parties.items()}
    assert 0 not in answers[1]
    assert (unmasked(masked, told, answers, THRESHOLD) == sum(NUMBERS.values())).all()
    few = {client: answers[client] for client in (1, 2, 3)}
    with pytest.raises(ProtocolError, match="of client 0 there are 2 shares, and 3 are needed"):
        unmasked(masked, told, few, THRESHOLD)


@pytest.mark.parametrize("about", [0, 4], ids=["of a seed", "of a key"])
def test_false_shares_are_seen(about):
    made = Round(masks=[4])
    answers = made.answers()
    for false in (
        answers[0][1],
        b"",
        b"\x01\0\0\0" + bytes(64),
        answers[0][about][:4] + bytes(len(answers[0][about]) - 4),
    ):
        with pytest.raises(ProtocolError, match=f"the shares of client {about} do not make its secret"):
            unmasked(made.masked, made.public, {**answers, 0: {**answers[0], about: false}}, THRESHOLD)


@pytest.mark.parametrize("about", [0, 4], ids=["of a seed", "of a key"])
def test_shares_of_another_secret_are_seen(about):
    """They are shares of one secret, but not of that of this round."""
    made, other = Round(masks=[4]), Round(masks=[4]).answers()
    answers = {client: {**own, about: other[client][about]} for client, own in made.answers().items()}
    with pytest.raises(ProtocolError, match=f"the shares of client {about} do not make its secret"):
        unmasked(made.masked, made.public, answers, THRESHOLD)


def test_secrets_are_written_and_read_and_gone_when_the_round_is_over():
    made = Round(masks=[4])
    party = made.parties[0]
    assert Party.loads(party.dumps()) == party
    before = dataclasses.replace(party)
    party.unmask(1, made.alive, made.dead)
    assert Party.loads(party.dumps()) == party
    left = json.loads(party.dumps())
    assert left["secrets"] == ["", "", ""] and left["shares"] == {}
    kept = json.loads(before.dumps())
    hidden = [*kept["secrets"], *(share for pair in kept["shares"].values() for share in pair)]
    assert len(hidden) == 3 + 2 * COUNT
    given = set(left["answer"].values())
    assert not [secret for secret in hidden if secret in party.dumps() and secret not in given]


def test_what_is_no_key_is_seen():
    public = Party.begin(0, 1, THRESHOLD).public
    assert is_key(public.mask) and is_key(public.share)
    other = b"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
    assert not any(map(is_key, (b"", b"garbage", public.mask[:-40], other)))


def test_an_update_is_rounded_to_the_nearest_step_and_too_large_ones_are_refused():
    rng = np.random.default_rng(0)
    update = rng.normal(0, 0.1, 1000)
    for weight, total, limit in ((1, 1, 1.0), (68, 680, 8.0), (7, 10**8, 0.5)):
        numbers = quantized(update, weight, total, limit)
        exact = [value * weight * LEVELS / (total * limit) for value in update.tolist()]
        signed = [int(each) - 2**32 * (int(each) >= 2**31) for each in numbers]
        assert all(abs(a - b) <= 0.5 + 1e-6 for a, b in zip(signed, exact, strict=True))
        assert (
            np.abs(mean(numbers, [weight], total, limit) - update).max()
            <= 0.5 * limit * total / LEVELS / weight + 1e-15
        )
    for false, what in ((8.01, "8.01"), (-9.0, "9"), (np.nan, "nan"), (np.inf, "inf")):
        with pytest.raises(
            ValueError, match=f"moves a weight by {what}, and quantization-range is 8; take a larger one"
        ):
            quantized(np.array([0.0, false]), 1, 2, 8.0)
    for weight in (0, 3):
        with pytest.raises(ValueError, match=f"its weight is {weight}, and that of all clients is said to be 2"):
            quantized(update, weight, 2, 8.0)


def test_the_largest_sum_fits_and_what_no_updates_can_sum_to_is_seen():
    weights = [1, 2, 10**8 - 3]
    largest = sum(quantized(np.full(3, sign * 8.0), weight, 10**8, 8.0) for weight in weights for sign in (1,))
    assert np.allclose(mean(largest, weights, 10**8, 8.0), 8.0, rtol=0, atol=1e-7)
    assert np.allclose(mean(-largest, weights, 10**8, 8.0), -8.0, rtol=0, atol=1e-7)
    for false in (LEVELS + 10, 2**31, 2**32 - LEVELS - 10):
        with pytest.raises(ValueError, match="larger than updates can make it: a client sent something else"):
            mean(np.array([0, false], np.uint32), weights, 10**8, 8.0)
