"""A user's own model, tried before a run on batches as they will occur."""

import copy
from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import UninitializedParameter

from lit_fedbabu.ground.errors import InputError, told
from lit_fedbabu.learning.module import LitFedBABU
from lit_fedbabu.learning.parts import PARTS, select
from lit_fedbabu.learning.seeding import seeded
from lit_fedbabu.learning.state import aliases, load_state, state_of

FLOATS = (torch.float16, torch.float32, torch.float64)
"""Types of weights that can be averaged and sent."""


def try_model(
    model_name: str,
    model: nn.Module,
    num_classes: int,
    shape: tuple[int, int, int],
    train_sizes: Sequence[int],
    test_sizes: Sequence[int],
) -> None:
    """Train and evaluate a copy of a model on batches of these sizes, and save and load its state.

    Args:
        model_name: as the option names it.
        model: of body and head; it is left as it is.
        num_classes: outputs that it must have.
        shape: of an image: channels, height and width.
        train_sizes: images of the batches that clients train on.
        test_sizes: images of the batches that they are evaluated on.

    Raises:
        InputError: in one line what failed, on which batch.
    """

    def refuse(remedy: str) -> InputError:
        return InputError("model-name", model_name, remedy)

    if isinstance(model, L.LightningModule):
        raise refuse("is a LightningModule, whose loss and optimizer would not be used; give a torch.nn.Module")
    refuse_unsendable(model, refuse)
    for name, first in aliases(model).items():
        if name.partition(".")[0] != first.partition(".")[0]:
            raise refuse(f"its {first} and {name} are one weight, and body and head cannot share it")
    for part in PARTS:
        if not any(weight.requires_grad for weight in select(dict(model.named_parameters()), [part]).values()):
            raise refuse(f"its {part} has no weights to train")
    _refuse_views(model, refuse)
    dtype = next(model.parameters()).dtype
    with seeded(0):
        model = copy.deepcopy(model)
        for training, sizes in ((True, train_sizes), (False, test_sizes)):
            model.train(training)
            for size in sizes:
                phase = "training" if training else "evaluation"
                what = f"a batch of {size} images of {' x '.join(map(str, shape))} in {phase}"
                try:
                    images = torch.rand(size, *shape, dtype=dtype)
                    outputs = _outputs(model, images, training)
                except Exception as error:
                    reason = " ".join(str(error).split())
                    raise refuse(f"fails on {what}: {type(error).__name__}: {reason[:200]}") from error
                if outputs != (size, num_classes):
                    raise refuse(f"gives {list(outputs)} outputs for {what}, and must give {[size, num_classes]}")
        load_state(copy.deepcopy(model), state_of(model))


def refuse_other_forward(model_name: str, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse a model whose logits are not those of its head on the features of its body: its loss would be of others.

    Raises:
        InputError: it is such a model.
    """
    body, head = (model.get_submodule(part).eval() for part in PARTS)
    outputs: list[torch.Tensor] = []
    for layers in ([model.eval()], [body, head]):
        with seeded(0), torch.no_grad():
            outputs.append(nn.Sequential(*layers)(torch.rand(2, *shape, dtype=next(model.parameters()).dtype)))
    if not torch.allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5):
        remedy = "does more than head(body(images)), which the loss of this algorithm or finetune-part=knn is of"
        remedy += "; move it into body or head"
        raise InputError("model-name", model_name, remedy)


def refuse_unsendable(model: nn.Module, refuse: Callable[[str], InputError]) -> None:
    """Refuse what cannot be averaged and sent: entries of a state without a shape, of other types, or no tensors."""
    for name, value in model.state_dict(keep_vars=True).items():
        if name.rpartition(".")[2] == "_extra_state":
            raise refuse(f"its {name}, of get_extra_state, is no weight or buffer and cannot be averaged; leave it out")
        if isinstance(value, UninitializedParameter):
            raise refuse(f"its {name} has no shape before the first batch; give the layer its sizes")
        if (value.is_floating_point() and value.dtype not in FLOATS) or value.is_complex():
            raise refuse(f"its {name} is of {value.dtype}, which cannot be averaged; take float32")
        if not value.isfinite().all():
            remedy = "numbers that travel must be; a mask is registered as a buffer with persistent=False"
            raise refuse(f"its {name} is not finite before training; {remedy}")


def _refuse_views(model: nn.Module, refuse: Callable[[str], InputError]) -> None:
    """Refuse weights that share memory without being one weight: loading one would change the other."""
    places: dict[int, str] = {}
    for name, value in state_of(model).items():
        first = places.setdefault(value.untyped_storage().data_ptr(), name)
        if first != name and value.numel():
            raise refuse(f"its {first} and {name} share memory without being one weight; make one a copy, or tie them")


def _outputs(model: nn.Module, images: torch.Tensor, training: bool) -> tuple[int, ...]:
    """The shape of the outputs; where the model trains, gradients are taken too."""
    features = model.get_submodule("body")(images)
    if not isinstance(features, torch.Tensor):
        raise TypeError(f"the body must return a tensor, and returns a {type(features).__name__}")
    logits = model(images)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"it must return a tensor of logits, and returns a {type(logits).__name__}")
    if training and logits.shape[1:].numel():
        loss = functional.cross_entropy(logits.flatten(1), torch.zeros(len(logits), dtype=torch.long))
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        torch.autograd.grad(loss, weights, allow_unused=True)
    return tuple(logits.shape)


def try_single_images(model_name: str, module: LitFedBABU, shape: tuple[int, int, int]) -> None:
    """Take gradients of single images, which DP-SGD is made of; the module is left as it is.

    Raises:
        InputError: the model does what ``torch.func.vmap`` cannot, as a choice by the value of a number.
    """
    tried = module.copy()
    tried.set_mode("full")
    images = torch.rand(2, *shape, dtype=tried.weights_dtype, generator=torch.Generator().manual_seed(0))
    try:
        with seeded(0):
            tried.by_image(images, torch.zeros(2, dtype=torch.long))
    except Exception as error:  # whatever the user's code raises
        remedy = f"fails where gradients of single images are taken by torch.func: {told(error)}"
        raise InputError("model-name", model_name, remedy) from error
