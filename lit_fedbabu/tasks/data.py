"""What training needs of a task: the data of a client or of a cohort, and measures of predictions."""

from lit_fedbabu.tasks.images.cohort_data import CohortData
from lit_fedbabu.tasks.images.datamodule import ClientData
from lit_fedbabu.tasks.images.measures import Predicted, feature_probe
from lit_fedbabu.tasks.images.task import ImageClassification

__all__ = ["ClientData", "CohortData", "ImageClassification", "Predicted", "feature_probe"]
