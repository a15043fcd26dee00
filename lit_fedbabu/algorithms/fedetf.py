"""FedETF: heads whose classes are a fixed frame, the same for all clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_fedbabu.algorithms.algorithm import Algorithm
from lit_fedbabu.learning.losses import Balanced
from lit_fedbabu.learning.parts import FRAME

if TYPE_CHECKING:
    from torch import Tensor

    from lit_fedbabu.algorithms.algorithm import Cohort
    from lit_fedbabu.config import Config
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

EPOCHS = 3
"""Of each half of a turn, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class FedEtf(Algorithm):
    """Federated learning with a synthetic and fixed classifier (Li et al. 2023 (FedETF), Section 4).

    The head is a ``SimplexHead``. Clients train body, projection and scale by balanced softmax: cross-entropy of the
    logits plus log n_c, of n_c training images of class c. The frame is drawn from the seed and not sent.

    Fine-tuning of the whole model begins in the same way. Then the frame and the projection train in turns by the
    cross-entropy, ``num-etf-turns`` times, each for three epochs, the frame at ``etf-learning-rate`` and the projection
    at half of it: numbers of the authors' code. Fine-tuning of a part alone is that of other methods.
    """

    @property
    def alike(self) -> bool:
        """Not: a client whose few classes are told apart has no gradient, and moves little."""
        return False

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        return [Balanced(counts) for counts in cohort.class_counts]

    def tuning_loss(self, config: Config, class_counts: Tensor) -> Loss | None:
        return Balanced(class_counts) if config.finetune_part == "full" else None

    def turns(self, config: Config) -> Sequence[tuple[str, int, float]]:
        if config.finetune_part != "full" or not config.num_finetune_epochs:
            return ()
        rate = config.etf_learning_rate
        return [(FRAME, EPOCHS, rate), ("head.projection", EPOCHS, rate / 2)] * config.num_etf_turns
