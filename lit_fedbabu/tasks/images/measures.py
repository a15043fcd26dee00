"""What predictions of a client's model say beyond loss and accuracy."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_fedbabu.tasks.evaluation import FeatureProbe

Predicted = tuple[Tensor, Tensor, Tensor]
"""Features (N, F), logits (N, num_classes) and labels (N,) of N images."""


def feature_probe(predicted: Sequence[Predicted]) -> FeatureProbe:
    """Accuracy without the head, and on absent classes.

    Args:
        predicted: of the client's training images, of its test images and, if there are classes that it does not have,
            of test images of those.
    """
    (features, _, labels), (test_features, _, test_labels), *absent = predicted
    classes: Tensor = torch.unique(labels)
    templates = torch.stack([features[labels == label].mean(0) for label in classes])
    nearest = classes[torch.cdist(test_features, templates).argmin(1)]
    others = [share_equal(logits.argmax(1), foreign) for _, logits, foreign in absent]
    return FeatureProbe(share_equal(nearest, test_labels), others[0] if others else math.nan)


def share_equal(predicted: Tensor, labels: Tensor) -> float:
    """The share of predictions (N,) that are the labels (N,), 0 to 1."""
    return (predicted == labels).double().mean().item()
