"""A new classifier as the hyper-parameters of ``LitFedBABU`` say."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lit_fedbabu.learning.base import frozen_names, still, take_out
from lit_fedbabu.learning.models import build_model, in_format
from lit_fedbabu.learning.neighbors import with_neighbors
from lit_fedbabu.learning.simplex import with_simplex
from lit_fedbabu.learning.trainable import restrict


def classifier(options: Mapping[str, Any]) -> nn.Module:
    """A model of body and head, whose base is taken out.

    Args:
        options: the hyper-parameters of ``LitFedBABU``; those that older checkpoints lack have its defaults.
    """
    get, seed = options.get, options.get("model_seed", 0)
    made = options["model_name"], options["num_classes"], seed, options["norm"], options["channels"]
    model = build_model(*made, get("image_size", 32))
    restrict(model, ["body"], get("trainable", "all"), seed)
    base = still(model, frozen_names(model))
    model = with_neighbors(with_simplex(model, seed) if get("head") else model, get("neighbors", ()))
    model = in_format(model, getattr(torch, get("dtype", "float32")))
    take_out(model, base)
    return model
