"""``lit-fedbabu doctor [CONFIG.toml] [key=value ...]``: what a run needs on this machine, one line each."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lit_fedbabu.completion import Parser, complete, option_words
from lit_fedbabu.config import Config
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground import system
from lit_fedbabu.ground.errors import RunError, of_system, one_line_errors
from lit_fedbabu.ground.files import from_home, refuse_unwritable
from lit_fedbabu.ground.printing import in_line, say, waiting

LEAST_DISK = 100e6
"""Bytes that must be free where a run writes."""
LITTLE_MEMORY = 1e9
"""Bytes, about those of one worker and of the process that it was forked from."""
LIBRARIES = ("torch", "torchvision", "lightning", "flwr.serverapp")
WORKER_TIMEOUT_S = 120.0
DRIVER = Path("/proc/driver/nvidia/version")


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu doctor",
        description="Look at what a run with these options needs on this machine: a line each. Exit status 1 where"
        " something fails that it cannot do without.",
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG.toml|KEY=VALUE", help="options as of lit_fedbabu.run")
    complete(parser, words=option_words)
    arguments = parser.parse_intermixed_args(argv)
    config = Config.from_run_config(parse_words(arguments.words))
    failed = [name for name, look in CHECKS.items() if not _told(name, look, config)]
    if failed:
        raise RunError(f"{', '.join(failed)}: a run cannot do without; the lines above say what to do")
    say(system.next_step("run", *(arguments.words or ["demo"])))
    return 0


def _told(name: str, look: Callable[[Config], str], config: Config) -> bool:
    """Print what a check found; whether it passed."""
    try:
        with waiting(name):
            found, passed = look(config), True
    except OSError as error:
        found, passed = f"FAILS: {of_system(error)}", False
    except Exception as error:  # whatever is broken, the other lines are told
        found, passed = f"FAILS: {' '.join(str(error).split()) or type(error).__name__}", False
    say(f"{name:<10} {in_line(found)}")
    return passed


def versions(config: Config) -> str:
    """Versions of what results depend on."""
    return ", ".join(f"{name} {version}" for name, version in system.versions().items())


def machine(config: Config) -> str:
    """The operating system and where this Python is."""
    return f"{platform.platform()}, {sys.executable}"


def cores(config: Config) -> str:
    """Cores that this process may use."""
    return (
        f"{system.available_cores()} of {os.cpu_count()} may be used, num-threads={config.num_threads} by each worker"
    )


def memory(config: Config) -> str:
    """The memory of this machine, and what this process may have of it, in its container or Slurm job too."""
    import psutil

    available = system.available_memory()
    told = f"{psutil.virtual_memory().total / 1e9:.1f} GB, of which this process may have {available / 1e9:.1f}"
    if available < LITTLE_MEMORY:
        told += "; note: little for a run, end other programs, or take a greater num-threads, which makes fewer workers"
    return told


def imports(config: Config) -> str:
    """Whether the libraries can be imported; torch and torchvision of different builds cannot."""
    begun = time.monotonic()
    try:
        for name in LIBRARIES:
            importlib.import_module(name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"{reason}; install the package anew, with torch and torchvision from one index") from None
    return f"{', '.join(LIBRARIES)} in {time.monotonic() - begun:.1f} s"


def gpu(config: Config) -> str:
    """The GPUs that PyTorch can compute on."""
    import torch

    if not torch.cuda.is_available():
        unused = f"; note: an NVIDIA driver is here, and this PyTorch ({torch.__version__}) finds no GPU by it"
        return f"none; runs use the CPU{unused if DRIVER.exists() else ''}"
    found = []
    for place in range(torch.cuda.device_count()):
        try:
            torch.ones(1, device=f"cuda:{place}").add_(1).cpu()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"GPU {place} does not compute: {reason}; free it, install a PyTorch built for it, or hide it by"
                " CUDA_VISIBLE_DEVICES"
            ) from None
        about = torch.cuda.get_device_properties(place)
        found.append(f"{about.name} with {about.total_memory / 1e9:.1f} GB")
    return f"{', '.join(found)}; torch is built for CUDA {torch.version.cuda}"


def precision(config: Config) -> str:
    """The precision that training has here."""
    from lit_fedbabu.learning.precision import trains_on

    return f"{config.precision}: {trains_on(config.precision)}"


def output(config: Config) -> str:
    """Free space where runs are written."""
    place = from_home(config.output_dir).resolve()
    refuse_unwritable("output-dir", place)
    return _free(place, "output-dir=PLACE")


def cache(config: Config) -> str:
    """Free space where decoded images are kept."""
    from lit_fedbabu.learning.cache import folder

    refuse_unwritable("cache", folder())
    return _free(folder(), "XDG_CACHE_HOME=PLACE")


def _free(place: Path, other: str) -> str:
    free = shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free
    if free < LEAST_DISK:
        raise RunError(f"{place} has {free / 1e6:.0f} MB free; free some space, or name another place by {other}")
    return f"{place}, {free / 1e9:.1f} GB free"


def hub(config: Config) -> str:
    """Whether the Hugging Face hub answers. Runs can do without."""
    from lit_fedbabu.learning import reach

    where = reach.endpoint()
    if reach.answers():
        return f"{where} answers"
    without = "digits, folders of your own and what is in its cache work without it"
    return f"{where} does not answer (HF_HUB_OFFLINE, HF_ENDPOINT and proxies decide); {without}"


def worker(config: Config) -> str:
    """Start a worker as runs do, and have two nodes answer a message of Flower's."""
    from lit_fedbabu.engines import local
    from lit_fedbabu.records.progress import Lines
    from lit_fedbabu.server.nodes import find_nodes
    from lit_fedbabu.workers.worker import Warm, threads

    small = Config(dataset="digits", num_clients=2, num_threads=config.num_threads)
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lfb-") as folder,
        Warm("lit_fedbabu.client_app:prepare", environment=threads(config.num_threads)) as warm,
        local.started(small, warm, Path(folder), Lines()) as grid,
    ):
        warm.start()
        nodes = find_nodes(grid, Lines().say, WORKER_TIMEOUT_S)
    return f"{len(nodes)} nodes answered a message of Flower's, {time.monotonic() - begun:.1f} s after the start"


CHECKS = {
    "versions": versions, "machine": machine, "cores": cores, "memory": memory, "imports": imports, "gpu": gpu,
    "precision": precision, "output-dir": output, "cache": cache, "hub": hub, "worker": worker,
}  # fmt: skip
"""What is looked at, by the word that its line begins with."""


if __name__ == "__main__":
    sys.exit(main())
