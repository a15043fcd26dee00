"""The loaders of a LightningDataModule: whatever a Trainer takes, one or a collection of them."""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lit_fedbabu.ground.compat import loaders_made_again
from lit_fedbabu.ground.errors import told

ENDLESS = 1_000_000
"""Samples after which a loader without a length is taken for one without an end."""


class Singles(list[Any]):
    """A batch as batches of one sample each."""


def samples_of(loaders: Any) -> int:
    """Samples of a loader, or of several together. Those of a loader without a length are counted by reading it.

    Raises:
        ValueError: it does not end.
    """
    return sum(map(_samples_of, _together(loaders).flattened))


def batches_of(loaders: Any) -> int | None:
    """Batches of an epoch of a loader, or of several together as a Trainer takes them; None: one does not say."""
    together = _together(loaders)
    try:
        together.flattened = [range(len(loader)) for loader in together.flattened]
    except (TypeError, NotImplementedError):
        return None
    return len(iter(together))


def samples_in(batch: Any) -> int:
    """Samples of a batch: the length of its first tensor; 1 if it has none."""
    from torch import Tensor

    if isinstance(batch, Singles):
        return len(batch)
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    if dataclasses.is_dataclass(batch):
        batch = vars(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    kinds = (Tensor, Mapping, list, tuple)
    inner = [part for part in parts if isinstance(part, kinds) or dataclasses.is_dataclass(part)]
    return samples_in(inner[0]) if inner else 1


def undealt(make: Callable[[], Any], devices: int) -> str:
    """Why Lightning would not deal the samples of a loader that is made, or of several, to devices; empty: it would.

    It shuffles those of all loaders with an index, and gives streams and other iterables to every device whole.
    """
    from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

    with loaders_made_again() as again:
        for loader in _together(make()).flattened:
            if not isinstance(loader, DataLoader):
                return f"is a {type(loader).__name__}, which is not dealt to devices; make it a DataLoader"
            if type(loader.batch_sampler) not in (BatchSampler, type(None)):
                return "makes batches by a sampler of its own, which is not dealt to devices; take batch_size"
            sampler: Any = loader.sampler
            shuffles = type(sampler) is RandomSampler and not sampler.replacement
            if not shuffles or sampler.num_samples != len(sampler.data_source):
                remedy = "take a dataset with an index and shuffle=True"
                return f"takes samples by a {type(sampler).__name__}, and devices would take theirs shuffled; {remedy}"
            try:
                again(loader, DistributedSampler(loader.dataset, devices, 0))
            except Exception as error:  # of Lightning's, or whatever the user's loader raises
                return f"cannot be made anew for each device: {told(error)}"
    return ""


def _samples_of(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        count = 0
    for batch in loader:
        count += samples_in(batch)
        if count > ENDLESS:
            raise ValueError(f"a loader does not end within {ENDLESS} samples; give its dataset __len__")
    return count


def _together(loaders: Any) -> Any:
    from lightning.pytorch.utilities import CombinedLoader  # imports PyTorch, which takes seconds

    if isinstance(loaders, CombinedLoader):
        return copy.copy(loaders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of what Lightning uses inside
        return CombinedLoader(loaders, "max_size_cycle")
