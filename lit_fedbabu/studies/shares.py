"""How a machine is shared among the runs of a study: its cores or GPUs, and its memory."""

from typing import Any

import torch
from torch import nn

from lit_fedbabu.engines.resources import worker_environments
from lit_fedbabu.ground.system import available_memory
from lit_fedbabu.studies.plan import Study
from lit_fedbabu.training.experiment import Experiment

OWN_MB = 500
"""Mebibytes that a worker has of its own beside weights and batches. docs/performance.md has what was measured."""
COPIES = 20
"""Copies of the weights in a run, in training, messages and checkpoints, beside one for each client of a round."""
TRIED = 2
"""Images of the batch by which the memory of one image is measured; batch norm takes no fewer."""


def workers_of(study: Study, need: int = 0) -> list[dict[str, str]]:
    """Variables of each worker that this machine has for the runs of a study, no more than fit into its memory.

    Args:
        study: whose runs they are.
        need: bytes of memory of a worker; 0: it is not looked at.
    """
    workers = min((worker_environments(run.config) for run in study.runs), key=len)
    return workers[: max(1, available_memory() // need)] if need else workers


def shares(workers: list[dict[str, str]], runs: int, machines: int = 1) -> list[list[dict[str, str]]]:
    """The workers of each run that is done at once: of one run for each worker or, where there are fewer runs, of all.

    Args:
        workers: of this machine.
        runs: how many are to be done.
        machines: how many machines share the runs.
    """
    at_once = max(1, min(len(workers), -(-runs // machines)))
    return [workers[place::at_once] for place in range(at_once)]


def need_of(experiment: Experiment) -> int:
    """Bytes of memory that a worker will have of its own at most: an estimate by the model and by the largest batches.

    Of a task's own module, and for what lies on a GPU, only weights are counted.
    """
    config = experiment.config
    model = experiment.new_module().model
    weights: int = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    batches = 0
    known = experiment.task.batches(experiment.algorithm.pooled)
    if known is not None and not torch.cuda.is_available():
        train, test, shape = known
        images = torch.zeros(TRIED, *shape, dtype=next(model.parameters()).dtype)
        batches = max(
            2 * max(train) * max(config.cohort_size, 1) * _kept_by_training(model, images) // TRIED,  # with gradients
            max(test) * _largest_of_evaluation(model, images) // TRIED,
        )
    return config.devices * (OWN_MB * 2**20 + weights * (COPIES + config.clients_per_round) + batches)


def _kept_by_training(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes that the backward pass of a batch needs, without those of weights."""
    kept = {}
    weights = {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor  # which keeps its place from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def _largest_of_evaluation(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes of what goes into the layer of a model for which that is most, and of what comes out of it."""
    most = 0

    def look(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        nonlocal most
        tensors = [each for each in (*inputs, outputs) if isinstance(each, torch.Tensor)]
        most = max(most, sum(each.numel() * each.element_size() for each in tensors))

    hooks = [module.register_forward_hook(look) for module in model.modules() if not list(module.children())]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return most
