"""What a loss of an algorithm's own is given."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A mini-batch of a client's training images, and what its model makes of them.

    Args:
        images: (N, C, S, S), augmented and normalized.
        features: what the body makes of them, (N, ...), in the precision that it computes in.
        logits: what the head makes of the features, (N, num_classes), likewise.
        labels: (N,), the classes.
    """

    images: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor


Loss = Callable[[Batch], Tensor]
"""Is trained on in place of the cross-entropy: the mean over a batch. A ``torch.nn.Module`` is moved to the device, and
its weights that require a gradient are trained with the model's, by the same optimizer."""
