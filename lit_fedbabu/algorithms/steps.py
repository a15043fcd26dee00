"""How a mini-batch moves the weights where it is not plain SGD: Lightning callbacks on the one training loop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_fedbabu.config import Config
from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning.state import view_of


class Proximal(L.Callback):
    """A pull towards other weights: mu / 2 ||w - w_anchor||^2 in the loss, mu (w - w_anchor) in the gradient.

    FedProx (Li et al. 2020, Eq. 2), where the anchor is what the server sent; the same pull makes Ditto's personal
    models (Li et al. 2021, Eq. 1), where mu is called lambda.

    Args:
        mu: strength of the pull.
        anchor: the weights pulled towards, by their names in the model.
    """

    def __init__(self, mu: float, anchor: Mapping[str, Tensor]) -> None:
        self.mu = mu
        self.anchor = {name: value.detach().clone() for name, value in anchor.items()}

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        for name, weight, gradient in stepped(module, optimizer):
            gradient.add_(weight.detach() - self.anchor[name].to(weight.device), alpha=self.mu)


class FirstOrderMaml(L.Callback):
    """A step by the gradient of a batch, taken after an inner step on the batch before it.

    Per-FedAvg, first order (Fallah et al. 2020, Algorithm 1 with Hessian left out): batches go in pairs, the first
    moves the weights by the inner rate, the second gives the gradient there, and the optimizer applies it to the
    weights as they were before. A batch without a partner at the end of an epoch is left out.

    Args:
        rate: of the inner step (alpha).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.before: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step_back(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step_back(module)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        weights = trained_weights(module)
        if self.before:
            self._step_back(module)
            return
        self.before = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for weight in weights.values():
                if weight.grad is not None:
                    weight.sub_(weight.grad, alpha=self.rate)
                weight.grad = None  # the optimizer leaves a weight without gradient alone, and its momentum too

    def _step_back(self, module: L.LightningModule) -> None:
        for name, weight in view_of(module).named_parameters():
            if name in self.before:
                weight.data.copy_(self.before[name])
        self.before = {}


class MoreauEnvelope(L.Callback):
    """A step towards a personal model that several steps on the same batch find near the weights.

    pFedMe (Dinh et al. 2020, Algorithm 1): theta starts at w and takes K steps by the gradient of
    f(theta; batch) + mu / 2 ||theta - w||^2. The optimizer then moves w by the envelope's gradient, mu (w - theta).

    Args:
        rate: of the inner steps.
        mu: strength of the pull to w; lambda in the paper.
        steps: K, inner steps on a batch.
    """

    def __init__(self, rate: float, mu: float, steps: int) -> None:
        self.rate, self.mu, self.steps = rate, mu, steps
        self.anchor: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        weights = trained_weights(module)
        self.anchor = {name: weight.detach().clone() for name, weight in weights.items()}
        for _ in range(self.steps - 1):  # the last one is made of the gradient that Lightning computes
            with trainer.precision_plugin.train_step_context():
                outputs: Any = module.training_step(batch, batch_idx)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            self._step(weights, dict(zip(weights, gradients, strict=True)))

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        weights = trained_weights(module)
        self._step(weights, {name: weight.grad for name, weight in weights.items()})
        for name, weight in weights.items():
            weight.grad = (self.anchor[name] - weight.detach()) * self.mu
            weight.data.copy_(self.anchor[name])

    def _step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        for name, weight in weights.items():
            pull = (weight.detach() - self.anchor[name]) * self.mu
            gradient = gradients[name]
            weight.data.sub_(pull if gradient is None else pull + gradient, alpha=self.rate)


class Still(L.Callback):
    """No step: optimizers leave a weight without a gradient alone, and its weight decay too."""

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)


class Counted(L.Callback):
    """Counts for every weight how often gradients are in its way from the first step to the last, times their rate.

    Args:
        name: of the method, which refuses other optimizers than SGD.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._gradients: dict[str, dict[float, float]] = {}

    @property
    def lengths(self) -> dict[str, float]:
        """Of every weight that was moved: K eta after K steps at a rate eta without momentum."""
        return {name: sum(rate * of[rate] for rate in of) for name, of in self._gradients.items()}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        names = {id(weight): name for name, weight in view_of(module).named_parameters()}
        velocity: dict[str, float] = {}  # gradients in the momentum, which starts from zero

        def count(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None and (name := names.get(id(weight))):
                        rho, added = group["momentum"], 1 - group["dampening"]
                        velocity[name] = rho * velocity[name] + added if name in velocity else 1.0
                        nesterov = 1 + rho * velocity[name] if group["nesterov"] else velocity[name]
                        counted, rate = self._gradients.setdefault(name, {}), float(group["lr"])
                        counted[rate] = counted.get(rate, 0.0) + (nesterov if rho else 1.0)

        for optimizer in trainer.optimizers:
            refuse_but_sgd(self._name, optimizer)
            optimizer.register_step_post_hook(count)


def refuse_but_sgd(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise InputError for a method, by its name, whose equations are of SGD, for another optimizer of a task."""
    if type(optimizer) is not torch.optim.SGD:
        kind = type(optimizer).__name__
        remedy = f"is of steps of torch.optim.SGD, and the task's module takes those of {kind}; take fedavg"
        raise InputError("algorithm", name, remedy)


def trained_weights(module: L.LightningModule) -> dict[str, Tensor]:
    """The weights that train now, of a module that a callback is given, by their names in body and head."""
    return {name: weight for name, weight in view_of(module).named_parameters() if weight.requires_grad}


def stepped(module: L.LightningModule, optimizer: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The weights that an optimizer is about to move, by their names in body and head, and their gradients, dense."""
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}  # there may be others
    for name, weight in view_of(module).named_parameters():
        if weight.requires_grad and weight.grad is not None and id(weight) in held:
            if weight.grad.is_sparse:
                weight.grad = weight.grad.to_dense()
            yield name, weight, weight.grad


STEPS: dict[str, Callable[[Config, int, Mapping[str, Tensor]], list[L.Callback]]] = {
    "sgd": lambda config, server_round, start: [],
    "proximal": lambda config, server_round, start: [Proximal(config.proximal_mu, start)],
    "first-order-maml": lambda config, server_round, start: [
        FirstOrderMaml(config.learning_rate_in(server_round, "inner_learning_rate"))
    ],
    "moreau-envelope": lambda config, server_round, start: [
        MoreauEnvelope(
            config.learning_rate_in(server_round, "inner_learning_rate"), config.proximal_mu, config.num_inner_steps
        )
    ],
}
"""New callbacks for one client and one round (its number), which starts from the weights ``start``."""
