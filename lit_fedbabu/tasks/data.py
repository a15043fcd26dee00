"""What training needs of a task: the data of a client or of a cohort, and measures of predictions."""

from collections.abc import Sequence

from lit_fedbabu.tasks.images.cohort_data import CohortData
from lit_fedbabu.tasks.images.datamodule import ClientData
from lit_fedbabu.tasks.images.measures import Predicted, feature_probe
from lit_fedbabu.tasks.images.task import ImageClassification

__all__ = ["ClientData", "CohortData", "ImageClassification", "Predicted", "feature_probe", "together"]


def together(members: Sequence[ClientData]) -> ClientData | CohortData:
    """The images of several clients side by side; those of one client as they are."""
    return members[0] if len(members) == 1 else CohortData(members)
