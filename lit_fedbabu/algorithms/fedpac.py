"""FedPAC: features are drawn to everyone's, and a client's head is a combination of those that fit its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional

from lit_fedbabu.algorithms.algorithm import (
    Algorithm,
    Combined,
    Received,
    Update,
    refuse_aggregator,
    refuse_other_head,
)  # fmt: skip
from lit_fedbabu.learning.losses import vectors
from lit_fedbabu.learning.state import state_of

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Beginning, Cohort, Participant, Server
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.losses import Batch, Loss
    from lit_fedbabu.learning.state import Learner

HEAD, OWN = "head.", "own."
"""How the names of a head's weights begin in a model and in what a client sends; the server has OWN before them."""
CENTROIDS, SEEN, COUNTS = "centroids", "seen", "counts"
"""Mean features by class; whether there was one (1 or 0); a client's training images by class."""
MOMENTS, VARIANCE = "moments", "variance"
"""h and v of a client, which decide about combinations."""


@dataclasses.dataclass(frozen=True)
class FedPac(Algorithm):
    """Feature alignment and classifier collaboration (Xu et al. 2023, Algorithm 1).

    The server keeps a head for each client, the initial one at first, and sends it with the body to this client alone.
    The client trains the head, then the body by the cross-entropy and lambda times the mean of (z - c_y)^2 over images
    and features, with features z and everyone's mean c_y of their class. There is no such term for a class that no
    client has had yet, as for all in round 1. Both are trained at the run's learning rate, of which the paper has two.

    The client sends its head, the means of classes by the trained body, and of the received body h, the share of each
    class times its mean features, and v, the variance of one-hot labels times features, over its number of images.
    Everyone's means are those of the round's clients by their images; a class that none of them has keeps its old one.
    The next head of client i is the sum of a_j times the head of client j over the clients of the round, where a is
    the minimum of sum_j a_j^2 v_j + norm(h_i - sum_j a_j h_j)^2 with a_j >= 0 and a sum of 1. Others keep theirs.

    Statistics are of training images as they are. The model that is evaluated has the shared body and the client's
    combined head.
    """

    rows: tuple[str, ...] = ("own",)

    @property
    def kept(self) -> tuple[str, ...]:
        return ()

    @property
    def alike(self) -> bool:
        return False

    def check(self, config: Config) -> None:
        refuse_aggregator(config, "combines heads and means of features, which one client can move far")

    def check_model(self, name: str, model: nn.Module) -> None:
        refuse_other_head(name, model)

    def server_state(self, start: Beginning) -> dict[str, Tensor]:
        heads = {
            OWN + name: value.repeat(start.config.num_clients, *[1] * value.ndim)
            for name, value in _head(start.model).items()
        }
        weight = start.model[f"{HEAD}weight"]
        return {**heads, CENTROIDS: torch.zeros_like(weight), SEEN: torch.zeros_like(weight[:, 0])}

    def broadcast(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state

    def broadcast_after(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name.startswith(OWN)}

    def sends(self, start: Beginning) -> dict[str, Tensor]:
        head = _head(start.model)
        zeros = torch.zeros_like(head[f"{HEAD}weight"])
        counts, variance = torch.zeros(len(zeros), dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        return {**head, CENTROIDS: zeros, COUNTS: counts, MOMENTS: zeros, VARIANCE: variance}

    def start(self, client: Participant) -> Learner:
        return self.own_model(client)

    def own_model(self, client: Participant) -> Learner:
        return client.module(client.received, {name.removeprefix(OWN): each for name, each in client.extras.items()})

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        centroids, seen = (cohort.participants[0].extras[name] for name in (CENTROIDS, SEEN))
        if not (cohort.config.alignment_lambda and seen.any()):
            return ()
        return [Aligned(centroids, seen, cohort.config.alignment_lambda) for _ in modules]

    def train(self, cohort: Cohort, modules: Sequence[Learner]) -> list[float]:
        pairs = zip(cohort.participants, cohort.class_counts, strict=True)
        cohort.notes[MOMENTS] = [_moments(client, counts) for client, counts in pairs]
        return super().train(cohort, modules)

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        clients = zip(cohort.participants, modules, cohort.class_counts, cohort.notes[MOMENTS], strict=True)
        updates = []
        for client, module, counts, (moments, variance) in clients:
            shared = cohort.shared(module)
            centroids, _ = _means(client, shared, counts)
            like = client.extras[CENTROIDS]
            statistics = {CENTROIDS: centroids.to(like), COUNTS: counts, MOMENTS: moments.to(like), VARIANCE: variance}
            updates.append(Update(shared, {}, {**_head(state_of(module.model)), **statistics}))
        return updates

    def problem(self, update: Received) -> str:
        counts, variance = update.extras[COUNTS], update.extras[VARIANCE]
        if counts.min() < 0 or counts.sum() != update.num_train:
            return f"its images by class are not those of {update.num_train} training images"
        return "its variance is below 0" if variance < 0 else ""

    def combine(self, server: Server, updates: Sequence[Received]) -> Combined:
        state = dict(server.state)
        counts = torch.stack([each.extras[COUNTS] for each in updates]).double()
        sums = sum(own[:, None] * each.extras[CENTROIDS].double() for own, each in zip(counts, updates, strict=True))
        total = counts.sum(0)
        means = torch.where(total[:, None] > 0, sums / total.clamp(min=1)[:, None], state[CENTROIDS].double())
        state[CENTROIDS] = means.to(state[CENTROIDS])
        state[SEEN] = torch.where(total > 0, 1, state[SEEN]).to(state[SEEN])
        moments = np.stack([each.extras[MOMENTS].double().numpy().ravel() for each in updates])
        weights = combinations(moments, np.array([float(each.extras[VARIANCE]) for each in updates]))
        for name in _head(updates[0].extras):
            heads = state[OWN + name] = state[OWN + name].clone()
            for own, update in zip(weights, updates, strict=True):
                pairs = zip(own.tolist(), updates, strict=True)
                heads[update.client] = sum(share * each.extras[name].double() for share, each in pairs).to(heads)
        return Combined(server.aggregate(updates), state)


def combinations(moments: npt.NDArray[np.float64], variances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each client the weights of all clients' heads in its own.

    With x >= 0 the least of norm(R x)^2 + (1 - sum x)^2 is a multiple of the least of norm(R a)^2 with a sum of 1, so
    that non-negative least squares (Lawson and Hanson 1974) solve it exactly.

    Args:
        moments: h of each client (m, D).
        variances: v of each client (m,), not below 0.

    Returns:
        (m, m) of numbers from 0 to 1; each row has the sum 1.
    """
    count = len(variances)
    places = np.linalg.qr(moments.T).R  # (k, m): the same distances in fewer dimensions
    weights = np.eye(count)
    for client in np.flatnonzero(variances).tolist():  # of a client without variance its own head has no error
        root = np.vstack([np.diag(np.sqrt(variances)), places - places[:, client : client + 1]])
        system = np.vstack([root / np.linalg.norm(root) * np.sqrt(count), np.ones(count)])
        found, _ = nnls(system, np.append(np.zeros(len(root)), 1.0), maxiter=100 * count)
        weights[client] = found / found.sum()
    return weights


def _head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(HEAD)}


def _means(client: Participant, state: Mapping[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of the features of a client's training images by a body: their means by class (C, F), and mean squared norm."""
    features, labels = client.features(state)
    features = features.double()
    one_hot = functional.one_hot(labels, len(counts)).double()
    return one_hot.T @ features / counts.clamp(min=1)[:, None], features.square().sum(1).mean()


def _moments(client: Participant, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The h (C, F) and v () of a client by the received body; n v is the mean of norm(z)^2 less norm(h)^2."""
    means, square = _means(client, client.received, counts)
    moments = counts.double()[:, None] / counts.sum() * means
    return moments, (square - moments.square().sum()).clamp(min=0) / counts.sum()


class Aligned(nn.Module):
    """Cross-entropy, and a term that draws features to the means of their classes.

    Args:
        centroids: (C, F).
        seen: (C,), 1 for classes that have one, else 0.
        weight: of the term, lambda.
    """

    def __init__(self, centroids: Tensor, seen: Tensor, weight: float) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.register_buffer("seen", seen)
        self._weight = weight

    def forward(self, batch: Batch) -> Tensor:
        """The sum of both over a batch, in nats."""
        away = (vectors(batch.features) - self.get_buffer("centroids")[batch.labels]).square().mean(1)
        term = (away * self.get_buffer("seen")[batch.labels]).mean()
        return functional.cross_entropy(batch.logits, batch.labels) + self._weight * term
