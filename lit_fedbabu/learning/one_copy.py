"""One copy of a base in memory for all workers that were forked from one process (Linux)."""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_fedbabu.workers import serving

ALIGNED = 64
"""Bytes that a tensor begins at a multiple of."""


def share(base: Mapping[str, Tensor]) -> None:
    """Have these tensors lie in the memory that workers share, where the same ones lie there; no number changes.

    The first worker of a run writes them there. Tensors of a GPU, and those whose numbers lie in another order in
    memory than their indices say, are left where they are.
    """
    own = {name: value for name, value in base.items() if _is_plain(value)}
    if (file := serving.COMMON) is None or not own:
        return
    import fcntl  # of Unix

    forms = json.dumps([(name, str(value.dtype), list(value.shape)) for name, value in own.items()])
    head, places, end = hashlib.sha256(forms.encode()).digest(), dict[str, int](), ALIGNED
    for name, value in own.items():
        places[name] = end
        end += -(-value.nbytes // ALIGNED) * ALIGNED
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        if not os.fstat(file).st_size:
            os.ftruncate(file, end)
            with mmap.mmap(file, end) as whole:
                for name, value in own.items():
                    whole[places[name] : places[name] + value.nbytes] = _bytes(value).numpy().data
                whole[: len(head)] = head
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
    if os.fstat(file).st_size != end:
        return
    kept = mmap.mmap(file, end, access=mmap.ACCESS_COPY)
    if kept[: len(head)] != head:
        return
    for name, value in own.items():
        there = torch.frombuffer(kept, dtype=value.dtype, count=value.numel(), offset=places[name]).view(value.shape)
        if torch.equal(_bytes(there), _bytes(value)):
            value.data = there


def _is_plain(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.is_contiguous() and value.numel() > 0


def _bytes(value: Tensor) -> Tensor:
    return value.detach().reshape(-1).view(torch.uint8)
