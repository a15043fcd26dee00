"""FedRoD: a generic model that all classes count alike for, and an own head beside its head."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from lit_fedbabu.algorithms.algorithm import Algorithm, Update
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.losses import Decoupled
from lit_fedbabu.learning.parts import behind

if TYPE_CHECKING:
    from lit_fedbabu.algorithms.algorithm import Cohort, Participant
    from lit_fedbabu.learning.losses import Loss
    from lit_fedbabu.learning.state import Learner

OWN = "own"
"""How names of the weights of the own head begin, in what a client keeps."""


@dataclasses.dataclass(frozen=True)
class FedRod(Algorithm):
    """Federated robust decoupling with linear own heads (Chen and Chao 2022 (FedRoD), Algorithm 1, Eq. 7).

    The body and the generic head G are trained by balanced softmax, and shared. The own head H, which the client keeps,
    is trained by the cross-entropy of G + H on features that its gradient does not reach. It is zero before the client
    takes part. ``initial`` measures are of G; what is fine-tuned is G + H, which is one linear head.
    """

    def check_model(self, name: str, model: nn.Module) -> None:
        if type(model.get_submodule("head")) is not nn.Linear:
            kind = type(model.get_submodule("head")).__name__
            remedy = f"has a {kind} as its head, and the own heads of this algorithm are added to a torch.nn.Linear"
            raise InputError("model-name", name, f"{remedy}; take another model or algorithm")

    def losses(self, cohort: Cohort, modules: Sequence[Learner]) -> Sequence[Loss]:
        pairs = zip(cohort.participants, modules, strict=True)
        cohort.notes[OWN] = [_own_head(client, module) for client, module in pairs]
        return [Decoupled(head, counts) for head, counts in zip(cohort.notes[OWN], cohort.class_counts, strict=True)]

    def finish(self, cohort: Cohort, modules: Sequence[Learner]) -> list[Update]:
        updates = []
        for module, head in zip(modules, cohort.notes[OWN], strict=True):
            own = {f"{OWN}.head.{name}": value for name, value in head.state_dict().items()}
            updates.append(Update(cohort.shared(module), {**cohort.kept(module), **own}))
        return updates

    def generic_model(self, client: Participant) -> Learner:
        return client.module(client.received)

    def own_model(self, client: Participant) -> Learner:
        own = behind(f"{OWN}.", client.memory)
        return client.module(client.received, {name: client.received[name] + value for name, value in own.items()})


def _own_head(client: Participant, module: Learner) -> nn.Module:
    """The head that the client kept; of zeros before it took part."""
    head = copy.deepcopy(module.model.get_submodule("head"))
    zeros = {name: value.new_zeros(value.shape) for name, value in head.state_dict().items()}
    head.load_state_dict({**zeros, **behind(f"{OWN}.head.", client.memory)})
    return head.requires_grad_(True)
