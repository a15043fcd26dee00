"""The loaders of a LightningDataModule: one, a collection of them, or a ``CombinedLoader``."""

import copy
from typing import Any


def samples_of(loaders: Any) -> int:
    """Samples of a loader, or of several together."""
    return sum(len(loader.dataset) for loader in _together(loaders).flattened)


def batches_of(loaders: Any) -> int | None:
    """Batches of an epoch of a loader, or of several together as a Trainer takes them; None: one does not say."""
    together = _together(loaders)
    try:
        together.flattened = [range(len(loader)) for loader in together.flattened]
    except TypeError:
        return None
    return len(iter(together))


def _together(loaders: Any) -> Any:
    from lightning.pytorch.utilities import CombinedLoader  # imports PyTorch, which takes seconds

    return copy.copy(loaders) if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
