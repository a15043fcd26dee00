"""A model that kills the process of whoever trains it on few images."""

import os
import signal

import torch

from tests.support import narrow_model

FEW = 30


class Deadly(torch.nn.Module):
    """Leaves images as they are, or ends the process."""

    def forward(self, images):
        if self.training and len(images) < FEW:
            os.kill(os.getpid(), signal.SIGKILL)
        return images


def model(num_classes, norm, channels):
    whole = narrow_model(num_classes, norm, channels)
    whole.body.insert(0, Deadly())
    return whole
