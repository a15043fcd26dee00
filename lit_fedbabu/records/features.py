"""Features of bodies for the PROJECTOR tab."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lit_fedbabu.experiment import Experiment
from lit_fedbabu.learning.module import LitFedBABU

CLIENTS_SHOWN, IMAGES_SHOWN = 20, 25
"""Clients in the PROJECTOR tab, the first ones, and test images of each."""


def features_of(experiment: Experiment, models: Iterable[tuple[int, LitFedBABU]]) -> tuple[Tensor, list[str]]:
    """What bodies make of test images of their clients: features (N, F), and the class of each image.

    Args:
        experiment: of images.
        models: clients and their models; the first ones are shown.
    """
    names, features, classes = experiment.task.class_names, [], []
    for (client, module), _ in zip(models, range(CLIENTS_SHOWN), strict=False):
        data = experiment.client_data(client, 0)
        images, labels = data.test_set.tensors
        with torch.inference_mode():  # all images as one batch, whose statistics batch norm may use
            found = module.eval().model.get_submodule("body")(data.prepare(images, None)).flatten(1)
        features.append(found[:IMAGES_SHOWN].float())
        classes += [names[label] for label in labels[:IMAGES_SHOWN].tolist()]
    return torch.cat(features), classes
