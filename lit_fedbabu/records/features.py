"""Features of bodies for the PROJECTOR tab."""

from collections.abc import Iterable

import torch

from lit_fedbabu.learning.state import Learner
from lit_fedbabu.records.tensorboard import Features
from lit_fedbabu.training.experiment import Experiment

CLIENTS_SHOWN, IMAGES_SHOWN = 20, 25
"""Clients in the PROJECTOR tab, the first ones, and test images of each."""


def features_of(experiment: Experiment, models: Iterable[tuple[int, Learner]]) -> Features:
    """What bodies make of test images of their clients: features (N, F), and class and client of each.

    Args:
        experiment: of images.
        models: clients and their models; the first ones are shown.
    """
    names, owners, features, rows = experiment.task.class_names, experiment.task.client_names, [], []
    for (client, module), _ in zip(models, range(CLIENTS_SHOWN), strict=False):
        found, labels = experiment.classifier.features(module, experiment.client_data(client, 0))
        features.append(found[:IMAGES_SHOWN].float())
        whose = owners[client] if owners else str(client)
        rows += [(names[label], whose) for label in labels[:IMAGES_SHOWN].tolist()]
    return torch.cat(features), rows
