"""MOON: features are drawn to those of the received model, and away from those of the client's last one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.learning.losses import Contrastive

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Cohort
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner


@dataclasses.dataclass(frozen=True)
class Moon(Algorithm):
    """Model-contrastive federated learning (Li et al. 2021 (MOON), Algorithm 1, Eq. 3 to 5).

    The paper's features are those after a projection head, two layers that it adds to a network. Here they are what the
    head takes: networks are as they are for all methods. The client keeps the body that it trained last; before the
    first time it is the initial one, as in the authors' code.
    """

    @property
    def kept(self) -> tuple[str, ...]:
        return ("body", *self.private)

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        config = cohort.config
        return [
            Contrastive(
                client.module(client.received).model.get_submodule("body"),
                client.module(client.memory).model.get_submodule("body"),
                config.moon_mu,
                config.moon_temperature,
            )
            for client in cohort.participants
        ]
