"""Models of users, as they bring them: ``tests.own_models:name``."""

import os
import random

import lightning as L
import numpy as np
import torch
from torch import nn

from lit_fedbabu.learning.models import BodyAndHead

WIDTH = 8


def _flat(channels, size=32):
    return [nn.Flatten(), nn.Linear(channels * size * size, WIDTH), nn.ReLU()]


def plain(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels)), nn.Linear(WIDTH, num_classes))


class Scale(nn.Module):
    """A weight of no dimensions."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, features):
        return features * self.factor


def scalar(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels), Scale()), nn.Linear(WIDTH, num_classes))


def tied(num_classes, norm, channels):
    """One layer in two places, and one weight in two layers."""
    block, other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    other.bias = block.bias
    body = nn.Sequential(*_flat(channels), block, nn.ReLU(), block, nn.ReLU(), other)
    return BodyAndHead(body, nn.Linear(WIDTH, num_classes))


def across(num_classes, norm, channels):
    shared = nn.Linear(WIDTH, WIDTH)
    return BodyAndHead(nn.Sequential(*_flat(channels), shared), nn.Sequential(shared, nn.Linear(WIDTH, num_classes)))


def views(num_classes, norm, channels):
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    second.weight = nn.Parameter(first.weight.data.t())
    return BodyAndHead(nn.Sequential(*_flat(channels), first, second), nn.Linear(WIDTH, num_classes))


def counting(num_classes, norm, channels):
    """Running statistics and a counter of batches, whatever norm is."""
    body = nn.Sequential(nn.Conv2d(channels, WIDTH, 3, 4), nn.BatchNorm2d(WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return BodyAndHead(body, nn.Linear(WIDTH, num_classes))


def dropout(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels), nn.Dropout(0.5)), nn.Linear(WIDTH, num_classes))


class Noisy(nn.Module):
    """Draws from every global generator, in evaluation too."""

    def forward(self, features):
        return features * (1 + 0.1 * torch.rand(1)) * random.uniform(0.9, 1.1) * np.random.uniform(0.9, 1.1)


def noisy(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels), Noisy()), nn.Linear(WIDTH, num_classes))


def lazy(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(nn.Flatten(), nn.LazyLinear(WIDTH)), nn.Linear(WIDTH, num_classes))


def thirteen(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels)), nn.Linear(WIDTH, 13))


def norm_of_features(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels), nn.BatchNorm1d(WIDTH)), nn.Linear(WIDTH, num_classes))


def for_224_pixels(num_classes, norm, channels):
    return BodyAndHead(nn.Sequential(*_flat(channels, 224)), nn.Linear(WIDTH, num_classes))


def half(num_classes, norm, channels):
    return plain(num_classes, norm, channels).to(torch.bfloat16)


def complex_weights(num_classes, norm, channels):
    model = plain(num_classes, norm, channels)
    model.body.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


class Pair(nn.Module):
    def forward(self, features):
        return features, features


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def pair(num_classes, norm, channels):
    head = nn.Sequential(First(), nn.Linear(WIDTH, num_classes))
    return BodyAndHead(nn.Sequential(*_flat(channels), Pair()), head)


def frozen_head(num_classes, norm, channels):
    model = plain(num_classes, norm, channels)
    model.head.requires_grad_(False)
    return model


def frozen_layer(num_classes, norm, channels):
    """A body whose first layer its maker has frozen."""
    body = nn.Sequential(*_flat(channels), nn.Linear(WIDTH, WIDTH))
    body[1].requires_grad_(False)
    return BodyAndHead(body, nn.Linear(WIDTH, num_classes))


def with_weight_norm(num_classes, norm, channels):
    model = plain(num_classes, norm, channels)
    nn.utils.parametrizations.weight_norm(model.body[1])
    return model


class Lit(L.LightningModule):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.body, self.head = nn.Sequential(*_flat(channels)), nn.Linear(WIDTH, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


def lightning(num_classes, norm, channels):
    return Lit(num_classes, channels)


def not_everywhere(num_classes, norm, channels):
    """A model that needs what a machine with the variable BROKEN has not."""
    if os.environ.get("BROKEN"):
        raise ValueError("its file of weights is not here")
    return plain(num_classes, norm, channels)
