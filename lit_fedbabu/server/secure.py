"""A round of secure aggregation as the server sees it: four steps, of which each may lose clients.

The steps are those of Bonawitz et al. 2017, Figure 4, with a mask for every pair of clients. The server carries shares
that it cannot read, adds masked numbers, and takes masks off the sum by shares of those that stayed.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Message

from lit_fedbabu.algorithms.algorithm import EXTRA
from lit_fedbabu.ground.errors import RunError
from lit_fedbabu.protocol.handshake import WireError
from lit_fedbabu.protocol.secure import MASKED_ARRAY, SECURE, Routed, Step, StepReply, public_of_rows
from lit_fedbabu.protocol.wire import Arrays, ClientUpdate, TrainReply
from lit_fedbabu.secure.masks import mean
from lit_fedbabu.secure.party import ProtocolError, Public
from lit_fedbabu.secure.unmasking import is_key, unmasked
from lit_fedbabu.server.aggregation import mean_loss
from lit_fedbabu.server.exchange import SITE_PAUSE_S, Exchange

ALL = 0
"""The number of the client in whose name the sum stands."""


class SecureExchange(Exchange):
    """The messages of rounds in which the server learns the sum of updates alone. Arguments are as of ``Exchange``.

    Nobody takes the place of a client that fails, for masks are made among those that sent keys.
    """

    _public: dict[int, Public]
    """What each client tells everyone that has sent shares."""
    _total: int
    """Training samples of the clients that are asked to train."""

    def training(self, clients: Iterable[int]) -> list[Message]:
        """Messages that ask clients to train, of those that have sent keys and shares for the others.

        Raises:
            RunError: these are fewer than ``secure-threshold``.
        """
        asked = list(clients)
        public = self._keys(asked)
        self._enough(len(public), "sent keys")
        shares = self._shares(public)
        self._enough(len(shares), "sent shares")
        self._public = {client: public[client] for client in shares}
        self._total = sum(self._sizes[client][0] for client in shares)
        messages = super().training(shares)
        for message in messages:
            own = set(message.content.config_records["config"]["clients"])  # type: ignore[arg-type] # a list
            rows = [
                (target, source, data)
                for source, sent in shares.items() for target, data in sent.items() if target in own & shares.keys()
            ]  # fmt: skip
            self.bytes_down += sum(len(data) for *_, data in rows)
            Routed(self._total, rows).add_to(message.content)
        return messages

    def updates(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """One update in the name of all: the means of weights and of losses, by the clients' training samples.

        Raises:
            RunError: too few clients sent masked numbers or shares, or one of them sent something else.
        """
        trained = {update.client: update for update in self._masked(replies)}
        self._enough(len(trained), "trained")
        alive = sorted(trained)
        answers = self._unmask(alive, sorted(self._public.keys() - trained.keys()))
        numbers = {client: trained[client].arrays[MASKED_ARRAY] for client in alive}
        weights = {client: trained[client].num_train for client in alive}
        try:
            total = unmasked(numbers, self._public, answers, self._threshold)
            moved = mean(total, weights.values(), self._total, self.config.quantization_range)
        except ProtocolError as error:
            raise RunError(f"round {self.server_round}: the sum is not unmasked: {error}") from None
        except ValueError as error:
            raise RunError(f"round {self.server_round}: {error}") from None
        loss = mean_loss([trained[client] for client in alive])
        return [ClientUpdate(ALL, sum(weights.values()), loss, self._moved(moved))]

    @property
    def _threshold(self) -> int:
        return self.config.unmasking_threshold

    def _keys(self, clients: list[int]) -> dict[int, Public]:
        """The keys of the clients that sent some which can be used."""
        public: dict[int, Public] = {}
        for reply in self._step(Step("keys", self.server_round, tuple(clients), self.memory)):
            for client in sorted({row[0] for row in reply.rows}):
                own = [row for row in reply.rows if row[0] == client]
                try:
                    found = public_of_rows(own)[client]
                except WireError as error:
                    self._record(client, f"sent {error}")
                    continue
                if is_key(found.mask) and is_key(found.share):
                    public[client] = found
                else:
                    self._record(client, "sent something else than its keys")
        return dict(sorted(public.items()))

    def _shares(self, public: Mapping[int, Public]) -> dict[int, dict[int, bytes]]:
        """The encrypted shares that clients sent for all others, by who sent them and whom they are for."""
        shares: dict[int, dict[int, bytes]] = {}
        for reply in self._step(Step("shares", self.server_round, tuple(public), self.memory, public)):
            for client in sorted({row[0] for row in reply.rows}):
                if reply.of(client).keys() == public.keys() - {client}:
                    shares[client] = reply.of(client)
                else:
                    self._record(client, "sent shares for others than the clients of the round")
        return dict(sorted(shares.items()))

    def _masked(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """The masked updates that can be added. Every other client has failed, and that is recorded."""
        found: list[ClientUpdate] = []
        length = sum(array.numpy().size for name, array in self.arrays.items() if not name.startswith(EXTRA))
        for reply in self._readable(TrainReply, list(self._public), replies, self._park):
            self.bytes_up += reply.nbytes
            for update in reply.updates:
                numbers = update.arrays.get(MASKED_ARRAY)
                if numbers is None or numbers.shape != (length,) or numbers.dtype != np.uint32:
                    self._record(update.client, f"sent something else than {length} masked numbers")
                elif reason := self._misstatement(update):
                    self._record(update.client, reason)
                else:
                    found.append(update)
        return found

    def _unmask(self, alive: list[int], dead: list[int]) -> dict[int, dict[int, bytes]]:
        """The shares of those that stayed, of which some may be asked again; raises RunError where they are too few."""
        answers: dict[int, dict[int, bytes]] = {}
        for attempt in range(self.config.max_round_retries + 1):
            missing = tuple(client for client in alive if client not in answers)
            if attempt:
                pause = SITE_PAUSE_S if self.config.on_sites else 0
                self.say(f"round {self.server_round}  asking clients {list(missing)} again in {pause} s")
                time.sleep(pause)
            step = Step("unmask", self.server_round, missing, self.memory, alive=tuple(alive), dead=tuple(dead))
            for reply in self._step(step):
                answers |= {client: reply.of(client) for client in {row[0] for row in reply.rows}}
            if len(answers) >= self._threshold:
                return answers
        raise self._too_few(len(answers), "gave shares to unmask the sum", self._threshold)

    def _step(self, step: Step) -> list[StepReply]:
        """The replies to a step that can be read."""
        messages = self._to_nodes(SECURE, step.clients, lambda own: step.of(own).to_record(self._code))
        self.bytes_down += step.nbytes * len(messages)
        replies = self._readable(
            StepReply, step.clients, self.grid.send_and_receive(messages, timeout=self.config.timeout_s)
        )
        self.bytes_up += sum(len(data) for reply in replies for *_, data in reply.rows)
        return replies

    def _enough(self, count: int, what: str) -> None:
        needed = max(self._threshold, self.config.min_clients_per_round)
        if count < needed:
            raise self._too_few(count, what, needed)

    def _moved(self, move: "np.ndarray[Any, np.dtype[np.float64]]") -> Arrays:
        """The shared weights, moved by a vector."""
        moved: dict[str, Any] = {}
        begin = 0
        for name in sorted(name for name in self.arrays if not name.startswith(EXTRA)):
            value = self.arrays[name].numpy()
            own = move[begin : begin + value.size].reshape(value.shape)
            moved[name] = np.asarray(value + own).astype(value.dtype)
            begin += value.size
        return {name: moved[name] for name in self.arrays if name in moved}
