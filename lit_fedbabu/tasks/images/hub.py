"""Datasets of the Hugging Face hub, also where it cannot be reached."""

import importlib
import threading
from typing import Any

from lit_fedbabu.ground.errors import InputError
from lit_fedbabu.learning import reach

SUBSETS = {"ufldl-stanford/svhn": "cropped_digits"}
"""The subset that a hub dataset is read from, where the name does not say it as in "owner/name:subset"."""


def read(dataset: str) -> dict[str, Any]:
    """The splits of a hub dataset by their names, as tables of the ``datasets`` library.

    Args:
        dataset: a hub name "owner/name" or "owner/name:subset".

    Raises:
        InputError: the hub cannot be reached and has nothing cached, or the dataset cannot be loaded.
    """
    threading.Thread(target=importlib.import_module, args=["datasets"]).start()  # takes seconds, while the hub answers
    reachable = reach.answers()
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    name, _, subset = dataset.partition(":")
    try:
        with reach.offline(not reachable):
            return dict(load_dataset(name, subset or SUBSETS.get(name)))
    except Exception as error:  # datasets raises many kinds, from its own and its dependencies' modules
        if not reachable:
            raise InputError(
                "dataset",
                dataset,
                "is no folder here, and the hub cannot be reached and nothing is cached; three ways out: a network,"
                ' dataset="<local folder>", or dataset="digits"',
            ) from None
        raise InputError("dataset", dataset, f"cannot be loaded: {' '.join(str(error).split())[:300]}") from None
