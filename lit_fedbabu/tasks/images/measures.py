"""What predictions of a client's model say beyond loss and accuracy."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score

from lit_fedbabu.learning.evaluation import BINS, FeatureProbe

Predicted = tuple[Tensor, Tensor, Tensor]
"""Features (N, F), logits (N, num_classes) and labels (N,) of N images."""


def feature_probe(predicted: Sequence[Predicted]) -> FeatureProbe:
    """Accuracy without the head, and on absent classes.

    Args:
        predicted: of the client's training images, of its test images and, if there are classes that it does not have,
            of test images of those.
    """
    (features, _, labels), (test_features, logits, test_labels), *absent = predicted
    classes: Tensor = torch.unique(labels)
    templates = torch.stack([features[labels == label].mean(0) for label in classes])
    nearest = classes[torch.cdist(test_features, templates).argmin(1)]
    others = [share_equal(found.argmax(1), foreign) for _, found, foreign in absent]
    f1 = multiclass_f1_score(logits, test_labels, logits.shape[1], average="macro").item()
    without_head = share_equal(nearest, test_labels)
    foreign_accuracy = others[0] if others else math.nan
    return FeatureProbe(
        without_head, foreign_accuracy, f1, auroc(logits, test_labels), *by_confidence(logits, test_labels)
    )


def by_confidence(logits: Tensor, labels: Tensor) -> tuple[list[int], list[int], list[float]]:
    """Images, right ones among them, and sums of the confidence, by bins of the confidence.

    The confidence is the probability of the predicted class (Guo et al. 2017, Section 2). Logits that are not finite
    are left out.

    Args:
        logits: (N, num_classes).
        labels: (N,).

    Returns:
        Three lists of length ``BINS``; a bin has its lower edge in it, and the last one 1 too.
    """
    finite = logits.isfinite().all(1).cpu()
    confidence, predicted = logits.cpu()[finite].softmax(1).max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    hits = place[predicted == labels.cpu()[finite]]
    sums = torch.bincount(place, confidence.double(), minlength=BINS)
    return (
        torch.bincount(place, minlength=BINS).tolist(),
        torch.bincount(hits, minlength=BINS).tolist(),
        sums.double().tolist(),
    )


def auroc(logits: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve, one class against the others, the mean over the classes that there are.

    Args:
        logits: (N, num_classes).
        labels: (N,).

    Returns:
        0 to 1; nan if all labels are one class.
    """
    there: Tensor = torch.unique(labels)
    present = there.tolist()
    if len(present) < 2 or not logits.isfinite().all():
        return math.nan
    probabilities = logits.softmax(1)
    areas = [binary_auroc(probabilities[:, each], (labels == each).long()) for each in present]
    return torch.stack(areas).double().mean().item()


def share_equal(predicted: Tensor, labels: Tensor) -> float:
    """The share of predictions (N,) that are the labels (N,), 0 to 1."""
    return (predicted == labels).double().mean().item()
