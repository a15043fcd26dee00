"""A model that kills the worker that trains it on few images."""

import os
import signal

import psutil
import torch

from tests.support import narrow_model

FEW = 30


class Deadly(torch.nn.Module):
    """Leaves images as they are, or ends the process."""

    def forward(self, images):
        parent = " ".join(psutil.Process(os.getppid()).cmdline())
        if self.training and len(images) < FEW and "lit_fedbabu.workers.warm" in parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return images


def model(num_classes, norm, channels):
    whole = narrow_model(num_classes, norm, channels)
    whole.body.insert(0, Deadly())
    return whole
