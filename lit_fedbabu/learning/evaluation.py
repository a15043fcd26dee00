"""What is measured of a client's model, and how it is written in results.json."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

STAGES = ("initial", "personalized")
"""A client's model as received, and after fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Score:
    """The measure that clients are compared by.

    Args:
        name: in results.json, after ``initial_`` or ``personalized_``.
        higher_is_better: whether more of it is better.
    """

    name: str
    higher_is_better: bool = True

    @property
    def is_accuracy(self) -> bool:
        """Whether it is an accuracy, from 0 to 1, which people read in percent."""
        return self.name == "accuracy"

    @property
    def scale(self) -> int:
        """What values are multiplied by where people read them: an accuracy is in percent."""
        return 100 if self.is_accuracy else 1

    @property
    def digits(self) -> int:
        """Decimals that people read."""
        return 2 if self.is_accuracy else 4

    @property
    def axis(self) -> str:
        """Its name with its unit."""
        return "accuracy (%)" if self.is_accuracy else self.name

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Of an axis with values as people read them."""
        return (0, 100) if self.is_accuracy else (None, None)

    def shown(self, value: float) -> str:
        """A value of it as people read it: an accuracy in percent."""
        return f"{self.scale * value:.{self.digits}f}"

    @property
    def title(self) -> str:
        """Its name at the beginning of a line."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def unit(self) -> str:
        """What follows its values: " %", or nothing."""
        return " %" if self.is_accuracy else ""


ACCURACY = Score("accuracy")
"""The score of classifiers of images."""


class Measured(Protocol):
    """Measures on a client's test samples."""

    @property
    def loss(self) -> float:
        """Mean over the samples; nan where it is not known."""

    @property
    def count(self) -> int:
        """Number of test samples."""

    @property
    def score(self) -> float:
        """The value of the task's score."""

    @property
    def measures(self) -> Mapping[str, float]:
        """Every measure by its name, the score among them."""


@dataclasses.dataclass(frozen=True)
class LoggedEvaluation:
    """What a module of the user's own logged in ``test_step``.

    Args:
        measures: by their names in results.json.
        score: the value of the task's score.
        count: number of test samples.
    """

    measures: Mapping[str, float]
    score: float
    count: int

    @property
    def loss(self) -> float:
        """What was logged as ``test_loss``; nan if nothing was."""
        return self.measures.get("loss", math.nan)


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

    @property
    def score(self) -> float:
        """The accuracy."""
        return self.accuracy

    @property
    def measures(self) -> Mapping[str, float]:
        """Every measure by its name."""
        return {name: getattr(self, name) for name in ("accuracy", "loss", "calibration_error")}


BINS = 15
"""Of confidence, equally wide from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class FeatureProbe:
    """What predictions say beyond loss and accuracy; from 0 to 1.

    Args:
        template_accuracy: on the client's test images without the head. The predicted class is the one whose mean
            feature over the client's training images is nearest, by Euclidean distance (paper: "without classifier").
        other_classes_accuracy: on test images of the classes that the client has no training image of; nan if it has
            images of all classes.
        f1: on the client's test images, the mean over classes that they have or are taken for.
        auroc: on the client's test images, one class against the others, the mean over the classes that they have; nan
            if that is one class.
        bin_images: numbers of test images by ``BINS`` of the probability of the predicted class; none of a model whose
            logits are not finite.
        bin_hits: how many of these are classified right.
        bin_confidence: sums of these probabilities.
    """

    template_accuracy: float
    other_classes_accuracy: float
    f1: float
    auroc: float
    bin_images: Sequence[int] = (0,) * BINS
    bin_hits: Sequence[int] = (0,) * BINS
    bin_confidence: Sequence[float] = (0.0,) * BINS


@dataclasses.dataclass(frozen=True)
class Personalization:
    """The course of one client's fine-tuning.

    Args:
        curve: evaluations before fine-tuning and after each epoch.
        probes: of the model before and after fine-tuning; none where it is no classifier.
        name: of the score.
        generic: of the model as received, where fine-tuning starts from another.
    """

    curve: tuple[Measured, ...]
    probes: tuple[FeatureProbe, ...] = ()
    name: str = ACCURACY.name
    generic: Measured | None = None

    @property
    def initial(self) -> Measured:
        """Of the model as received."""
        return self.curve[0] if self.generic is None else self.generic

    def beside(self, generic: Self) -> Self:
        """The same, with the measures of a generic model as the initial ones."""
        probes = (*generic.probes[:1], *self.probes[1:])
        return dataclasses.replace(self, generic=generic.initial, probes=probes)

    @property
    def personalized(self) -> Measured:
        """Of the model after the last epoch."""
        return self.curve[-1]

    def as_row(self) -> dict[str, Any]:
        """The client's entry in results.json, without the client's number: numbers, and behind them lists for bins."""
        row: dict[str, Any] = {"num_test": self.initial.count}
        stages = dict(zip(STAGES, (self.initial, self.personalized), strict=True))
        for measure in {**self.initial.measures, **self.personalized.measures}:
            row |= {f"{stage}_{measure}": found.measures.get(measure, math.nan) for stage, found in stages.items()}
        for measure in (field.name for field in dataclasses.fields(FeatureProbe)) if self.probes else ():
            probes = zip(STAGES, self.probes, strict=True)
            row |= {f"{stage}_{measure}": getattr(probe, measure) for stage, probe in probes}
        row |= {f"{self.name}_epoch_{epoch}": evaluation.score for epoch, evaluation in enumerate(self.curve)}
        lists = {key: list(value) for key, value in row.items() if isinstance(value, Sequence)}
        return {key: value for key, value in row.items() if key not in lists} | lists
