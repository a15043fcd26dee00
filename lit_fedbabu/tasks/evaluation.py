"""What is measured of a client's model, and how it is written in results.json."""

import dataclasses

STAGES = ("initial", "personalized")
"""A client's model as received, and after fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measures on a client's test images.

    Args:
        loss: cross-entropy in nats.
        accuracy: 0 to 1.
        calibration_error: expected calibration error (Guo et al. 2017, Eq. 3) over 15 bins, 0 to 1.
        count: number of test images.
    """

    loss: float
    accuracy: float
    calibration_error: float
    count: int


@dataclasses.dataclass(frozen=True)
class FeatureProbe:
    """What a model knows beyond its head and its client's own classes; accuracies from 0 to 1.

    Args:
        template_accuracy: on the client's test images without the head. The predicted class is the one whose mean
            feature over the client's training images is nearest, by Euclidean distance (paper: "without classifier").
        other_classes_accuracy: on test images of the classes that the client has no training image of; nan if it has
            images of all classes.
    """

    template_accuracy: float
    other_classes_accuracy: float


@dataclasses.dataclass(frozen=True)
class Personalization:
    """The course of one client's fine-tuning.

    Args:
        curve: evaluations before fine-tuning and after each epoch.
        probes: of the model before and after fine-tuning.
    """

    curve: tuple[Evaluation, ...]
    probes: tuple[FeatureProbe, FeatureProbe]

    @property
    def initial(self) -> Evaluation:
        """Of the model as received."""
        return self.curve[0]

    @property
    def personalized(self) -> Evaluation:
        """Of the model after the last epoch."""
        return self.curve[-1]

    def as_row(self) -> dict[str, float]:
        """The client's entry in results.json, without the client's number."""
        row: dict[str, float] = {"num_test": self.initial.count}
        stages = dict(zip(STAGES, (self.initial, self.personalized), strict=True))
        for measure in ("accuracy", "loss", "calibration_error"):
            row |= {f"{stage}_{measure}": getattr(evaluation, measure) for stage, evaluation in stages.items()}
        for measure in ("template_accuracy", "other_classes_accuracy"):
            probes = zip(STAGES, self.probes, strict=True)
            row |= {f"{stage}_{measure}": getattr(probe, measure) for stage, probe in probes}
        return row | {f"accuracy_epoch_{epoch}": evaluation.accuracy for epoch, evaluation in enumerate(self.curve)}
