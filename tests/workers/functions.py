"""What workers are asked for in these tests."""

import os
import signal
import sys
from pathlib import Path

from lit_fedbabu.ground.places import scratch
from lit_fedbabu.workers.pool import Pool
from lit_fedbabu.workers.worker import Warm


def fail_to_prepare():
    raise ImportError("no such module")


def twice(number):
    print("printed by a worker")
    return os.getpid(), 2 * number


def gpu(number):
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def refuse(number):
    raise ValueError(f"{number} is odd")


def kill_itself_once(marker, number):
    """The first worker that gets here dies."""
    try:
        Path(marker).touch(exist_ok=False)  # by one of several that come at once
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    return number


def kill_itself(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exit_with(status):
    os._exit(status)


def unpicklable():
    return lambda: 1


def surroundings():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), sys.path[0], os.getppid()


def same_object(first, second):
    return first is second, first.value


class Heavy:
    """An object that counts how often it was pickled."""

    def __init__(self, value):
        self.value = value
        self.pickled = 0

    def __reduce__(self):
        self.pickled += 1
        return Heavy, (self.value,)


def forked_again():
    """The parent of this worker, and of a worker that it has."""
    with Warm.here("never:prepared") as warm, Pool(warm, 1) as pool:
        ((_, (_, _, parent)),) = pool.answers(f"{__name__}:surroundings", [()])
    return [os.getppid(), parent]


def where_a_base_lies(seed):
    """Of a base with these random weights: whether it is in the common file, and its sums before and after."""
    import torch
    from torch import nn

    from lit_fedbabu.learning.one_copy import share

    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(300, 300).requires_grad_(False)
    layer.register_buffer("steps", torch.tensor(seed))
    layer.weight.copy_(torch.randn(300, 300, generator=draw))
    base = {"weight": layer.weight, "steps": layer.steps}
    before = [value.double().sum().item() for value in base.values()]
    share(base)
    after = [value.double().sum().item() for value in (layer.weight, layer.steps)]
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:common" in line]
    at = layer.weight.data_ptr()
    inside = any(int(span[0].split("-")[0], 16) <= at < int(span[0].split("-")[1], 16) for span in spans)
    with torch.no_grad():
        layer.weight.zero_()  # others do not see it
    return inside, before, after


left: list[object] = []


def leave_folder():
    """A temporary folder that is not removed by who made it."""
    left.append(scratch())
    return left[-1].name
