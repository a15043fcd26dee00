"""What a client learns. Nothing outside this folder imports from ``tasks.images``: it asks ``task_of``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_fedbabu.config import Config
    from lit_fedbabu.tasks.images.task import ImageClassification


def task_of(config: "Config") -> "ImageClassification":
    """The task of a configuration. Its dataset is read when something of it is first asked for."""
    from lit_fedbabu.tasks.images.task import ImageClassification  # imports PyTorch, which takes seconds

    return ImageClassification(config)
